//! `pmemha last-gasp`: begins it, and tells its steps until it is known whether the group was handed over.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;

use pmemha::agent::clock::WallTime;
use pmemha::agent::config::format_bytes;
use pmemha::failover::timeline::human;
use pmemha::session::socket::{Connection, SocketError};
use pmemha::session::wire::{Reply, Request};

use crate::agent::{Agent, gone, unexpected};
use crate::failure::Failure;
use crate::output::print;

/// `pmemha last-gasp`
#[derive(Args)]
pub struct LastGasp {
    /// The group
    group: String,
    /// Return as soon as it has begun
    #[arg(long)]
    no_wait: bool,
}

/// What the agent tells of a group.
struct Story<'a> {
    agent: &'a Agent,
    group: &'a str,
    events: Connection,
    asked: SystemTime,
    /// When it began.
    began: Option<SystemTime>,
}

impl LastGasp {
    /// Exit code: whether the group was handed over.
    pub fn execute(self, agent: &Agent) -> Result<u8, Failure> {
        let asked = SystemTime::now();
        match agent.ask(&Request::LastGasp { group: Some(self.group.clone()) })? {
            Reply::Ok {} => {}
            other => return Err(unexpected(&other)),
        }
        if self.no_wait {
            return Ok(0);
        }
        let events = agent.connect()?;
        events.send(&Request::Events { since: Some(0) }, None, Some(Instant::now() + LOOK)).map_err(gone)?;
        let mut story = Story { agent, group: &self.group, events, asked, began: None };
        if story.is_handed_over()? {
            return Ok(0);
        }
        Err(Failure::new(KEPT, format!("group `{}` was not handed over", self.group)))
    }
}

impl Story<'_> {
    /// Tells what happens, until it is known.
    fn is_handed_over(&mut self) -> Result<bool, Failure> {
        let mut idle = false;
        loop {
            let end = match self.events.recv(Some(Instant::now() + LOOK)) {
                Ok((Reply::Event { event }, _)) => self.hear(&event)?,
                Ok((other, _)) => return Err(unexpected(&other)),
                // A gasp may end without a word of its own, as when the agent has forgotten the events.
                Err(SocketError::TimedOut) => match self.state()?.as_str() {
                    "handed_over" | "demoted" => Some(true),
                    state if GASPING.contains(&state) => {
                        idle = false;
                        None
                    }
                    // Twice, so that one which has not yet begun is waited for.
                    _ => std::mem::replace(&mut idle, true).then_some(false),
                },
                Err(error) => return Err(gone(error)),
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn hear(&mut self, event: &Value) -> Result<Option<bool>, Failure> {
        let Some(WallTime(time)) = event["time"].as_str().and_then(WallTime::parse) else { return Ok(None) };
        if event["group"] != self.group || time < self.asked {
            return Ok(None);
        }
        let detail = &event["detail"];
        let what = detail["what"].as_str().unwrap_or("");
        if detail["what"].get("gasp_began").is_some() {
            self.began = Some(time);
        }
        let (told, end) = match (event["kind"].as_str().unwrap_or(""), what) {
            ("milestone", "") => ("the last gasp begins: the application is being frozen".into(), None),
            ("tail_durable", _) => {
                let took = Duration::from_micros(detail["took_us"].as_u64().unwrap_or(0));
                self.tell(time.checked_sub(took).unwrap_or(time), "nothing of the application runs")?;
                let bytes = format_bytes(detail["exposure_bytes"].as_u64().unwrap_or(0));
                (format!("the heir has everything durably: {bytes} were left"), None)
            }
            ("milestone", "ownership_given_up") => ("this node gives the group up".into(), None),
            ("saved", _) => ("the heir is told to take over".into(), None),
            ("milestone", "handed_over") => ("the heir has accepted the group".into(), Some(true)),
            ("milestone", "demoted") => ("the heir owns the group".into(), Some(true)),
            ("milestone", "gasp_called_off") => {
                ("called off: the application runs on here".into(), Some(false))
            }
            ("milestone", "ownership_returned") => {
                // On battery it goes to another one next.
                let goes_on = GASPING.contains(&&*self.state()?);
                ("the heir has given the group back".into(), (!goes_on).then_some(false))
            }
            ("milestone", "application_ended") => ("the application has ended".into(), None),
            ("alarm", _) => (format!("! {}", detail["message"].as_str().unwrap_or(what)), None),
            _ => return Ok(None),
        };
        self.tell(time, &told)?;
        Ok(end)
    }

    fn tell(&self, time: SystemTime, what: &str) -> Result<(), Failure> {
        let us = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
        print(&format!("{:>10}  {what}\n", human(us(time) - us(self.began.unwrap_or(self.asked)))))
    }

    /// The group's state, in a word.
    fn state(&self) -> Result<String, Failure> {
        match self.agent.ask(&Request::Status {})? {
            Reply::Status { document } => {
                let mut groups = document["groups"].as_array().into_iter().flatten();
                let group = groups.find(|group| group["name"] == self.group);
                Ok(group.and_then(|group| group["state"].as_str()).unwrap_or_default().to_owned())
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// States of a group between the beginning of a last gasp and its end.
const GASPING: [&str; 5] = ["freezing", "saving", "handing_over", "refreezing", "cancelling"];

/// How long nothing may happen before the group's state is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The group was not handed over.
const KEPT: u8 = 1;
