//! SCTP between real sockets. Few kernels have them, the emulated ones among these: `cargo xtask test kernels` runs what is
//! ignored here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_lab::address::{ROUTER, SERVER_1, SNAT, client};
use egress_lab::detector::Detector;
use egress_lab::sctp::{Association, SctpServer, Seen};
use egress_lab::topology::OUTSIDE_INTERFACE;
use egress_lab::{Family, Options, wait_until};
use serde_json::Value;

use crate::rig::{Rig, Spec, TIMEOUT, at, router};

/// Port of the rule that keeps the port.
const KEPT: u16 = 9000;
/// Port of the rule that changes it, and what to.
const MOVED: u16 = 9001;
const TARGET: u16 = 36_412;

/// One byte, what fills a packet of 1500 bytes and more, and what fills forty.
const SIZES: [usize; 7] = [1, 100, 1400, 1452, 1453, 9000, 60_000];

fn spec() -> Spec {
    Spec::new().sctp(KEPT, SERVER_1, None).sctp(MOVED, SERVER_1, TARGET)
}

fn server(rig: &Rig, family: Family, port: u16) -> SctpServer {
    SctpServer::start(rig.server(SERVER_1).unwrap(), at(SERVER_1, family, port)).unwrap()
}

fn message(length: usize) -> Vec<u8> {
    (0..length).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect()
}

/// Sends messages of every size, and has each come back.
#[track_caller]
fn talk(association: &mut Association) -> Seen {
    let seen = SIZES.map(|length| {
        let seen = association.exchange(&message(length));
        seen.unwrap_or_else(|error| panic!("{error}, with a message of {length} bytes"))
    });
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
    seen[0]
}

/// State, and seconds until it is forgotten, of the flow from this port, if there is one.
fn state(rig: &Rig, from: SocketAddr) -> Option<(String, u64)> {
    let from = from.to_string();
    let flows = rig.flows();
    let flow = flows.iter().find(|flow| flow.get("client").and_then(Value::as_str) == Some(&from))?;
    Some((flow.get("state")?.as_str()?.to_owned(), flow.get("expiresS")?.as_u64()?))
}

/// Associations of both families by both rules from open to closed: messages whole, ports as the rules say, and the flow's
/// states and timeouts.
fn conversations(rig: &Rig) {
    for family in Family::ALL {
        for (source_port, (port, target)) in (30_000..).zip([(KEPT, KEPT), (MOVED, TARGET)]) {
            let _server = server(rig, family, target);
            let from = at(client(0), family, source_port);
            let mut association = Association::open(&rig.client, from, router(family, port), TIMEOUT).unwrap();
            let seen = talk(&mut association);
            assert_eq!(seen, Seen { source: at(SNAT, family, source_port), server: at(SERVER_1, family, target) });
            let (open, expires_s) = state(rig, from).unwrap();
            assert_eq!(open, "sctp-established");
            assert!((200..=210).contains(&expires_s), "{expires_s}");

            association.close().unwrap();
            let closed =
                || state(rig, from).is_some_and(|(state, expires_s)| state == "sctp-closed" && expires_s <= 10);
            wait_until("the association to be seen closed", TIMEOUT, closed).unwrap();
        }
    }
    wait_until("closed associations to be forgotten", TIMEOUT, || rig.flows().is_empty()).unwrap();
}

#[test]
#[ignore = "needs a kernel with SCTP: cargo xtask test kernels"]
fn associations_work_whose_packets_are_cut_by_the_last_device() {
    let rig = Rig::start(&spec());
    for family in Family::ALL {
        let _server = server(&rig, family, TARGET);
        let from = at(client(0), family, 29_999);
        let mut association = Association::open(&rig.client, from, router(family, MOVED), TIMEOUT).unwrap();
        // With the acknowledgements of what comes back, once the association's window has opened.
        let fewest = (0..10).map(|_| {
            let before = received(&rig);
            association.exchange(&message(60_000)).unwrap();
            received(&rig) - before
        });
        let fewest = fewest.min().unwrap();
        assert!(fewest < 60_000 / 1500, "{fewest} packets for a message: none came this far uncut, {family}");
        association.close().unwrap();
    }
    conversations(&rig);
}

