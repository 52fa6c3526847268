//! The operator's guide knows every word that status and events use.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::DestinationState;
use crate::failover::{Alarm, Note, Phase};

const GUIDE: &str = include_str!("../../../docs/guide.md");

#[test]
fn every_state_of_a_destination_is_in_the_guide() {
    every_word_is_there(&words::<DestinationState>());
}

#[test]
fn every_state_of_a_group_is_in_the_guide() {
    every_word_is_there(&words::<Phase>());
    every_word_is_there(&["opening".into(), "unprotected".into()]);
}

#[test]
fn every_alarm_is_in_the_guide() {
    every_word_is_there(&words::<Alarm>());
}

#[test]
fn every_milestone_is_in_the_guide() {
    every_word_is_there(&words::<Note>());
}

#[test]
fn every_kind_of_event_is_in_the_guide() {
    let kinds = kinds_of_events();
    assert!(kinds.len() > 15, "the search for events finds too few: {kinds:?}");
    every_word_is_there(&kinds);
    every_word_is_there(&["missed".into()]);
}

fn every_word_is_there(words: &[String]) {
    let missing: Vec<_> = words.iter().filter(|word| !GUIDE.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "docs/guide.md does not explain {missing:?}");
}

/// Every word of an enum, as serde's complaint about another one lists them.
fn words<T: DeserializeOwned>() -> Vec<String> {
    let Err(complaint) = serde_json::from_str::<T>("\"?\"") else { panic!("`?` is a word") };
    let complaint = complaint.to_string();
    let words: Vec<_> = complaint.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert!(words.len() > 2, "{complaint}");
    words
}

/// The kinds that the agent's code emits: the first string of every call that tells of an event.
fn kinds_of_events() -> Vec<String> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/agent"), &mut files);
    let mut kinds = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in ["event(", "event)(", "emit("] {
            kinds.extend(code.split(call).skip(1).filter_map(first_word));
        }
    }
    kinds.sort();
    kinds.dedup();
    kinds
}

/// The string in front of the event's detail, if `call` begins with the arguments of such a call.
fn first_word(call: &str) -> Option<String> {
    let arguments = call.split("json!").next()?.split(';').next()?;
    let word = arguments.split('"').nth(1)?;
    let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    plain.then(|| word.to_owned())
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}
