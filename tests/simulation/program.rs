//! The program: stores in its files, records what it flushes, reads what it is told. Every step is done before anybody else runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pmemha::locks::lock;
use pmemha::log::format::{Kind, RegionPayload};
use pmemha::log::{Ahead, Appender, LogRegion};
use pmemha::ship::sync::SyncRegion;
use pmemha::types::{Generation, LINE, Lsn, RegionId};
use pmemha::waits;
use rustix::fs::{MemfdFlags, memfd_create};
use zerocopy::IntoBytes;

use crate::clock::{below, one_in, up_to};
use crate::oracle::{Change, Files, Oracle};

/// The file in which lines are stored and flushed later, or never; it neither goes nor changes its size.
const LOOSE: &str = "/pmem/loose";

/// Bytes of it: so many lines.
const LOOSE_LINES: u64 = 16;

/// Most files at a time, and most bytes of one.
const MOST_FILES: usize = 4;
const MOST_BYTES: u64 = 24 << 10;

/// Between two steps of one that idles.
const IDLE: Duration = Duration::from_millis(20);

/// Region numbers of one log.
pub const REGIONS: u32 = 64;

/// Persistent memory of one machine, as far as the program's files go.
pub struct Disk(Mutex<Inner>);

struct Inner {
    files: BTreeMap<String, DiskFile>,
    next: u16,
    /// Stored and not flushed: file, offset, and what was there.
    loose: Vec<(u64, Vec<u8>, usize)>,
}

struct DiskFile {
    id: RegionId,
    file: Arc<File>,
    size: u64,
}

impl Disk {
    /// With these files, whose region numbers begin anew.
    pub fn with(files: &Files) -> Disk {
        let inner = Inner { files: BTreeMap::new(), next: 1, loose: Vec::new() };
        let disk = Disk(Mutex::new(inner));
        let mut inner = lock(&disk.0);
        for (name, bytes) in files {
            let file = inner.create(name, bytes.len() as u64);
            file.write_all_at(bytes, 0).expect("memory");
        }
        drop(inner);
        disk
    }

    /// What a group begins with.
    pub fn first() -> Disk {
        let mut files = Files::from([(LOOSE.to_owned(), vec![0; LOOSE_LINES as usize * LINE])]);
        files.insert("/pmem/a".to_owned(), vec![7; 9000]);
        files.insert("/pmem/b".to_owned(), vec![0; 20 << 10]);
        Disk::with(&files)
    }

    pub fn content(&self) -> Files {
        let read = |file: &DiskFile| {
            let mut bytes = vec![0; file.size as usize];
            file.file.read_exact_at(&mut bytes, 0).expect("memory");
            bytes
        };
        lock(&self.0).files.iter().map(|(name, file)| (name.clone(), read(file))).collect()
    }

    /// The power goes: what was not flushed is lost, or not.
    pub fn lose_power(&self) {
        let mut inner = lock(&self.0);
        let loose = std::mem::take(&mut inner.loose);
        let file = &inner.files[LOOSE].file;
        for (offset, before, _) in loose.iter().rev().filter(|_| one_in(2)) {
            file.write_all_at(before, *offset).expect("memory");
        }
    }

    /// What is to be copied.
    pub fn regions(&self) -> Vec<SyncRegion> {
        let region = |(name, file): (&String, &DiskFile)| SyncRegion {
            id: file.id,
            creation: creation(name, file.size),
            len: file.size,
            file: OwnedFd::from(file.file.try_clone().expect("a descriptor")),
            changed: false,
            held: Arc::new(()),
        };
        lock(&self.0).files.iter().map(region).collect()
    }
}

impl Inner {
    fn create(&mut self, name: &str, size: u64) -> Arc<File> {
        let file = Arc::new(File::from(memfd_create("file", MemfdFlags::CLOEXEC).expect("memory")));
        file.set_len(size).expect("memory");
        let created = DiskFile { id: RegionId(self.next), file: file.clone(), size };
        self.next += 1;
        self.files.insert(name.to_owned(), created);
        file
    }
}

fn creation(name: &str, size: u64) -> Vec<u8> {
    let mut payload = RegionPayload { size, mode: 0o600, reserved: 0 }.as_bytes().to_vec();
    payload.extend(name.as_bytes());
    payload
}

/// One life of the program.
pub struct Program {
    pub disk: Arc<Disk>,
    pub generation: Generation,
    pub oracle: Arc<Mutex<Oracle>>,
    appender: Appender,
    stores: u8,
    /// It does not pause for so many steps.
    bursts: u64,
}

impl Program {
    pub fn new(disk: Arc<Disk>, log: &Arc<LogRegion>, oracle: Arc<Mutex<Oracle>>) -> Program {
        let appender = Appender::attach(log.clone(), 1).expect("a cell of the log");
        Program { disk, generation: log.spec().generation, oracle, appender, stores: 0, bursts: 0 }
    }

    /// Works until `ended`, not while `frozen`, and hardly while `idle`.
    pub fn run(mut self, ended: impl Fn() -> bool, frozen: impl Fn() -> bool, idle: impl Fn() -> bool) {
        while !ended() {
            if frozen() {
                waits::sleep(up_to(Duration::from_micros(500)));
                continue;
            }
            self.step();
            if idle() {
                waits::sleep(IDLE);
            } else if self.bursts > 0 {
                self.bursts -= 1;
            } else if one_in(400) {
                self.bursts = below(150);
            } else {
                waits::sleep(up_to(Duration::from_micros(if one_in(16) { 4000 } else { 250 })));
            }
        }
    }

