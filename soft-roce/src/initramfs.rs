//! The archive that a machine's kernel starts from: busybox, `guest/init`, and the modules without which the host's file
//! system cannot be mounted. All others are loaded from there.
//!
//! It is made anew for every boot: it is 3 MB, and nothing can be stale.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::error::{Doing, RigError};
use crate::places::{Kernel, program, sources};

/// The modules that reach the host's file system, and the overlay that takes the writes.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Its bytes.
pub fn build(kernel: &Kernel) -> Result<Vec<u8>, RigError> {
    let read = |file: &Path| fs::read(file).doing(|| format!("reading {}", file.display()));
    let root = kernel.modules.join(&kernel.version);
    let text = |name| Ok::<_, RigError>(String::from_utf8_lossy(&read(&root.join(name))?).into_owned());
    let (dep, builtin) = (text("modules.dep")?, text("modules.builtin")?);
    let modules = load_order(&MODULES, &dep, &builtin)
        .map_err(|module| RigError::Missing(format!("the kernel module {module} in {}", root.display())))?;

    let mut archive = Archive::default();
    archive.add("init", EXECUTABLE, &read(&sources().join("guest/init"))?);
    archive.add("busybox", EXECUTABLE, &read(&program("busybox")?)?);
    archive.add("modules", FOLDER, &[]);
    let mut order = String::new();
    for path in modules {
        let file = path.rsplit('/').next().unwrap_or(path);
        archive.add(&format!("modules/{file}"), PLAIN, &read(&root.join(path))?);
        order += &format!("{file}\n");
    }
    archive.add("modules/order", PLAIN, order.as_bytes());
    Ok(archive.finish())
}

/// The files of `wanted` and of all that they depend on, those that others need first. `Err` is a module that is neither
/// in `dep` (modules.dep) nor built in.
fn load_order<'a>(wanted: &[&'a str], dep: &'a str, builtin: &'a str) -> Result<Vec<&'a str>, &'a str> {
    let depends: HashMap<&str, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module(file), (file, needs.split_whitespace().map(module).collect())))
        .collect();
    let mut order = Vec::new();
    let mut open: Vec<(&str, bool)> = wanted.iter().rev().map(|name| (*name, false)).collect();
    while let Some((name, needs_are_in)) = open.pop() {
        let Some((file, needs)) = depends.get(name) else {
            if builtin.lines().any(|line| module(line) == name) {
                continue;
            }
            return Err(name);
        };
        if needs_are_in {
            if !order.contains(file) {
                order.push(file);
            }
        } else {
            open.push((name, true));
            open.extend(needs.iter().map(|need| (*need, false)));
        }
    }
    Ok(order)
}

/// A module's name by its file's.
fn module(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".ko").unwrap_or(name)
}

/// A cpio archive of the format "newc", which is what the kernel reads.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (inode, size, name_size) = (self.entries, content.len(), name.len() + 1);
        // Magic, inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), name's size, check.
        self.bytes.extend(
            format!("070701{inode:08X}{mode:08X}{0:08X}{0:08X}{1:08X}{0:08X}{size:08X}", 0, 1).bytes(),
        );
        self.bytes.extend(format!("{0:08X}{0:08X}{0:08X}{0:08X}{name_size:08X}{0:08X}", 0).bytes());
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", PLAIN, &[]);
        self.bytes
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

const FOLDER: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "k/fs/9p/9p.ko: k/net/9pnet.ko k/fs/netfs.ko\nk/net/9pnet.ko:\nk/fs/netfs.ko:\n\
                       k/net/9pnet_virtio.ko: k/net/9pnet.ko k/v/virtio_ring.ko\nk/v/virtio_ring.ko: k/v/virtio.ko\n\
                       k/v/virtio.ko:\n";

    #[test]
    fn modules_are_loaded_after_those_that_they_need() {
        let order = load_order(&["9p", "9pnet_virtio"], DEP, "").unwrap();
        let place = |name| order.iter().position(|file| module(file) == name).unwrap();
        assert_eq!(order.len(), 6, "each once: {order:?}");
        assert!(place("9pnet") < place("9p") && place("netfs") < place("9p"));
        assert!(place("virtio") < place("virtio_ring") && place("virtio_ring") < place("9pnet_virtio"));
    }

    #[test]
    fn a_module_that_is_nowhere_is_named_and_a_built_in_one_left_out() {
        assert_eq!(load_order(&["9p", "overlay"], DEP, ""), Err("overlay"));
        assert_eq!(load_order(&["9pnet", "overlay"], DEP, "k/fs/overlay.ko\n").unwrap(), ["k/net/9pnet.ko"]);
    }

    #[test]
    fn the_archive_is_one_that_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.add("ab", PLAIN, b"content");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000081A400000000000000000000000100000000"));
        assert_eq!(&text[54..62], "00000007", "the content's size");
        assert_eq!(&text[94..102], "00000003", "the name's size, its zero included");
        assert_eq!(&bytes[110..124], b"ab\0\0\0\0content\0", "name and content, padded");
        assert_eq!(bytes.len() % 4, 0);
        assert!(text.contains("TRAILER!!!"));
    }
}
