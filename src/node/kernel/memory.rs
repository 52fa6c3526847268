//! Reading the kernel's own memory, by a BPF program of two dozen instructions that is run on request.
//!
//! The program copies up to [`BATCH`] pieces from addresses that it finds in a page shared with us to other such pages. Copies
//! are the kernel's `bpf_probe_read_kernel`: an address where nothing is yields an error, never a fault, and nothing is ever
//! written. Needs CAP_BPF and CAP_PERFMON (or root) and Linux 5.10. Nothing is attached; the program goes with its
//! descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::region::memory::{Access, SharedMem};
use crate::types::PAGE;

/// Pieces that one run copies at most.
pub const BATCH: usize = 64;

/// See the module.
pub struct KernelMemory {
    program: OwnedFd,
    shared: SharedMem,
    /// Keeps the pages of `shared`.
    _map: OwnedFd,
}

impl KernelMemory {
    /// Loads the program.
    pub fn open() -> io::Result<KernelMemory> {
        let map = bpf(
            MAP_CREATE,
            &mut MapCreate {
                map_type: ARRAY,
                key_size: 4,
                value_size: (PAGE * (1 + BATCH)) as u32,
                max_entries: 1,
                map_flags: MMAPABLE,
            },
        )?;
        let shared = SharedMem::map(map.as_fd(), 0, PAGE * (1 + BATCH), Access::ReadWrite)?;
        let code = program(map.as_raw_fd());
        let program = bpf(
            PROG_LOAD,
            &mut ProgLoad {
                prog_type: RAW_TRACEPOINT,
                insn_cnt: code.len() as u32,
                insns: code.as_ptr() as u64,
                license: LICENCE.as_ptr() as u64,
                ..ProgLoad::default()
            },
        )?;
        Ok(KernelMemory { program, shared, _map: map })
    }

    /// Copies `len` bytes, a page at most, from each address, and gives them by their number in `from`; `None` where nothing
    /// can be read.
    pub fn read(
        &self,
        from: &[u64],
        len: usize,
        mut each: impl FnMut(usize, Option<&[u8]>),
    ) -> io::Result<()> {
        assert!(len <= PAGE, "a bug of ours: pieces are a page at most");
        let mut bytes = [0; PAGE];
        for (batch, addresses) in from.chunks(BATCH).enumerate() {
            for (i, address) in addresses.iter().enumerate() {
                self.shared.write(8 * (ADDRESSES + i), &address.to_ne_bytes());
            }
            self.run(addresses.len(), len)?;
            for i in 0..addresses.len() {
                let read = self.word(OUTCOMES + i) == 0;
                if read {
                    self.shared.read(PAGE * (1 + i), &mut bytes[..len]);
                }
                each(batch * BATCH + i, read.then_some(&bytes[..len]));
            }
        }
        Ok(())
    }

    /// The word at `address`; `None` where nothing can be read.
    pub fn word_at(&self, address: u64) -> io::Result<Option<u64>> {
        let mut found = None;
        self.read(&[address], 8, |_, bytes| found = bytes.map(word))?;
        Ok(found)
    }

    /// Where the kernel keeps the calling thread.
    pub fn current_task(&self) -> io::Result<u64> {
        self.run(0, 0)?;
        Ok(self.word(TASK))
    }

    fn word(&self, number: usize) -> u64 {
        let mut bytes = [0; 8];
        self.shared.read(8 * number, &mut bytes);
        u64::from_ne_bytes(bytes)
    }

    fn run(&self, count: usize, len: usize) -> io::Result<()> {
        let context = [count as u64, len as u64];
        let mut run = TestRun {
            program: self.program.as_raw_fd() as u32,
            context_bytes: size_of_val(&context) as u32,
            context: context.as_ptr() as u64,
            ..TestRun::default()
        };
        call(PROG_TEST_RUN, &mut run).map(|_| ())
    }
}

/// The word that eight bytes are.
pub fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes"))
}

/// The program: `for i in 0..min(count, BATCH) { outcome[i] = probe_read_kernel(page[i], len, address[i]) }`.
fn program(map: i32) -> Vec<u64> {
    let op = |code: u64, dst: u64, src: u64, off: i64, imm: i64| {
        code | dst << 8 | src << 12 | (off as u64 & 0xffff) << 16 | (imm as u64 & 0xffff_ffff) << 32
    };
    let (load, store, add, set, shift) = (0x79, 0x7b, 0x0f, 0xbf, 0x67);
    vec![
        op(load, 6, 1, 0, 0),
        op(load, 9, 1, 8, 0),
        op(0x25, 9, 0, 21, PAGE as i64), // More than a page: to the end.
        op(store, 10, 9, -8, 0),
        op(0x18, 7, MAP_VALUE, 0, map as i64),
        0,
        op(0x85, 0, 0, 0, GET_CURRENT_TASK),
        op(store, 7, 0, 8 * TASK as i64, 0),
        op(0xb7, 8, 0, 0, 0),
        op(0x3d, 8, 6, 14, 0), // The loop; all done: to the end.
        op(0x25, 8, 0, 13, BATCH as i64 - 1),
        op(set, 9, 8, 0, 0),
        op(shift, 9, 0, 0, 3),
        op(add, 9, 7, 0, 0),
        op(load, 3, 9, 8 * ADDRESSES as i64, 0),
        op(set, 1, 8, 0, 0),
        op(shift, 1, 0, 0, 12),
        op(add, 1, 7, 0, 0),
        op(0x07, 1, 0, 0, PAGE as i64),
        op(load, 2, 10, -8, 0),
        op(0x85, 0, 0, 0, PROBE_READ_KERNEL),
        op(store, 9, 0, 8 * OUTCOMES as i64, 0),
        op(0x07, 8, 0, 0, 1),
        op(0x05, 0, 0, -15, 0),
        op(0xb7, 0, 0, 0, 0), // The end.
        op(0x95, 0, 0, 0, 0),
    ]
}

fn bpf<T: Attribute>(command: libc::c_int, arg: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, arg)?;
    // SAFETY: the two commands that come this way return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn call<T: Attribute>(command: libc::c_int, arg: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: every command here is paired with the beginning of the structure that the kernel defines for it (the rest counts
    // as zeros). The kernel may write its answers into it, within the size that is named: it is borrowed for that, and consists
    // of integers, of which any value is one. What it points to lives through the call, and is only read.
    let n = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(arg), size_of::<T>()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n) }
}

// Words of the first page that is shared with the program.
const TASK: usize = 0;
const ADDRESSES: usize = 1;
const OUTCOMES: usize = ADDRESSES + BATCH;

/// Of these instructions: the kernel lends that reading function to programs under a licence that it knows.
const LICENCE: &[u8] = b"Dual MIT/GPL\0";

// From linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;
const RAW_TRACEPOINT: u32 = 17;
const MAP_VALUE: u64 = 2;
const GET_CURRENT_TASK: i64 = 35;
const PROBE_READ_KERNEL: i64 = 113;

/// The beginning of `union bpf_attr` as one command takes it: integers only, and no padding.
trait Attribute {}

impl Attribute for MapCreate {}
impl Attribute for ProgLoad {}
impl Attribute for TestRun {}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

#[derive(Default)]
#[repr(C)]
struct TestRun {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_bytes: u32,
    context_bytes_out: u32,
    context: u64,
    context_out: u64,
}
