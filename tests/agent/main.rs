//! The agent from outside: its processes, its socket, hostile clients, its command line.

mod holder;
