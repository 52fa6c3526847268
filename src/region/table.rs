//! Which addresses of this process hold protected bytes: an interval map that is read at every flush.
//!
//! Readers take no lock and change no shared memory while they keep hitting the range that they hit last;
//! otherwise they search an immutable sorted snapshot. Writers (mmap, munmap and the like, slow anyway) build a
//! new snapshot and exchange it. Addresses that are *not* protected are remembered per thread too, so that a
//! program with both kinds of memory pays one comparison for either.
//!
//! Threads: everything may be called from any thread; readers also from signal handlers. Writers take a lock,
//! so a signal handler must not run while its own thread is writing: callers block signals around writes.

use std::cell::{Cell, UnsafeCell};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Mutex, MutexGuard};

use crate::locks::lock;
use crate::types::RegionId;

/// `[start, end)` shows the bytes of `region` from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: usize,
    /// First address past it.
    pub end: usize,
    /// Byte offset in the region of `start`.
    pub offset: u64,
    /// The region.
    pub region: RegionId,
    /// What the owner of the table wants to find again: its number for the file.
    pub tag: u32,
}

impl Span {
    /// The offset in the region of `addr`, which lies in the span.
    pub fn offset_of(&self, addr: usize) -> u64 {
        self.offset + (addr - self.start) as u64
    }

    /// The part of the span within `[start, end)`, if any.
    pub fn clipped(&self, start: usize, end: usize) -> Option<Span> {
        let (from, to) = (self.start.max(start), self.end.min(end));
        (from < to).then(|| Span { start: from, end: to, offset: self.offset_of(from), ..*self })
    }
}

/// What a table knows about an address: it and all of `[start, end)` show `span`, or nothing protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// First address for which the answer holds.
    pub start: usize,
    /// First address past those.
    pub end: usize,
    /// The span, if protected.
    pub span: Option<Span>,
}

/// The interval map. See the module.
pub struct MapTable {
    /// Version of the current snapshot; 0 while nothing was ever inserted.
    version: AtomicU64,
    current: AtomicPtr<Snapshot>,
    /// Readers that may hold a snapshot.
    readers: AtomicUsize,
    /// Snapshots that a reader may still hold, and the lock of the writers.
    retired: Mutex<Vec<Retired>>,
}

struct Snapshot {
    version: u64,
    spans: Vec<Span>,
}

/// A snapshot that is no longer current, at the address where a reader may still look.
struct Retired {
    _snapshot: Box<Snapshot>,
}

/// Versions are unique over all tables, so that one thread-local entry serves them all.
static NEXT_VERSION: AtomicU64 = AtomicU64::new(1);

impl Default for MapTable {
    fn default() -> Self {
        Self::new()
    }
}

impl MapTable {
    /// An empty table.
    pub const fn new() -> MapTable {
        MapTable {
            version: AtomicU64::new(0),
            current: AtomicPtr::new(ptr::null_mut()),
            readers: AtomicUsize::new(0),
            retired: Mutex::new(Vec::new()),
        }
    }

    /// Whether nothing was ever inserted: the branch that unprotected programs pay.
    #[inline]
    pub fn untouched(&self) -> bool {
        self.version.load(Ordering::Relaxed) == 0
    }

    /// What is known about `addr`.
    #[inline]
    pub fn find(&self, addr: usize) -> Answer {
        // Pairs with the release in `exchange`: whoever sees a version sees the mapping that made it.
        let version = self.version.load(Ordering::Acquire);
        LAST.with(|last| match last.get(version, addr) {
            Some(answer) => answer,
            None => self.search(last, addr),
        })
    }

    #[cold]
    fn search(&self, last: &LastHit, addr: usize) -> Answer {
        let (version, answer) = self.read(|snapshot| match snapshot {
            Some(s) => (s.version, s.find(addr)),
            None => (0, Answer { start: 0, end: usize::MAX, span: None }),
        });
        last.put(version, answer);
        answer
    }

    /// The protected parts of `[start, end)`, in order of address. Neither locks nor allocates.
    #[inline]
    pub fn for_each(&self, start: usize, end: usize, mut f: impl FnMut(Span)) {
        let mut at = start;
        while at < end {
            let answer = self.find(at);
            if let Some(part) = answer.span.and_then(|s| s.clipped(at, end)) {
                f(part);
            }
            at = answer.end;
        }
    }

    /// All spans for which `wanted` holds. Allocates.
    pub fn select(&self, wanted: impl Fn(&Span) -> bool) -> Vec<Span> {
        self.read(|s| s.map(|s| s.spans.iter().filter(|s| wanted(s)).copied().collect()).unwrap_or_default())
    }

