//! pmemhad: configuration, sessions, control protocol, status.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`config`] | the TOML file, checked as a whole, with messages that name line, key and remedy |
//! | [`control`] | the channel between agents |

pub mod config;
pub mod control;
