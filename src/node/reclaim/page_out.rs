//! Page-out of exactly the pages of a process that were not used, and what came of it.
//!
//! The kernel's answer says how much it went over, not how much it moved: it reports success for memory that is pinned and stays where it
//! is. So the effect is what the process has less than before.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::process::Process;
use crate::node::kernel::advice::{Hint, MOST_RANGES, advise};
use crate::node::kernel::tables::PageTables;
use crate::node::largepage::mappings::{self, Mapping};

/// What a page-out was asked for and what it did, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// Asked for, of pages that were chosen.
    pub asked: u64,
    /// Less that the process has of the host's memory.
    pub moved: u64,
}

impl Effect {
    /// Whether it did next to nothing: then these pages are pinned or the swap is full, and trying again is of no use.
    pub fn is_in_vain(&self) -> bool {
        self.moved < self.asked / 10
    }
}

/// Writes out up to `bytes` of pages of a process's anonymous and shared memory whose access bits are not set. They were cleared an
/// interval ago. What is locked, and what lies in `registered`, is left alone.
///
/// An error if it has ended; if it runs a machine with KVM, whose use of memory nobody knows; or if the kernel took no advice
/// at all.
pub fn page_out(
    tables: &mut PageTables,
    process: &Process,
    bytes: u64,
    registered: &[(u64, u64)],
) -> io::Result<Effect> {
    if process.runs_kvm()? {
        return Err(io::Error::new(io::ErrorKind::Unsupported, KVM));
    }
    let (proc, pid) = (Path::new("/proc"), process.pid());
    let before = mappings::of(proc, pid)?;
    let starts: Vec<u64> = before
        .iter()
        .filter(|m| goes_to_swap(m))
        .flat_map(|m| m.ranges().map(|range| range.start()))
        .collect();
    let mut chosen: Vec<(u64, usize)> = Vec::new();
    let mut asked = 0;
    tables.unused(pid, &starts, |from, to| {
        let clear = |(a, b): &(u64, u64)| to <= *a || *b <= from;
        if asked < bytes && registered.iter().all(clear) {
            let len = (to - from).min((bytes - asked).next_multiple_of(4096));
            chosen.push((from, len as usize));
            asked += len;
        }
    })?;
    // What was read of its number was of this process; the advice itself is bound to it.
    process.still()?;
    let advised = each(&chosen, |ranges| advise(process.handle(), ranges, Hint::PageOut));
    let resident = |all: &[Mapping]| all.iter().map(|m| m.resident).sum::<u64>();
    let moved = resident(&before).saturating_sub(resident(&mappings::of(proc, pid)?));
    process.still()?;
    match advised {
        (0, Some(error)) => Err(error),
        _ => Ok(Effect { asked, moved }),
    }
}

/// Gives all ranges to `advise`, and goes on behind one that is refused; bytes that were gone over, and the last refusal. Ends
/// early only where every further range would be refused as well.
fn each(
    ranges: &[(u64, usize)],
    mut advise: impl FnMut(&[(u64, usize)]) -> io::Result<usize>,
) -> (u64, Option<io::Error>) {
    let (mut advised, mut refusal) = (0, None);
    let mut left = ranges;
    while !left.is_empty() {
        let some = &left[..left.len().min(AT_ONCE)];
        let over = match advise(some) {
            Ok(over) => over,
            Err(error) => {
                let of_all = matches!(
                    error.raw_os_error(),
                    Some(libc::ESRCH | libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EBADF)
                );
                refusal = Some(error);
                if of_all {
                    break;
                }
                0
            }
        };
        advised += over as u64;
        // The kernel stops at the first range that it refuses, and says how many bytes came before it.
        let mut sum = 0;
        let whole = some.iter().take_while(|(_, len)| {
            sum += len;
            sum <= over
        });
        let whole = whole.count();
        left = &left[(whole + usize::from(whole < some.len())).max(1)..];
    }
    (advised, refusal)
}

