//! What the programs tell of flows, of drops and of traced packets: each once, with all that is known, and no more than may be.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::HopKind;
use egress_ebpf::event::{BURST_S, Event, Filter, Kind, Outcome, Stream, Why, is_sampled};
use egress_ebpf::timeout::CLASSES;
use egress_ebpf::verdict::DropReason::{
    self, ForeignDestination, Leak, Malformed, PortsExhausted, Unconfigured, Unsolicited,
};
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT};
use egress_lab::{Family, wait_until};
use egress_user::datapath::{Tally, arrived, monotonic_ns, rule_of, translated};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::frame::flag::{ACK, FIN, SYN};
use crate::frame::{Body, Frame};
use crate::rig::{self, Rig, Setup, TCP_MOVED, TCP_TARGET, UDP_MOVED, UDP_TARGET, at, client};

const PORT: u16 = 40_001;
const PLENTY: u32 = 100_000;

fn udp(family: Family, port: u16) -> Frame {
    Frame::request(client(0, family, port), at(ROUTER, family, UDP_MOVED), Body::Udp)
}

/// For each family, a rig on which flows are over within seconds: an emulated machine is no older when this runs.
fn hasty(test: impl Fn(&mut Rig, Family) + Send + Copy) {
    let setup = Setup::default().settings(|settings| settings.timeouts_s = [2; CLASSES]);
    for family in Family::ALL {
        rig::with(&setup, move |rig| test(rig, family));
    }
}

fn kinds(events: &[Event]) -> Vec<Kind> {
    events.iter().map(|event| Kind::from_number(event.kind).unwrap()).collect()
}

/// Both ends before, and both after.
fn ends(event: &Event) -> [SocketAddr; 4] {
    let ((client, router), (source, server)) = (arrived(event).unwrap(), translated(event).unwrap());
    [client, router, source, server]
}

/// Budgets are a CPU's own, so what counts on them stays on one.
fn on_one_cpu() {
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
}

#[test]
fn a_flow_is_told_of_when_it_begins_and_when_a_sweep_ends_it() {
    hasty(|rig, family| {
        rig.log(1, PLENTY);
        let request = udp(family, PORT);
        rig.request(&request);
        rig.request(&request);
        rig.reply(&Frame::outside(at(SERVER_1, family, UDP_TARGET), at(SNAT, family, PORT), Body::Udp));
        let told = rig.told();
        assert_eq!(kinds(&told), [Kind::Opened], "once");
        let all = [
            client(0, family, PORT),
            at(ROUTER, family, UDP_MOVED),
            at(SNAT, family, PORT),
            at(SERVER_1, family, UDP_TARGET),
        ];
        assert_eq!(ends(&told[0]), all);
        let rule = rig.flow().rule;
        assert!(rule.is_some());
        assert_eq!(rule_of(&told[0]), rule);
        assert!(monotonic_ns().abs_diff(told[0].at_ns) < 10_000_000_000 && told[0].created_ns <= told[0].at_ns);

        rig.pass_time(Duration::from_secs(4));
        let swept = rig.datapath().sweep(&mut Tally::default(), false).unwrap();
        assert_eq!(kinds(&swept.closed), [Kind::Closed]);
        let closed = &swept.closed[0];
        assert_eq!((ends(closed), rule_of(closed)), (all, rule));
        assert_eq!((closed.requests.packets, closed.replies.packets), (2, 1));
        assert_eq!(closed.requests.bytes, 2 * request.bytes().len() as u64);
        assert_eq!(rig.datapath().sweep(&mut Tally::default(), false).unwrap().closed, [], "and once closed");
        assert_eq!(rig.told(), [], "whoever ends it tells");
    });
}

