//! The flow table: read it, sweep it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::LazyLock;
use std::time::Duration;

use aya::maps::MapError;
use bytemuck::pod_read_unaligned;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Config, Flow, FlowKey, RULE_FALLBACK, map};
use egress_ebpf::event::Event;
use egress_ebpf::timeout::{self, Class, SECOND_NS, protocol};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::events::Closed;
use super::maps::{Maps, array_of, failed};
use super::stale::{Connection, connection, is_stale};
use super::tally::Tally;
use super::{DatapathError, batch};

/// One flow, as people and scripts see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// Protocol, by name where it has one here.
    pub protocol: String,
    /// The client; of an echo, the port is its identifier.
    pub client: SocketAddr,
    /// The router's address and port that the client speaks to.
    pub router: SocketAddr,
    /// The address and port that the destination sees.
    pub source: SocketAddr,
    /// The destination.
    pub destination: SocketAddr,
    /// Index of the rule in the specification; none for the fallback.
    pub rule: Option<u32>,
    /// State, by the name of its timeout.
    pub state: &'static str,
    /// Seconds since the flow began.
    pub age_s: u64,
    /// Seconds since its last packet.
    pub idle_s: u64,
    /// Seconds until it is forgotten if no packet comes.
    pub expires_s: u64,
    /// Packets from the client.
    pub request_packets: u64,
    /// Bytes from the client, link headers included.
    pub request_bytes: u64,
    /// Packets to the client.
    pub reply_packets: u64,
    /// Bytes to the client, link headers included.
    pub reply_bytes: u64,
}

/// Share of the table above which flows that are opening or closing give way, in percent.
const CROWDED_PERCENT: usize = 90;

/// Whether a flow is one that gives way: conntrack's choice, too (`early_drop`).
fn is_brief(key: &FlowKey, flow: &Flow, twin: Option<&Flow>) -> bool {
    class(key, flow, twin).gives_way()
}

fn class(key: &FlowKey, flow: &Flow, twin: Option<&Flow>) -> Class {
    let lasted_ns = last_seen_ns(flow, twin).saturating_sub(flow.created_ns);
    timeout::class(key.protocol, flow.seen, twin.map_or(0, |twin| twin.seen), lasted_ns)
}

fn last_seen_ns(flow: &Flow, twin: Option<&Flow>) -> u64 {
    flow.last_seen_ns.max(twin.map_or(0, |twin| twin.last_seen_ns))
}

/// Result of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Live flows.
    pub live: usize,
    /// Flows that were removed.
    pub removed: usize,
    /// Flows that were alive, opening or closing, and had to give way because the table was nearly full.
    pub gave_way: usize,
    /// Those of both that are to be logged.
    pub closed: Vec<Event>,
    /// Live flows that the rules in force would not send where they go, if that was asked.
    pub stale: Vec<Connection>,
}

#[cfg(test)]
impl Default for FlowRow {
    fn default() -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            protocol: String::new(),
            client: nowhere,
            router: nowhere,
            source: nowhere,
            destination: nowhere,
            rule: None,
            state: "",
            age_s: 0,
            idle_s: 0,
            expires_s: 0,
            request_packets: 0,
            request_bytes: 0,
            reply_packets: 0,
            reply_bytes: 0,
        }
    }
}

impl Maps {
    pub(super) fn entries(&self) -> Result<HashMap<FlowKey, Flow>, DatapathError> {
        let mut entries = HashMap::new();
        let read = batch::for_each(self.flow_table.as_fd(), |key: FlowKey, flow: Flow| {
            entries.insert(key, flow);
        });
        read.map_err(|source| DatapathError::ReadFlows { source })?;
        Ok(entries)
    }

    /// Adds what all flows have counted to a tally.
    pub(super) fn tally(&self, tally: &mut Tally) -> Result<(), DatapathError> {
        tally.add(&self.entries()?, self.capacity, &self.config()?);
        Ok(())
    }

