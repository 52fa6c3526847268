//! Which operations were acknowledged by which LSN.
//!
//! An operation has been acknowledged once it returned to the program, its last drain with it; and a drain returns only when the
//! log's `published` word is at or past every record of the operation. So the programs, which know nothing of LSNs, are given
//! that word as a "clock": after each operation they note what it says. The relation is sound, and as tight as there can be:
//!
//! * the operation's records end at or below the LSN noted, so every prefix up to there or further holds the operation;
//! * the next operation of the same thread begins after the reading, so its records begin at or above the LSN noted.
//!
//! So a prefix holds, of each thread, the operations that were noted at or below its LSN, and at most one more, which had been
//! done and had not returned yet. Neither the notes nor the clock travel in the log that is under test.

use std::path::Path;

use pmemha::replica::archive::Entry;
use pmemha::types::Lsn;

/// What the clock said after each operation of each thread.
pub struct Acknowledgements {
    of_thread: Vec<Vec<Lsn>>,
}

impl Acknowledgements {
    /// Reads the notes: three words each, thread, operation (1, 2, 3, …) and clock.
    pub fn read(notes: &Path, threads: usize) -> Acknowledgements {
        let bytes = std::fs::read(notes).expect("the program left its notes");
        let mut of_thread = vec![Vec::new(); threads];
        for note in bytes.chunks_exact(NOTE_BYTES) {
            let word = |i: usize| u64::from_le_bytes(note[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
            let seen: &mut Vec<Lsn> = &mut of_thread[word(0) as usize];
            seen.push(Lsn(word(2)));
            assert_eq!(seen.len() as u64, word(1), "operations are noted in order");
        }
        let clocks_rise = of_thread.iter().all(|seen| seen.is_sorted());
        assert!(clocks_rise, "what is published never becomes less");
        Acknowledgements { of_thread }
    }

    /// Operations of a thread that had been acknowledged at `lsn`.
    pub fn at(&self, thread: usize, lsn: Lsn) -> u64 {
        self.of_thread[thread].partition_point(|noted| *noted <= lsn) as u64
    }

    /// Operations of all threads.
    pub fn count(&self) -> usize {
        self.of_thread.iter().map(Vec::len).sum()
    }

    /// Operations of all threads after which the clock said exactly this.
    pub fn count_at(&self, lsn: Lsn) -> usize {
        self.of_thread.iter().flatten().filter(|noted| **noted == lsn).count()
    }

    /// Whether a clock said exactly this.
    pub fn is_one(&self, lsn: Lsn) -> bool {
        self.count_at(lsn) > 0
    }

    /// What the archive must reach to hold them all.
    pub fn last(&self) -> Lsn {
        self.of_thread
            .iter()
            .filter_map(|seen| seen.last())
            .copied()
            .max()
            .expect("something was acknowledged")
    }

    /// A false testimony: as if each operation had returned before its last record was published.
    pub fn one_record_early(&self, entries: &[Entry]) -> Acknowledgements {
        let before = |noted: &Lsn| entries[entries.partition_point(|e| e.next < *noted)].lsn;
        let of_thread = self.of_thread.iter().map(|seen| seen.iter().map(before).collect()).collect();
        Acknowledgements { of_thread }
    }
}

/// Bytes of a note.
const NOTE_BYTES: usize = 24;
