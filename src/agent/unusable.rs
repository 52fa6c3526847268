//! A group that this agent could not open: the others go on without it, and whoever asks for it is told why.

use crate::agent::source::Wish;
use std::sync::Arc;
use std::time::Instant;

use super::group::{Controller, Group};
use super::status::{GroupStatus, Role};
use crate::types::Generation;

/// The word for its state.
pub const UNUSABLE: &str = "unusable";

/// Stands for the group until the next agent tries again.
pub struct Unusable {
    name: String,
    role: Role,
    why: String,
}

impl Unusable {
    /// The group called `name`, in which this node would play `role`, and what happened to it.
    pub fn new(name: &str, role: Role, why: String) -> Unusable {
        Unusable { name: name.to_owned(), role, why }
    }

    fn refusal(&self) -> String {
        format!(
            "group `{}` could not be opened when pmemhad was started: {}; when that is mended, restart pmemhad",
            self.name, self.why
        )
    }
}

impl Controller for Unusable {
    fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self) -> Result<Arc<Group>, String> {
        Err(self.refusal())
    }

    fn report(&self) -> GroupStatus {
        GroupStatus {
            name: self.name.clone(),
            role: self.role,
            generation: Generation(0),
            state: UNUSABLE.into(),
            supervision: None,
            error: Some(self.why.clone()),
            sessions: Vec::new(),
            regions: Vec::new(),
            budget: None,
            regions_more: 0,
            regions_more_bytes: 0,
            unprotected_files: Vec::new(),
            unprotected_files_more: 0,
            log: None,
            destinations: Vec::new(),
            archive: None,
        }
    }

    fn last_gasp(&self) -> Result<(), String> {
        Err(self.refusal())
    }

    fn promote(&self, _force: bool) -> Result<(), String> {
        Err(self.refusal())
    }

    fn cancel(&self) -> Result<(), String> {
        Err(self.refusal())
    }

    fn set_paused(&self, _node: &str, _paused: bool) -> Result<(), String> {
        Err(self.refusal())
    }

    fn verify(&self, _wish: &Wish) -> Result<(String, u64), String> {
        Err(self.refusal())
    }

    fn power(&self, _online: bool) {}

    fn finish(&self, _deadline: Instant) -> Option<String> {
        Some(self.refusal())
    }
}