    fn step(&mut self) {
        self.stores = self.stores.wrapping_add(1);
        match below(100) {
            0..64 => self.write(4),
            64..68 => self.write(96),
            68..74 => self.leave(),
            74..79 => self.flush(),
            79..81 => self.create(),
            81 => self.resize(),
            82 => self.remove(),
            83 => self.rename(),
            _ => {
                self.appender.drain();
                self.hear();
            }
        }
    }

    /// What the destinations have acknowledged.
    fn hear(&self) {
        let durable = self.appender.log().acks().durable;
        lock(&self.oracle).acknowledged(self.generation, durable);
    }

    /// The place of a record that was appended, or of what is only known from the files.
    fn place(appended: Result<Lsn, Ahead>) -> Lsn {
        match appended {
            Ok(next) => next,
            Err(Ahead(past)) => past,
        }
    }

    fn stores(&self, at: Lsn, change: Change) {
        lock(&self.oracle).stores(self.generation, at, change);
    }

    /// A file of the program, but not the loose one: name, number, size.
    fn any(&self) -> Option<(String, RegionId, u64, Arc<File>)> {
        let inner = lock(&self.disk.0);
        let mut all = inner.files.iter().filter(|(name, file)| *name != LOOSE && file.size >= LINE as u64);
        let n = all.clone().count() as u64;
        let (name, file) = all.nth(below(n.max(1)) as usize)?;
        Some((name.clone(), file.id, file.size, file.file.clone()))
    }

    fn write(&self, most_lines: u64) {
        let Some((name, id, size, file)) = self.any() else { return };
        let lines = size / LINE as u64;
        let count = (1 + below(most_lines)).min(lines);
        let offset = below(lines - count + 1) * LINE as u64;
        let bytes = vec![self.stores; (count as usize) * LINE];
        file.write_all_at(&bytes, offset).expect("memory");
        let at = Self::place(self.appender.append(Kind::Data, id, offset, &bytes));
        self.stores(at, Change::Write { name, offset: offset as usize, bytes });
    }

    /// Stores a line and does not flush it, unless one is not flushed already.
    fn leave(&self) {
        let mut inner = lock(&self.disk.0);
        let offset = below(LOOSE_LINES) * LINE as u64;
        if inner.loose.iter().any(|(of, ..)| *of == offset) {
            return;
        }
        let (mut before, bytes) = (vec![0; LINE], vec![self.stores; LINE]);
        inner.files[LOOSE].file.read_exact_at(&mut before, offset).expect("memory");
        inner.files[LOOSE].file.write_all_at(&bytes, offset).expect("memory");
        let change = Change::Write { name: LOOSE.to_owned(), offset: offset as usize, bytes };
        let log = self.appender.log();
        // What is stored while the log is behind has its place behind the log.
        let from = Lsn(log.tail().0 + u64::from(log.is_ahead()));
        let number = lock(&self.oracle).leaves(self.generation, from, change);
        inner.loose.push((offset, before, number));
    }

    fn flush(&self) {
        let mut inner = lock(&self.disk.0);
        let n = inner.loose.len() as u64;
        if n == 0 {
            return;
        }
        let (offset, _, number) = inner.loose.remove(below(n) as usize);
        let mut bytes = vec![0; LINE];
        inner.files[LOOSE].file.read_exact_at(&mut bytes, offset).expect("memory");
        let at = Self::place(self.appender.append(Kind::Data, inner.files[LOOSE].id, offset, &bytes));
        lock(&self.oracle).flushes(self.generation, number, at);
    }

    fn create(&self) {
        let mut inner = lock(&self.disk.0);
        if inner.files.len() >= MOST_FILES || u32::from(inner.next) + 1 >= REGIONS {
            return;
        }
        let (name, size) = (format!("/pmem/{}", inner.next), below(MOST_BYTES));
        inner.create(&name, size);
        let id = inner.files[&name].id;
        let appended = self.appender.append(Kind::RegionCreate, id, 0, &creation(&name, size));
        self.stores(Self::place(appended), Change::Create { name, size: size as usize });
    }

    fn resize(&self) {
        let Some((name, id, _, file)) = self.any() else { return };
        let size = below(MOST_BYTES);
        file.set_len(size).expect("memory");
        lock(&self.disk.0).files.get_mut(&name).expect("a file").size = size;
        let at = Self::place(self.appender.append(Kind::RegionResize, id, size, &[]));
        self.stores(at, Change::Resize { name, size: size as usize });
    }

    fn rename(&self) {
        let Some((name, id, ..)) = self.any() else { return };
        let to = format!("{name}'");
        let mut inner = lock(&self.disk.0);
        let file = inner.files.remove(&name).expect("a file");
        inner.files.insert(to.clone(), file);
        let at = Self::place(self.appender.append(Kind::RegionRename, id, 0, to.as_bytes()));
        self.stores(at, Change::Rename { name, to });
    }

    fn remove(&self) {
        let Some((name, id, ..)) = self.any() else { return };
        let mut inner = lock(&self.disk.0);
        if inner.files.len() <= 2 {
            return;
        }
        inner.files.remove(&name);
        let at = Self::place(self.appender.append(Kind::RegionUnlink, id, 0, &[]));
        self.stores(at, Change::Remove { name });
    }
}
