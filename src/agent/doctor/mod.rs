//! What `pmemha doctor` finds on a machine: what is there, what it means for pmemha, and what to do.
//!
//! Every check reads what the kernel says below a root that comes from outside, so that a test (or a copy of another machine's
//! files) can take its place, and yields one [`Finding`] or several. Nothing is changed, nothing needs an agent. What the kernel
//! does not tell is said to be unknown, never guessed. `docs/hardware.md` explains the checks at length.

mod host;
mod kernel;
mod memory;
mod pmem;
mod rdma;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use serde::Serialize;

pub use host::Host;

/// How a finding is for pmemha.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// The kernel does not tell, or it does not matter here.
    Unknown,
    /// It works; something would be better.
    Advice,
    /// Something that pmemha needs, or that this machine is there for, will fail.
    Trouble,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a word, the same from version to version.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// What it means for pmemha.
    pub means: &'static str,
    /// What to do; none where nothing is to be done.
    pub remedy: Option<&'static str>,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>, means: &'static str) -> Finding {
        Finding { check, verdict: Verdict::Good, found: found.into(), means, remedy: None }
    }

    fn unknown(check: &'static str, found: impl Into<String>, means: &'static str) -> Finding {
        Finding { check, verdict: Verdict::Unknown, found: found.into(), means, remedy: None }
    }

    fn advice(
        check: &'static str,
        found: impl Into<String>,
        means: &'static str,
        remedy: &'static str,
    ) -> Finding {
        Finding { check, verdict: Verdict::Advice, found: found.into(), means, remedy: Some(remedy) }
    }

    fn trouble(
        check: &'static str,
        found: impl Into<String>,
        means: &'static str,
        remedy: &'static str,
    ) -> Finding {
        Finding { check, verdict: Verdict::Trouble, found: found.into(), means, remedy: Some(remedy) }
    }

    fn or_remedy(mut self, remedy: &'static str) -> Finding {
        self.remedy = Some(remedy);
        self
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The gravest verdict of the findings.
    pub verdict: Verdict,
    /// In the order in which a person would look.
    pub findings: Vec<Finding>,
}

/// Looks at a machine.
pub fn examine(host: &Host) -> Diagnosis {
    let findings =
        [rdma::findings(host), memory::findings(host), pmem::findings(host), kernel::findings(host)].concat();
    let verdict = findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::Unknown);
    Diagnosis { verdict, findings }
}

impl Diagnosis {
    /// For a terminal: a finding a paragraph, trouble marked.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Finding { check, verdict, found, means, remedy } in &self.findings {
            let mark = match verdict {
                Verdict::Good => "  good   ",
                Verdict::Unknown => "  unknown",
                Verdict::Advice => "* advice ",
                Verdict::Trouble => "! trouble",
            };
            _ = writeln!(out, "{mark}  {check}: {found}\n           {means}");
            if let Some(remedy) = remedy {
                _ = writeln!(out, "           -> {remedy}");
            }
        }
        let count = |verdict| self.findings.iter().filter(|f| f.verdict == verdict).count();
        let (trouble, advice) = (count(Verdict::Trouble), count(Verdict::Advice));
        _ = writeln!(out, "{} things looked at: trouble {trouble}, advice {advice}", self.findings.len());
        out
    }
}
