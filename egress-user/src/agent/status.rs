//! The status file: what the agent thinks of its router.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use super::AgentError;
use crate::compile::{Desired, RouterName};

/// Content of the status file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// Which router.
    router: RouterName,
    /// Rules in force.
    rules: usize,
    /// Where what no rule names goes to.
    fallback: Option<IpAddr>,
    /// The addresses that it speaks for.
    addresses: Vec<IpAddr>,
    /// Why the latest edit, or the latest repair, is not in force.
    problem: Option<String>,
}

impl Status {
    pub(super) fn new(in_force: &Desired, problem: Option<String>) -> Self {
        Self {
            router: in_force.router.clone(),
            rules: in_force.rules.rules.len(),
            fallback: in_force.rules.fallback,
            addresses: in_force.link.addresses.iter().map(|address| address.net.addr()).collect(),
            problem,
        }
    }

    /// Writes the file beside its place and renames it, so that a reader never meets half of it.
    pub(super) fn write(&self, file: &Path) -> Result<(), AgentError> {
        let failed = |source: std::io::Error| AgentError::Status { path: file.to_owned(), source };
        let new = file.with_extension("new");
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        let mut out = std::fs::File::create(&new).map_err(failed)?;
        out.write_all(&text).map_err(failed)?;
        std::fs::rename(&new, file).map_err(failed)
    }
}
