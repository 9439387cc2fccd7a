//! What was there before, kept in a small file so that `delete` can put it back.
//!
//! Only what the kernel cannot tell by itself: earlier values of settings that the router shares with its namespace,
//! and which addresses of an adopted interface are ours. Routes and rules need no record, because they have a table
//! of their own; an interface that we made carries our alias. So a lost record costs a few settings, no more, and
//! leaves forwarding off.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::change::Change;
use super::error::LinkError;
use super::observe::Sysctl;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Record {
    /// Shared kernel settings that were changed.
    pub(super) sysctls: BTreeMap<Sysctl, Setting>,
    /// Addresses that were added to an interface that was there before.
    pub(super) addresses: Vec<IpNet>,
}

/// A kernel setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setting {
    /// What it was before the first change.
    pub(super) before: String,
    /// What it was last set to.
    pub(super) set: String,
}

impl Record {
    /// The record in `path`; empty when there is none.
    pub(super) fn load(path: &Path) -> Result<Self, LinkError> {
        let failed = |source| LinkError::Record { path: path.to_owned(), source };
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Replaces the file in one step, or removes it when there is nothing to record.
    pub(super) fn save(&self, path: &Path) -> Result<(), LinkError> {
        let failed = |source| LinkError::Record { path: path.to_owned(), source };
        if *self == Self::default() {
            let removed = match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
            // Not empty: other routers' records are there.
            let _ = path.parent().map(std::fs::remove_dir);
            return removed;
        }
        let write = || -> io::Result<()> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut beside = path.as_os_str().to_owned();
            beside.push(".new");
            let beside = PathBuf::from(beside);
            std::fs::write(&beside, serde_json::to_vec_pretty(self)?)?;
            std::fs::rename(&beside, path)
        };
        // The last record of another router may take the folder away between making it and writing to it.
        write()
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { write() } else { Err(error) })
            .map_err(failed)
    }

    /// With what these changes are about to overwrite. The oldest value of a setting stays.
    pub(super) fn with(&self, changes: &[Change], interface: &str, adopted: bool) -> Self {
        let mut record = self.clone();
        for change in changes {
            match change {
                Change::SetSysctl { key, from: Some(from), to } if adopted || !key.is_of(interface) => {
                    let fresh = Setting { before: from.clone(), set: to.clone() };
                    record.sysctls.entry(key.clone()).and_modify(|known| known.set.clone_from(to)).or_insert(fresh);
                }
                Change::AddAddress { address, .. } if adopted && !record.addresses.contains(address) => {
                    record.addresses.push(*address);
                }
                _ => {}
            }
        }
        record
    }
}