/// Packets that the outside's interface has received. (A capture does not see what is uncut: `egress_lab::capture`.)
fn received(rig: &Rig) -> u64 {
    let shown = rig.outside.ip(["-s", "-j", "link", "show", OUTSIDE_INTERFACE]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[test]
#[ignore = "needs a kernel with SCTP: cargo xtask test kernels"]
fn associations_work_whose_checksums_are_computed_by_the_sender() {
    let rig = Rig::with(&Options { offloads: false, ..Options::default() }, &spec(), &[]);
    // Every checksum is recomputed at both ends, by the detector of the rig and by this one.
    let replies = Detector::watch(&rig.client, "c0", ROUTER.both(), true).unwrap();
    conversations(&rig);
    replies.assert_clean().unwrap();
}

#[test]
#[ignore = "needs a kernel with SCTP: cargo xtask test kernels"]
fn two_clients_with_one_port_have_associations_of_their_own() {
    for offloads in [true, false] {
        let rig = Rig::with(&Options { offloads, ..Options::default() }, &spec(), &[]);
        for family in Family::ALL {
            let _server = server(&rig, family, KEPT);
            let open = |number| {
                let from = at(client(number), family, 30_000);
                Association::open(&rig.client, from, router(family, KEPT), TIMEOUT).unwrap()
            };
            let (mut first, mut second) = (open(0), open(1));
            assert_eq!(talk(&mut first).source, at(SNAT, family, 30_000));
            let remapped = talk(&mut second).source;
            assert_eq!(remapped.ip(), SNAT.ip(family));
            assert_ne!(remapped.port(), 30_000);
            assert_eq!(talk(&mut first).source.port(), 30_000);
            first.close().unwrap();
            assert_eq!(talk(&mut second).source, remapped);
            second.close().unwrap();
        }
    }
}

// By the rule that keeps the port: what was cut into parts before the MTU was known is sent again in IP fragments, and a
// checksum over more than one of them cannot follow a change of port (README, limits).
#[test]
#[ignore = "needs a kernel with SCTP: cargo xtask test kernels"]
fn an_association_learns_the_mtu_of_the_way() {
    let rig = Rig::with(&Options { uplink_mtu: 1300, ..Options::default() }, &spec(), &[]);
    for family in Family::ALL {
        let _server = server(&rig, family, KEPT);
        let from = at(client(0), family, 30_000);
        let mut association = Association::open(&rig.client, from, router(family, KEPT), TIMEOUT).unwrap();
        talk(&mut association);
        association.close().unwrap();
    }
}

#[test]
#[ignore = "needs a kernel with SCTP: cargo xtask test kernels"]
fn an_association_that_nobody_accepts_is_refused() {
    let rig = Rig::start(&spec());
    for family in Family::ALL {
        for port in [KEPT, MOVED] {
            let from = at(client(0), family, 30_000);
            let refused = Association::open(&rig.client, from, router(family, port), TIMEOUT).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
            assert_eq!(state(&rig, from).unwrap().0, "sctp-closed");
        }
    }
}

// Its INIT names every address of the client, which no NAT translates: the way that it was opened by serves all the same.
#[test]
#[ignore = "needs a kernel with SCTP: cargo xtask test kernels"]
fn an_association_of_many_addresses_works_by_its_first() {
    let rig = Rig::start(&spec());
    for family in Family::ALL {
        let _server = server(&rig, family, TARGET);
        let all = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let from = SocketAddr::new(all, 30_000);
        let mut association = Association::open(&rig.client, from, router(family, MOVED), TIMEOUT).unwrap();
        assert_eq!(talk(&mut association).source, at(SNAT, family, 30_000));
        association.close().unwrap();
    }
}
