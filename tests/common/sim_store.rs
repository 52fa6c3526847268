//! A store in memory whose power can be cut at any operation: what was not synced is lost, or not, word by word.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use pmemha::region::memory::{Access, SharedMem};
use pmemha::replica::store::{Bytes, RegionFile, RingFile, Store};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use xxhash_rust::xxh3::xxh3_64;

use crate::chance::Chance;

/// The unit in which memory and devices keep or lose bytes.
const WORD: usize = 8;

/// Files, rings and directories of one simulated machine.
#[derive(Clone, Default)]
pub struct SimStore(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    operations: u64,
    /// The operation during which the power goes.
    cut_at: Option<u64>,
    cut: bool,
    /// Names as they are, and as they would be found after a cut.
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    /// Contents as they are, and as they were at the last sync.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    rings: Vec<SimRing>,
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Dir,
    File(usize),
    Ring(usize),
}

#[derive(Clone)]
struct SimRing {
    header: Vec<u8>,
    memory: Arc<SharedMem>,
    durable: Arc<Mutex<Vec<u8>>>,
}

impl std::fmt::Debug for SimStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimStore")
    }
}

impl SimStore {
    /// An empty one.
    pub fn new() -> SimStore {
        SimStore::default()
    }

    /// The power goes during the `n`th operation from now.
    pub fn cut_after(&self, n: u64) {
        let mut world = self.world();
        world.cut_at = Some(world.operations + n);
    }

    /// The machine as it comes back. `lossy`: what was not synced is kept or lost at random; otherwise (only the process died)
    /// all of it is kept.
    pub fn after_crash(&self, chance: &mut Chance, lossy: bool) -> SimStore {
        let world = self.world();
        let mut next = World::default();
        let all: Vec<_> = world.names.keys().chain(world.durable_names.keys()).cloned().collect();
        for name in all {
            let keep = !lossy || chance.below(2) == 0;
            let found = if keep { world.names.get(&name) } else { world.durable_names.get(&name) };
            let parent = name.parent().unwrap();
            let has_parent = parent == Path::new("/") || next.names.get(parent) == Some(&Node::Dir);
            if let Some(&node) = found.filter(|_| has_parent && !next.names.contains_key(&name)) {
                next.names.insert(name, node);
            }
        }
        for (now, durable) in &world.files {
            next.files.push(match lossy {
                true => {
                    let found = mix(chance, now, durable);
                    (found.clone(), found)
                }
                false => (now.clone(), durable.clone()),
            });
        }
        for ring in &world.rings {
            let mut now = vec![0; ring.memory.len()];
            ring.memory.read(0, &mut now);
            let durable = ring.durable.lock().unwrap();
            next.rings.push(match lossy {
                true => SimRing::new(ring.header.clone(), mix(chance, &now, &durable)),
                false => SimRing {
                    durable: Arc::new(Mutex::new(durable.clone())),
                    ..SimRing::new(ring.header.clone(), now)
                },
            });
        }
        // What was not made durable before the process died still is not.
        next.durable_names = if lossy { next.names.clone() } else { world.durable_names.clone() };
        SimStore(Arc::new(Mutex::new(next)))
    }

