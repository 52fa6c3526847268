//! The algorithm under every schedule that shuttle tries, deaths included, against an oracle of legal power-cut states.
//!
//! The program is the one that ordering is hardest for: writers push nodes, `node[i] = v; flush; head = v` (a locked
//! instruction, no drain), then flush head and drain; all of them race for head. A ring of eight units makes laps, full rings and gaps
//! common. Each variant of [`Bug`] breaks one rule, and its test shows that the oracle notices.

use std::sync::Arc;

use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
use shuttle::thread;

use super::*;

const RING: u64 = 256;
const FIRST: u64 = RING;
const SPAN: u64 = 64;
const HEAD: usize = 0;
const WRITERS: usize = 3;

/// A rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// The content is read before the slot is claimed.
    CopyBeforeReserve,
    /// A capture returns while lower slots are incomplete.
    CaptureDoesNotWait,
    /// A drain publishes whatever it finds, complete or not.
    DrainDoesNotWait,
    /// A slot word is swapped without looking at its lap.
    NoLapCheck,
    /// A drain in a gap returns the end of the log.
    TailInsteadOfTailPlusOne,
    /// Bits are set without looking at the flag again after the mark.
    NoSecondLook,
    /// A gap is closed without waiting for in-flight marks.
    CloseDoesNotWait,
    /// A slow owner's slot is taken for a dead one's.
    FillerForTheSlow,
}

struct ModelWord(AtomicU64);

impl ModelWord {
    fn new(value: u64) -> ModelWord {
        ModelWord(AtomicU64::new(value))
    }
}

impl Word for ModelWord {
    fn load(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn store(&self, value: u64) {
        self.0.store(value, SeqCst);
    }
    fn swap_if(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }
    fn raise(&self, value: u64) -> bool {
        self.0.fetch_max(value, SeqCst) < value
    }
    fn add(&self, delta: u64) {
        self.0.fetch_add(delta, SeqCst);
    }
    fn sub(&self, delta: u64) {
        self.0.fetch_sub(delta, SeqCst);
    }
}

struct Model {
    bug: Bug,
    tail: ModelWord,
    published: ModelWord,
    free: ModelWord,
    gap_start: ModelWord,
    gap_end: ModelWord,
    slots: Vec<ModelWord>,
    inflight: Vec<ModelWord>,
    codec: SlotCodec,
    /// Line and content of the record at each unit of the ring.
    records: Vec<(ModelWord, ModelWord)>,
    /// The program's persistent memory: head, then a node for each writer.
    memory: Vec<ModelWord>,
    /// Bit a line.
    dirty: ModelWord,
    /// Writers that ended, one way or another.
    finished: ModelWord,
    /// Which owners are dead.
    dead: Vec<ModelWord>,
    /// What each drain promised: LSN, then the head it made durable.
    promises: std::sync::Mutex<Vec<(u64, u64)>>,
}

impl Cells for Model {
    type W = ModelWord;
    fn tail(&self) -> &ModelWord {
        &self.tail
    }
    fn published(&self) -> &ModelWord {
        &self.published
    }
    fn free(&self) -> &ModelWord {
        &self.free
    }
    fn gap_start(&self) -> &ModelWord {
        &self.gap_start
    }
    fn gap_end(&self) -> &ModelWord {
        &self.gap_end
    }
    fn slot(&self, index: usize) -> &ModelWord {
        &self.slots[index]
    }
    fn inflight(&self, owner: u16) -> &ModelWord {
        &self.inflight[usize::from(owner)]
    }
    fn codec(&self) -> &SlotCodec {
        &self.codec
    }
    fn ring_bytes(&self) -> u64 {
        RING
    }
    fn fence(&self) {}
}

impl Model {
    fn new(bug: Bug) -> Model {
        let words = |n: usize| (0..n).map(|_| ModelWord::new(0)).collect::<Vec<_>>();
        let units = (RING / RECORD_ALIGN) as usize;
        Model {
            bug,
            tail: ModelWord::new(FIRST),
            published: ModelWord::new(FIRST),
            free: ModelWord::new(FIRST),
            gap_start: ModelWord::new(0),
            gap_end: ModelWord::new(0),
            slots: words(units),
            inflight: words(WRITERS + 1),
            codec: SlotCodec::new(RING),
            records: words(units).into_iter().zip(words(units)).collect(),
            memory: words(1 + WRITERS),
            dirty: ModelWord::new(0),
            finished: ModelWord::new(0),
            dead: words(WRITERS + 1),
            promises: std::sync::Mutex::default(),
        }
    }