    /// Adds `span`; whatever was known of its addresses is replaced, as `MAP_FIXED` replaces mappings.
    pub fn insert(&self, span: Span) {
        assert!(span.start < span.end, "an empty span");
        self.update(|spans| {
            cut(spans, span.start, span.end);
            let at = spans.partition_point(|s| s.start < span.start);
            spans.insert(at, span);
        });
    }

    /// Forgets `[start, end)`; spans that reach beyond are split. Does nothing where nothing is protected.
    pub fn remove(&self, start: usize, end: usize) {
        if self.select(|s| s.clipped(start, end).is_some()).is_empty() {
            return;
        }
        self.update(|spans| cut(spans, start, end));
    }

    /// To be called in the child of a fork: the other threads, readers among them, are gone.
    pub fn after_fork(&self) {
        self.readers.store(0, Ordering::SeqCst);
    }

    fn update(&self, change: impl FnOnce(&mut Vec<Span>)) {
        let mut retired = self.lock();
        let mut spans = self.select(|_| true);
        change(&mut spans);
        self.exchange(spans, &mut retired);
    }

    fn exchange(&self, spans: Vec<Span>, retired: &mut Vec<Retired>) {
        let version = NEXT_VERSION.fetch_add(1, Ordering::Relaxed);
        let new = Box::into_raw(Box::new(Snapshot { version, spans }));
        // SeqCst with the reader's count: whoever counts itself after this swap sees the new snapshot.
        let old = self.current.swap(new, Ordering::SeqCst);
        self.version.store(version, Ordering::Release);
        if !old.is_null() {
            // SAFETY: `old` came from `Box::into_raw` here and left `current` by the swap above.
            retired.push(Retired { _snapshot: unsafe { Box::from_raw(old) } });
        }
        if self.readers.load(Ordering::SeqCst) == 0 {
            retired.clear();
        }
    }

    fn read<R>(&self, f: impl FnOnce(Option<&Snapshot>) -> R) -> R {
        self.readers.fetch_add(1, Ordering::SeqCst);
        let p = self.current.load(Ordering::SeqCst);
        // SAFETY: snapshots are freed only when a writer has seen no reader after it took them out of
        // `current`; we counted ourselves before loading it.
        let result = f(unsafe { p.as_ref() });
        self.readers.fetch_sub(1, Ordering::SeqCst);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Retired>> {
        lock(&self.retired)
    }
}

impl Drop for MapTable {
    fn drop(&mut self) {
        let p = *self.current.get_mut();
        if !p.is_null() {
            // SAFETY: the pointer came from `Box::into_raw` and nobody reads a table that is dropped.
            drop(unsafe { Box::from_raw(p) });
        }
    }
}

impl Snapshot {
    fn find(&self, addr: usize) -> Answer {
        let next = self.spans.partition_point(|s| s.start <= addr);
        let before = next.checked_sub(1).map(|i| self.spans[i]);
        if let Some(span) = before.filter(|s| addr < s.end) {
            return Answer { start: span.start, end: span.end, span: Some(span) };
        }
        Answer {
            start: before.map_or(0, |s| s.end),
            end: self.spans.get(next).map_or(usize::MAX, |s| s.start),
            span: None,
        }
    }
}

/// Removes `[start, end)` from sorted, disjoint `spans`.
fn cut(spans: &mut Vec<Span>, start: usize, end: usize) {
    let mut kept = Vec::with_capacity(spans.len() + 2);
    for s in spans.iter() {
        kept.extend(s.clipped(0, start));
        kept.extend(s.clipped(end, usize::MAX));
    }
    *spans = kept;
}

thread_local! {
    // Const and without a destructor: neither its first use nor the thread's end allocates or registers
    // anything, so that it can be read from anywhere, signal handlers included.
    static LAST: LastHit = const { LastHit::new() };
}

/// A thread's last answer. A signal handler may interrupt its owner anywhere, so it is read and written
/// like a seqlock, against the thread itself.
struct LastHit {
    /// Odd while an entry is being written.
    seq: AtomicU32,
    version: Cell<u64>,
    answer: UnsafeCell<Answer>,
}

impl LastHit {
    const fn new() -> LastHit {
        LastHit {
            seq: AtomicU32::new(0),
            version: Cell::new(u64::MAX),
            answer: UnsafeCell::new(Answer { start: 0, end: 0, span: None }),
        }
    }

