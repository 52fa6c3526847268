//! The lock-free heart of the log: claiming slots, publishing prefixes, going ahead and coming back.
//!
//! Written once over [`Cells`], so that the very code that runs on shared memory also runs in the shuttle model
//! (`protocol/model.rs`), where every interleaving and the death of any process between any two steps is explored.
//! Callers: `appender`, `region`, `consumer`.
//!
//! What makes it right. A claim is one compare-and-swap of the slot word at the tail; the tail
//! follows, moved by whoever comes by, so a claim never stands half made. A record's content is copied after its
//! claim, so it is never older than its place; a capture or drain returns only when each lower slot is complete, so nothing that
//! happens after it is in a lower record. A prefix is published only when each of its slots is complete.
//! A slot word changes lap forwards only, so whatever a stalled or dying process still does, it does to its own slot.

use super::format::{RECORD_ALIGN, SlotState, cell::AHEAD};
use super::slot::{Claim, SlotCodec, View};

/// A 64-bit word of shared memory. Loads acquire, stores release, read-modify-writes do both.
pub(crate) trait Word {
    fn load(&self) -> u64;
    fn store(&self, value: u64);
    /// Puts `new` in place of `old`; whether it stood there.
    fn swap_if(&self, old: u64, new: u64) -> bool;
    /// Raises to at least `value`; whether it was lower, and then a full fence.
    fn raise(&self, value: u64) -> bool;
    fn add(&self, delta: u64);
    fn sub(&self, delta: u64);
}

/// Where the words of a log are.
pub(crate) trait Cells {
    type W: Word;
    fn tail(&self) -> &Self::W;
    fn published(&self) -> &Self::W;
    fn free(&self) -> &Self::W;
    fn gap_start(&self) -> &Self::W;
    fn gap_end(&self) -> &Self::W;
    fn slot(&self, index: usize) -> &Self::W;
    fn inflight(&self, owner: u16) -> &Self::W;
    fn codec(&self) -> &SlotCodec;
    fn ring_bytes(&self) -> u64;
    /// Orders earlier stores before later loads.
    fn fence(&self);
}

/// What came of asking for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// `[lsn, lsn + span)` is the caller's to fill.
    Slot(u64),
    /// No room behind this tail.
    Full(u64),
    /// The application runs ahead of the log, which ends at this LSN.
    Ahead(u64),
}

/// What a publisher does about a slot that is claimed and not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// Look again.
    Retry,
    /// The owner is confirmed dead: make it a filler.
    OwnerDead,
    /// Publish what is complete below it, no more.
    Stop,
}

/// The tail, and whether the application runs ahead of it.
pub(crate) fn tail<C: Cells>(c: &C) -> (u64, bool) {
    let word = c.tail().load();
    (word & !AHEAD, word & AHEAD != 0)
}

/// Claims a slot of `span` bytes, a multiple of [`RECORD_ALIGN`] and at most a quarter of the ring.
#[inline]
pub(crate) fn claim<C: Cells>(c: &C, span: u64, owner: u16) -> Claimed {
    try_claim(c, span, owner).unwrap_or_else(|| claim_again(c, span, owner))
}

#[cold]
#[inline(never)]
fn claim_again<C: Cells>(c: &C, span: u64, owner: u16) -> Claimed {
    let attempts = (1..MAX_ATTEMPTS).find_map(|_| try_claim(c, span, owner));
    attempts.unwrap_or_else(|| Claimed::Full(tail(c).0))
}

/// One attempt; `None` if others moved the tail meanwhile.
#[inline]
fn try_claim<C: Cells>(c: &C, span: u64, owner: u16) -> Option<Claimed> {
    let tail = c.tail().load();
    if tail & AHEAD != 0 {
        return Some(Claimed::Ahead(tail & !AHEAD));
    }
    let slot = c.slot(c.codec().index(tail));
    let word = slot.load();
    if !c.codec().is_older(word, tail) {
        help_current(c, tail, word);
        return None;
    }
    // One unit stays spare, so that the word at the tail is never that of a record in use: it is
    // where going ahead is noted.
    let free = c.free().load();
    if free > tail {
        return None; // The tail that we read is long past.
    }
    if tail - free + span > c.ring_bytes() - RECORD_ALIGN {
        return Some(Claimed::Full(tail));
    }
    let mine = c.codec().pack(tail, Claim { state: SlotState::Reserved, owner, span });
    if !slot.swap_if(word, mine) {
        return None;
    }
    c.tail().swap_if(tail, tail.wrapping_add(span));
    Some(Claimed::Slot(tail))
}

/// See [`help`]; does nothing where `word` is of a later lap.
#[cold]
fn help_current<C: Cells>(c: &C, tail: u64, word: u64) {
    if let View::Current(claim) = c.codec().view(word, tail) {
        help(c, tail, claim);
    }
}

