//! What the flows add up to, by rule: counters that only grow, though flows come and go. Pure.
//!
//! Every flow entry counts its own packets, and nothing else is counted for each packet. Whoever reads the table now and then
//! adds what each entry has counted since the last time. A flow outlives its last packet by seconds at least, so a reader
//! that comes more often misses nothing but what a flow that was removed in between had counted last.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Config, Flow, FlowKey, RULE_FALLBACK};
use egress_ebpf::timeout::protocol;

use super::Entry;

/// Which rule: what it is known by to clients, for its place in the specification may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId {
    /// 4 or 6.
    pub family: u8,
    /// IP protocol and port; none of the fallback.
    pub port: Option<(u8, u16)>,
}

/// What a rule's flows add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleTotals {
    /// Flows that live.
    pub flows: u64,
    /// Flows that began.
    pub opened: u64,
    /// From clients.
    pub requests: Traffic,
    /// To clients.
    pub replies: Traffic,
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, link headers included.
    pub bytes: u64,
}

/// How much of what there is is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Live flows.
    pub flows: usize,
    /// How many the table holds.
    pub capacity: usize,
    /// Source ports, by address and destination, the most used first.
    pub ports: Vec<PortUse>,
}

/// Source ports of one address towards one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// IP protocol.
    pub protocol: u8,
    /// The address that flows come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: SocketAddr,
    /// Ports that are taken.
    pub used: usize,
    /// Ports that there are.
    pub available: usize,
}

/// Sums over all flows since it was made.
#[derive(Debug, Default)]
pub struct Tally {
    /// What each entry had counted when it was last read, in the order of their places.
    known: VecDeque<Seen>,
    rules: BTreeMap<RuleId, RuleTotals>,
    used: Use,
    started: bool,
}

/// A table of a million flows is two million of these.
#[derive(Clone, Copy, Debug)]
struct Seen {
    place: u32,
    /// What tells the entry from another's in the same place.
    state: u32,
    created_ns: u64,
    traffic: Traffic,
}

/// One walk over the table.
#[must_use = "it counts when it ends"]
pub(super) struct Round<'a> {
    tally: &'a mut Tally,
    /// How many of those that are known are of the last walk: the first ones.
    old: usize,
    flows: usize,
    ports: HashMap<Towards, usize>,
    range: RangeInclusive<u16>,
}

/// Protocol, source address and destination.
type Towards = (u8, Addr, Addr, Port);

/// Most destinations that [`Use::ports`] tells of.
const DESTINATIONS: usize = 64;
/// Ports that the kernel's NAT chooses from for a client whose own port is above the privileged ones.
const UNPRIVILEGED: RangeInclusive<u16> = 1024..=65535;

impl Tally {
    /// What each rule adds up to.
    pub fn rules(&self) -> &BTreeMap<RuleId, RuleTotals> {
        &self.rules
    }

    /// How much is used.
    pub fn used(&self) -> &Use {
        &self.used
    }

    /// Forgets the rules that `keep` does not want and that no flow belongs to any more.
    pub fn retain(&mut self, keep: impl Fn(&RuleId) -> bool) {
        self.rules.retain(|id, totals| totals.flows > 0 || keep(id));
    }

    /// Begins to add what all entries have counted since the last time.
    pub(super) fn round(&mut self, config: &Config) -> Round<'_> {
        for totals in self.rules.values_mut() {
            totals.flows = 0;
        }
        let old = self.known.len();
        Round { tally: self, old, flows: 0, ports: HashMap::new(), range: port_range(config) }
    }
}

impl Round<'_> {
    /// Adds an entry's. To be called for all of the table, in the order of their places.
    pub(super) fn add(&mut self, entry: &Entry) {
        let seen = self.seen(entry);
        let Entry { place, key, flow } = entry;
        let totals = self.tally.rules.entry(rule_of(key, flow)).or_default();
        let now = Traffic { packets: flow.packets, bytes: flow.bytes };
        let is_new = seen.is_none_or(|seen| seen.created_ns != flow.created_ns);
        // A flow that begins anew in place goes on counting.
        let base = seen.map(|seen| seen.traffic).filter(|then| then.packets <= now.packets).unwrap_or_default();
        let side = if key.is_request() { &mut totals.requests } else { &mut totals.replies };
        side.packets += now.packets.saturating_sub(base.packets);
        side.bytes += now.bytes.saturating_sub(base.bytes);
        if key.is_request() {
            self.flows += 1;
            totals.flows += 1;
            totals.opened += u64::from(is_new && self.tally.started);
            if has_ports(key.protocol) && self.range.contains(&flow.to_src_port.get()) {
                *self.ports.entry((key.protocol, flow.to_src, flow.to_dst, flow.to_dst_port)).or_default() += 1;
            }
        }
        let seen = Seen { place: *place, state: flow.state, created_ns: flow.created_ns, traffic: now };
        self.tally.known.push_back(seen);
    }

    /// All entries were added, of a table for so many flows.
    pub(super) fn end(self, capacity: usize) {
        self.tally.known.drain(..self.old);
        // Flows that lived before began before.
        self.tally.started = true;
        self.tally.used = Use { flows: self.flows, capacity, ports: most_used(self.ports, self.range.len()) };
    }

    /// What was known of an entry, which is forgotten, as is what was known of those before it.
    fn seen(&mut self, entry: &Entry) -> Option<Seen> {
        while self.old > 0 && self.tally.known.front().is_some_and(|seen| seen.place <= entry.place) {
            self.old -= 1;
            let seen = self.tally.known.pop_front()?;
            if (seen.place, seen.state) == (entry.place, entry.flow.state) {
                return Some(seen);
            }
        }
        None
    }
}

