//! Every form of a rule, several rules, several addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use egress_lab::address::{GATEWAY, Host, ON_LINK, SERVER_1, SERVER_2, SNAT, client, external};
use egress_lab::endpoint::any_port;
use egress_lab::{Family, Options};

use crate::rig::{Rig, Spec, at};

/// One rule of the test below: the router's port, the server's address and port.
type Case = (u16, Host, u16);

#[test]
fn every_form_of_a_rule_leads_to_its_destination_from_the_routers_address() {
    let spec = Spec::new()
        .tcp(80, SERVER_1, 8080)
        // Without targetPort.
        .tcp(7000, SERVER_1, None)
        .udp(7000, SERVER_2, None)
        // The same port of the other protocol leads elsewhere.
        .udp(80, SERVER_2, 8081)
        // Two rules to one destination.
        .tcp(8443, SERVER_1, 8080)
        .udp(8443, SERVER_2, 8081)
        // The gateway itself, and a host that is reached without it.
        .tcp(90, GATEWAY, None)
        .udp(91, ON_LINK, 9191);
    let rig = Rig::start(&spec);
    let tcp: [Case; 4] = [(80, SERVER_1, 8080), (7000, SERVER_1, 7000), (8443, SERVER_1, 8080), (90, GATEWAY, 90)];
    let udp: [Case; 4] = [(80, SERVER_2, 8081), (7000, SERVER_2, 7000), (8443, SERVER_2, 8081), (91, ON_LINK, 9191)];
    for family in Family::ALL {
        let servers = |cases: &[Case]| {
            cases.iter().map(|(_, host, port)| at(*host, family, *port)).collect::<BTreeSet<SocketAddr>>()
        };
        let _tcp = servers(&tcp).into_iter().map(|address| rig.tcp_server(address)).collect::<Vec<_>>();
        let _udp = servers(&udp).into_iter().map(|address| rig.udp_server(address)).collect::<Vec<_>>();
        // A port that is free on the way out is kept: none of these is used twice towards one server.
        for (source_port, (port, host, target)) in (30_000..).zip(tcp) {
            let (connection, seen) = rig.tcp(at(client(0), family, source_port), port);
            assert_eq!(seen.server, at(host, family, target), "TCP {port}, {family}");
            assert_eq!(seen.source, at(SNAT, family, source_port), "TCP {port}, {family}");
            drop(connection);
        }
        for (source_port, (port, host, target)) in (30_000..).zip(udp) {
            let (_, seen) = rig.udp(at(client(1), family, source_port), port);
            assert_eq!(seen.server, at(host, family, target), "UDP {port}, {family}");
            assert_eq!(seen.source, at(SNAT, family, source_port), "UDP {port}, {family}");
        }
    }
}

#[test]
fn one_client_port_through_two_rules_to_one_destination_makes_two_connections() {
    let spec = Spec::new().tcp(80, SERVER_1, 8080).tcp(81, SERVER_1, 8080).udp(80, SERVER_1, 53).udp(81, SERVER_1, 53);
    let rig = Rig::start(&spec);
    for family in Family::ALL {
        let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
        let _udp = rig.udp_server(at(SERVER_1, family, 53));
        let from = at(client(0), family, 30_000);
        let (mut first, seen_first) = rig.tcp(from, 80);
        let (mut second, seen_second) = rig.tcp(from, 81);
        assert_eq!(seen_first.source, at(SNAT, family, 30_000));
        assert_eq!(seen_second.source.ip(), SNAT.ip(family));
        assert_ne!(seen_second.source.port(), 30_000, "the server could not tell them apart");
        first.exchange(b"still the first").unwrap();
        second.exchange(b"still the second").unwrap();

        let (first, seen_first) = rig.udp(from, 80);
        let (second, seen_second) = rig.udp(from, 81);
        assert_eq!(seen_first.source, at(SNAT, family, 30_000));
        assert_ne!(seen_second.source, seen_first.source);
        for (client, seen) in [(&first, seen_first), (&second, seen_second)] {
            assert_eq!(client.exchange(b"again", crate::rig::TIMEOUT).result.unwrap(), seen);
        }
    }
}

#[test]
fn every_address_is_used_and_a_client_keeps_its_own() {
    let addresses = (101..=108).map(external).collect::<Vec<_>>();
    let spec = Spec::new()
        .addresses(addresses.iter().copied())
        .tcp(80, SERVER_1, 8080)
        .udp(53, SERVER_2, None)
        .udp(54, SERVER_2, 53);
    let options = Options { clients: 80, ..Options::default() };
    let rig = Rig::with(&options, &spec, &[]);
    for family in Family::ALL {
        let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
        let _udp = rig.udp_server(at(SERVER_2, family, 53));
        let mut clients_by_address = BTreeMap::<_, u32>::new();
        for number in 0..options.clients {
            let from = any_port(client(number).ip(family));
            let (_, first) = rig.udp(from, 53);
            *clients_by_address.entry(first.source.ip()).or_default() += 1;
            // Another port, another protocol, another server: still the same address (RFC 4787 REQ-2).
            let (_, second) = rig.udp(from, 54);
            assert_eq!(second.source.ip(), first.source.ip(), "{from}");
            let (_, third) = rig.tcp(from, 80);
            assert_eq!(third.source.ip(), first.source.ip(), "{from}");
        }
        let expected = addresses.iter().map(|host| host.ip(family)).collect::<BTreeSet<_>>();
        let used = clients_by_address.keys().copied().collect::<BTreeSet<_>>();
        assert_eq!(used, expected, "{clients_by_address:?}");
    }
}
