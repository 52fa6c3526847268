//! What an operator tells the agent to do with a group.

use clap::Args;

use pmemha::session::wire::{Reply, Request};

use crate::agent::{Agent, unexpected};
use crate::failure::Failure;

/// `pmemha cancel`
#[derive(Args)]
pub struct Cancel {
    /// The group
    group: String,
}

impl Cancel {
    pub fn execute(self, agent: &Agent) -> Result<(), Failure> {
        done(agent.ask(&Request::Cancel { group: self.group })?)
    }
}

/// `pmemha promote`
#[derive(Args)]
pub struct Promote {
    /// The group
    group: String,
    /// My word that the source is dead: what it had not yet made durable here is lost
    #[arg(long)]
    force: bool,
}

impl Promote {
    pub fn execute(self, agent: &Agent) -> Result<(), Failure> {
        done(agent.ask(&Request::Promote { group: self.group, force: self.force })?)
    }
}

/// `pmemha pause`, `pmemha resume`
#[derive(Args)]
pub struct Pause {
    /// The group
    group: String,
    /// The destination's node
    node: String,
}

impl Pause {
    /// Pauses the destination, or has it go on.
    pub fn execute(self, agent: &Agent, paused: bool) -> Result<(), Failure> {
        done(agent.ask(&Request::Pause { group: self.group, node: self.node, paused })?)
    }
}

fn done(reply: Reply) -> Result<(), Failure> {
    match reply {
        Reply::Ok {} => Ok(()),
        other => Err(unexpected(&other)),
    }
}
