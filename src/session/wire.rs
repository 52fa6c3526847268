//! Messages between an application and the agent of its node, over a Unix `SOCK_SEQPACKET` socket.
//!
//! One message a packet, JSON, at most [`MAX_MESSAGE`] bytes; a descriptor rides on it by `SCM_RIGHTS` where
//! a message says so. The client asks, the agent answers each request once, in order. `docs/protocol.md`
//! specifies it.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::types::{Generation, GroupId, Level, Lsn, RegionId};

/// Version of this protocol; the agent refuses others with [`Reply::Error`].
pub const VERSION: u32 = 1;

/// Largest message; a longer one ends the session.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Where the agent listens, unless `PMEMHA_SOCKET` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/pmemha/pmemhad.sock";

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// First message of an application's session.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Group by name, else the group whose configuration admits the caller.
        group: Option<String>,
        /// Program name, for status.
        program: String,
        /// The session that this process had before and has lost: it is forgotten, whatever becomes of this one.
        after: Option<u32>,
    },
    /// Protect the file behind the attached descriptor. The agent finds its path itself.
    Protect {
        /// Bytes to be protected from offset 0 (the file's size if 0).
        len: u64,
        /// Protect although the configuration's patterns do not name it (C API, `pmemha run`).
        explicit: bool,
    },
    /// This process is about to map a protected file, and may store to it what it never flushes.
    Maps {
        /// Which.
        region: RegionId,
        /// How it finds its stores.
        by: crate::region::dirty::Kind,
    },
    /// The process records nothing further for this region, whose file it unlinked or replaced.
    Release {
        /// The region's number.
        region: RegionId,
    },
    /// The program is about to become another one, in the same process: once it has, that process's end is no failure of this one.
    Exec {},
    /// The program is about to exit of its own will: its end is no failure.
    Goodbye {
        /// Exit status if known.
        status: Option<i32>,
    },
    /// The launcher tells how the program that it started ended.
    Ended {
        /// Its pid.
        pid: u32,
        /// Exit code, if it exited.
        code: Option<i32>,
        /// Signal, if it was killed.
        signal: Option<i32>,
    },
    /// The last gasp, now.
    LastGasp {
        /// Group; the session's if none.
        group: Option<String>,
    },
    /// Operator: status of everything.
    Status {},
    /// Operator: from here on the agent sends [`Reply::Event`] messages.
    Events {
        /// Also those after this sequence number that are still remembered.
        since: Option<u64>,
    },
    /// Operator: promote the local image of a group.
    Promote {
        /// Group.
        group: String,
        /// The operator's word that the source is dead.
        force: bool,
    },
    /// Operator: call a last gasp off, or take the group back from the heir before it owns it.
    Cancel {
        /// Group.
        group: String,
    },
    /// Operator: ship nothing to a destination any more, or again.
    Pause {
        /// Group.
        group: String,
        /// The destination's node.
        node: String,
        /// Whether it is to be paused; false: it is to go on.
        paused: bool,
    },
    /// Operator: compare a group's regions with a destination's image.
    Verify {
        /// Group.
        group: String,
        /// The destination's node; the first one that counts if none.
        node: Option<String>,
        /// Bytes a second at most.
        rate: Option<NonZeroU64>,
        /// Bring the destination what differs.
        repair: bool,
    },
    /// Operator: finish and exit, as SIGTERM does.
    Shutdown {},
}

/// What the agent answers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// Answer to Hello; the log region's memfd is attached.
    Welcome {
        /// The agent's version of pmemha.
        agent: String,
        /// Group name.
        group: String,
        /// Its identity.
        group_id: GroupId,
        /// Its generation.
        generation: Generation,
        /// Number of this session in the group, unique per log region; goes into appender cells.
        session: u32,
        /// Which files are protected: glob patterns of absolute paths.
        protect: Vec<String>,
        /// Level that every drain waits for.
        commit: Level,
    },
    /// Answer to Protect.
    Protected {
        /// The region's number.
        region: RegionId,
        /// Bytes protected.
        len: u64,
        /// LSN just past the region's creation record.
        lsn: Lsn,
    },
    /// The file is not to be protected.
    NotProtected {
        /// Why.
        reason: String,
    },
    /// Done.
    Ok {},
    /// Answer to Ended: the program was killed because its group is another node's by now.
    HandedOver {
        /// The node.
        to: String,
    },
    /// Refused or failed.
    Error {
        /// For a person.
        message: String,
    },
    /// Answer to Verify: it has begun.
    Verifying {
        /// The destination's node.
        node: String,
        /// Number of the comparison.
        run: u64,
    },
    /// Answer to Status: the document that `pmemha status --json` prints.
    Status {
        /// See `agent::status`.
        document: serde_json::Value,
    },
    /// An event, see `agent::events`.
    Event {
        /// The event.
        event: serde_json::Value,
    },
}