    fn unit(&self, lsn: u64) -> &(ModelWord, ModelWord) {
        &self.records[self.codec.index(lsn)]
    }

    /// As `Appender::capture`. `lives` is asked at every step; when it says no the writer is gone, mid-way.
    fn capture(&self, me: u16, line: usize, lives: &mut dyn FnMut() -> bool) -> Option<()> {
        loop {
            let early = self.memory[line].load();
            step(lives)?;
            match self.claim(me) {
                Claimed::Slot(lsn) => {
                    step(lives)?;
                    let late = self.memory[line].load();
                    let content = if self.bug == Bug::CopyBeforeReserve { early } else { late };
                    self.unit(lsn).0.store(line as u64);
                    step(lives)?;
                    self.unit(lsn).1.store(content);
                    step(lives)?;
                    fill(self, lsn, SPAN, me);
                    step(lives)?;
                    if self.bug != Bug::CaptureDoesNotWait {
                        walk(self, self.published.load(), lsn, |_, claim| self.blocked(claim));
                    }
                    return step(lives);
                }
                Claimed::Full(tail) => {
                    publish(self, 0, self.tail.load() & !AHEAD, |_, claim| match self.blocked(claim) {
                        Blocked::Retry => Blocked::Stop,
                        other => other,
                    });
                    step(lives)?;
                    go_ahead(self, tail, me);
                    step(lives)?;
                }
                Claimed::Ahead(tail) => {
                    if self.note(me, line, lives)? {
                        walk(self, self.published.load(), tail, |_, claim| self.blocked(claim));
                        return step(lives);
                    }
                }
            }
        }
    }

    fn claim(&self, me: u16) -> Claimed {
        if self.bug != Bug::NoLapCheck {
            return claim(self, SPAN, me);
        }
        let tail = self.tail.load();
        if tail & AHEAD != 0 {
            return Claimed::Ahead(tail & !AHEAD);
        }
        if (tail + SPAN).saturating_sub(self.free.load()) > RING - RECORD_ALIGN {
            return Claimed::Full(tail);
        }
        let slot = self.slot(self.codec.index(tail));
        let mine = self.codec.pack(tail, Claim { state: SlotState::Reserved, owner: me, span: SPAN });
        slot.swap_if(slot.load(), mine);
        self.tail.swap_if(tail, tail + SPAN);
        Claimed::Slot(tail)
    }

    /// `while_ahead`, except that the writer may die inside the mark.
    fn note(&self, me: u16, line: usize, lives: &mut dyn FnMut() -> bool) -> Option<bool> {
        let set = || self.set_bits(1 << line);
        if self.bug == Bug::NoSecondLook {
            set();
            return step(lives).map(|()| true);
        }
        if !lives() {
            self.inflight(me).add(1);
            return None;
        }
        Some(while_ahead(self, me, set))
    }

    fn blocked(&self, claim: Claim) -> Blocked {
        if self.bug == Bug::FillerForTheSlow || self.dead[usize::from(claim.owner)].load() != 0 {
            return Blocked::OwnerDead;
        }
        thread::yield_now();
        Blocked::Retry
    }

    fn drain(&self) -> u64 {
        let (tail, ahead) = tail(self);
        if self.bug == Bug::DrainDoesNotWait {
            self.published.raise(tail);
        } else {
            publish(self, 0, tail, |_, claim| self.blocked(claim));
        }
        tail + u64::from(ahead && self.bug != Bug::TailInsteadOfTailPlusOne)
    }

    /// A writer's life: two pushes, or as much as it lives to do.
    fn write(&self, me: u16, mut lives: impl FnMut() -> bool) {
        let mut life = || -> Option<()> {
            for _ in 0..2 {
                let node = usize::from(me);
                let before = self.memory[node].load();
                self.memory[node].store(before + 1);
                self.capture(me, node, &mut lives)?;
                // The locked instruction: head names the writer and the version of its node. Versions of head rise.
                let pushed = self.push(me, before + 1);
                step(&mut lives)?;
                self.capture(me, HEAD, &mut lives)?;
                let lsn = self.drain();
                self.promises.lock().unwrap().push((lsn, pushed));
            }
            Some(())
        };
        if life().is_none() {
            self.dead[usize::from(me)].store(1);
        }
        self.finished.add(1);
    }

