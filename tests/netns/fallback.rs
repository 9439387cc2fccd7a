//! What no rule names: to the fallback, or refused at once.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::icmp::{Echo, Witness};
use egress_lab::udp::UdpClient;
use egress_lab::{Family, tcp};

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};

/// Far below any timeout of TCP, and far above what a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(5);

// A specification has one fallback, which serves its own family: hence a rig for each.
fn with_fallback(family: Family) -> Rig {
    Rig::start(&Spec::new().tcp(80, SERVER_1, 8080).fallback(SERVER_2.ip(family)))
}

#[test]
fn the_fallback_takes_tcp_and_udp_on_every_port_without_a_rule() {
    for family in Family::ALL {
        let rig = with_fallback(family);
        let _by_rule = rig.tcp_server(at(SERVER_1, family, 8080));
        let (_, seen) = rig.tcp(at(client(0), family, 30_000), 80);
        assert_eq!((seen.server, seen.source), (at(SERVER_1, family, 8080), at(SNAT, family, 30_000)));
        // 80 has a rule for TCP only.
        let ports = [1, 80, 443, 8080, 65_535];
        for (source_port, port) in (31_000..).zip(ports) {
            let (from, server) = (at(client(0), family, source_port), at(SERVER_2, family, port));
            let _udp = rig.udp_server(server);
            let (_, seen) = rig.udp(from, port);
            assert_eq!((seen.server, seen.source), (server, at(SNAT, family, source_port)), "UDP {port}");
            if port != 80 {
                let _tcp = rig.tcp_server(server);
                let (_, seen) = rig.tcp(from, port);
                assert_eq!((seen.server, seen.source), (server, at(SNAT, family, source_port)), "TCP {port}");
            }
        }
    }
}

#[test]
fn the_fallback_takes_echo_requests_and_gives_each_client_its_own_replies() {
    for family in Family::ALL {
        let rig = with_fallback(family);
        let [_, second] = &rig.servers;
        let witness = Witness::start(second, "eth0").unwrap();
        let echo = |number, id, sequence, payload: &str| {
            let echo = Echo {
                from: client(number).ip(family),
                to: ROUTER.ip(family),
                id,
                sequence,
                payload: payload.as_bytes(),
            };
            assert_eq!(echo.exchange(&rig.client, TIMEOUT).result.unwrap(), ROUTER.ip(family), "{payload}");
            let seen = witness.wait_for(payload.as_bytes(), TIMEOUT).unwrap();
            assert_eq!((seen.source, seen.destination), (SNAT.ip(family), SERVER_2.ip(family)), "{payload}");
            seen.id
        };
        for id in [0, 1, 77, 1023, 40_000, 65_535] {
            assert_eq!(echo(0, id, 1, &format!("echo with id {id}")), id, "a free identifier is kept");
        }
        // The same identifier from two clients at once.
        let ids = std::thread::scope(|scope| {
            let echo = &echo;
            let run = |number| {
                let one = move |sequence| echo(number, 4242, sequence, &format!("client {number}, number {sequence}"));
                scope.spawn(move || (0..20).map(one).collect::<BTreeSet<_>>())
            };
            let clients = [run(0), run(1)];
            clients.map(|client| client.join().unwrap())
        });
        let [first, second] = ids;
        assert_eq!((first.len(), second.len()), (1, 1), "one identifier for each: {first:?}, {second:?}");
        assert_ne!(first, second, "the server could not tell them apart");
    }
}

#[test]
fn the_fallback_serves_its_own_family_only() {
    for (family, other) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let rig = with_fallback(family);
        let _server = rig.tcp_server(at(SERVER_2, other, 443));
        let refused = tcp::exchange(&rig.client, anyone(other), router(other, 443), b"anybody?", TIMEOUT);
        assert_eq!(refused.result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn without_a_fallback_a_port_without_a_rule_is_refused_at_once() {
    let rig = Rig::start(&Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None));
    for family in Family::ALL {
        let before = rig.count("cluster_ingress", "rejected");
        for port in [81, 7000, 8080] {
            let attempt = tcp::exchange(&rig.client, anyone(family), router(family, port), b"anybody?", TIMEOUT);
            assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::ConnectionRefused, "TCP {port}, {family}");
            assert!(attempt.took < AT_ONCE, "TCP {port}, {family}: {:?}", attempt.took);
        }
        for port in [80, 81] {
            let socket = UdpClient::open(&rig.client, anyone(family), router(family, port)).unwrap();
            let attempt = socket.exchange(b"anybody?", TIMEOUT);
            assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::ConnectionRefused, "UDP {port}, {family}");
            assert!(attempt.took < AT_ONCE, "UDP {port}, {family}: {:?}", attempt.took);
        }
        assert_eq!(rig.count("cluster_ingress", "rejected") - before, 5, "{family}");
    }
}
