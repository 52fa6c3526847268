//! Which copies are wanted, and which have been made.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::Shared;
use crate::locks::lock;
use crate::log::Debt;
use crate::log::format::CopyFor;
use crate::types::Lsn;

/// Asks a [`super::Syncer`] for copies; never blocks, and may be dropped anywhere.
pub struct Requester(pub(super) Arc<Shared>);

impl Requester {
    /// Every region is to be copied, beginning after this call; one under way starts anew. When this returns, the next agent
    /// would make the copy, should this one end before it is in the log.
    pub fn request(&self) {
        self.want(CopyFor::All, |wanted| wanted.asked.for_all += 1);
    }

    /// As [`Requester::request`], for a reader with no image that follows the stream: one with such an image goes on. `alone`: nobody
    /// else takes a copy that is under way, which is of no use then.
    pub fn request_for_newcomer(&self, alone: bool) {
        self.want(CopyFor::Newcomers, |wanted| {
            wanted.asked.for_newcomers += 1;
            wanted.asked.alone += u64::from(alone);
        });
    }

    /// As [`Requester::request_for_newcomer`], for the reader whose stream has this number, which has an image from before.
    pub fn request_for_one(&self, stream: u32, alone: bool) {
        self.want(CopyFor::One(stream), |wanted| {
            wanted.ones.insert(stream);
            wanted.asked.alone += u64::from(alone);
        });
    }

    fn want(&self, whom: CopyFor, note: impl FnOnce(&mut Wanted)) {
        let mut wanted = lock(&self.0.wanted);
        note(&mut wanted);
        // Both under the lock: a copy that ends just now must find neither taken back behind it.
        self.0.log().owe(debt(whom));
        self.0.busy.store(true, SeqCst);
        drop(wanted);
        self.0.asked.notify_all();
    }
}

/// How it is noted that a copy is owed.
pub(super) fn debt(whom: CopyFor) -> Debt {
    match whom {
        CopyFor::All => Debt::Copy,
        CopyFor::Newcomers | CopyFor::One(_) => Debt::Newcomer,
    }
}

/// Copies asked for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) asked: Asked,
    /// Up to this number, those for newcomers have been made.
    pub(super) made_for_newcomers: u64,
    /// Streams of readers that have an image from before, and lack a copy.
    pub(super) ones: BTreeSet<u32>,
}

/// Those for which any reader will do that takes them: how many so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// One that began earlier is of no use.
    pub(super) for_all: u64,
    /// One that began earlier is of no use to who asked.
    pub(super) for_newcomers: u64,
    /// Those for which one that is under way, for whomever, is given up.
    pub(super) alone: u64,
}

/// What the thread is at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errand {
    /// When it began.
    pub(super) asked: Asked,
    pub(super) whom: CopyFor,
}

/// A complete copy.
pub(super) struct Made {
    /// Just past it.
    pub(super) end: Lsn,
    /// Whoever had asked by its beginning has it, if it is for them.
    pub(super) asked: Asked,
    pub(super) ones: BTreeSet<u32>,
    /// Bytes whose content is in it.
    pub(super) sent: u64,
    /// Bytes that it refers to in the readers' images from before.
    pub(super) referred: u64,
}

impl Shared {
    /// Takes note of a complete copy; what has been asked for meanwhile stays owed. Idle only once an agent that comes after us would
    /// be, too.
    pub(super) fn settle(&self, whom: CopyFor, made: &Made) {
        self.end.store(made.end.0, Relaxed);
        *lock(&self.error) = None;
        let mut wanted = lock(&self.wanted);
        if whom == CopyFor::All {
            self.end_for_all.store(made.end.0, Relaxed);
            if wanted.asked.for_all == made.asked.for_all {
                self.log().settle(Debt::Copy);
            }
        }
        match whom {
            CopyFor::One(stream) => _ = wanted.ones.remove(&stream),
            // Newcomers take whichever copy comes.
            CopyFor::All | CopyFor::Newcomers => {
                wanted.made_for_newcomers = made.asked.for_newcomers;
                wanted.ones.retain(|stream| !made.ones.contains(stream));
            }
        }
        self.settle_newcomers(&wanted);
    }

    /// Takes note of it if no newcomer lacks a copy any more.
    pub(super) fn settle_newcomers(&self, wanted: &Wanted) {
        if wanted.ones.is_empty() && wanted.asked.for_newcomers == wanted.made_for_newcomers {
            self.log().settle(Debt::Newcomer);
        }
        let owes = self.log().owes(Debt::Copy) || self.log().owes(Debt::Newcomer);
        self.busy.store(owes, SeqCst);
    }
}
