//! Doing the steps of a plan, and taking them back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Place;
use super::change::{Change, EgressRoute, Hop, Macvlan};
use super::decode::snapshot;
use super::error::LinkError;
use super::execute::execute;
use super::observe::{Snapshot, Sysctl};
use super::plan::{ALIAS_PREFIX, Plan, own_addresses};
use super::record::Record;
use super::routing::{present_routes, present_rules};
use crate::compile::MacvlanMode;

/// A plan in the course of being applied, and what it takes to undo it.
#[derive(Debug)]
#[must_use = "the claim stage has not been done yet"]
pub struct Applied {
    place: Place,
    plan: Plan,
    done: Vec<Change>,
    record: PathBuf,
    before: Record,
}

/// Does a plan's link stage: afterwards the external interface exists, down and without addresses (or as it was, if
/// it existed), for the datapath to attach its programs.
///
/// `record` is the file that [`delete`] needs to restore earlier settings.
///
/// # Errors
/// [`LinkError::Apply`] with the step that failed; the steps before it are undone.
pub fn prepare(place: &Place, plan: Plan, record: &Path) -> Result<Applied, LinkError> {
    let before = Record::load(record)?;
    let mut applied = Applied { place: place.clone(), plan, done: Vec::new(), record: record.to_owned(), before };
    let steps = applied.plan.link_stage.clone();
    applied.perform(steps)?;
    Ok(applied)
}

impl Applied {
    /// Does the claim stage: sets the interface up, asks the network whether somebody has the addresses, adds them,
    /// then routes, rules and forwarding.
    ///
    /// # Errors
    /// [`LinkError::Apply`] with the step that failed; its source is a [`LinkError::Conflict`] when somebody has an
    /// address. What the claim stage did is undone, the link stage is not: [`undo`](Self::undo) does.
    pub fn claim(&mut self) -> Result<(), LinkError> {
        let steps = self.plan.claim_stage.clone();
        let all: Vec<Change> = self.plan.changes().cloned().collect();
        // Written before anything is changed: a crash half-way must not lose the earlier values.
        let interface = &self.place.external_interface;
        self.before.with(&all, interface, self.plan.adopted).save(&self.record)?;
        self.perform(steps).inspect_err(|_failed| {
            if let Err(error) = self.before.save(&self.record) {
                tracing::warn!(%error, "the record of earlier settings lists some that were not changed");
            }
        })
    }

    /// The steps done so far, in order.
    #[must_use]
    pub fn done(&self) -> &[Change] {
        &self.done
    }

