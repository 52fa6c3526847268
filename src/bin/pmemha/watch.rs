//! `pmemha status` and `pmemha events`.

use std::thread;
use std::time::Duration;

use clap::Args;

use pmemha::agent::clock::WallTime;
use pmemha::agent::status;
use pmemha::session::wire::{Reply, Request};

use crate::agent::{Agent, receive, unexpected};
use crate::failure::{Failure, SOFTWARE, UNAVAILABLE};
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
        if !self.watch {
            return self.show(agent);
        }
        loop {
            match self.show(agent) {
                // The agent may be about to be started again, which is just what is watched for.
                Err(Failure::Told { code: UNAVAILABLE, message }) => self.miss(&message)?,
                shown => shown?,
            }
            thread::sleep(PERIOD);
        }
    }

    fn show(&self, agent: &Agent) -> Result<(), Failure> {
        let document = match agent.ask(&Request::Status {})? {
            Reply::Status { document } => document,
            other => return Err(unexpected(&other)),
        };
        if self.json {
            return json_line(&document);
        }
        let status: status::Status = serde_json::from_value(document)
            .map_err(|e| Failure::new(SOFTWARE, format!("the agent is of another version: {e}")))?;
        let clear = if self.watch { CLEAR } else { "" };
        print(&format!("{clear}{}", status::text::render(&status)))
    }

    /// Says instead of a status that there is none.
    fn miss(&self, why: &str) -> Result<(), Failure> {
        let line = format!("! {}  {why}; asking again\n", WallTime::now());
        if self.json {
            eprint!("pmemha: {line}");
            return Ok(());
        }
        print(&format!("{CLEAR}{line}"))
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
