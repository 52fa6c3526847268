//! `pmemha placement`: where groups of threads run.

use std::path::PathBuf;

use clap::Args;

use pmemha::agent::config::DEFAULT_FILE;
use pmemha::agent::placement::{configuration, dry_run};

use crate::agent::Agent;
use crate::failure::{DATA, Failure, SOFTWARE, UNAVAILABLE};
use crate::output::{json_line, print};

/// `pmemha placement`
#[derive(Args)]
pub struct Placement {
    /// As one JSON document
    #[arg(long)]
    json: bool,
    /// Without an agent: look for some seconds, say what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: the configuration whose groups are looked at
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, requires = "dry_run")]
    config: PathBuf,
    /// With --dry-run: seconds to look
    #[arg(long, default_value_t = 5, requires = "dry_run", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

impl Placement {
    /// Prints how it is.
    pub fn execute(self, agent: &Agent) -> Result<(), Failure> {
        let status = if self.dry_run {
            let config = configuration(&self.config).map_err(|e| Failure::new(DATA, e))?;
            // The agent's own threads are not this program's: there is no agent in a dry run.
            dry_run(&config, std::process::id(), self.seconds).map_err(|e| Failure::new(SOFTWARE, e))?
        } else {
            let off = "placement is off: `mode` in [placement] of pmemhad.conf turns it on; --dry-run shows what it would do";
            agent.status()?.placement.ok_or_else(|| Failure::new(UNAVAILABLE, off))?
        };
        if self.json { json_line(&status) } else { print(&status.text()) }
    }
}
