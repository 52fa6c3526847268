//! What can go wrong with a machine of the rig.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Output, Status};

/// Says what happened, to which machine or command, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// The host is of another architecture.
    #[error("the Soft-RoCE rig emulates x86-64 and needs an x86-64 host; this one is {0}")]
    Architecture(&'static str),
    /// Something that soft-roce/setup installs is not there.
    #[error("{0} is missing: soft-roce/setup installs what the Soft-RoCE rig needs")]
    Missing(String),
    /// A program of this workspace was not built.
    #[error("{} is missing: build it with `cargo build -p pmemha-rig`", .0.display())]
    NotBuilt(PathBuf),
    /// The host's system refused something.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A machine did not get ready.
    #[error("machine {machine} did not get ready: {why}\nThe end of its log, {}:\n{tail}", log.display())]
    Boot {
        /// Its name.
        machine: String,
        /// What was waited for, or failed.
        why: String,
        /// Its kernel log and what QEMU said.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A machine runs as many commands as it can.
    #[error("machine {machine} runs {limit} commands already, which is the most: wait for one of them")]
    Busy {
        /// Its name.
        machine: String,
        /// [`crate::COMMANDS`].
        limit: usize,
    },
    /// A command could not be started.
    #[error("`{command}` could not be started on machine {machine}: {why}")]
    NotStarted {
        /// Program and arguments.
        command: String,
        /// Where.
        machine: String,
        /// What that machine's system said.
        why: String,
    },
    /// A command did not end well, and had to.
    #[error("`{command}` on machine {machine} {}, and wrote:\n{}", output.status, output.shown())]
    Failed {
        /// Program and arguments.
        command: String,
        /// Where.
        machine: String,
        /// What it wrote, and how it ended.
        output: Output,
    },
    /// A command was killed since its time was over.
    #[error("`{command}` on machine {machine} was killed after {limit:?}; it had written:\n{}", output.shown())]
    TimedOut {
        /// Program and arguments.
        command: String,
        /// Where.
        machine: String,
        /// How long it was given.
        limit: Duration,
        /// What it wrote till then.
        output: Output,
    },
    /// A command ended before it wrote what was waited for.
    #[error("`{command}` on machine {machine} {status} without writing {pattern:?}")]
    NotSaid {
        /// Program and arguments.
        command: String,
        /// Where.
        machine: String,
        /// How it ended.
        status: Status,
        /// What was waited for.
        pattern: String,
    },
    /// A command wrote more than is kept of it.
    #[error(
        "`{command}` on machine {machine} wrote more than {limit} bytes and was killed: inherit its output, or send it to a file"
    )]
    TooMuchOutput {
        /// Program and arguments.
        command: String,
        /// Where.
        machine: String,
        /// The most that is kept.
        limit: usize,
    },
    /// The machine is gone.
    #[error("machine {machine} went away while `{command}` ran")]
    Gone {
        /// Program and arguments.
        command: String,
        /// Where.
        machine: String,
    },
    /// QEMU did not do what it was told.
    #[error("machine {machine}: QEMU's monitor, {doing}: {why}")]
    Monitor {
        /// Its name.
        machine: String,
        /// What was asked for.
        doing: String,
        /// What came instead.
        why: String,
    },
}

/// Names what was tried, where the system says what went wrong.
pub(crate) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, RigError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, RigError> {
        self.map_err(|e| RigError::System { doing: doing(), source: e.into() })
    }
}
