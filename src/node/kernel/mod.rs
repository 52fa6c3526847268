//! Probes: what the kernel knows of other processes' memory and no file of procfs tells, and advice on it.
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`advice`] | advice on the memory of another process |
//! | [`btf`] | where fields are, by the kernel's description of its types (pure) |
//! | [`memory`] | reading kernel memory, by a BPF program |
//! | [`physical`] | where physical memory is, and where the kernel maps it |
//! | [`tables`] | the page tables of a process |

pub mod advice;
pub mod btf;
pub mod memory;
pub mod physical;
pub mod tables;
