//! How the command ends when it fails: a message and an exit code by the conventions of sysexits.h.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

/// Why the command failed.
#[derive(Debug)]
pub enum Failure {
    /// Nobody reads our output any more: nothing to say, and no failure of ours.
    OutputClosed,
    /// Something to be told.
    Told {
        /// Exit code.
        code: u8,
        /// For a person.
        message: String,
    },
}

/// The arguments do not fit together.
pub const USAGE: u8 = 64;
/// Input data is wrong: an archive that cannot be read.
pub const DATA: u8 = 65;
/// No agent answers.
pub const UNAVAILABLE: u8 = 69;
/// An internal or system failure.
pub const SOFTWARE: u8 = 70;
/// An output file cannot be made.
pub const CANT_CREATE: u8 = 73;
/// The agent refused.
pub const NO_PERMISSION: u8 = 77;
/// The program to be run cannot be executed, as in a shell.
pub const CANT_EXECUTE: u8 = 126;
/// The program to be run does not exist, as in a shell.
pub const NOT_FOUND: u8 = 127;

impl Failure {
    /// A failure with `code`.
    pub fn new(code: u8, message: impl Display) -> Failure {
        Failure::Told { code, message: message.to_string() }
    }

    /// A failure of the system at `what`.
    pub fn system(what: impl Display) -> impl FnOnce(io::Error) -> Failure {
        move |e| Failure::new(SOFTWARE, format!("{what}: {e}"))
    }

    /// What it says.
    pub fn into_message(self) -> String {
        match self {
            Failure::OutputClosed => "nobody reads the output any more".into(),
            Failure::Told { message, .. } => message,
        }
    }

    /// Tells it and yields the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::OutputClosed => ExitCode::SUCCESS,
            Failure::Told { code, message } => {
                eprintln!("pmemha: {}", message.replace('\n', "\npmemha: "));
                ExitCode::from(code)
            }
        }
    }
}