#[test]
fn a_flow_that_the_programs_end_is_told_of_by_them() {
    hasty(|rig, family| {
        rig.log(1, PLENTY);
        rig.request(&udp(family, PORT));
        rig.pass_time(Duration::from_secs(4));
        // The same client again: the old flow has expired.
        rig.request(&udp(family, PORT));
        let told = rig.told();
        assert_eq!(kinds(&told), [Kind::Opened, Kind::Closed, Kind::Opened]);
        assert_eq!((told[1].requests.packets, ends(&told[1])), (1, ends(&told[0])));
        // Another client wants its port, by now expired again.
        rig.pass_time(Duration::from_secs(4));
        let other = udp(family, PORT).from(client(1, family, PORT));
        assert_eq!(rig.source_port(&other), PORT);
        let told = rig.told();
        assert_eq!(kinds(&told), [Kind::Closed, Kind::Opened]);
        assert_eq!(ends(&told[0])[0], client(0, family, PORT));
        assert_eq!(ends(&told[1])[0], client(1, family, PORT));
        // A reply to what has expired does not end it; the sweep does.
        rig.pass_time(Duration::from_secs(4));
        let late = Frame::outside(at(SERVER_1, family, UDP_TARGET), at(SNAT, family, PORT), Body::Udp);
        rig.run(Hook::ExternalIngress, &late.bytes()).is(Unsolicited);
        assert_eq!(kinds(&rig.told()), [Kind::Dropped]);
        rig.assert_paired();
        let closed = rig.datapath().sweep(&mut Tally::default(), false).unwrap().closed;
        assert_eq!(kinds(&closed), [Kind::Closed]);
        assert_eq!(ends(&closed[0])[0], client(1, family, PORT), "by its requests' side");
        assert_eq!(rig.told(), [], "whoever ends it tells");
    });
}

