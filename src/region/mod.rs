//! What is protected: mapping, identity, dirty tracking; and safe access to memory that others write.

pub mod memory;
pub mod table;
