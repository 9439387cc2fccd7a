//! The status file: what the agent thinks of its router.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::AgentError;
use crate::compile::{Desired, RouterName};
use crate::status::Conditions;

/// Content of the status file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Which router.
    pub router: RouterName,
    /// Whether another router has the addresses: what is said of the router for all to hear is that one's to say.
    #[serde(default)]
    pub standby: bool,
    /// Rules in force.
    pub rules: usize,
    /// Where what no rule names goes to.
    pub fallback: Option<IpAddr>,
    /// The addresses that it speaks for.
    pub addresses: Vec<IpAddr>,
    /// How it is, as `status.conditions` of the API has it.
    pub conditions: Conditions,
}

impl Status {
    pub(super) fn new(desired: &Desired, standby: bool, conditions: Conditions) -> Self {
        let router = desired.router.clone();
        if standby {
            return Self { router, standby, rules: 0, fallback: None, addresses: Vec::new(), conditions };
        }
        Self {
            router,
            standby,
            rules: desired.rules.rules.len(),
            fallback: desired.rules.fallback,
            addresses: desired.link.addresses.iter().map(|address| address.net.addr()).collect(),
            conditions,
        }
    }

    /// Reads a file that an agent has written; nothing where none is, or another version's.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }

    /// Writes the file beside its place and renames it, so that a reader never meets half of it.
    pub(super) fn write(&self, file: &Path) -> Result<(), AgentError> {
        let failed = |source: std::io::Error| AgentError::Status { path: file.to_owned(), source };
        let new = file.with_extension("new");
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let written = std::fs::File::create(&new)
            .and_then(|mut out| out.write_all(&text))
            .and_then(|()| std::fs::rename(&new, file));
        written.map_err(|source| {
            // A half of it takes up what may be the last of a full disk.
            let _never_made = std::fs::remove_file(&new);
            failed(source)
        })
    }
}
