//! As large as it gets.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1};
use egress_user::compile::{Protocol, RuleTable};

use crate::frame::{Body, Frame, flag};
use crate::rig::{self, Setup, at, client, ends, rule};

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
