//! What a person is told about a configuration that cannot be used.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}; `pmemha init` makes a configuration", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file can be read, but not used.
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Wrong(Vec<Problem>),
}

impl ConfigError {
    /// In the order of the text.
    pub(super) fn wrong(mut problems: Vec<Problem>) -> ConfigError {
        problems.sort_by_key(|p| p.line);
        ConfigError::Wrong(problems)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line in it, from 1.
    pub line: usize,
    /// The key, such as `group[0].log_size`; empty when the text is no TOML at that point.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// What validation found at a key; [`Source::problems`] finds the line.
#[derive(Debug)]
pub(super) struct Fault {
    /// The key from the root: table keys and array indices.
    pub path: Vec<Step>,
    pub what: String,
    pub remedy: String,
    /// Something here or below explains the fault, if it could not be read.
    pub unless: Option<Vec<Step>>,
}

/// One step from a table or array to what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A configuration's text, to find lines and keys in.
pub(super) struct Source<'a> {
    text: &'a str,
    file: &'a Path,
    tree: Spanned<DeTable<'a>>,
}

impl<'a> Source<'a> {
    /// Fails with everything by which `text` is no TOML: what it would mean without is anybody's guess.
    pub fn new(text: &'a str, file: &'a Path) -> Result<Self, ConfigError> {
        let (tree, errors) = DeTable::parse_recoverable(text);
        let source = Self { text, file, tree };
        let mut problems: Vec<Problem> = errors.iter().map(|e| source.refused(e)).collect();
        if problems.is_empty() {
            return Ok(source);
        }
        problems.sort_by_key(|p| p.line);
        // The second of a line is seldom more than the first one's echo.
        problems.dedup_by_key(|p| p.line);
        Err(ConfigError::wrong(problems))
    }

    /// What the text says.
    pub fn tree(&self) -> &Spanned<DeTable<'a>> {
        &self.tree
    }

    /// What the TOML reader or serde refused.
    pub fn refused(&self, error: &toml::de::Error) -> Problem {
        let span = error.span().unwrap_or(0..0);
        let what = error.message().trim().replace('\n', ", ");
        let path = self.path_at(&span);
        if let Some((nearest, known)) = meant(&what) {
            let what = what.split_once(", expected").map_or(what.as_str(), |w| w.0).to_owned();
            let found = what.split('`').nth(1).unwrap_or_default();
            let close = distance(found, &nearest) <= nearest.len().max(found.len()) / 2;
            let known = known.join(", ");
            let remedy = match close {
                true => format!("did you mean `{nearest}`? (known: {known})"),
                false => format!("known here: {known}"),
            };
            return self.problem(span.start, render(&path), what, remedy);
        }
        let remedy = remedy_for(&what, &path);
        self.problem(span.start, render(&path), in_toml(&what), remedy)
    }

    /// `field`, which is the last step of `path`, is missing in the table at `span`.
    pub fn missing(&self, span: &Range<usize>, path: &[Step], field: &str) -> Problem {
        let remedy = match path {
            [_] => format!(
                "add [{field}] with name = \"...\", this machine's name in its certificate; `pmemha init` makes a configuration"
            ),
            _ => format!("add {field} = ...; pmemhad.conf(5) says of what"),
        };
        self.problem(span.start, render(path), "missing".into(), remedy)
    }

    /// What validation found.
    pub fn problems(&self, faults: Vec<Fault>) -> Vec<Problem> {
        let problem =
            |f: Fault| self.problem(deepest(&self.tree, &f.path), render(&f.path), f.what, f.remedy);
        faults.into_iter().map(problem).collect()
    }

    /// The innermost key whose name or value covers `span`.
    pub fn path_at(&self, span: &Range<usize>) -> Vec<Step> {
        let mut path = Vec::new();
        descend_table(self.tree.get_ref(), span, &mut path);
        path
    }