    /// The plan being applied.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes back every step that was done, last first, and goes on after a failure.
    ///
    /// # Errors
    /// All of them.
    pub fn undo(mut self) -> Result<(), Vec<LinkError>> {
        let mut errors = self.undo_down_to(0);
        errors.extend(self.before.save(&self.record).err());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Does the steps in order; when one fails, takes back those of this call.
    fn perform(&mut self, steps: Vec<Change>) -> Result<(), LinkError> {
        let start = self.done.len();
        for change in steps {
            tracing::debug!(%change, "link");
            // The kernel removes some things along with others, as the routes of a last address.
            let result = execute(&self.place, &change);
            if let Err(source) =
                result.or_else(|error| if change.removes() && is_gone(&error) { Ok(()) } else { Err(error) })
            {
                let not_undone = self.undo_down_to(start);
                return Err(LinkError::Apply { change: Box::new(change), source: Box::new(source), not_undone });
            }
            self.done.push(change);
        }
        Ok(())
    }

    fn undo_down_to(&mut self, start: usize) -> Vec<LinkError> {
        let mut errors = Vec::new();
        for change in self.done.drain(start..).rev() {
            let Some(inverse) = change.inverse() else { continue };
            tracing::debug!(change = %inverse, "undo link");
            errors.extend(execute_once(&self.place, &inverse));
        }
        errors
    }
}

/// Takes the external interface away, with its routes and rules, and restores the settings that `record` lists.
/// Returns what was done: nothing, the second time.
///
/// When the record is lost, settings stay as they are, but for forwarding, which goes off.
///
/// An interface that was adopted stays and loses the addresses that were added to it.
///
/// # Errors
/// Every step that failed; the others are done.
pub fn delete(place: &Place, record: &Path) -> Result<Vec<Change>, Vec<LinkError>> {
    let known = Record::load(record).map_err(|error| vec![error])?;
    let forwarding = [Sysctl::ipv4(&place.cluster_interface, "forwarding"), Sysctl::ipv6("all", "forwarding")];
    let keys: Vec<Sysctl> = known.sysctls.keys().chain(&forwarding).cloned().collect();
    let here = snapshot(&place.router, &keys, None).map_err(|error| vec![error])?;
    let mut steps = steps_to_delete(&here, &place.external_interface, &known);
    if !record.exists() && steps.iter().any(|step| matches!(step, Change::DeleteLink(_))) {
        // The record was lost. What forwarding was before is not known, and on it would make an open router of the
        // pod as soon as the rules are gone.
        let on = forwarding.into_iter().filter(|key| here.sysctl(key) == Some("1"));
        let off = on.map(|key| Change::SetSysctl { key, from: Some("1".to_owned()), to: "0".to_owned() });
        steps.splice(0..0, off);
    }
    let mut errors: Vec<LinkError> = steps.iter().filter_map(|change| execute_once(place, change)).collect();
    if errors.is_empty() {
        errors.extend(Record::default().save(record).err());
    }
    if errors.is_empty() { Ok(steps) } else { Err(errors) }
}

/// Forwarding goes off first and the rules go before the link: no moment in which a packet that the rules kept on the
/// external side could go another way.
fn steps_to_delete(here: &Snapshot, external: &str, record: &Record) -> Vec<Change> {
    let restored = record.sysctls.iter().filter(|(key, setting)| here.sysctl(key) == Some(setting.set.as_str()));
    let (forwarding, others): (Vec<_>, Vec<_>) = restored
        .map(|(key, setting)| Change::SetSysctl {
            key: key.clone(),
            from: Some(setting.set.clone()),
            to: setting.before.clone(),
        })
        .partition(|change| change.inverse().is_some_and(|inverse| inverse.switches_forwarding_on()));
    let mut steps = forwarding;
    if let Some(interface) = here.interface(external) {
        if interface.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS_PREFIX)) {
            steps.push(Change::DeleteLink(Macvlan {
                name: external.to_owned(),
                master: String::new(),
                mode: MacvlanMode::default(),
                mac: interface.mac,
                mtu: interface.mtu,
                alias: interface.alias.clone().unwrap_or_default(),
                settings: BTreeMap::new(),
            }));
        } else {
            let ours = own_addresses(interface).filter(|address| record.addresses.contains(address));
            steps.extend(ours.map(|address| Change::RemoveAddress { interface: external.to_owned(), address }));
        }
    }
    let gone_with_the_link = |route: &EgressRoute| {
        steps.iter().any(|step| matches!(step, Change::DeleteLink(_))) && !matches!(route.hop, Hop::Unreachable)
    };
    let routes: Vec<Change> =
        present_routes(here).filter(|route| !gone_with_the_link(route)).map(Change::RemoveRoute).collect();
    steps.extend(present_rules(here).cloned().map(Change::RemoveRule));
    steps.extend(routes);
    steps.extend(others);
    steps
}

/// As [`execute`], where what is to be removed may be gone already.
fn execute_once(place: &Place, change: &Change) -> Option<LinkError> {
    let source = execute(place, change).err().filter(|error| !is_gone(error))?;
    Some(LinkError::Apply { change: Box::new(change.clone()), source: Box::new(source), not_undone: Vec::new() })
}

fn is_gone(error: &LinkError) -> bool {
    const GONE: [Errno; 4] = [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL];
    match error {
        LinkError::NoInterface { .. } => true,
        LinkError::Request { source, .. } | LinkError::Sysctl { source, .. } => {
            source.raw_os_error().is_some_and(|code| GONE.contains(&Errno::from_raw(code)))
        }
        _ => false,
    }
}
