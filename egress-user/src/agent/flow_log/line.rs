//! A line of the flow log. Pure.

use std::net::SocketAddr;

use egress_ebpf::event::{Event, Kind, Outcome};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::datapath::{arrived, protocol_name, rule_of, translated};

/// One moment by two clocks: the one that people read, and the one that the programs do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    pub(super) now: Timestamp,
    pub(super) now_ns: u64,
}

/// Why events are not in the log.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Reason {
    /// There were more than the rate allows.
    Rate,
    /// Nobody had read the earlier ones: the agent was away, or too slow.
    Buffer,
    /// The file could not be written.
    File,
}

#[derive(Debug, Serialize)]
pub(super) struct Line {
    time: Timestamp,
    event: &'static str,
    #[serde(flatten)]
    tells: Tells,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Tells {
    Closed(Closed),
    Opened(Flow),
    Dropped(Drop),
    Lost(Lost),
}

#[derive(Debug, Serialize)]
struct Flow {
    protocol: String,
    client: SocketAddr,
    router: SocketAddr,
    source: SocketAddr,
    destination: SocketAddr,
    /// Index in the specification; null for the fallback.
    rule: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Closed {
    #[serde(flatten)]
    flow: Flow,
    #[serde(flatten)]
    end: End,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    duration_s: f64,
    request_packets: u64,
    request_bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Drop {
    reason: &'static str,
    program: &'static str,
    bytes: u32,
    #[serde(flatten)]
    packet: Option<Packet>,
    #[serde(flatten)]
    claimed: Option<Claimed>,
}

/// The packet as it came, if it could be read.
#[derive(Debug, Serialize)]
struct Packet {
    protocol: String,
    from: SocketAddr,
    to: SocketAddr,
}

/// What a rule would have made of it.
#[derive(Debug, Serialize)]
struct Claimed {
    destination: SocketAddr,
    rule: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Lost {
    events: u64,
    reason: Reason,
}

impl Line {
    /// The line of a record; none of one that tells nothing that is known here.
    pub(super) fn of(event: &Event, clocks: Clocks) -> Option<Self> {
        let (name, time_ns, tells) = match Kind::from_number(event.kind)? {
            Kind::Opened => ("opened", event.created_ns, Tells::Opened(Flow::of(event)?)),
            Kind::Closed => {
                ("closed", event.last_seen_ns, Tells::Closed(Closed { flow: Flow::of(event)?, end: End::of(event) }))
            }
            Kind::Dropped => ("dropped", event.at_ns, Tells::Dropped(Drop::of(event)?)),
            Kind::Traced => return None,
        };
        Some(Self { time: clocks.at(time_ns), event: name, tells })
    }

    /// So many events are not in the log.
    pub(super) fn lost(reason: Reason, events: u64, now: Timestamp) -> Self {
        Self { time: now, event: "lost", tells: Tells::Lost(Lost { events, reason }) }
    }

    pub(super) fn is_about_loss(&self) -> bool {
        matches!(self.tells, Tells::Lost(_))
    }
}

impl Clocks {
    fn at(self, ns: u64) -> Timestamp {
        let ago = SignedDuration::from_nanos(i64::try_from(self.now_ns.saturating_sub(ns)).unwrap_or(i64::MAX));
        let time = self.now.checked_sub(ago).unwrap_or(self.now);
        // What the clock of the programs can tell.
        Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
    }
}

impl Flow {
    fn of(event: &Event) -> Option<Self> {
        let ((client, router), (source, destination)) = (arrived(event)?, translated(event)?);
        let protocol = protocol_name(event.key.protocol);
        Some(Self { protocol, client, router, source, destination, rule: rule_of(event) })
    }
}

impl End {
    fn of(event: &Event) -> Self {
        let lasted_ns = event.last_seen_ns.saturating_sub(event.created_ns);
        Self {
            duration_s: SignedDuration::from_nanos(i64::try_from(lasted_ns).unwrap_or(i64::MAX)).as_secs_f64(),
            request_packets: event.requests.packets,
            request_bytes: event.requests.bytes,
            reply_packets: event.replies.packets,
            reply_bytes: event.replies.bytes,
        }
    }
}

impl Drop {
    fn of(event: &Event) -> Option<Self> {
        let packet = |(from, to)| Packet { protocol: protocol_name(event.key.protocol), from, to };
        let claimed = |(_, destination)| Claimed { destination, rule: rule_of(event) };
        Some(Self {
            reason: Outcome::from_number(event.outcome)?.name(),
            program: event.hook()?.name(),
            bytes: event.len,
            packet: arrived(event).map(packet),
            claimed: translated(event).map(claimed),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use bytemuck::Zeroable as _;
    use egress_ebpf::addr::{Addr, Port};
    use egress_ebpf::contract::{Counter, FlowKey};
    use egress_ebpf::event::{TRANSLATION, TUPLE};
    use egress_ebpf::verdict::{DropReason, Hook};
    use serde_json::{Value, json};

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn event(kind: Kind) -> Event {
        let key = FlowKey {
            src: addr("10.128.0.1"),
            dst: addr("10.128.0.2"),
            src_port: Port::new(40_000),
            dst_port: Port::new(80),
            protocol: 6,
            ..FlowKey::zeroed()
        };
        Event {
            kind: kind as u8,
            key,
            known: TUPLE | TRANSLATION,
            at_ns: 13_000_000_000,
            created_ns: 10_000_000_000,
            last_seen_ns: 12_500_000_000,
            requests: Counter { packets: 7, bytes: 700 },
            to_src: addr("192.168.12.99"),
            to_dst: addr("203.0.113.26"),
            to_src_port: Port::new(40_001),
            to_dst_port: Port::new(8080),
            rule: 3,
            len: 60,
            ..Event::zeroed()
        }
    }

    fn line(event: &Event) -> Value {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        serde_json::to_value(Line::of(event, Clocks { now, now_ns: 20_000_000_000 }).unwrap()).unwrap()
    }

    #[test]
    fn lines_say_who_when_and_how_much() {
        let opened = json!({
            "time": "2026-01-01T00:00:50Z", "event": "opened", "protocol": "TCP", "client": "10.128.0.1:40000",
            "router": "10.128.0.2:80", "source": "192.168.12.99:40001", "destination": "203.0.113.26:8080", "rule": 3,
        });
        assert_eq!(line(&event(Kind::Opened)), opened);
        let mut closed = opened;
        for (name, value) in [
            ("event", json!("closed")),
            ("time", json!("2026-01-01T00:00:52.5Z")),
            ("durationS", json!(2.5)),
            ("requestPackets", json!(7)),
            ("requestBytes", json!(700)),
            ("replyPackets", json!(0)),
            ("replyBytes", json!(0)),
        ] {
            closed[name] = value;
        }
        assert_eq!(line(&event(Kind::Closed)), closed);
    }

    #[test]
    fn a_drop_says_as_much_as_is_known() {
        let mut dropped = event(Kind::Dropped);
        dropped.outcome = Outcome::Dropped(DropReason::PortsExhausted).number();
        let mut expected = json!({
            "time": "2026-01-01T00:00:53Z", "event": "dropped", "reason": "ports_exhausted", "program": "cluster_ingress",
            "bytes": 60, "protocol": "TCP", "from": "10.128.0.1:40000", "to": "10.128.0.2:80",
            "destination": "203.0.113.26:8080", "rule": 3,
        });
        assert_eq!(line(&dropped), expected);
        dropped.known = TUPLE;
        dropped.outcome = Outcome::Dropped(DropReason::Leak).number();
        dropped.hook = Hook::ExternalEgress as u8;
        let fields = expected.as_object_mut().unwrap();
        fields.retain(|name, _| !["destination", "rule"].contains(&name.as_str()));
        fields.insert("reason".into(), "leak".into());
        fields.insert("program".into(), "external_egress".into());
        assert_eq!(line(&dropped), expected);
        dropped.known = 0;
        expected.as_object_mut().unwrap().retain(|name, _| !["protocol", "from", "to"].contains(&name.as_str()));
        assert_eq!(line(&dropped), expected);
        // Of another version, which knows more reasons.
        dropped.outcome = 250;
        assert!(Line::of(&dropped, Clocks { now: Timestamp::UNIX_EPOCH, now_ns: 0 }).is_none());
    }
}
