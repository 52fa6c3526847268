//! Standard output that may be closed at any time (`pmemha events | head -1`).

use std::io::{self, Write};

use crate::failure::{Failure, SOFTWARE};

/// Writes `text` and flushes.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::new(SOFTWARE, format!("writing to standard output: {e}")),
    })
}

/// Writes a value as one line of JSON.
pub fn json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|e| Failure::new(SOFTWARE, e))?;
    print(&format!("{line}\n"))
}
