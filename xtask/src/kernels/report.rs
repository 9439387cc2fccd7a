//! What a guest's lines say: which tests ran and how they ended, and what the verifier walked.

use std::collections::BTreeMap;

use super::guest::MARK;

/// Programs and what the verifier walked of each, by kernel series.
pub(crate) type Verified = BTreeMap<String, BTreeMap<String, u32>>;

/// What came of one kernel.
#[derive(Debug)]
pub(crate) struct Report {
    kernel: String,
    steps: Vec<Step>,
    /// The guest ran to its end, or its failure is a step.
    done: bool,
    pub(crate) verified: Verified,
}

#[derive(Debug, Default)]
struct Step {
    name: String,
    passed: u32,
    failed: u32,
    /// Whether the program ended, and how.
    succeeded: Option<bool>,
}

impl Step {
    /// A program that fails without a failed test, or in the middle of one, has failed too.
    fn failed(&self) -> u32 {
        let silent = self.succeeded != Some(true) && self.failed == 0;
        // One that runs no test shows nothing.
        let empty = self.succeeded == Some(true) && self.passed + self.failed == 0;
        self.failed + u32::from(silent || empty)
    }
}

impl Report {
    pub(crate) fn new(kernel: &str) -> Self {
        Self { kernel: kernel.to_owned(), steps: Vec::new(), done: false, verified: Verified::new() }
    }

    pub(crate) fn begin(&mut self, name: &str) {
        self.steps.push(Step { name: name.to_owned(), ..Step::default() });
    }

    pub(crate) fn end(&mut self, succeeded: bool) {
        self.done = true;
        if let Some(step) = self.steps.last_mut() {
            step.succeeded = Some(succeeded);
        }
    }

    /// Takes something that kept the guest from its end as a failure.
    pub(crate) fn broke(&mut self, what: &str) {
        self.steps.push(Step { name: what.to_owned(), failed: 1, ..Step::default() });
    }

    /// Takes a line of a guest.
    pub(crate) fn line(&mut self, line: &str) {
        let words = line.split_whitespace().collect::<Vec<_>>();
        match (line.strip_prefix(MARK), words.as_slice()) {
            (Some(own), _) => self.own_line(own),
            (None, ["test", "result:", _, passed, "passed;", failed, "failed;", ..]) => {
                if let Some(step) = self.steps.last_mut() {
                    step.passed += passed.parse::<u32>().unwrap_or(0);
                    step.failed += failed.parse::<u32>().unwrap_or(0);
                }
            }
            (None, ["verified", series, program, count]) => {
                if let Ok(count) = count.parse() {
                    self.verified.entry((*series).to_owned()).or_default().insert((*program).to_owned(), count);
                }
            }
            _ => {}
        }
    }

    fn own_line(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("begin", name)) => self.begin(name),
            Some(("end", how)) => self.end(how == "ok"),
            Some(("error", what)) => self.broke(what),
            _ => {}
        }
    }

    pub(crate) fn passed(&self) -> u32 {
        self.steps.iter().map(|step| step.passed).sum()
    }

    pub(crate) fn failed(&self) -> u32 {
        self.steps.iter().map(Step::failed).sum()
    }

    /// As [`failed`](Self::failed), without one step.
    pub(crate) fn failed_but_for(&self, name: &str) -> u32 {
        self.steps.iter().filter(|step| step.name != name).map(Step::failed).sum()
    }

    /// One line a step.
    pub(crate) fn summary(&self) -> String {
        let line = |step: &Step| {
            let word = if step.failed() == 0 { "ok    " } else { "FAILED" };
            format!("{word}  {}: {} ({} passed, {} failed)", self.kernel, step.name, step.passed, step.failed())
        };
        self.steps.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
