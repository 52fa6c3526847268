//! `libpmemha_preload.so`: captures what an unmodified program makes persistent.
//!
//! Loaded by `LD_PRELOAD`, it stands before libpmem, libpmem2 and the parts of libc through which programs make bytes
//! durable. Every hook does the program's own call and, where the bytes are protected, appends to the group's log
//! through the session that `state` keeps; everything else passes at the cost of a branch or one lookup.
//!
//! | file | what it stands before |
//! | --- | --- |
//! | `libpmem`, `libpmem2` | flush, drain, memcpy and their families |
//! | `mapping` | mmap, munmap, mremap |
//! | `sync` | msync, fsync and their families |
//! | `opening` | open, close, dup |
//! | `writing` | write, pwrite, writev, copy_file_range, splice, sendfile |
//! | `sizing` | ftruncate, fallocate |
//! | `names` | rename, unlink, link |
//! | `stdio` | fopen, fdopen, freopen |
//! | `process` | fork, exec, exit |
//! | `dynamic` | dlsym |
//!
//! `real` finds the real functions, `guard` tells the program's calls from ours, `fds` and `file` know what is
//! protected, `report` speaks to the person.

mod dynamic;
mod fds;
mod file;
mod guard;
mod libpmem;
mod libpmem2;
mod mapping;
mod names;
mod opening;
mod process;
mod real;
mod report;
mod sizing;
mod state;
mod stdio;
mod sync;
mod writing;
