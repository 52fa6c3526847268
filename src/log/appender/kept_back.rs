//! What a process keeps back: files that it can store to and whose records it makes only later.
//!
//! The number stands in the process's cell, where whoever buries the process looks, and in the process, for the child of a fork, which
//! inherits the mappings and takes a cell of its own.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use super::Appender;

impl Appender {
    /// To be called before this process can store to `files` more (or fewer) of them what it finds out and records only later: a
    /// mapping whose written pages it looks for at msync. Should it be killed before that, what it stored is in the
    /// regions and in no record, which whoever buries it then knows ([`super::super::Debt::Remains`]).
    pub fn keep_back(&self, files: i64) {
        self.kept_back.fetch_add(files as u64, SeqCst);
        if let Some(cell) = self.cell() {
            self.tell_kept_back(cell);
        }
    }

    /// Everything that was kept back has been recorded, and no more will be stored: the process ends of its own will.
    pub fn keep_nothing_back(&self) {
        self.kept_back.store(0, SeqCst);
        if let Some(cell) = self.cell() {
            self.tell_kept_back(cell);
        }
    }

    /// Brings the cell up to the number.
    pub(super) fn tell_kept_back(&self, cell: u16) {
        tell(&self.kept_back, |number| self.log.set_kept_back(cell, number));
    }
}

/// Has `write` write the number down. Other threads may be at it, each with the number that it saw: whoever is the last to write
/// finds here that its number is not the newest, since what is written is in one order with the changes.
fn tell(number: &AtomicU64, mut write: impl FnMut(u64)) {
    let mut told = number.load(SeqCst);
    loop {
        write(told);
        match number.load(SeqCst) {
            now if now == told => return,
            now => told = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_writes_late_leaves_the_newest_number() {
        let (number, mut written) = (AtomicU64::new(1), 0);
        let mut late = true;
        tell(&number, |told| {
            if std::mem::take(&mut late) {
                // Another thread changes it and writes, all before this one's store.
                number.store(2, SeqCst);
            }
            written = told;
        });
        assert_eq!(written, 2);
    }
}
