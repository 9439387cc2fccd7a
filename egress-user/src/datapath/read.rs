//! Read a datapath that is installed, whoever installed it.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytemuck::pod_read_unaligned;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Action, Config, Counter, RULE_FALLBACK, RuleKey, RuleValue, Side, map, source_index};
use egress_ebpf::verdict::{DropReason, Hook, Verdict, drop_index, verdict_index};
use serde::Serialize;

use super::flows::protocol_name;
use super::maps::{Maps, failed};
use super::tables::rule_entries;
use super::{Datapath, DatapathError, FlowRow, PinDir, Settings, Swept, Tally, Use};
use crate::compile::RuleTable;

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleRow {
    /// Index in the specification; none for the fallback and for local ports.
    pub rule: Option<u32>,
    /// 4 or 6.
    pub family: u8,
    /// Protocol; none for the fallback, which takes any.
    pub protocol: Option<String>,
    /// Port that clients connect to; none for the fallback.
    pub port: Option<u16>,
    /// Where to; none for a port that is left to the pod.
    pub destination: Option<IpAddr>,
    /// Port there; none keeps the port.
    pub target_port: Option<u16>,
}

/// A counter that has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterRow {
    /// Program.
    pub hook: &'static str,
    /// Verdict or drop reason.
    pub outcome: &'static str,
    /// Whether the packets were dropped.
    pub dropped: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes, link headers included.
    pub bytes: u64,
}

/// The maps of an installed datapath.
pub struct Reader {
    pub(super) maps: Maps,
}

impl Reader {
    /// Opens the pins.
    ///
    /// # Errors
    ///
    /// [`DatapathError::NotInstalled`] when there are none.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Ok(Self { maps: Maps::open(pins)? })
    }

    /// Settings in force.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn config(&self) -> Result<Config, DatapathError> {
        self.maps.config()
    }

    /// External addresses that flows come from.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn snat_addresses(&self) -> Result<Vec<IpAddr>, DatapathError> {
        let config = self.maps.config()?;
        let mut addresses: Vec<IpAddr> = self.maps.snat_sources(&config)?.into_iter().map(IpAddr::from).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Those addresses in the order of the specification, IPv4's first: the order by which clients get theirs.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn snat_in_order(&self) -> Result<Vec<IpAddr>, DatapathError> {
        let config = self.maps.config()?;
        Ok(self.maps.snat_slots(&config)?.into_iter().map(IpAddr::from).collect())
    }

    /// Adds what the flows have counted to a tally.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn tally(&self, tally: &mut Tally) -> Result<(), DatapathError> {
        self.maps.tally(tally)
    }

    /// Rules in force, in the specification's order, the fallback last.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn rules(&self) -> Result<Vec<RuleRow>, DatapathError> {
        let mut rules = self.maps.rules()?;
        rules.sort_by_key(|(key, value)| (key.protocol == 0, value.rule, key.family, key.protocol, key.port.get()));
        Ok(rules.iter().map(|(key, value)| rule_row(key, value)).collect())
    }

    /// Live flows.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn flows(&self) -> Result<Vec<FlowRow>, DatapathError> {
        self.maps.flow_rows()
    }

    /// How much of the tables and of the source ports is used.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn used(&self) -> Result<Use, DatapathError> {
        let mut tally = Tally::default();
        self.maps.tally(&mut tally)?;
        Ok(tally.used().clone())
    }

    /// Counters that are not zero.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<CounterRow>, DatapathError> {
        let counters = self.maps.counters()?;
        let at = |index: u32| {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            counters.get(index).copied().unwrap_or_default()
        };
        let row = |hook: Hook, outcome, dropped, Counter { packets, bytes }| CounterRow {
            hook: hook.name(),
            outcome,
            dropped,
            packets,
            bytes,
        };
        let mut rows = Vec::new();
        for hook in Hook::ALL {
            rows.extend(Verdict::ALL.iter().map(|v| row(hook, v.name(), false, at(verdict_index(hook, *v)))));
            rows.extend(DropReason::ALL.iter().map(|d| row(hook, d.name(), true, at(drop_index(hook, *d)))));
        }
        rows.retain(|row| row.packets > 0);
        Ok(rows)
    }

    /// Port searches by number of ports tried: none beyond the first, then up to 1, 3, 7 ... more.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn port_tries(&self) -> Result<Vec<u64>, DatapathError> {
        self.maps.port_tries()
    }
}

impl Datapath {
    /// Removes expired flows, and those of addresses that the router no longer has. What all flows have counted goes to the
    /// tally. With `find_stale`, the live ones are compared with the rules in force, too.
    ///
    /// # Errors
    ///
    /// When the map cannot be read or written.
    pub fn sweep(&mut self, tally: &mut Tally, find_stale: bool) -> Result<Swept, DatapathError> {
        self.maps.sweep(tally, find_stale)
    }
}

impl Maps {
    /// Addresses that new flows come from.
    pub(super) fn snat_sources(&self, config: &Config) -> Result<HashSet<Addr>, DatapathError> {
        Ok(self.snat_slots(config)?.into_iter().collect())
    }

    fn snat_slots(&self, config: &Config) -> Result<Vec<Addr>, DatapathError> {
        let count = usize::from(config.snat_v4.count) + usize::from(config.snat_v6.count);
        config.snat_slots.iter().take(count).map(|slot| self.source(Side::External, *slot)).collect()
    }

    fn source(&self, side: Side, slot: u8) -> Result<Addr, DatapathError> {
        let bytes = self.sources.get(&source_index(side, slot), 0).map_err(failed("read", map::SOURCES))?;
        Ok(pod_read_unaligned(&bytes))
    }
}

impl RuleRow {
    /// The rows that a rule table has once it is in force.
    pub fn of(table: &RuleTable) -> Vec<Self> {
        let entries = rule_entries(table, &Settings::default());
        let key = |family, protocol, port| RuleKey { generation: 0, family, protocol, pad: 0, port, pad2: 0 };
        entries.iter().map(|(family, protocol, port, value)| rule_row(&key(*family, *protocol, *port), value)).collect()
    }
}

impl fmt::Display for RuleRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, &self.protocol) {
            (Some(port), Some(protocol)) => write!(f, "{port}/{protocol} IPv{}", self.family)?,
            _ => write!(f, "any other IPv{}", self.family)?,
        }
        match (self.destination, self.target_port) {
            (Some(address), Some(port)) => write!(f, " to {}", SocketAddr::new(address, port)),
            (Some(address), None) => write!(f, " to {address}"),
            (None, _) => f.write_str(" to the pod itself"),
        }
    }
}

fn rule_row(key: &RuleKey, value: &RuleValue) -> RuleRow {
    let is_local = value.action == Action::Local as u8;
    let some = |port: Port| (port != Port::NONE).then(|| port.get());
    RuleRow {
        rule: (value.rule != RULE_FALLBACK).then_some(value.rule),
        family: key.family,
        protocol: (key.protocol != 0).then(|| protocol_name(key.protocol)),
        port: some(key.port),
        destination: (!is_local).then(|| value.destination.into()),
        target_port: some(value.target_port),
    }
}
