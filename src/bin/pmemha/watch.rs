//! `pmemha status` and `pmemha events`.

use std::thread;
use std::time::Duration;

use clap::Args;

use pmemha::agent::status;
use pmemha::session::wire::{Reply, Request};

use crate::agent::{Agent, receive, unexpected};
use crate::failure::{Failure, SOFTWARE};
use crate::output::{json_line, print};

/// `pmemha status`
#[derive(Args)]
pub struct Status {
    /// As JSON, one document a line
    #[arg(long)]
    json: bool,
    /// Again and again, every second
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub fn execute(self, agent: &Agent) -> Result<(), Failure> {
        loop {
            let document = match agent.ask(&Request::Status {})? {
                Reply::Status { document } => document,
                other => return Err(unexpected(&other)),
            };
            if self.json {
                json_line(&document)?;
            } else {
                let status: status::Status = serde_json::from_value(document)
                    .map_err(|e| Failure::new(SOFTWARE, format!("the agent is of another version: {e}")))?;
                let clear = if self.watch { CLEAR } else { "" };
                print(&format!("{clear}{}", status::text::render(&status)))?;
            }
            if !self.watch {
                return Ok(());
            }
            thread::sleep(PERIOD);
        }
    }
}

/// `pmemha events`
#[derive(Args)]
pub struct Events {
    /// Also the events after this number that the agent remembers; 0 for all
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
}

impl Events {
    pub fn execute(self, agent: &Agent) -> Result<(), Failure> {
        let connection = agent.connect()?;
        let mut reply = ask_events(&connection, self.since)?;
        loop {
            match reply {
                Reply::Event { event } => json_line(&event)?,
                other => return Err(unexpected(&other)),
            }
            reply = receive(&connection, None)?;
        }
    }
}

fn ask_events(
    connection: &pmemha::session::socket::Connection,
    since: Option<u64>,
) -> Result<Reply, Failure> {
    // The next event may take for ever to come.
    let sent = connection.send(&Request::Events { since }, None, None);
    sent.map_err(|e| Failure::new(SOFTWARE, e))?;
    receive(connection, None)
}

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Home and clear, as every terminal has understood since the VT100.
const CLEAR: &str = "\x1b[H\x1b[2J";
