//! What the end-to-end tests share: directories in memory, C programs, agents as child processes,
//! and a small agent inside the test.
//!
//! Everything cleans up after itself when dropped, a panicking test included.

pub mod chance;
pub mod claim;
pub mod dirs;
pub mod image;
pub mod install;
pub mod load;
pub mod net;
pub mod node;
pub mod nut;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod ranges;
pub mod sim_store;
pub mod small_disk;
pub mod test_agent;
pub mod wait;