/// Whether what is mapped is memory that the kernel can write to swap.
fn goes_to_swap(mapping: &Mapping) -> bool {
    let is_memory =
        ["/dev/shm/", "/memfd:", "/SYSV", "/dev/zero"].iter().any(|at| mapping.path.starts_with(at));
    mapping.is_ordinary && !mapping.is_locked && (!mapping.is_file || is_memory)
}

/// Ranges that are given at once: each is 2 MiB at most, and the kernel goes over less than 2 GiB in one call.
const AT_ONCE: usize = MOST_RANGES / 2;

const KVM: &str = "it runs a virtual machine with KVM: which of its memory the guest uses is told by no page table of its, \
                   so that nothing of it is paged out; give it a balloon, or a control group with memory.reclaim";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::reclaim::sample::sample;
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    /// A kernel that refuses some ranges, as the real one does: it goes over those before the first of them.
    fn kernel<'a>(
        refuses: &'a [u64],
        over: &'a mut Vec<u64>,
    ) -> impl FnMut(&[(u64, usize)]) -> io::Result<usize> + 'a {
        move |ranges| {
            assert!(ranges.len() <= AT_ONCE);
            let fine: Vec<_> = ranges.iter().take_while(|(at, _)| !refuses.contains(at)).collect();
            over.extend(fine.iter().map(|(at, _)| at));
            match fine.iter().map(|(_, len)| len).sum() {
                0 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
                sum => Ok(sum),
            }
        }
    }

    #[test]
    fn nothing_of_a_machine_with_kvm_is_paged_out_and_all_of_it_counts_as_used() {
        let mut tables = match PageTables::open() {
            Ok(tables) => tables,
            Err(why) => {
                _ = writeln!(io::stderr(), "\nskipped: machines with KVM: {why}");
                return;
            }
        };
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it has answered it waits for more, and uses nothing.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let plain = Process::open(child.id()).unwrap();
        plain.begin_interval().unwrap();
        let (machine, _proc) = Process::with_kvm(child.id());
        let mut state = 1u64;
        let mut look = |process: &Process| {
            let chance = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            sample(&mut tables, process, 400, &[], chance).unwrap().classes
        };
        assert!(look(&plain).inactive_anonymous.bytes > 0, "it waits for its input");
        let found = look(&machine);
        assert!(found.inactive_anonymous.bytes == 0 && found.active_anonymous.bytes > 0, "{found:?}");
        let error = page_out(&mut tables, &machine, 1 << 20, &[]).unwrap_err();
        assert!(error.to_string().contains("KVM"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn locked_memory_is_left_alone() {
        let of = |flags: &str| {
            let text =
                format!("200000-400000 rw-p 00000000 00:00 0\nKernelPageSize: 4 kB\nVmFlags: {flags}\n");
            goes_to_swap(&mappings::parse(text.as_bytes())[0])
        };
        assert!(of("rd wr mr mw me") && !of("rd wr lo mr"));
    }

    #[test]
    fn nothing_is_tried_again_where_every_range_would_be_refused() {
        let mut calls = 0;
        let (advised, why) = each(&[(0, 4096), (8192, 4096)], |_| {
            calls += 1;
            Err(io::Error::from_raw_os_error(libc::EPERM))
        });
        assert_eq!((advised, calls), (0, 1));
        assert_eq!(why.unwrap().raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn a_refused_range_keeps_none_of_the_others_from_being_gone_over(
            lens in prop::collection::vec(1usize..4, 0..3000), refused in prop::collection::vec(0u64..3000, 0..20)
        ) {
            let ranges: Vec<(u64, usize)> = lens.iter().enumerate().map(|(i, n)| (i as u64, n * 4096)).collect();
            let mut over = Vec::new();
            let (advised, _) = each(&ranges, kernel(&refused, &mut over));
            let fine: Vec<_> = ranges.iter().filter(|(at, _)| !refused.contains(at)).collect();
            prop_assert_eq!(over, fine.iter().map(|(at, _)| *at).collect::<Vec<_>>());
            prop_assert_eq!(advised, fine.iter().map(|(_, len)| *len as u64).sum::<u64>());
        }
    }
}
