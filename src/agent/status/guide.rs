//! The operator's guide knows every word that status and events use.

use serde::de::DeserializeOwned;

use super::DestinationState;
use crate::agent::events::Kind;
use crate::agent::unusable::UNUSABLE;
use crate::failover::{Alarm, Note, Phase};

const GUIDE: &str = include_str!("../../../docs/guide.md");

#[test]
fn every_state_of_a_destination_is_in_the_guide() {
    every_word_is_there(&words::<DestinationState>());
}

#[test]
fn every_state_of_a_group_is_in_the_guide() {
    every_word_is_there(&words::<Phase>());
    every_word_is_there(&["opening".into(), "unprotected".into(), UNUSABLE.into()]);
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
    every_word_is_there(&words::<Kind>());
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
