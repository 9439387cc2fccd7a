//! Which flows began and ended between two looks at the table: the flow log's source. Pure.
//!
//! Nothing is written while packets pass: the table itself holds everything that the log tells, and holds it for seconds after
//! a flow's last packet at least. Whoever looks more often misses no flow, but for one that the programs removed in between,
//! for its port; how many those were is known from the port searches, of which there is one a flow.

use std::collections::HashMap;

use egress_ebpf::contract::{Config, Flow, FlowKey};
use egress_ebpf::timeout;

use super::FlowRow;
use super::flows::row;

/// Something that happened to a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// What.
    pub kind: FlowEventKind,
    /// The flow, as of the last look at it.
    pub flow: FlowRow,
    /// When it began, nanoseconds of the monotonic clock.
    pub began_ns: u64,
    /// When its last packet came, to the second, likewise.
    pub last_ns: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEventKind {
    /// It began.
    Opened,
    /// It has been forgotten: its time was up, or somebody ended it.
    Closed,
}

/// The flows that are known to be open.
#[derive(Debug, Default)]
pub struct Journal {
    open: HashMap<FlowKey, Open>,
}

#[derive(Debug, Clone)]
struct Open {
    request: Flow,
    reply: Option<Flow>,
}

impl Journal {
    /// What happened since the last look. At the first one, every flow that lives is told as opened, with when it was.
    pub(super) fn note(&mut self, entries: &HashMap<FlowKey, Flow>, config: &Config, now_ns: u64) -> Vec<FlowEvent> {
        let mut now = HashMap::with_capacity(entries.len() / 2);
        for (key, flow) in entries.iter().filter(|(key, _)| key.is_request()) {
            let reply = entries.get(&key.twin(flow)).copied();
            if !timeout::expired(key.protocol, flow, true, reply.as_ref(), &config.timeouts_s, now_ns) {
                now.insert(*key, Open { request: *flow, reply });
            }
        }
        let same = |a: &Open, b: Option<&Open>| b.is_some_and(|b| a.request.created_ns == b.request.created_ns);
        let event = |kind, key: &FlowKey, open: &Open| {
            let last_ns = open.reply.map_or(0, |reply| reply.last_seen_ns).max(open.request.last_seen_ns);
            FlowEvent {
                kind,
                flow: row(key, &open.request, open.reply.as_ref(), config, now_ns),
                began_ns: open.request.created_ns,
                last_ns,
            }
        };
        let closed = self.open.iter().filter(|(key, open)| !same(open, now.get(key)));
        let mut events: Vec<FlowEvent> = closed.map(|(key, open)| event(FlowEventKind::Closed, key, open)).collect();
        let opened = now.iter().filter(|(key, open)| !same(open, self.open.get(key)));
        events.extend(opened.map(|(key, open)| event(FlowEventKind::Opened, key, open)));
        self.open = now;
        events.sort_by_key(|event| match event.kind {
            FlowEventKind::Opened => event.began_ns,
            FlowEventKind::Closed => event.last_ns,
        });
        events
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use egress_ebpf::addr::Port;
    use egress_ebpf::contract::{Direction, Mark};
    use egress_ebpf::timeout::{SECOND_NS, defaults_s, protocol};

    use super::*;

    fn flow(port: u16, created_s: u64, last_s: u64, packets: u64) -> [(FlowKey, Flow); 2] {
        let key = FlowKey {
            src_port: Port::new(port),
            protocol: protocol::UDP,
            direction: Direction::Request as u8,
            ..FlowKey::zeroed()
        };
        let request = Flow {
            to_src_port: Port::new(port),
            created_ns: created_s * SECOND_NS,
            last_seen_ns: last_s * SECOND_NS,
            packets,
            seen: 1,
            ..Flow::zeroed()
        };
        [(key, request), (key.twin(&request), request.reversed(&key, Mark(0)))]
    }

    fn note(journal: &mut Journal, now_s: u64, flows: &[[(FlowKey, Flow); 2]]) -> Vec<(FlowEventKind, u16, u64)> {
        let config = Config { timeouts_s: defaults_s(), ..Config::zeroed() };
        let entries = flows.iter().flatten().copied().collect();
        let events = journal.note(&entries, &config, now_s * SECOND_NS);
        events.iter().map(|event| (event.kind, event.flow.client.port(), event.flow.request_packets)).collect()
    }

    #[test]
    fn each_flow_is_opened_once_and_closed_once() {
        use FlowEventKind::{Closed, Opened};
        let mut journal = Journal::default();
        assert_eq!(note(&mut journal, 100, &[flow(1, 90, 99, 5)]), [(Opened, 1, 5)]);
        assert_eq!(note(&mut journal, 101, &[flow(1, 90, 99, 6)]), []);
        assert_eq!(note(&mut journal, 102, &[flow(1, 90, 99, 7), flow(2, 102, 102, 1)]), [(Opened, 2, 1)]);
        // Removed; what it had counted when it was last seen is told.
        assert_eq!(note(&mut journal, 103, &[flow(2, 102, 102, 1)]), [(Closed, 1, 7)]);
        // Still in the table, and over.
        assert_eq!(note(&mut journal, 140, &[flow(2, 102, 102, 1)]), [(Closed, 2, 1)]);
        assert_eq!(note(&mut journal, 141, &[flow(2, 102, 102, 1)]), []);
        // Another one under the same key.
        assert_eq!(note(&mut journal, 150, &[flow(2, 150, 150, 1)]), [(Opened, 2, 1)]);
        assert_eq!(note(&mut journal, 151, &[flow(2, 151, 151, 2)]), [(Closed, 2, 1), (Opened, 2, 2)]);
    }
}