    fn push(&self, me: u16, version: u64) -> u64 {
        loop {
            let old = self.memory[HEAD].load();
            let new = ((old >> 16) + 1) << 16 | u64::from(me) << 8 | version;
            if self.memory[HEAD].swap_if(old, new) {
                return new;
            }
        }
    }

    /// The agent and the destination in one: consumes what is published, checks every prefix, frees, closes gaps.
    fn consume(&self, image: &mut Image) {
        image.apply_pages(self);
        image.check(self);
        let published = self.published.load();
        assert!(published >= image.at, "published went back");
        while image.at < published {
            let word = self.slot(self.codec.index(image.at)).load();
            let View::Current(claim) = self.codec.view(word, image.at) else {
                panic!("published, and no record at {}", image.at);
            };
            assert_ne!(claim.state, SlotState::Reserved, "published, and not complete");
            if claim.state == SlotState::Filled && claim.span == SPAN {
                let (line, content) = self.unit(image.at);
                image.lines[line.load() as usize] = content.load();
            }
            image.at += claim.span;
            image.apply_pages(self);
            image.check(self);
        }
        self.free.raise(image.at);
        if self.tail.load() == image.at | AHEAD && close_gap(self, |_| {}) {
            self.assert_in_open_gap(image.at + 1);
            self.copy_all(image);
        }
    }

    /// Nothing may acknowledge `lsn` yet: the agent lets no acknowledgement pass the start of a gap that is open.
    fn assert_in_open_gap(&self, lsn: u64) {
        let gap = gap(self);
        assert!(matches!(gap, Some((start, None)) if start < lsn), "{lsn} is in no open gap: {gap:?}");
    }

    /// A sync, its pages part of the stream as they are in the log: their place first, then their content. If the ring
    /// overflows meanwhile the bits go back, and the next gap's sync takes them.
    fn copy_all(&self, image: &mut Image) {
        image.counts_from = u64::MAX;
        while self.bug != Bug::CloseDoesNotWait
            && (0..self.inflight.len()).any(|i| self.inflight[i].load() != 0 && self.dead[i].load() == 0)
        {
            thread::yield_now();
        }
        let mut dirty = self.dirty.load();
        while !self.dirty.swap_if(dirty, 0) {
            dirty = self.dirty.load();
        }
        let (place, mut overflowed) = tail(self);
        // Only pages whose bits are set: a bit that is set too late is a page that is missed. Nodes are read after head,
        // which may name them.
        let head = dirty & 1 << HEAD != 0;
        let pages: Vec<_> = (0..self.memory.len())
            .filter(|line| head || dirty & 1 << line != 0)
            .map(|line| (line, self.memory[line].load()))
            .collect();
        let (end, ahead) = tail(self);
        overflowed |= ahead;
        if overflowed {
            self.set_bits(dirty);
        } else {
            (image.pages, image.pages_at, image.counts_from) = (pages, place, end);
        }
    }

    fn set_bits(&self, bits: u64) {
        let mut old = self.dirty.load();
        while !self.dirty.swap_if(old, old | bits) {
            old = self.dirty.load();
        }
    }
}

/// What a destination holds.
struct Image {
    at: u64,
    /// Where the newest copy was complete: a copy takes pages from after the place where it began.
    counts_from: u64,
    lines: Vec<u64>,
    /// The newest copy's pages, and their place in the stream.
    pages: Vec<(usize, u64)>,
    pages_at: u64,
}

impl Image {
    /// Takes in the copy's pages if their place has come; the gap ends once the whole copy has.
    fn apply_pages(&mut self, model: &Model) {
        if self.at >= self.pages_at {
            for (line, content) in self.pages.drain(..) {
                self.lines[line] = content;
            }
        }
        if self.at >= self.counts_from && model.gap_end.load() < self.counts_from {
            end_gap(model, self.counts_from);
        }
    }

