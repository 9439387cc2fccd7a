//! The flow table: read it, sweep it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Config, Flow, FlowKey, RULE_FALLBACK};
use egress_ebpf::event::Event;
use egress_ebpf::timeout::{self, Class, SECOND_NS, protocol};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::events::Closed;
use super::maps::Maps;
use super::stale::{Connection, connection, is_stale};
use super::tally::Tally;
use super::{DatapathError, Entry, Table};

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
    /// Adds what all flows have counted to a tally.
    pub(super) fn tally(&self, tally: &mut Tally) -> Result<(), DatapathError> {
        let mut round = tally.round(&self.config()?);
        self.flows.table()?.iter().for_each(|entry| round.add(&entry));
        round.end(self.flows.capacity());
        Ok(())
    }

    /// Live flows, each once, by client.
    pub(super) fn flow_rows(&self) -> Result<Vec<FlowRow>, DatapathError> {
        let config = self.config()?;
        let now_ns = monotonic_ns();
        let table = self.flows.table()?;
        let requests = table.iter().filter(|entry| entry.key.is_request());
        let mut rows: Vec<FlowRow> = requests
            .map(|Entry { key, flow, .. }| (key, flow, table.get(&key.twin(&flow))))
            .filter(|(key, flow, twin)| {
                !timeout::expired(key.protocol, flow, true, twin.as_ref(), &config.timeouts_s, now_ns)
            })
            .map(|(key, flow, twin)| row(&key, &flow, twin.as_ref(), &config, now_ns))
            .collect();
        rows.sort_by(|a, b| (&a.protocol, a.client, a.router).cmp(&(&b.protocol, b.client, b.router)));
        Ok(rows)
    }

    /// Removes expired flows, and those whose external address is no longer the router's. What all have counted goes to the
    /// tally. One walk over the table serves all of it; what is to go is looked at once more when it goes.
    pub(super) fn sweep(&self, tally: &mut Tally, find_stale: bool) -> Result<Swept, DatapathError> {
        let rules = if find_stale { Some(self.rules_by_port()?) } else { None };
        let config = self.config()?;
        let sources = self.snat_sources(&config)?;
        let judge = Judge { config: &config, sources: &sources, now_ns: monotonic_ns() };
        let mut closed = Closed::new(self.logging()?);
        let table = self.flows.table()?;
        let most = self.flows.capacity() * CROWDED_PERCENT / 100;
        let is_nearly_full = table.used() > most;
        let mut swept = Swept::default();
        let (mut over, mut brief) = (Vec::new(), Vec::new());
        let mut round = tally.round(&config);
        for entry in table.iter() {
            round.add(&entry);
            if judge.is_over(table, &entry) {
                over.push(entry.place);
                continue;
            }
            let Entry { place, key, flow } = &entry;
            if !key.is_request() {
                continue;
            }
            swept.live += 1;
            if is_nearly_full {
                let twin = table.get(&key.twin(flow));
                if is_brief(key, flow, twin.as_ref()) {
                    brief.push((last_seen_ns(flow, twin.as_ref()), *place));
                }
            }
            if rules.as_ref().is_some_and(|rules| is_stale(rules, key, flow)) {
                swept.stale.push(connection(key, flow));
            }
        }
        round.end(self.flows.capacity());
        for entry in over.into_iter().filter_map(|place| table.at(place)) {
            if judge.is_over(table, &entry) && remove_pair(table, &entry, &mut closed) {
                swept.removed += usize::from(entry.key.is_request());
            }
        }
        // The table is nearly full: flows that are opening or closing give way, those first that have been silent longest.
        let surplus = swept.live.saturating_sub(most);
        if surplus > 0 {
            brief.sort_unstable();
        }
        for (then_ns, place) in brief.into_iter().take(surplus) {
            let Some(entry) = table.at(place).filter(|entry| entry.key.is_request()) else { continue };
            let twin = table.get(&entry.key.twin(&entry.flow));
            let has_moved = last_seen_ns(&entry.flow, twin.as_ref()) != then_ns;
            if !has_moved && is_brief(&entry.key, &entry.flow, twin.as_ref()) {
                remove_pair(table, &entry, &mut closed);
                swept.gave_way += 1;
            }
        }
        swept.live -= swept.gave_way;
        swept.closed = closed.events;
        Ok(swept)
    }
}

/// Removes a flow, by either of its entries: both of them, if both are there. Notes it as closed if that was its requests'.
/// Returns whether the entry was there: the programs remove expired ones too.
pub(super) fn remove_pair(table: Table<'_>, entry: &Entry, closed: &mut Closed) -> bool {
    let twin = table.find(&entry.key.twin(&entry.flow)).filter(|twin| twin.key.twin(&twin.flow) == entry.key);
    let removed = table.remove(entry);
    if removed && entry.key.is_request() {
        closed.note(&entry.key, &entry.flow, twin.as_ref().map(|twin| &twin.flow));
    }
    if let Some(twin) = twin {
        table.remove(&twin);
    }
    removed
}

/// Says which flows are over.
struct Judge<'a> {
    config: &'a Config,
    sources: &'a HashSet<Addr>,
    now_ns: u64,
}

impl Judge<'_> {
    /// Whether a flow is over, by one of its entries. A reply's entry is never over while its requests' is there: that speaks
    /// for both.
    fn is_over(&self, table: Table<'_>, entry: &Entry) -> bool {
        let Entry { key, flow, .. } = entry;
        let source = if key.is_request() { flow.to_src } else { key.dst };
        let is_ours = self.sources.contains(&source);
        // Most are seen to be alive without a look at the other entry.
        if is_ours && timeout::is_young(key.protocol, flow, &self.config.shortest_s, self.now_ns) {
            return false;
        }
        let twin_key = key.twin(flow);
        let twin = table.get(&twin_key);
        if !key.is_request() && twin.is_some_and(|twin| twin_key.twin(&twin) == *key) {
            return false;
        }
        let timeouts_s = &self.config.timeouts_s;
        !is_ours || timeout::expired(key.protocol, flow, key.is_request(), twin.as_ref(), timeouts_s, self.now_ns)
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