    /// A file's content.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let world = self.world();
        match world.names[path] {
            Node::File(i) => world.files[i].0.clone(),
            _ => panic!("{} is no file", path.display()),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

/// Each word as it is or as it was; so is the length.
fn mix(chance: &mut Chance, now: &[u8], durable: &[u8]) -> Vec<u8> {
    if now == durable {
        return now.to_vec();
    }
    let mut found = if chance.below(2) == 0 { now.to_vec() } else { durable.to_vec() };
    for (i, word) in found.chunks_mut(WORD).enumerate() {
        let from = if chance.below(2) == 0 { now } else { durable };
        let at = i * WORD;
        for (j, byte) in word.iter_mut().enumerate() {
            *byte = from.get(at + j).copied().unwrap_or(0);
        }
    }
    found
}

/// Devices take time: a simulation has others run meanwhile, or cuts the power.
fn pause() {
    pmemha::waits::yield_now();
}

fn power_cut() -> io::Error {
    io::Error::other("power cut")
}

impl World {
    /// Counts an operation. `Ok(false)`: it is the one during which the power goes.
    fn operation(&mut self) -> io::Result<bool> {
        if self.cut {
            return Err(power_cut());
        }
        self.operations += 1;
        self.cut = self.cut_at == Some(self.operations);
        Ok(!self.cut)
    }

    /// An operation whose effect may or may not survive.
    fn volatile(&mut self, effect: impl FnOnce(&mut World) -> io::Result<()>) -> io::Result<()> {
        let alive = self.operation()?;
        let done = effect(self);
        if alive { done } else { Err(power_cut()) }
    }

    /// An operation that promises durability: cut short, it promises nothing.
    fn sync(&mut self, effect: impl FnOnce(&mut World)) -> io::Result<()> {
        if !self.operation()? {
            return Err(power_cut());
        }
        effect(self);
        Ok(())
    }

    fn file(&mut self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(i)) => Ok(*i),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&mut self, path: &Path, bytes: Vec<u8>) -> usize {
        self.files.push((bytes, Vec::new()));
        let i = self.files.len() - 1;
        self.names.insert(path.to_owned(), Node::File(i));
        i
    }
}

impl Store for SimStore {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        pause();
        self.world().volatile(|w| {
            w.names.insert(dir.to_owned(), Node::Dir);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        let inside = world.names.keys().filter(|p| p.parent() == Some(dir));
        Ok(inside.map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn read(&self, file: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut world = self.world();
        let i = world.file(file)?;
        assert!(world.files[i].0.len() as u64 <= limit);
        Ok(world.files[i].0.clone())
    }

    fn read_head(&self, file: &Path, len: usize) -> io::Result<Vec<u8>> {
        let world = self.world();
        match world.names.get(file) {
            Some(Node::Ring(i)) => Ok(world.rings[*i].header[..len].to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        pause();
        self.world().volatile(|w| {
            w.create(file, bytes.to_vec());
            Ok(())
        })?;
        self.world().sync(|w| {
            let i = w.file(file).unwrap();
            w.files[i].1 = bytes.to_vec();
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        pause();
        self.world().volatile(|w| {
            let node = w.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            w.names.insert(to.to_owned(), node);
            Ok(())
        })
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        pause();
        self.world().volatile(|w| {
            w.names.remove(file);
            Ok(())
        })
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        pause();
        self.world().volatile(|w| {
            w.names.retain(|p, _| !p.starts_with(dir));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        pause();
        self.world().sync(|w| {
            let names = &w.names;
            w.durable_names.retain(|p, _| p.parent() != Some(dir) || names.contains_key(p));
            let inside = names.iter().filter(|(p, _)| p.parent() == Some(dir));
            w.durable_names.extend(inside.map(|(p, n)| (p.clone(), *n)));
        })
    }

    fn region(&self, file: &Path, size: u64, fresh: bool) -> io::Result<Box<dyn RegionFile>> {
        let mut world = self.world();
        let mut index = 0;
        world.volatile(|w| {
            index = if fresh { w.create(file, Vec::new()) } else { w.file(file)? };
            w.files[index].0.resize(size as usize, 0);
            Ok(())
        })?;
        Ok(Box::new(SimRegion { world: self.0.clone(), index }))
    }

    fn block_digests(&self, file: &Path, block: usize, first: u64, count: usize) -> io::Result<Vec<u64>> {
        let mut world = self.world();
        let i = world.file(file)?;
        let bytes = &world.files[i].0;
        let zeros = xxh3_64(&vec![0; block]);
        let one = |number: u64| match bytes.get(number as usize * block..) {
            None | Some([]) => zeros,
            Some(rest) => {
                let mut of = rest[..rest.len().min(block)].to_vec();
                of.resize(block, 0);
                xxh3_64(&of)
            }
        };
        Ok((first..first + count as u64).map(one).collect())
    }

    fn create_ring(&self, file: &Path, header: &[u8], ring_bytes: u64) -> io::Result<()> {
        pause();
        self.world().volatile(|w| {
            w.rings.push(SimRing::new(header.to_vec(), vec![0; ring_bytes as usize]));
            let i = w.rings.len() - 1;
            w.names.insert(file.to_owned(), Node::Ring(i));
            Ok(())
        })
    }

    fn open_ring(&self, file: &Path, _: u64) -> io::Result<Arc<dyn RingFile>> {
        let world = self.world();
        match world.names.get(file) {
            Some(Node::Ring(i)) => {
                Ok(Arc::new(OpenRing { world: self.0.clone(), ring: world.rings[*i].clone() }))
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

struct SimRegion {
    world: Arc<Mutex<World>>,
    index: usize,
}

impl SimRegion {
    fn change(&mut self, effect: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.world.lock().unwrap().volatile(|w| {
            effect(&mut w.files[self.index].0);
            Ok(())
        })
    }
}

impl RegionFile for SimRegion {
    fn write(&mut self, offset: u64, bytes: Bytes<'_>) -> io::Result<()> {
        if offset.is_multiple_of(1024) {
            pause();
        }
        let mut copy = vec![0; bytes.len()];
        bytes.copy_to(&mut copy);
        self.change(|file| file[offset as usize..offset as usize + copy.len()].copy_from_slice(&copy))
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|file| file[offset as usize..(offset + len) as usize].fill(0))
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        self.change(|file| file.resize(size as usize, 0))
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let world = self.world.lock().unwrap();
        into.copy_from_slice(&world.files[self.index].0[offset as usize..offset as usize + into.len()]);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        pause();
        self.world.lock().unwrap().sync(|w| {
            let (now, durable) = &mut w.files[self.index];
            durable.clone_from(now);
        })
    }
}

impl SimRing {
    fn new(header: Vec<u8>, bytes: Vec<u8>) -> SimRing {
        let fd = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes.len() as u64).unwrap();
        let memory = SharedMem::map_ring(fd.as_fd(), 0, bytes.len(), Access::ReadWrite).unwrap();
        memory.write(0, &bytes);
        SimRing { header, memory: Arc::new(memory), durable: Arc::new(Mutex::new(bytes)) }
    }
}

struct OpenRing {
    world: Arc<Mutex<World>>,
    ring: SimRing,
}

impl RingFile for OpenRing {
    fn memory(&self) -> &Arc<SharedMem> {
        &self.ring.memory
    }

    fn sync(&self, offset: usize, len: usize, _again: bool) -> io::Result<()> {
        pause();
        self.world.lock().unwrap().sync(|_| {
            let mut bytes = vec![0; len];
            self.ring.memory.read(offset, &mut bytes);
            let mut durable = self.ring.durable.lock().unwrap();
            let (start, ring) = (offset % durable.len(), durable.len());
            let (first, rest) = bytes.split_at(len.min(ring - start));
            durable[start..start + first.len()].copy_from_slice(first);
            durable[..rest.len()].copy_from_slice(rest);
        })
    }
}
