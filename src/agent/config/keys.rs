//! Reading the keys: every fault of the text, not only the first that the reader meets.
//!
//! Whatever serde refuses is noted, taken out of the tree, and the rest is read again. What is missing is put in with a
//! stand-in. So what remains can be read and checked as a whole; [`Lost`] says which of the checks' findings mean nothing,
//! since they come of what was taken out or put in.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::Config;
use super::message::{Fault, Problem, Source, Step, meant};

/// Most faults that are told of one by one: far more than a person mends before asking again.
const MAX_FAULTS: usize = 100;

/// What a text holds.
pub(super) struct Keys {
    /// All that could be read.
    pub config: Option<Config>,
    /// What could not.
    pub problems: Vec<Problem>,
    /// Where `config` is not what the text says.
    pub lost: Lost,
}

/// Reads the keys of `source`.
pub(super) fn read(source: &Source<'_>) -> Keys {
    let mut tree = source.tree().clone();
    let (mut problems, mut lost) = (Vec::new(), Lost::default());
    while problems.len() < MAX_FAULTS {
        let error = match Config::deserialize(toml::de::Deserializer::from(tree.clone())) {
            Ok(config) => return Keys { config: Some(config), problems, lost },
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let mended = match missing_field(error.message()) {
            Some(field) => {
                let mut path = table_at(source.tree(), &span).unwrap_or_default();
                path.push(Step::Key(field.into()));
                if !lost.explains(&path) && !lost.meant.contains(&path) {
                    problems.push(source.missing(&span, &path, field));
                }
                stand_in(&mut tree, &path, &lost).inspect(|()| lost.put_in(path))
            }
            None => {
                let path = source.path_at(&span);
                problems.push(source.refused(&error));
                // Taken out before, it cannot be what was complained of.
                let is_new = !lost.out.contains(&path);
                is_new
                    .then(|| take_out(&mut tree, &path, &lost))
                    .flatten()
                    .inspect(|()| lost.taken_out(path, error.message()))
            }
        };
        if mended.is_none() {
            break;
        }
    }
    Keys { config: None, problems, lost }
}

/// Where the tree that was read differs from the text. Paths are those of the text.
#[derive(Default)]
pub(super) struct Lost {
    /// What was taken out: of arrays, the later elements have moved up.
    out: Vec<Vec<Step>>,
    /// What was taken out or put in.
    changed: Vec<Vec<Step>>,
    /// What unknown keys, which were taken out, most likely meant.
    meant: Vec<Vec<Step>>,
}

impl Lost {
    fn taken_out(&mut self, path: Vec<Step>, why: &str) {
        if let (Some((nearest, _)), [table @ .., _]) = (meant(why), &path[..]) {
            self.meant.push([table, &[Step::Key(nearest)]].concat());
        }
        self.changed.push(path.clone());
        self.out.push(path);
    }

    fn put_in(&mut self, path: Vec<Step>) {
        self.changed.push(path);
    }

    /// Of what the checks found, what the text is to blame for, by its own paths.
    pub fn without_consequences(&self, faults: Vec<Fault>) -> Vec<Fault> {
        let blamed = faults.into_iter().map(|mut fault| {
            fault.path = self.in_text(&fault.path);
            fault.unless = fault.unless.map(|path| self.in_text(&path));
            fault
        });
        let is_consequence = |fault: &Fault| {
            let within =
                |path: &Vec<Step>| self.changed.iter().chain(&self.meant).any(|c| c.starts_with(path));
            self.explains(&fault.path) || fault.unless.as_ref().is_some_and(within)
        };
        blamed.filter(|fault| !is_consequence(fault)).collect()
    }

    /// Whether `path` lies in something that is not as the text has it.
    fn explains(&self, path: &[Step]) -> bool {
        self.changed.iter().any(|changed| path.starts_with(changed))
    }

    /// The place in the text of what is at `path` in what was read.
    fn in_text(&self, path: &[Step]) -> Vec<Step> {
        path.iter().fold(Vec::new(), |mut text, step| {
            text.push(match step {
                Step::Index(now) => {
                    let mut out = self.out_of(&text);
                    out.sort_unstable();
                    Step::Index(out.iter().fold(*now, |at, out| at + usize::from(*out <= at)))
                }
                key => key.clone(),
            });
            text
        })
    }

    /// Which elements of the array at `path` were taken out.
    fn out_of(&self, path: &[Step]) -> Vec<usize> {
        let index = |out: &Vec<Step>| match out.split_last() {
            Some((Step::Index(at), array)) if array == path => Some(*at),
            _ => None,
        };
        self.out.iter().filter_map(index).collect()
    }
}

/// A table or array of the tree.
enum Inner<'t, 'i> {
    Table(&'t mut DeTable<'i>),
    Array(&'t mut DeArray<'i>),
}

/// What holds the last step of `path`, and the step as it is in the tree.
fn holder<'t, 'i>(
    tree: &'t mut Spanned<DeTable<'i>>,
    path: &[Step],
    lost: &Lost,
) -> Option<(Inner<'t, 'i>, Step)> {
    let mut inner = Inner::Table(tree.get_mut());
    for (depth, step) in path.iter().enumerate() {
        let step = match step {
            Step::Index(at) => {
                let before = lost.out_of(&path[..depth]).iter().filter(|out| *out < at).count();
                Step::Index(at - before)
            }
            key => key.clone(),
        };
        if depth + 1 == path.len() {
            return Some((inner, step));
        }
        let value = match (inner, &step) {
            (Inner::Table(table), Step::Key(key)) => table.get_mut(key.as_str())?,
            (Inner::Array(array), Step::Index(at)) => array.get_mut(*at)?,
            _ => return None,
        };
        inner = match value.get_mut() {
            DeValue::Table(table) => Inner::Table(table),
            DeValue::Array(array) => Inner::Array(array),
            _ => return None,
        };
    }
    None
}

fn take_out(tree: &mut Spanned<DeTable<'_>>, path: &[Step], lost: &Lost) -> Option<()> {
    match holder(tree, path, lost)? {
        (Inner::Table(table), Step::Key(key)) => table.remove(key.as_str()).map(drop),
        (Inner::Array(array), Step::Index(at)) if at < array.len() => {
            *array =
                array.clone().into_iter().enumerate().filter(|(i, _)| *i != at).map(|(_, v)| v).collect();
            Some(())
        }
        _ => None,
    }
}

/// Puts in what can be read at `path`, where something required is missing.
fn stand_in(tree: &mut Spanned<DeTable<'_>>, path: &[Step], lost: &Lost) -> Option<()> {
    let (Inner::Table(table), Step::Key(key)) = holder(tree, path, lost)? else { return None };
    let text = match key.as_str() {
        "node" => "node = { name = '/?' }",
        "kind" => "kind = 'file'",
        "listen" => "listen = '127.0.0.1:1'",
        "from" => "from = []",
        "name" => "name = '/?'",
        "address" => "address = '/?'",
        "group" => "group = '/?'",
        "dir" => "dir = '/?'",
        "path" => "path = '/?'",
        "cgroup" => "cgroup = '/?'",
        "ca" => "ca = '/?'",
        "cert" => "cert = '/?'",
        "key" => "key = '/?'",
        _ => return None,
    };
    let (name, value) = DeTable::parse(text).ok()?.into_inner().into_iter().next()?;
    table.insert(name, value).is_none().then_some(())
}

fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

/// The table that has this span.
fn table_at(root: &Spanned<DeTable<'_>>, span: &Range<usize>) -> Option<Vec<Step>> {
    let mut path = Vec::new();
    (root.span() == *span || find_table(root.get_ref(), span, &mut path)).then_some(path)
}

fn find_table(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<Step>) -> bool {
    table.iter().any(|(key, value)| {
        path.push(Step::Key(key.get_ref().to_string()));
        let found = find_in(value, span, path);
        if !found {
            path.pop();
        }
        found
    })
}

fn find_in(value: &Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut Vec<Step>) -> bool {
    match value.get_ref() {
        DeValue::Table(table) => value.span() == *span || find_table(table, span, path),
        DeValue::Array(array) => array.iter().enumerate().any(|(index, item)| {
            path.push(Step::Index(index));
            let found = find_in(item, span, path);
            if !found {
                path.pop();
            }
            found
        }),
        _ => false,
    }
}
