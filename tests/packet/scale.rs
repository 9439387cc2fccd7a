//! As large as it gets.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use egress_ebpf::timeout::Class;
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1, SNAT};
use egress_user::compile::{Protocol, RuleTable};
use egress_user::datapath::Tally;

use crate::frame::{Body, Frame, flag};
use crate::rig::{self, Setup, TCP_MOVED, TCP_TARGET, UDP_MOVED, at, client, ends, rule};

/// A rule for each of the first `ports` ports of each family and protocol given.
fn rules(ports: u16, families: &[Family], protocols: &[Protocol]) -> RuleTable {
    let mut rules = Vec::new();
    for &family in families {
        for &protocol in protocols {
            for port in 1..=ports {
                let index = u32::try_from(rules.len()).unwrap();
                rules.push(rule(index, protocol, port, SERVER_1.ip(family), Some(port.wrapping_mul(7).max(1))));
            }
        }
    }
    RuleTable { rules, fallback: None }
}

#[test]
fn ten_thousand_rules_load_in_under_a_second() {
    rig::with(&Setup::default(), |rig| {
        let setup = Setup { table: rules(2500, &Family::ALL, &[Protocol::Tcp, Protocol::Udp]), ..Setup::default() };
        let start = Instant::now();
        rig.install(&setup);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(rig.reader().rules().unwrap().len(), 10_000);
    });
}

#[test]
fn a_rule_for_every_port_there_is() {
    rig::with(&Setup::default(), |rig| {
        let table = rules(u16::MAX, &Family::ALL, &[Protocol::Tcp]);
        rig.install(&Setup { table, ..Setup::default() });
        for family in Family::ALL {
            for port in [1, 2, 80, 1023, 32_768, u16::MAX] {
                let syn = Frame::request(client(0, family, 40_000), at(ROUTER, family, port), Body::Tcp(flag::SYN));
                assert_eq!(ends(&rig.request(&syn)).1, at(SERVER_1, family, port.wrapping_mul(7).max(1)));
                let udp = syn.with(|frame| frame.body = Body::Udp).bytes();
                rig.run(Hook::ClusterIngress, &udp).is(Verdict::Rejected);
            }
        }
        // Both generations full, and then none of it.
        let mut table = rules(u16::MAX, &Family::ALL, &[Protocol::Tcp]);
        table.rules.iter_mut().for_each(|rule| rule.target_port = None);
        rig.install(&Setup { table, ..Setup::default() });
        let rows = rig.reader().rules().unwrap();
        assert_eq!(
            rows.iter().map(|row| (row.family, row.port)).collect::<HashSet<_>>().len(),
            2 * usize::from(u16::MAX)
        );
        rig.install(&Setup { table: RuleTable::default(), ..Setup::default() });
        assert!(rig.reader().rules().unwrap().is_empty());
    });
}

/// Sources of the flood, of both families together.
const SOURCES: u64 = 1_000_000;

#[test]
fn a_flood_of_a_million_sources_ends_no_established_flow() {
    const ROOM: u16 = 2000;
    const ESTABLISHED: u16 = 100;
    rig::sized(u32::from(ROOM), |rig| {
        rig.install(&Setup::default());
        let connections = |family| (0..ESTABLISHED).map(move |number| client(0, family, 20_000 + number));
        let segment = |from: SocketAddr, flags| {
            Frame::request(from, at(ROUTER, Family::of(from.ip()), TCP_MOVED), Body::Tcp(flags))
        };
        for from in Family::ALL.into_iter().flat_map(connections) {
            let sent = segment(from, flag::SYN).from(at(SNAT, Family::of(from.ip()), from.port()));
            let sent = sent.to(at(SERVER_1, Family::of(from.ip()), TCP_TARGET));
            rig.request(&segment(from, flag::SYN));
            rig.reply(&sent.answer().with(|frame| frame.body = Body::Tcp(flag::SYN | flag::ACK)));
            rig.request(&segment(from, flag::ACK));
        }
        let mut gave_way = 0;
        let sources = u32::try_from(rig::frames(SOURCES).min(SOURCES)).unwrap() / 2;
        for number in 0..sources {
            for family in Family::ALL {
                let source = SocketAddr::new(flooder(family, number), 1024 + (number % 50_000) as u16);
                // A SYN or a datagram, whichever; accepted or refused.
                let frame = if number % 2 == 0 {
                    segment(source, flag::SYN)
                } else {
                    Frame::request(source, at(ROUTER, family, UDP_MOVED), Body::Udp)
                };
                rig.feed(Hook::ClusterIngress, &frame.bytes(), 0);
            }
            // The agent's sweep, as often as it comes while a table is that full.
            if number % (sources / 10) == sources / 10 - 1 {
                gave_way += rig.datapath().sweep(&mut Tally::default(), false).unwrap().gave_way;
                assert!(rig.flows().len() <= usize::from(ROOM) * 9 / 10);
            }
        }
        assert!(gave_way > 0);
        rig.forget_counted();
        let flows = rig.flows();
        let established = flows.iter().filter(|flow| flow.state == Class::TcpEstablished.name());
        assert_eq!(established.count(), 2 * usize::from(ESTABLISHED));
        for from in Family::ALL.into_iter().flat_map(connections) {
            let sent = rig.request(&segment(from, flag::PSH | flag::ACK));
            assert_eq!(ends(&sent).0, at(SNAT, Family::of(from.ip()), from.port()));
        }
        rig.assert_paired();
        // There is room for somebody new.
        rig.request(&segment(client(1, Family::V4, 30_000), flag::SYN));
    });
}

/// The address of one of a flood's sources.
fn flooder(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => (0x0b00_0000 + number).to_be_bytes().into(),
        Family::V6 => (0xfd66_u128 << 112 | u128::from(number)).to_be_bytes().into(),
    }
}
