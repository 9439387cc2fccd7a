//! What the flows add up to, by rule: counters that only grow, though flows come and go. Pure.
//!
//! Every flow entry counts its own packets, and nothing else is counted for each packet. Whoever reads the table now and then
//! adds what each entry has counted since the last time. A flow outlives its last packet by seconds at least, so a reader
//! that comes more often misses nothing but what a flow that was removed in between had counted last.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use egress_ebpf::contract::{Config, Flow, FlowKey, RULE_FALLBACK};
use egress_ebpf::timeout::protocol;

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
    /// What each entry had counted when it was last read.
    known: HashMap<FlowKey, Seen>,
    rules: BTreeMap<RuleId, RuleTotals>,
    used: Use,
    started: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    created_ns: u64,
    traffic: Traffic,
}

/// Most destinations that [`Use::ports`] tells of.
const DESTINATIONS: usize = 64;
/// Ports that the kernel's NAT chooses from for a client whose own port is above the privileged ones.
const UNPRIVILEGED: std::ops::RangeInclusive<u16> = 1024..=65535;

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

    /// Adds what all entries have counted since the last time. `entries` is the whole table.
    pub(super) fn add(&mut self, entries: &HashMap<FlowKey, Flow>, capacity: usize, config: &Config) {
        for totals in self.rules.values_mut() {
            totals.flows = 0;
        }
        let mut ports: HashMap<(u8, IpAddr, SocketAddr), usize> = HashMap::new();
        let range = port_range(config);
        let mut known = HashMap::with_capacity(entries.len());
        let mut flows = 0;
        for (key, flow) in entries {
            let totals = self.rules.entry(rule_of(key, flow)).or_default();
            let now = Traffic { packets: flow.packets, bytes: flow.bytes };
            let before = self.known.get(key).filter(|seen| seen.created_ns == flow.created_ns);
            let is_new = before.is_none();
            // A flow that begins anew under the same key goes on counting.
            let base = self.known.get(key).map(|seen| seen.traffic).filter(|then| then.packets <= now.packets);
            let base = base.unwrap_or_default();
            let side = if key.is_request() { &mut totals.requests } else { &mut totals.replies };
            side.packets += now.packets.saturating_sub(base.packets);
            side.bytes += now.bytes.saturating_sub(base.bytes);
            if key.is_request() {
                flows += 1;
                totals.flows += 1;
                totals.opened += u64::from(is_new && self.started);
                if has_ports(key.protocol) && range.contains(&flow.to_src_port.get()) {
                    let to = SocketAddr::new(flow.to_dst.into(), flow.to_dst_port.get());
                    *ports.entry((key.protocol, flow.to_src.into(), to)).or_default() += 1;
                }
            }
            known.insert(*key, Seen { created_ns: flow.created_ns, traffic: now });
        }
        self.known = known;
        // Flows that lived before began before.
        self.started = true;
        self.used = Use { flows, capacity, ports: most_used(ports, range.len()) };
    }
}

fn most_used(ports: HashMap<(u8, IpAddr, SocketAddr), usize>, available: usize) -> Vec<PortUse> {
    let mut ports: Vec<PortUse> = ports
        .into_iter()
        .map(|((protocol, source, destination), used)| PortUse { protocol, source, destination, used, available })
        .collect();
    ports.sort_by(|a, b| b.used.cmp(&a.used).then(a.destination.cmp(&b.destination)).then(a.source.cmp(&b.source)));
    ports.truncate(DESTINATIONS);
    ports
}

fn port_range(config: &Config) -> std::ops::RangeInclusive<u16> {
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
    use egress_ebpf::addr::{Addr, Port};
    use egress_ebpf::contract::{Direction, Mark};

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
        let reply = Flow { packets: packets * 2, bytes: packets * 50, ..request.reversed(&key, Mark(0)) };
        [(key, request), (key.twin(&request), reply)]
    }

    fn totals(tally: &Tally) -> (u64, u64, u64, u64, u64) {
        let rule = RuleId { family: 4, port: Some((protocol::TCP, 80)) };
        let totals = tally.rules()[&rule];
        (totals.flows, totals.opened, totals.requests.packets, totals.replies.packets, totals.replies.bytes)
    }

    fn add(tally: &mut Tally, flows: &[[(FlowKey, Flow); 2]]) {
        let entries = flows.iter().flatten().copied().collect();
        tally.add(&entries, 100, &Config::zeroed());
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
        add(&mut tally, &[]);
        assert_eq!(totals(&tally), (0, 3, 21, 42, 1050));
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
        tally.add(&flow(1025, 1, 1).into_iter().collect(), 100, &config);
        assert_eq!((tally.used().ports[0].used, tally.used().ports[0].available), (1, 4));
    }
}
