//! Which files are protected: glob patterns over absolute paths.
//!
//! The configuration states them, the agent decides by them, and applications get them with their welcome, so
//! that a file which does not exist yet is recognised the moment it is created. `*` and `?` stay within a
//! path component, `**` crosses components, `[…]` is a set of characters.

use std::path::Path;

use glob::{MatchOptions, Pattern};

/// A set of patterns, ready to match.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

/// A pattern that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("\"{pattern}\" is no pattern of protected paths: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Patterns {
    /// Compiles `patterns`; each is an absolute path, since a relative one would mean another file in
    /// each process.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Patterns, PatternError> {
        let patterns = patterns.iter().map(|p| compile(p.as_ref())).collect::<Result<_, _>>()?;
        Ok(Patterns { patterns })
    }

    /// Whether `path`, absolute and without symbolic links, is to be protected.
    pub fn matches(&self, path: &Path) -> bool {
        self.patterns.iter().any(|p| p.matches_path_with(path, OPTIONS))
    }

    /// Whether nothing can match.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

fn compile(pattern: &str) -> Result<Pattern, PatternError> {
    let refuse = |reason: String| PatternError { pattern: pattern.to_owned(), reason };
    if !pattern.starts_with('/') {
        return Err(refuse("it must start with a slash, as absolute paths do".into()));
    }
    Pattern::new(pattern).map_err(|e| refuse(e.to_string()))
}

/// How a pattern, or a component of one, is matched.
pub(crate) const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_a_component_and_double_stars_do_not() {
        let p = Patterns::new(&["/pmem/*.pool", "/data/**"]).unwrap();
        for (path, expected) in [
            ("/pmem/a.pool", true),
            ("/pmem/.hidden.pool", true),
            ("/pmem/sub/a.pool", false),
            ("/pmem/a.pool.lock", false),
            ("/data/a", true),
            ("/data/deep/down/a", true),
            ("/database", false),
            ("pmem/a.pool", false),
        ] {
            assert_eq!(p.matches(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_a_pattern_is_named() {
        assert!(Patterns::new(&["relative"]).unwrap_err().to_string().contains("\"relative\""));
        assert!(Patterns::new(&["/a/***"]).is_err());
        assert!(!Patterns::new::<&str>(&[]).unwrap().matches(Path::new("/a")));
    }
}