    /// Live flows, each once, by client.
    pub(super) fn flow_rows(&self) -> Result<Vec<FlowRow>, DatapathError> {
        let config = self.config()?;
        let now_ns = monotonic_ns();
        let entries = self.entries()?;
        let mut rows: Vec<FlowRow> = entries
            .iter()
            .filter(|(key, _)| key.is_request())
            .map(|(key, flow)| (key, flow, entries.get(&key.twin(flow))))
            .filter(|(key, flow, twin)| !timeout::expired(key.protocol, flow, true, *twin, &config.timeouts_s, now_ns))
            .map(|(key, flow, twin)| row(key, flow, twin, &config, now_ns))
            .collect();
        rows.sort_by(|a, b| (&a.protocol, a.client, a.router).cmp(&(&b.protocol, b.client, b.router)));
        Ok(rows)
    }

    /// Removes expired flows, and those whose external address is no longer the router's. What all have counted goes to the
    /// tally. One reading of the table serves all of it.
    pub(super) fn sweep(&mut self, tally: &mut Tally, find_stale: bool) -> Result<Swept, DatapathError> {
        let rules = if find_stale { Some(self.rules_by_port()?) } else { None };
        let config = self.config()?;
        let now_ns = monotonic_ns();
        let entries = self.entries()?;
        tally.add(&entries, self.capacity, &config);
        let sources = self.snat_sources(&config)?;
        let mut swept = Swept::default();
        let mut closed = Closed::new(self.logging()?);
        let mut brief = Vec::new();
        for (key, flow) in &entries {
            let twin_key = key.twin(flow);
            let twin = entries.get(&twin_key);
            let source = if key.is_request() { flow.to_src } else { key.dst };
            let gone = !sources.contains(&source)
                || timeout::expired(key.protocol, flow, key.is_request(), twin, &config.timeouts_s, now_ns);
            if !gone {
                if key.is_request() {
                    swept.live += 1;
                    if is_brief(key, flow, twin) {
                        brief.push((last_seen_ns(flow, twin), key, flow));
                    }
                    if rules.as_ref().is_some_and(|rules| is_stale(rules, key, flow)) {
                        swept.stale.push(connection(key, flow));
                    }
                }
                continue;
            }
            if sources.contains(&source) && (self.has_moved(key, flow)? || self.has_moved_if_any(&twin_key, twin)?) {
                continue;
            }
            if self.remove_flow(key)? && key.is_request() {
                swept.removed += 1;
                closed.note(key, flow, twin);
            }
        }
        // The table is nearly full: flows that are opening or closing give way, those first that have been silent longest.
        let surplus = swept.live.saturating_sub(self.capacity * CROWDED_PERCENT / 100);
        if surplus > 0 {
            brief.sort_unstable_by_key(|(last_seen_ns, ..)| *last_seen_ns);
        }
        for (_, key, flow) in brief.into_iter().take(surplus) {
            let twin_key = key.twin(flow);
            let twin = entries.get(&twin_key);
            if self.has_moved(key, flow)? || self.has_moved_if_any(&twin_key, twin)? {
                continue;
            }
            if self.remove_flow(key)? {
                closed.note(key, flow, twin);
            }
            self.remove_flow(&twin_key)?;
            swept.gave_way += 1;
        }
        swept.live -= swept.gave_way;
        swept.closed = closed.events;
        Ok(swept)
    }

    /// Whether an entry has had a packet since it was read, and so is not what it was.
    fn has_moved(&self, key: &FlowKey, then: &Flow) -> Result<bool, DatapathError> {
        Ok(self.flow(key)?.is_some_and(|now| (now.packets, now.created_ns) != (then.packets, then.created_ns)))
    }

    fn has_moved_if_any(&self, key: &FlowKey, then: Option<&Flow>) -> Result<bool, DatapathError> {
        then.map_or(Ok(false), |then| self.has_moved(key, then))
    }