#[test]
fn a_connection_that_begins_anew_is_another_flow() {
    rig::both(|rig, family| {
        rig.log(1, PLENTY);
        let segment = |flags| Frame::request(client(0, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(flags));
        let answer = |flags| Frame::outside(at(SERVER_1, family, TCP_TARGET), at(SNAT, family, PORT), Body::Tcp(flags));
        rig.request(&segment(SYN));
        rig.reply(&answer(SYN | ACK));
        rig.request(&segment(FIN | ACK));
        rig.reply(&answer(FIN | ACK));
        rig.request(&segment(ACK));
        rig.request(&segment(SYN));
        let told = rig.told();
        assert_eq!(kinds(&told), [Kind::Opened, Kind::Closed, Kind::Opened]);
        assert_eq!((told[1].requests.packets, told[1].replies.packets), (3, 2));
        let flow = rig.flow();
        assert_eq!((flow.request_packets, flow.reply_packets), (1, 0), "it counts its own packets");
        assert!(flow.request_bytes > 0);
    });
}

#[test]
fn nothing_is_told_where_nobody_asked_nor_of_an_established_flow() {
    let setup = Setup::default().settings(|settings| settings.redirect = true);
    for family in Family::ALL {
        rig::with(&setup, |rig| {
            let request = udp(family, PORT).bytes();
            rig.run(Hook::ClusterIngress, &request);
            rig.run(Hook::ExternalIngress, &udp(family, 1).bytes());
            assert_eq!(rig.told(), [], "it is off");
            rig.log(1, PLENTY);
            let (key, flow) = rig.entry(egress_ebpf::contract::Direction::Request).unwrap();
            assert_eq!(flow.hop_kind, HopKind::Neighbour as u8, "the flow is established");
            for _ in 0..10 {
                rig.run(Hook::ClusterIngress, &request).is(Verdict::RequestRedirected);
            }
            assert_eq!((rig.told(), rig.traced()), (vec![], vec![]));
            assert_eq!(rig.entry(egress_ebpf::contract::Direction::Request).unwrap().1.packets, flow.packets + 10);
            rig.remove_entry(&key);
        });
    }
}

/// The one drop that was told of.
#[track_caller]
fn drop_of(rig: &mut Rig, hook: Hook, reason: DropReason) -> Event {
    let told = rig.told();
    assert_eq!(kinds(&told), [Kind::Dropped]);
    assert_eq!((told[0].hook(), Outcome::from_number(told[0].outcome)), (Some(hook), Some(Outcome::Dropped(reason))));
    told[0]
}

#[test]
fn a_drop_is_told_of_with_its_reason_and_its_ends() {
    rig::both(|rig, family| {
        rig.log(1, PLENTY);
        let cases = [
            (Hook::ClusterIngress, udp(family, 1).to(at(SERVER_2, family, 9)), ForeignDestination),
            (
                Hook::ExternalIngress,
                Frame::outside(at(SERVER_2, family, 1), at(SNAT, family, 2), Body::Tcp(SYN)),
                Unsolicited,
            ),
            (Hook::ExternalEgress, Frame::request(client(0, family, 3), at(SERVER_1, family, 4), Body::Udp), Leak),
        ];
        for (hook, frame, reason) in cases {
            rig.run(hook, &frame.bytes()).is(reason);
            let event = drop_of(rig, hook, reason);
            assert_eq!(arrived(&event), Some((frame.src, frame.dst)), "{reason:?}");
            assert_eq!((event.len as usize, event.key.protocol), (frame.bytes().len(), frame.protocol()));
            assert_eq!(translated(&event), None);
        }
        // Of one that cannot be read, nothing of the packet before is told.
        let mut odd = udp(family, 5).bytes();
        odd[crate::frame::ETHERNET] = 0x10;
        rig.run(Hook::ClusterIngress, &odd).is(Malformed);
        assert_eq!(arrived(&drop_of(rig, Hook::ClusterIngress, Malformed)), None);
    });
}

#[test]
fn arp_that_is_dropped_has_no_ends_of_an_earlier_packet() {
    rig::with(&Setup::default(), |rig| {
        rig.request(&udp(Family::V4, PORT));
        rig.log(1, PLENTY);
        let mut arp = [[0xff; 6], crate::frame::EXTERNAL_MAC].concat();
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend(crate::frame::EXTERNAL_MAC);
        arp.extend([10, 128, 0, 2]);
        arp.resize(60, 0);
        rig.run(Hook::ExternalEgress, &arp).is(Leak);
        assert_eq!(arrived(&drop_of(rig, Hook::ExternalEgress, Leak)), None);
    });
    rig::bare(|rig| {
        rig.log(1, PLENTY);
        rig.run(Hook::ClusterIngress, &udp(Family::V4, PORT).bytes()).is(Unconfigured);
        assert_eq!(arrived(&drop_of(rig, Hook::ClusterIngress, Unconfigured)), None);
    });
}

#[test]
fn a_flow_that_found_no_port_is_told_of_with_its_rule() {
    let setup = Setup::default().settings(|settings| settings.snat_ports = Some((20_000, 20_000)));
    for family in Family::ALL {
        rig::with(&setup, |rig| {
            rig.request(&udp(family, 20_000));
            rig.log(1, PLENTY);
            let refused = udp(family, 7).from(client(1, family, 7));
            rig.run(Hook::ClusterIngress, &refused.bytes()).is(PortsExhausted);
            let event = drop_of(rig, Hook::ClusterIngress, PortsExhausted);
            assert_eq!(arrived(&event), Some((refused.src, refused.dst)));
            assert_eq!(translated(&event).unwrap().1, at(SERVER_1, family, UDP_TARGET));
            assert_eq!(rule_of(&event), rig.flow().rule);
        });
    }
}

#[test]
fn the_sample_is_whole_flows() {
    rig::both(|rig, family| {
        const ONE_IN: u32 = 5;
        rig.log(ONE_IN, PLENTY);
        for port in 0..200 {
            rig.request(&udp(family, 10_000 + port));
        }
        let sampled: HashSet<_> = rig
            .entries()
            .into_iter()
            .filter(|(key, flow)| key.is_request() && is_sampled(key, flow.created_ns, ONE_IN))
            .map(|(key, _)| key)
            .collect();
        assert!((10..100).contains(&sampled.len()), "{} of 200", sampled.len());
        let opened: HashSet<_> = rig.told().into_iter().map(|event| event.key).collect();
        assert_eq!(opened, sampled);
        // As if time had passed, but for when they began: that is a part of what chooses them. A machine that was just started is
        // younger than the timeout.
        let is_old = || monotonic_ns() >= 31_000_000_000;
        wait_until("the machine to be older than the timeout", Duration::from_secs(31), is_old).unwrap();
        for (key, mut flow) in rig.entries() {
            flow.last_seen_ns = 1;
            rig.set_entry(&key, &flow);
        }
        let closed = rig.datapath().sweep(&mut Tally::default(), false).unwrap().closed;
        assert_eq!(closed.into_iter().map(|event| event.key).collect::<HashSet<_>>(), sampled);
        assert_eq!(rig.untold(Stream::Flows), (0, 0), "what is not of the sample is not lost");
    });
}

#[test]
fn a_storm_of_drops_is_cut_short_and_counted_and_hides_no_flow() {
    on_one_cpu();
    rig::both(|rig, family| {
        const RATE: u32 = 10;
        const STORM: u64 = 5000;
        rig.log(1, RATE);
        let drop = Frame::outside(at(SERVER_2, family, 1), at(SNAT, family, 2), Body::Udp).bytes();
        let began = monotonic_ns();
        for _ in 0..STORM {
            rig.feed(Hook::ExternalIngress, &drop, 0);
        }
        let told = rig.told().len() as u64;
        let seconds = (monotonic_ns() - began) / 1_000_000_000 + 1;
        let most = u64::from(RATE) * (u64::from(BURST_S) + seconds);
        assert!(told >= u64::from(RATE * BURST_S) && told <= most, "{told} in {seconds} s");
        assert_eq!(rig.untold(Stream::Drops), (STORM - told, 0));
        rig.forget_counted();
        rig.request(&udp(family, PORT));
        assert_eq!(kinds(&rig.told()), [Kind::Opened]);
        assert_eq!(rig.untold(Stream::Flows), (0, 0));
    });
}

#[test]
fn what_nobody_reads_is_counted() {
    on_one_cpu();
    rig::both(|rig, family| {
        const STORM: u64 = 4000;
        rig.log(1, PLENTY);
        let drop = Frame::outside(at(SERVER_2, family, 1), at(SNAT, family, 2), Body::Udp).bytes();
        for _ in 0..STORM {
            rig.feed(Hook::ExternalIngress, &drop, 0);
        }
        let told = rig.told().len() as u64;
        assert!(told > 1000 && told < STORM, "{told}");
        assert_eq!(rig.untold(Stream::Drops), (0, STORM - told));
        // And there is room again.
        rig.feed(Hook::ExternalIngress, &drop, 0);
        assert_eq!(rig.told().len(), 1);
        rig.forget_counted();
    });
}

#[test]
fn traced_packets_are_those_of_the_filter_with_what_was_decided() {
    rig::both(|rig, family| {
        let any = Filter {
            until_ns: monotonic_ns() + 60_000_000_000,
            addr: Addr::UNSPECIFIED,
            rate: PLENTY,
            port: Port::NONE,
            protocol: 17,
            pad: 0,
        };
        rig.trace(&any);
        let server = at(SERVER_1, family, UDP_TARGET);
        rig.request(&udp(family, PORT));
        rig.request(&udp(family, PORT));
        rig.reply(&Frame::outside(server, at(SNAT, family, PORT), Body::Udp));
        rig.run(Hook::ClusterIngress, &udp(family, PORT).to(at(ROUTER, family, 9)).bytes()).is(Verdict::Rejected);
        rig.run(Hook::ExternalIngress, &Frame::outside(server, at(SNAT, family, 9), Body::Udp).bytes()).is(Unsolicited);
        rig.request(&Frame::request(client(0, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(SYN)));
        let traced = rig.traced();
        let decided: Vec<_> =
            traced.iter().map(|event| (Outcome::from_number(event.outcome).unwrap(), event.why)).collect();
        let expected = [
            (Outcome::On(Verdict::Request), Why::NewFlow),
            (Outcome::On(Verdict::Request), Why::KnownFlow),
            (Outcome::On(Verdict::Reply), Why::KnownFlow),
            (Outcome::On(Verdict::Rejected), Why::Outcome),
            (Outcome::Dropped(Unsolicited), Why::Outcome),
        ];
        assert_eq!(decided, expected.map(|(outcome, why)| (outcome, why as u8)));
        let (source, router) = (at(SNAT, family, PORT), at(ROUTER, family, UDP_MOVED));
        assert_eq!(ends(&traced[0]), [client(0, family, PORT), router, source, server]);
        assert_eq!(ends(&traced[2]), [server, source, router, client(0, family, PORT)]);
        // By a port on the far side, in both directions.
        rig.trace(&Filter { port: Port::new(UDP_TARGET), ..any });
        rig.request(&udp(family, PORT));
        rig.reply(&Frame::outside(server, source, Body::Udp));
        rig.run(Hook::ClusterIngress, &udp(family, PORT).to(at(ROUTER, family, 9)).bytes()).is(Verdict::Rejected);
        assert_eq!(rig.traced().len(), 2);
        // Whoever traced is gone.
        rig.trace(&Filter { until_ns: monotonic_ns() - 1, ..any });
        rig.request(&udp(family, PORT));
        assert_eq!((rig.traced(), rig.told()), (vec![], vec![]));
    });
}
