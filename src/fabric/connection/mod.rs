//! What every connection keeps, whatever its bytes travel over: which requests are in flight, what waits for the rooms
//! above, why it ended, and how its threads tell each other.
//!
//! Used by `tcp` and `verbs` alike, so that callers meet the same limits and are woken by the same rules.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `books` | requests, completions, immediates, the end: behind the connection's lock |
//! | `end` | why a connection ended |
//! | `signals` | what its threads wake each other by: beside that lock |

mod books;
mod end;
mod signals;

pub use self::books::{Books, LIMIT};
pub use self::end::End;
pub use self::signals::Signals;