/// Moves the tail past a claim whose owner has not yet done so, or flags it where going ahead was noted.
fn help<C: Cells>(c: &C, tail: u64, claim: Claim) {
    if claim.span == 0 {
        note_gap(c, tail);
        c.tail().swap_if(tail, tail | AHEAD);
        // Again: the gap that was open just now may have ended since, and who ended it saw no flag.
        note_gap(c, tail);
    } else {
        c.tail().swap_if(tail, tail.wrapping_add(claim.span));
    }
}

/// Marks the caller's slot complete; everything it wrote before is visible to who sees the mark.
#[inline]
pub(crate) fn fill<C: Cells>(c: &C, lsn: u64, span: u64, owner: u16) {
    let word = c.codec().pack(lsn, Claim { state: SlotState::Filled, owner, span });
    c.slot(c.codec().index(lsn)).store(word);
}

/// Gives up the caller's slot: it becomes a filler.
pub(crate) fn abandon<C: Cells>(c: &C, lsn: u64, span: u64, owner: u16) {
    let word = c.codec().pack(lsn, Claim { state: SlotState::Filler, owner, span });
    c.slot(c.codec().index(lsn)).store(word);
}

/// Publishes every complete slot below `upto`, which is a tail that the caller has read. `complete`: every slot below is, as far
/// as the caller knows. `blocked` is asked about each slot that is not. Returns how far the log is published, and whether
/// this call moved it.
#[inline]
pub(crate) fn publish<C: Cells>(
    c: &C,
    complete: u64,
    upto: u64,
    blocked: impl FnMut(u64, Claim) -> Blocked,
) -> (u64, bool) {
    let from = complete.max(c.published().load());
    let at = if from < upto { walk(c, from, upto, blocked) } else { from };
    let moved = c.published().raise(at);
    (at.max(c.published().load()), moved)
}

/// Walks the slots from `at`, where a record begins, to `upto`, which is a tail that the caller has read or a slot of its
/// own. `blocked` is asked about each slot that is not complete. Returns an LSN below which every slot is.
///
/// A drain walks so that it may publish. A *capture* walks before it returns, and that is what keeps content from being newer
/// than its place: `flush(node); CAS(head)` orders node before head although nobody drained. Were the capture of node
/// to return while a lower slot, claimed for head by another thread, is still being copied into, that slot would pick up the
/// new head, and the prefix that ends between the two would hold a head without its node.
pub(crate) fn walk<C: Cells>(
    c: &C,
    mut at: u64,
    upto: u64,
    mut blocked: impl FnMut(u64, Claim) -> Blocked,
) -> u64 {
    // More than a ring cannot be outstanding; if it seems so, the words are forged.
    while at < upto && upto - at <= c.ring_bytes() {
        let slot = c.slot(c.codec().index(at));
        // Loaded before `blocked` looks at the owner's cell: a word found here is of no later owner than found there.
        let word = slot.load();
        match c.codec().view(word, at) {
            View::Current(Claim { span: 0, .. }) | View::Older => break,
            View::Current(claim) if claim.state != SlotState::Reserved => at += claim.span,
            View::Current(claim) => match blocked(at, claim) {
                Blocked::Retry => {}
                Blocked::OwnerDead => {
                    slot.swap_if(word, c.codec().pack(at, Claim { state: SlotState::Filler, ..claim }));
                }
                Blocked::Stop => break,
            },
            View::Newer => {
                // Someone published past here, and the place was used again.
                let published = c.published().load();
                if published <= at {
                    break;
                }
                at = published;
            }
        }
    }
    at
}

/// Notes at the tail that the application goes ahead of the log; whether this call did. The caller found no room at `tail`, or has
/// stored what no record tells of.
pub(crate) fn go_ahead<C: Cells>(c: &C, tail: u64, owner: u16) -> bool {
    let slot = c.slot(c.codec().index(tail));
    let word = slot.load();
    let mut done = false;
    if c.codec().view(word, tail) == View::Older {
        let stop = c.codec().pack(tail, Claim { state: SlotState::Reserved, owner, span: 0 });
        done = slot.swap_if(word, stop);
    }
    // Whoever put it there: if a stop stands there, the flag follows.
    help_current(c, tail, slot.load());
    done
}

/// Opens a gap at `tail`, unless one is open already. Late, when the gap at `tail` has ended long since, it changes nothing
/// that matters.
fn note_gap<C: Cells>(c: &C, tail: u64) {
    let start = c.gap_start().load();
    if start == 0 || (c.gap_end().load() > start && start < tail) {
        c.gap_start().swap_if(start, tail);
    }
}