    /// Whether a power cut could have shown this: head's node is there, and what was promised below is.
    fn check(&self, model: &Model) {
        if self.at < self.counts_from {
            return;
        }
        let head = self.lines[HEAD];
        let (node, version) = ((head >> 8 & 0xff) as usize, head & 0xff);
        if head != 0 {
            assert!(self.lines[node] >= version, "head without its node at {}: {:?}", self.at, self.lines);
        }
        for (lsn, promised) in model.promises.lock().unwrap().iter() {
            assert!(
                *lsn > self.at || head >> 16 >= promised >> 16,
                "lost at {}: head {promised:#x} was promised at {lsn}, image has {head:#x}",
                self.at
            );
        }
    }
}

fn step(lives: &mut dyn FnMut() -> bool) -> Option<()> {
    lives().then_some(())
}

/// Writers, the first of which dies at its `dies_at`th step, and the agent.
fn scene(bug: Bug, dies_at: usize) {
    let model = Arc::new(Model::new(bug));
    let writers: Vec<_> = (1..=WRITERS as u16)
        .map(|me| {
            let model = model.clone();
            thread::spawn(move || {
                let mut left = if me == 1 { dies_at } else { usize::MAX };
                model.write(me, || {
                    left = left.saturating_sub(1);
                    left > 0
                });
            })
        })
        .collect();
    let mut image =
        Image { at: FIRST, counts_from: 0, lines: vec![0; 1 + WRITERS], pages: Vec::new(), pages_at: 0 };
    while model.finished.load() < WRITERS as u64 {
        model.consume(&mut image);
        thread::yield_now();
    }
    for writer in writers {
        writer.join().unwrap();
    }
    for owner in 1..=WRITERS as u16 {
        retire(&*model, owner, || model.dead[usize::from(owner)].load() != 0);
    }
    // The last gasp; again, should it have closed a gap.
    for _ in 0..3 {
        publish(&*model, 0, model.tail.load() & !AHEAD, |_, claim| model.blocked(claim));
        model.consume(&mut image);
    }
    assert_eq!(model.tail.load(), image.at, "everything was published and consumed");
    assert!(image.at >= image.counts_from, "the last copy is complete");
    image.check(&model);
}

fn explore(bug: Bug, dies_at: impl Fn() -> usize + Send + Sync + 'static, schedules: usize) {
    let dies_at = Arc::new(dies_at);
    let random = dies_at.clone();
    shuttle::check_random(move || scene(bug, random()), schedules);
    shuttle::check_pct(move || scene(bug, dies_at()), schedules, 4);
}

fn caught(bug: Bug) -> bool {
    std::panic::catch_unwind(|| explore(bug, || usize::MAX, 4000)).is_err()
}

#[test]
fn every_prefix_is_legal_under_racing_writers() {
    explore(Bug::None, || usize::MAX, 3000);
}

#[test]
fn every_prefix_is_legal_whatever_step_a_writer_dies_at() {
    use shuttle::rand::Rng;
    explore(Bug::None, || shuttle::rand::thread_rng().gen_range(1..40), 3000);
}

/// A program goes ahead again while the copy that makes the gap before good comes to its end.
fn ahead_again_while_a_gap_ends() {
    const AGAIN: u64 = FIRST + 2 * SPAN;
    let model = Arc::new(Model::new(Bug::None));
    model.gap_start.store(FIRST);
    for position in [&model.tail, &model.published, &model.free] {
        position.store(AGAIN);
    }
    let program = {
        let model = model.clone();
        thread::spawn(move || {
            go_ahead(&*model, AGAIN, 1);
            let lsn = model.drain();
            assert!(lsn == AGAIN || in_gap(&*model, lsn), "a wait for {lsn} would find it unpublished");
        })
    };
    end_gap(&*model, FIRST + SPAN);
    if close_gap(&*model, |_| {}) {
        model.assert_in_open_gap(AGAIN + 1);
    }
    program.join().unwrap();
    model.assert_in_open_gap(AGAIN + 1);
}

#[test]
fn going_ahead_again_while_a_gap_ends_opens_another() {
    shuttle::check_random(ahead_again_while_a_gap_ends, 5000);
    shuttle::check_pct(ahead_again_while_a_gap_ends, 5000, 3);
}

macro_rules! planted {
    ($($name:ident: $bug:ident,)*) => {$(
        #[test]
        fn $name() {
            assert!(caught(Bug::$bug), "the model does not notice {:?}", Bug::$bug);
        }
    )*};
}

planted! {
    copying_before_reserving_is_noticed: CopyBeforeReserve,
    a_capture_that_does_not_wait_is_noticed: CaptureDoesNotWait,
    a_drain_that_does_not_wait_is_noticed: DrainDoesNotWait,
    a_claim_without_lap_check_is_noticed: NoLapCheck,
    acknowledging_the_tail_in_a_gap_is_noticed: TailInsteadOfTailPlusOne,
    setting_bits_without_a_second_look_is_noticed: NoSecondLook,
    closing_a_gap_without_waiting_is_noticed: CloseDoesNotWait,
    a_filler_for_a_slow_owner_is_noticed: FillerForTheSlow,
}