    pub(super) fn flow(&self, key: &FlowKey) -> Result<Option<Flow>, DatapathError> {
        match self.flows.get(&array_of(key), 0) {
            Ok(flow) => Ok(Some(pod_read_unaligned(&flow))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("read", map::FLOWS)(error)),
        }
    }

    /// Removes an entry. Returns whether it was there: the programs remove expired ones too.
    pub(super) fn remove_flow(&mut self, key: &FlowKey) -> Result<bool, DatapathError> {
        match self.flows.remove(&array_of(key)) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(false),
            Err(error) => Err(failed("write", map::FLOWS)(error)),
        }
    }
}

fn row(key: &FlowKey, flow: &Flow, twin: Option<&Flow>, config: &Config, now_ns: u64) -> FlowRow {
    let seconds = |since_ns: u64| now_ns.saturating_sub(since_ns) / SECOND_NS;
    let class = class(key, flow, twin);
    let limit_s = config.timeouts_s.get(class as usize).copied().unwrap_or_default();
    let idle_s = seconds(flow.last_seen_ns.max(twin.map_or(0, |twin| twin.last_seen_ns)));
    FlowRow {
        protocol: protocol_name(key.protocol),
        client: socket(key.src, key.src_port),
        router: socket(key.dst, key.dst_port),
        source: socket(flow.to_src, flow.to_src_port),
        destination: socket(flow.to_dst, flow.to_dst_port),
        rule: (flow.rule != RULE_FALLBACK).then_some(flow.rule),
        state: class.name(),
        age_s: seconds(flow.created_ns),
        idle_s,
        expires_s: Duration::from_secs(limit_s.into()).as_secs().saturating_sub(idle_s),
        request_packets: flow.packets,
        request_bytes: flow.bytes,
        reply_packets: twin.map_or(0, |twin| twin.packets),
        reply_bytes: twin.map_or(0, |twin| twin.bytes),
    }
}

pub(super) fn socket(addr: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(IpAddr::from(addr), port.get())
}

/// Name of an IP protocol, or its number.
pub fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".into(),
        protocol::UDP => "UDP".into(),
        protocol::SCTP => "SCTP".into(),
        protocol::ICMP => "ICMP".into(),
        protocol::ICMPV6 => "ICMPv6".into(),
        other => other.to_string(),
    }
}

/// Number of a protocol by the name that [`protocol_name`] gives it.
pub fn number_of_protocol(name: &str) -> Option<u8> {
    (0..=u8::MAX).find(|number| protocol_name(*number) == name)
}

/// The clock that the programs read (`bpf_ktime_get_coarse_ns`), so that both agree on what has expired.
pub fn monotonic_ns() -> u64 {
    static OFFSET_NS: LazyLock<i64> =
        LazyLock::new(|| std::fs::read_to_string("/proc/self/timens_offsets").ok().as_deref().map_or(0, offset_ns));
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE) else { return 0 };
    let here_ns = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    u64::try_from(here_ns - *OFFSET_NS).unwrap_or_default()
}

/// How much further the clock is in this process's time namespace than the one that the programs read, which belong to none
/// (time_namespaces(7)).
fn offset_ns(offsets: &str) -> i64 {
    let monotonic = offsets.lines().map(str::split_whitespace).find_map(|mut words| {
        (words.next() == Some("monotonic")).then_some(())?;
        Some((words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?))
    });
    monotonic.map_or(0, |(seconds, ns)| seconds * 1_000_000_000 + ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_is_seen_through() {
        assert_eq!(
            offset_ns("monotonic      100000         5\nboottime            7         0\n"),
            100_000_000_000_005
        );
        assert_eq!(offset_ns("monotonic  -3 500000000\n"), -2_500_000_000);
        assert_eq!(offset_ns("nonsense\n"), 0);
        assert_eq!(number_of_protocol("ICMPv6"), Some(58));
        assert_eq!(number_of_protocol("47"), Some(47));
    }
}