fn most_used(ports: HashMap<Towards, usize>, available: usize) -> Vec<PortUse> {
    let row = |((protocol, source, destination, port), used): (Towards, usize)| PortUse {
        protocol,
        source: source.into(),
        destination: SocketAddr::new(destination.into(), port.get()),
        used,
        available,
    };
    let mut ports: Vec<PortUse> = ports.into_iter().map(row).collect();
    ports.sort_by(|a, b| b.used.cmp(&a.used).then(a.destination.cmp(&b.destination)).then(a.source.cmp(&b.source)));
    ports.truncate(DESTINATIONS);
    ports
}

fn port_range(config: &Config) -> RangeInclusive<u16> {
    let (first, last) = (config.snat_port_first, config.snat_port_last);
    if first != 0 && last >= first { first..=last } else { UNPRIVILEGED }
}

fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::DCCP | protocol::UDP_LITE)
}

fn rule_of(key: &FlowKey, flow: &Flow) -> RuleId {
    let (client, port) = if key.is_request() { (&key.src, key.dst_port) } else { (&flow.to_dst, flow.to_src_port) };
    let family = if client.is_v4() { 4 } else { 6 };
    RuleId { family, port: (flow.rule != RULE_FALLBACK).then_some((key.protocol, port.get())) }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use egress_ebpf::contract::Direction;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// Both entries of a client's flow to the router's port 80, for rule 0.
    fn flow(client_port: u16, created_ns: u64, packets: u64) -> [(FlowKey, Flow); 2] {
        let key = FlowKey {
            src: addr("10.128.0.1"),
            dst: addr("10.128.0.2"),
            src_port: Port::new(client_port),
            dst_port: Port::new(80),
            protocol: protocol::TCP,
            direction: Direction::Request as u8,
            pad: [0; 2],
        };
        let request = Flow {
            to_src: addr("192.168.12.99"),
            to_dst: addr("203.0.113.26"),
            to_src_port: Port::new(client_port),
            to_dst_port: Port::new(8080),
            created_ns,
            packets,
            bytes: packets * 100,
            ..Flow::zeroed()
        };
        let reply = Flow { packets: packets * 2, bytes: packets * 50, ..request.reversed(&key, 0) };
        [(key, request), (key.twin(&request), reply)]
    }

    fn totals(tally: &Tally) -> (u64, u64, u64, u64, u64) {
        let rule = RuleId { family: 4, port: Some((protocol::TCP, 80)) };
        let totals = tally.rules()[&rule];
        (totals.flows, totals.opened, totals.requests.packets, totals.replies.packets, totals.replies.bytes)
    }

    fn add(tally: &mut Tally, flows: &[[(FlowKey, Flow); 2]]) {
        add_with(tally, flows, &Config::zeroed());
    }

    fn add_with(tally: &mut Tally, flows: &[[(FlowKey, Flow); 2]], config: &Config) {
        let entry = |place: usize, (key, flow)| Entry { place: u32::try_from(place).unwrap(), key, flow };
        // As a table has them: in an order of its own, and the entries of one flow apart.
        let requests = flows.iter().map(|[request, _]| entry(request.0.src_port.get().into(), *request));
        let replies =
            flows.iter().map(|[request, reply]| entry(0x10000 + usize::from(!request.0.src_port.get()), *reply));
        let mut entries: Vec<_> = requests.chain(replies).collect();
        entries.sort_by_key(|entry| entry.place);
        let mut round = tally.round(config);
        entries.iter().for_each(|entry| round.add(entry));
        round.end(100);
    }

    #[test]
    fn sums_grow_though_flows_go() {
        let mut tally = Tally::default();
        add(&mut tally, &[flow(1025, 1, 10)]);
        assert_eq!(totals(&tally), (1, 0, 10, 20, 500), "a flow of before is not one that began");
        add(&mut tally, &[flow(1025, 1, 12), flow(1026, 2, 1)]);
        assert_eq!(totals(&tally), (2, 1, 13, 26, 650));
        add(&mut tally, &[flow(1026, 2, 5)]);
        assert_eq!(totals(&tally), (1, 1, 17, 34, 850));
        // Under the same key: removed and opened again.
        add(&mut tally, &[flow(1026, 9, 3)]);
        assert_eq!(totals(&tally), (1, 2, 20, 40, 1000));
        // Begun anew in place, which keeps the counts.
        add(&mut tally, &[flow(1026, 11, 4)]);
        assert_eq!(totals(&tally), (1, 3, 21, 42, 1050));
        // The place is another flow's now.
        let another = flow(1026, 11, 9).map(|(key, entry)| (key, Flow { state: 1, ..entry }));
        add(&mut tally, &[another]);
        assert_eq!(totals(&tally), (1, 4, 30, 60, 1500));
        add(&mut tally, &[]);
        assert_eq!(totals(&tally), (0, 4, 30, 60, 1500));
        tally.retain(|_| false);
        assert!(tally.rules().is_empty());
    }

    #[test]
    fn ports_are_counted_by_destination() {
        let mut tally = Tally::default();
        add(&mut tally, &[flow(1023, 1, 1), flow(1025, 1, 1), flow(65535, 1, 1)]);
        let used = tally.used();
        assert_eq!((used.flows, used.capacity), (3, 100));
        let [ports] = &used.ports[..] else { panic!("{used:?}") };
        assert_eq!((ports.used, ports.available), (2, 64512), "a privileged port is of another range");
        assert_eq!(ports.destination.to_string(), "203.0.113.26:8080");
        let config = Config { snat_port_first: 1025, snat_port_last: 1028, ..Config::zeroed() };
        add_with(&mut tally, &[flow(1025, 1, 1)], &config);
        assert_eq!((tally.used().ports[0].used, tally.used().ports[0].available), (1, 4));
    }
}
