//! `pmemha doctor`: what this machine offers pmemha.

use std::path::PathBuf;

use clap::Args;

use pmemha::agent::doctor::{Host, Verdict, examine};

use crate::failure::Failure;
use crate::output::{json_line, print};

/// Something that pmemha needs will fail.
const TROUBLE: u8 = 1;

/// `pmemha doctor`
#[derive(Args)]
pub struct Doctor {
    /// As one JSON document
    #[arg(long)]
    json: bool,
    /// Look at the machine whose /proc and /sys were copied below this directory; nothing is tried then
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Doctor {
    /// Prints what was found and returns the exit code.
    pub fn execute(self) -> Result<u8, Failure> {
        let host = self.root.as_deref().map_or_else(Host::this, Host::below);
        let diagnosis = examine(&host);
        if self.json {
            json_line(&diagnosis)?;
        } else {
            print(&diagnosis.text())?;
        }
        Ok(if diagnosis.verdict == Verdict::Trouble { TROUBLE } else { 0 })
    }
}