/// Runs `set_bits` inside the owner's in-flight mark if the application is ahead; whether it ran.
///
/// Pairs with [`close_gap`]: either that sees the mark and waits, or we see the flag gone.
pub(crate) fn while_ahead<C: Cells>(c: &C, owner: u16, set_bits: impl FnOnce()) -> bool {
    let mark = c.inflight(owner);
    mark.add(1);
    c.fence();
    let ahead = c.tail().load() & AHEAD != 0;
    if ahead {
        set_bits();
    }
    mark.sub(1);
    ahead
}

/// Ends running ahead: the stop becomes a record of one unit, which the caller has written to the ring there, and the tail
/// moves past it. `false` if the log is not ahead, or its ring is not free up to the tail. May be called again after a
/// caller died in it. One caller at a time.
pub(crate) fn close_gap<C: Cells>(c: &C, write_record: impl FnOnce(u64)) -> bool {
    let (tail, ahead) = tail(c);
    if !ahead || c.free().load() != tail {
        return false;
    }
    // Who set the flag may have died, or be slow, before it noted the gap. Not noted, what comes to stand here would
    // acknowledge what happened in it. An `end_gap` of an earlier copy is over by now:
    // its end was acknowledged before the ring was free up to here.
    note_gap(c, tail);
    write_record(tail);
    let record = Claim { state: SlotState::Filled, owner: 0, span: RECORD_ALIGN };
    c.slot(c.codec().index(tail)).store(c.codec().pack(tail, record));
    c.tail().swap_if(tail | AHEAD, tail + RECORD_ALIGN);
    c.fence();
    true
}

/// The gap `[start, end)` is made good: the destination's durable image holds everything below `end`.
pub(crate) fn end_gap<C: Cells>(c: &C, end: u64) {
    c.gap_end().raise(end);
    let (tail, ahead) = tail(c);
    if ahead && tail >= end {
        // The application went ahead again while the first gap was open, and so did not note it.
        note_gap(c, tail);
    }
}

/// The newest gap: its start, and its end once it is made good.
pub(crate) fn gap<C: Cells>(c: &C) -> Option<(u64, Option<u64>)> {
    let start = c.gap_start().load();
    let end = c.gap_end().load();
    (start != 0).then_some((start, (end > start).then_some(end)))
}

/// Whether `lsn`, which a drain returned, lies in a gap that is open.
pub(crate) fn in_gap<C: Cells>(c: &C, lsn: u64) -> bool {
    // The flag first: a gap may be noted only after it, but for certain before it is taken off.
    let (tail, ahead) = tail(c);
    ahead && lsn > tail || matches!(gap(c), Some((start, None)) if lsn > start)
}

/// Makes a filler of every incomplete slot of `owner`, who is confirmed dead, so that its cell can be given away.
/// `still_its` says whether the cell still names the dead one: it is asked after each word was loaded, so that a word found
/// while it says so is none of the cell's next owner.
pub(crate) fn retire<C: Cells>(c: &C, owner: u16, still_its: impl Fn() -> bool) {
    walk_incomplete(c, |at, word, claim| {
        if claim.owner != owner {
            return true;
        }
        if still_its() {
            let filler = Claim { state: SlotState::Filler, ..claim };
            c.slot(c.codec().index(at)).swap_if(word, c.codec().pack(at, filler));
            return true;
        }
        false
    });
}

/// Whether a slot is claimed and not complete whose owner `waits_for` says will complete it.
pub(crate) fn any_incomplete<C: Cells>(c: &C, waits_for: impl Fn(u16) -> bool) -> bool {
    let mut found = false;
    walk_incomplete(c, |_, _, claim| {
        found = waits_for(claim.owner);
        !found
    });
    found
}

/// Shows `visit` every slot that is claimed and not complete, the newest claim included, until it says `false`.
fn walk_incomplete<C: Cells>(c: &C, mut visit: impl FnMut(u64, u64, Claim) -> bool) {
    // A claim whose tail move is outstanding lies outside the walk: move the tail first.
    let (mut end, ahead) = tail(c);
    let newest = c.codec().view(c.slot(c.codec().index(end)).load(), end);
    if let (View::Current(claim), false) = (newest, ahead) {
        help(c, end, claim);
        end = end.wrapping_add(claim.span);
    }
    let mut at = c.published().load();
    while at < end && end - at <= c.ring_bytes() {
        let word = c.slot(c.codec().index(at)).load();
        match c.codec().view(word, at) {
            View::Current(Claim { span: 0, .. }) | View::Older => break,
            View::Current(claim) => {
                if claim.state == SlotState::Reserved && !visit(at, word, claim) {
                    return;
                }
                at += claim.span;
            }
            View::Newer => {
                let published = c.published().load();
                if published <= at {
                    break;
                }
                at = published;
            }
        }
    }
}

/// Attempts at a claim before giving up. Each failed attempt means that another appender got a slot, so this many in
/// a row only happen where the words are forged; the agent, which appends too, must not spin on those for ever.
const MAX_ATTEMPTS: u32 = 1 << 20;

#[cfg(test)]
mod model;