    #[inline]
    fn get(&self, version: u64, addr: usize) -> Option<Answer> {
        let before = self.seq.load(Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let known = self.version.get();
        // SAFETY: only this thread and its signal handlers touch the cell; a handler runs to its end
        // before we go on, and what it changed under us is seen by the sequence number below.
        let answer = unsafe { ptr::read_volatile(self.answer.get()) };
        compiler_fence(Ordering::SeqCst);
        let whole = before.is_multiple_of(2) && before == self.seq.load(Ordering::Relaxed);
        (whole && known == version && (answer.start..answer.end).contains(&addr)).then_some(answer)
    }

    fn put(&self, version: u64, answer: Answer) {
        let seq = self.seq.load(Ordering::Relaxed);
        if !seq.is_multiple_of(2) {
            // We are a handler within the owner's own `put`: it stays the owner's.
            return;
        }
        self.seq.store(seq.wrapping_add(1), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        self.version.set(version);
        // SAFETY: as in `get`; a handler sees the odd sequence number and leaves the cell alone.
        unsafe { ptr::write_volatile(self.answer.get(), answer) };
        compiler_fence(Ordering::SeqCst);
        self.seq.store(seq.wrapping_add(2), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(start: usize, end: usize, offset: u64, region: u16) -> Span {
        Span { start, end, offset, region: RegionId(region), tag: u32::from(region) }
    }

    #[test]
    fn a_fixed_overlay_splits_what_lies_under_it() {
        let table = MapTable::new();
        table.insert(span(0x1000, 0x9000, 0, 1));
        table.insert(span(0x3000, 0x5000, 0x7000, 2));
        assert_eq!(table.find(0x2fff).span, Some(span(0x1000, 0x3000, 0, 1)));
        assert_eq!(table.find(0x3000).span.unwrap().offset_of(0x4000), 0x8000);
        assert_eq!(table.find(0x5000).span, Some(span(0x5000, 0x9000, 0x4000, 1)));
    }

    #[test]
    fn gaps_are_remembered_until_something_is_mapped_there() {
        let table = MapTable::new();
        assert!(table.untouched());
        table.insert(span(0x1000, 0x2000, 0, 1));
        assert_eq!(table.find(0x5000), Answer { start: 0x2000, end: usize::MAX, span: None });
        table.insert(span(0x5000, 0x6000, 0, 2));
        assert_eq!(table.find(0x5000).span.unwrap().region, RegionId(2));
        table.remove(0x5000, 0x6000);
        assert_eq!(table.find(0x5000).span, None);
    }

    #[test]
    fn readers_never_see_a_freed_or_mixed_snapshot() {
        let table = MapTable::new();
        table.insert(span(0x1000, 0x2000, 0x1000, 1));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for i in 0..200_000usize {
                            let addr = 0x1000 + (i * 97) % 0x8000;
                            if let Some(s) = table.find(addr).span {
                                assert!(s.start <= addr && addr < s.end);
                                assert_eq!(s.offset_of(addr), addr as u64);
                                assert_eq!(u32::from(s.region.0), s.tag);
                            }
                        }
                    })
                })
                .collect();
            let mut round = 0u16;
            while readers.iter().any(|r| !r.is_finished()) {
                round = round.wrapping_add(1);
                let at = 0x1000 + usize::from(round % 7) * 0x1000;
                table.insert(span(at, at + 0x1800, at as u64, round));
                table.remove(at + 0x400, at + 0x800);
            }
        });
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map_of_bytes(
            ops in prop::collection::vec((any::<bool>(), 0usize..200, 1usize..60), 1..60)
        ) {
            let table = MapTable::new();
            let mut bytes = vec![None; 300];
            for (i, (insert, start, len)) in ops.into_iter().enumerate() {
                let region = i as u16 + 1;
                if insert {
                    table.insert(span(start, start + len, 1000 * i as u64, region));
                } else {
                    table.remove(start, start + len);
                }
                for (k, b) in bytes[start..start + len].iter_mut().enumerate() {
                    *b = insert.then_some((region, 1000 * i as u64 + k as u64));
                }
            }
            for (addr, expected) in bytes.iter().enumerate() {
                let found = table.find(addr).span.map(|s| (s.region.0, s.offset_of(addr)));
                prop_assert_eq!(found, *expected);
            }
            let mut covered = vec![None; 300];
            table.for_each(0, 300, |s| {
                for (k, b) in covered[s.start..s.end].iter_mut().enumerate() {
                    *b = Some((s.region.0, s.offset + k as u64));
                }
            });
            prop_assert_eq!(covered, bytes);
        }
    }
}
