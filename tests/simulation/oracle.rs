//! What may be found: every store of the program, with its place in the log, and what follows from that. Shares no code with the product.

use std::collections::BTreeMap;
use std::ops::Range;

use pmemha::types::{Generation, LINE, Lsn};

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What the program did.
#[derive(Clone, Debug)]
pub enum Change {
    Write { name: String, offset: usize, bytes: Vec<u8> },
    Create { name: String, size: usize },
    Resize { name: String, size: usize },
    Remove { name: String },
    Rename { name: String, to: String },
}

struct Event {
    /// Whoever has every record below has it.
    at: Lsn,
    change: Change,
    /// It may be had from here on.
    from: Lsn,
}

/// Of what was stored and not flushed.
const NEVER: Lsn = Lsn(u64::MAX);

/// One generation of the group.
struct History {
    /// Where the program ran.
    owner: usize,
    base: Files,
    events: Vec<Event>,
    /// What a program was told that survives the loss of the source.
    acknowledged: Lsn,
}

/// Everything below `lsn` of `generation` survives the loss of its machine: a program was told so.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// A bit for each machine that has owned the group since: it has given its image away.
    owners: u8,
    pub generation: Generation,
    pub lsn: Lsn,
}

impl Told {
    /// Whether this machine is to have it.
    pub fn is_at(&self, node: usize) -> bool {
        self.owners >> node & 1 == 0
    }

    /// What an image that ends there lacks of it, if anything.
    pub fn lost(&self, generation: Generation, lsn: Lsn) -> Option<String> {
        let all = (generation, lsn) >= (self.generation, self.lsn);
        (!all).then(|| {
            format!("up to {lsn} of {generation}, and {} of {} was acknowledged", self.lsn, self.generation)
        })
    }
}

#[derive(Default)]
pub struct Oracle {
    generations: BTreeMap<Generation, History>,
}

impl Oracle {
    /// A program begins to write on a machine, with these files.
    pub fn begins(&mut self, generation: Generation, owner: usize, base: Files) {
        let history = History { owner, base, events: Vec::new(), acknowledged: Lsn(0) };
        let before = self.generations.insert(generation, history);
        assert!(before.is_none(), "two programs write in generation {generation}");
    }

    /// The program stored something, flushed it, and whoever has every record below `at` has it.
    pub fn stores(&mut self, generation: Generation, at: Lsn, change: Change) {
        let history = self.history(generation);
        let last = history.events.iter().rev().find(|event| event.at != NEVER);
        assert!(last.is_none_or(|last| last.at <= at), "the log went back");
        history.events.push(Event { at, change, from: at });
    }

    /// The program stored something when the log ended at `from`, and has not flushed it. Its number, for when it does.
    pub fn leaves(&mut self, generation: Generation, from: Lsn, change: Change) -> usize {
        let events = &mut self.history(generation).events;
        events.push(Event { at: NEVER, change, from });
        events.len() - 1
    }

    /// That has been flushed by now.
    pub fn flushes(&mut self, generation: Generation, number: usize, at: Lsn) {
        self.history(generation).events[number].at = at;
    }

    /// The program was told that everything below `lsn` survives the loss of its machine.
    pub fn acknowledged(&mut self, generation: Generation, lsn: Lsn) {
        let acknowledged = &mut self.history(generation).acknowledged;
        *acknowledged = lsn.max(*acknowledged);
    }

    /// The last of what programs were told.
    pub fn told(&self) -> Option<Told> {
        let told = self.generations.iter().rev().find(|(_, history)| history.acknowledged > Lsn(0));
        told.map(|(generation, history)| {
            let owners = self.generations.range(generation..).map(|(_, history)| history.owner);
            let owners = owners.fold(0, |all, owner| all | 1 << owner);
            Told { owners, generation: *generation, lsn: history.acknowledged }
        })
    }

    fn history(&mut self, generation: Generation) -> &mut History {
        self.generations.get_mut(&generation).expect("it has begun")
    }

    /// What is wrong with `found`, which ends at `lsn`, if anything.
    pub fn fault(&self, generation: Generation, lsn: Lsn, found: &Files) -> Option<String> {
        let Some(history) = self.generations.get(&generation) else {
            return Some(format!("an image of generation {generation}, in which nobody wrote"));
        };
        let mut wanted = history.base.clone();
        history
            .events
            .iter()
            .filter(|event| event.at <= lsn)
            .for_each(|event| apply(&mut wanted, &event.change));
        if wanted.keys().ne(found.keys()) {
            let (wanted, found) = (wanted.keys(), found.keys());
            return Some(format!("at {lsn} of {generation}: files {found:?}, wanted {wanted:?}"));
        }
        // Stored by then and not flushed: it may be there, or not.
        let loose: Vec<_> =
            history.events.iter().filter(|e| e.from <= lsn && e.at > lsn && e.from < e.at).collect();
        for (name, wanted) in &wanted {
            let found = &found[name];
            if found.len() != wanted.len() {
                return Some(format!(
                    "at {lsn} of {generation}: {name} has {} bytes, wanted {}",
                    found.len(),
                    wanted.len()
                ));
            }
            // A line is one instant's content.
            let may_be = |line: Range<usize>| {
                loose.iter().any(|event| match &event.change {
                    Change::Write { name: of, offset, bytes } => {
                        of == name && *offset == line.start && **bytes == found[line.clone()]
                    }
                    _ => false,
                })
            };
            let lines = (0..found.len()).step_by(LINE).map(|at| at..found.len().min(at + LINE));
            let differs = lines
                .clone()
                .find(|line| found[line.clone()] != wanted[line.clone()] && !may_be(line.clone()));
            let differs = differs.and_then(|line| line.into_iter().find(|at| found[*at] != wanted[*at]));
            if let Some(at) = differs {
                let last = history.events.iter().rev().find(|event| matches!(&event.change,
                    Change::Write { name: of, offset, bytes } if of == name && (*offset..offset + bytes.len()).contains(&at)));
                let last = last.map(|event| event.at);
                return Some(format!(
                    "at {lsn} of {generation}: byte {at} of {name} is {}, wanted {}; last written at {last:?}",
                    found[at], wanted[at]
                ));
            }
        }
        None
    }

    /// What the program stored and flushed that an image which ends at `lsn` lacks, if anything.
    pub fn lacks(&self, generation: Generation, lsn: Lsn) -> Option<String> {
        let history = self.generations.get(&generation)?;
        let missing = history.events.iter().find(|event| event.at > lsn && event.at != NEVER)?;
        Some(format!(
            "promoted at {lsn} of {generation} by `saved`, without the program's record at {}",
            missing.at
        ))
    }
}

/// Applies a change to files.
pub fn apply(files: &mut Files, change: &Change) {
    match change {
        Change::Write { name, offset, bytes } => {
            let Some(file) = files.get_mut(name) else { return };
            let n = file.len().saturating_sub(*offset).min(bytes.len());
            file[*offset..offset + n].copy_from_slice(&bytes[..n]);
        }
        Change::Create { name, size } => _ = files.insert(name.clone(), vec![0; *size]),
        Change::Resize { name, size } => files.get_mut(name).expect("a file of the program").resize(*size, 0),
        Change::Remove { name } => _ = files.remove(name),
        Change::Rename { name, to } => {
            let file = files.remove(name).expect("a file of the program");
            files.insert(to.clone(), file);
        }
    }
}