    fn problem(&self, offset: usize, key: String, what: String, remedy: String) -> Problem {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        Problem { file: self.file.to_path_buf(), line, key, what, remedy }
    }
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn descend_table(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<Step>) {
    let keyed = table.iter().find(|(key, _)| covers(&key.span(), span));
    if let Some((key, _)) = keyed {
        path.push(Step::Key(key.get_ref().to_string()));
        return;
    }
    // A table's own span may be no more than its header, so what it holds is looked into either way.
    for (key, value) in table.iter() {
        path.push(Step::Key(key.get_ref().to_string()));
        if descend_value(value, span, path) {
            return;
        }
        path.pop();
    }
}

fn descend_value(value: &Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut Vec<Step>) -> bool {
    let depth = path.len();
    match value.get_ref() {
        DeValue::Table(table) => descend_table(table, span, path),
        DeValue::Array(array) => {
            for (index, item) in array.iter().enumerate() {
                path.push(Step::Index(index));
                if descend_value(item, span, path) {
                    return true;
                }
                path.pop();
            }
        }
        _ => {}
    }
    path.len() > depth || covers(&value.span(), span)
}

/// Where the deepest existing step of `path` stands in the text.
fn deepest(root: &Spanned<DeTable<'_>>, path: &[Step]) -> usize {
    let mut offset = 0;
    let mut table = Some(root.get_ref());
    let mut array = None;
    for step in path {
        let value = match step {
            Step::Key(name) => {
                let Some((key, value)) =
                    table.and_then(|t| t.iter().find(|(k, _)| k.get_ref().as_ref() == name))
                else {
                    return offset;
                };
                offset = key.span().start;
                value
            }
            Step::Index(index) => {
                let Some(value) = array.and_then(|a: &toml::de::DeArray<'_>| a.get(*index)) else {
                    return offset;
                };
                offset = value.span().start;
                value
            }
        };
        table = value.get_ref().as_table();
        array = value.get_ref().as_array();
    }
    offset
}

fn render(path: &[Step]) -> String {
    path.iter().fold(String::new(), |mut out, step| {
        match step {
            Step::Index(i) => out.push_str(&format!("[{i}]")),
            Step::Key(k) if out.is_empty() => out.push_str(k),
            Step::Key(k) => {
                out.push('.');
                out.push_str(k);
            }
        }
        out
    })
}

/// serde says what it expected instead of an unknown word: the nearest to it is most likely what was meant. That one, and all.
pub(super) fn meant(message: &str) -> Option<(String, Vec<&str>)> {
    let (found, expected) = message.split_once(", expected")?;
    if !found.starts_with("unknown ") {
        return None;
    }
    let found = found.split('`').nth(1)?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let nearest = known.iter().min_by_key(|word| distance(found, word))?;
    Some((nearest.to_string(), known))
}

/// A complaint of serde in the words of the file.
fn in_toml(message: &str) -> String {
    let Some((found, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    let found =
        found.replace("invalid type: map", "invalid type: table").replace("type: sequence", "type: list");
    let expected = match expected {
        "a sequence" => "a list",
        "a map" => "a table",
        "path string" => "a path",
        "u8" => "a number from 0 to 255",
        e if e.starts_with("struct ") => "a table",
        e => e,
    };
    format!("{found}, expected {expected}")
}

/// What to write instead of a value of the wrong kind.
fn remedy_for(message: &str, path: &[Step]) -> String {
    if message.contains("invalid socket address") {
        return "write an IP address and a port, such as \"127.0.0.1:9475\" or \"[::1]:9475\"".into();
    }
    if message.starts_with("wanted string or table") {
        return "write one of the words that pmemhad.conf(5) lists, in quotes".into();
    }
    let Some((found, expected)) = message.split_once(", expected ") else { return String::new() };
    let key =
        match path.iter().rev().find_map(|step| if let Step::Key(key) = step { Some(key) } else { None }) {
            Some(key) => key.as_str(),
            None => return String::new(),
        };
    match expected {
        "a sequence" if found.contains("map") || path.len() == 1 => format!("write it as [[{key}]]"),
        "a sequence" => format!("write a list: {key} = [\"...\"]"),
        "a map" => format!("write a table: {key} = {{ ... }}"),
        "a boolean" => "write true or false, without quotes".into(),
        "u8" => "write a whole number from 0 to 255, without quotes".into(),
        e if e.starts_with("struct ") && path.len() == 1 => format!("write it as [{key}]"),
        e if e.starts_with("struct ") => format!("write a table: {key} = {{ ... }}"),
        e if e.contains("string") || e.contains("socket address") => "write it in quotes".into(),
        _ => String::new(),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
