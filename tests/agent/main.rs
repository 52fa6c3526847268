//! The agent from outside: its processes, its socket, hostile clients, its command line.

mod bench;
mod holder;
mod lives;
mod restarts;
mod sessions;
