//! Power as a UPS says it, through the daemon `upsd` of Network UPS Tools.
//!
//! [`NutSource`] asks upsd many times a second over one connection, and connects again with growing pauses when that breaks. What
//! is stale, refused or not understood is unknown, with the reason. [`protocol`] is what upsd says, [`client`] how it is asked.

pub mod client;
pub mod protocol;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use client::Credentials;
use client::{Connection, NutError};
use protocol::{Reading, meaning};

use super::{PowerSource, PowerState};

/// How long upsd may take to take a connection, and for each answer: it answers from memory, in a tenth of a millisecond.
const WITHIN: Duration = Duration::from_secs(1);

/// First and longest pause before it is connected to again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Which UPS, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NutSetup {
    /// `host:port` of upsd.
    pub server: String,
    /// Name of the UPS there.
    pub ups: String,
    /// Who we are, where that matters.
    pub credentials: Option<Credentials>,
    /// Whether upsd is told that this machine lives on the UPS; needs credentials.
    pub login: bool,
}

/// A UPS.
#[derive(Debug)]
pub struct NutSource {
    setup: NutSetup,
    name: String,
    within: Duration,
    connection: Option<Connection>,
    /// Connection attempts that failed since the last good one, and when the next is due.
    failures: u32,
    due: Instant,
    fault: String,
}

impl NutSource {
    /// Connects when it is first asked.
    pub fn new(setup: NutSetup) -> NutSource {
        let name = format!("nut {}@{}", setup.ups, setup.server);
        let fault = "not connected yet".into();
        NutSource { setup, name, within: WITHIN, connection: None, failures: 0, due: Instant::now(), fault }
    }

    fn connect(&self) -> Result<Connection, NutError> {
        let mut connection = Connection::open(&self.setup.server, self.within)?;
        if let Some(who) = &self.setup.credentials {
            connection.log_in(who, self.setup.login.then_some(self.setup.ups.as_str()))?;
        }
        Ok(connection)
    }

    /// The connection could not be made or used.
    fn failed(&mut self, error: &NutError) {
        self.connection = None;
        self.fault = error.to_string();
        self.due = Instant::now() + PAUSES.0.saturating_mul(1 << self.failures.min(8)).min(PAUSES.1);
        self.failures = self.failures.saturating_add(1);
    }

    fn read(connection: &mut Connection, ups: &str) -> Result<Reading, NutError> {
        let mut optional = |name: &str| match connection.variable(ups, name) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_unsupported() => Ok(None),
            Err(error) => Err(error),
        };
        let runtime = optional("battery.runtime")?;
        let runtime_low = optional("battery.runtime.low")?;
        let charge = optional("battery.charge")?;
        // Last: it is the newest of what is told together.
        let status = connection.variable(ups, "ups.status")?;
        Ok(Reading { status, runtime, runtime_low, charge })
    }
}

impl PowerSource for NutSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&mut self) -> PowerState {
        if self.connection.is_none() && Instant::now() >= self.due {
            match self.connect() {
                Ok(connection) => self.connection = Some(connection),
                Err(error) => self.failed(&error),
            }
        }
        let Some(connection) = &mut self.connection else {
            return PowerState::unknown(&self.fault, Instant::now());
        };
        match NutSource::read(connection, &self.setup.ups) {
            Ok(reading) => {
                self.failures = 0;
                meaning(&reading, Instant::now())
            }
            Err(error) => {
                if error.is_answer() {
                    // The connection is sound: upsd lives and says why it knows nothing.
                    self.failures = 0;
                } else {
                    self.failed(&error);
                }
                PowerState::unknown(error.to_string(), Instant::now())
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> PowerState {
        std::thread::sleep(timeout);
        self.poll()
    }
}
