//! Whether lines that were recorded are flushed on this machine as well. Asked for where a file is protected; any thread.

use std::ffi::OsString;

use super::client::variable;
use crate::region::kind::MemoryKind;
use crate::region::mapped_file::FlushKind;

/// What the environment's `PMEMHA_LOCAL_FLUSH` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalFlush {
    /// `auto`, or nothing: where it makes lines more durable.
    #[default]
    Auto,
    /// `always`.
    Always,
}

/// The variable says something else.
#[derive(Debug, thiserror::Error)]
#[error("PMEMHA_LOCAL_FLUSH is {0:?}: say \"auto\" or \"always\"")]
pub struct UnknownLocalFlush(OsString);

impl LocalFlush {
    /// As the environment has it; a program with more rights than its caller is not told by that ([`variable`]).
    pub fn from_env() -> Result<LocalFlush, UnknownLocalFlush> {
        Self::parse(variable("PMEMHA_LOCAL_FLUSH"))
    }

    /// Whether lines in such memory are recorded and not flushed.
    pub fn leaves_out(self, memory: MemoryKind) -> bool {
        self == LocalFlush::Auto && memory.is_dram()
    }

    /// How a mapping's stores are made durable.
    pub fn applied_to(self, flush: FlushKind) -> FlushKind {
        match (self, flush) {
            (LocalFlush::Always, FlushKind::Dram) => FlushKind::Lines,
            _ => flush,
        }
    }

    fn parse(value: Option<OsString>) -> Result<LocalFlush, UnknownLocalFlush> {
        match value {
            None => Ok(LocalFlush::Auto),
            Some(value) if value == "auto" => Ok(LocalFlush::Auto),
            Some(value) if value == "always" => Ok(LocalFlush::Always),
            Some(value) => Err(UnknownLocalFlush(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memory_that_gains_nothing_is_left_out_and_only_by_default() {
        for memory in [MemoryKind::Tmpfs, MemoryKind::Hugetlbfs] {
            assert!(LocalFlush::Auto.leaves_out(memory));
            assert!(!LocalFlush::Always.leaves_out(memory));
        }
        for memory in [MemoryKind::Fsdax, MemoryKind::Devdax, MemoryKind::File] {
            assert!(!LocalFlush::Auto.leaves_out(memory));
        }
        assert_eq!(LocalFlush::Auto.applied_to(FlushKind::Dram), FlushKind::Dram);
        assert_eq!(LocalFlush::Always.applied_to(FlushKind::Dram), FlushKind::Lines);
        assert_eq!(LocalFlush::Always.applied_to(FlushKind::Msync), FlushKind::Msync);
    }

    #[test]
    fn a_word_that_means_nothing_is_named() {
        let parse = |word: &str| LocalFlush::parse(Some(word.into()));
        assert_eq!(LocalFlush::parse(None).unwrap(), LocalFlush::Auto);
        assert_eq!(parse("auto").unwrap(), LocalFlush::Auto);
        assert_eq!(parse("always").unwrap(), LocalFlush::Always);
        assert!(parse("never").unwrap_err().to_string().contains("\"never\""));
    }
}
