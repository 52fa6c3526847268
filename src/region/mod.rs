//! What is protected: mapping, identity, dirty tracking; and safe access to memory that others write.

pub mod content;
pub(crate) mod crc;
pub mod dirty;
pub mod ethtool;
pub mod flush;
pub mod identity;
pub mod kind;
pub mod mapped_file;
pub mod memory;
pub mod sampling;
pub mod sockopt;
pub mod table;
