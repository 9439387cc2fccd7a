//! Source ports: two clients with the same one, many such pairs, and a range that is used up.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use egress_lab::address::{SERVER_1, SERVER_2, SNAT, client};
use egress_lab::tcp::TcpConnection;
use egress_lab::udp::{self, UdpClient};
use egress_lab::{Family, Options};

use crate::rig::{Rig, SILENCE, Spec, TIMEOUT, anyone, at, router};

fn spec() -> Spec {
    Spec::new().tcp(80, SERVER_1, 8080).tcp(81, SERVER_2, 8080).udp(53, SERVER_1, None).udp(54, SERVER_2, 53)
}

#[test]
fn two_clients_with_one_source_port_work_at_the_same_time() {
    let rig = Rig::start(&spec());
    for family in Family::ALL {
        let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
        let _udp = rig.udp_server(at(SERVER_1, family, 53));
        // One of each class that nf_nat keeps a port in.
        for (port, class) in [(400, 1..=511), (700, 600..=1023), (40_000, 1024..=65_535)] {
            let [one, other] = [0, 1].map(|number| at(client(number), family, port));
            let (mut first, seen) = rig.tcp(one, 80);
            assert_eq!(seen.source, at(SNAT, family, port), "TCP {port}");
            let (mut second, seen) = rig.tcp(other, 80);
            assert_eq!(seen.source.ip(), SNAT.ip(family), "TCP {port}");
            assert_ne!(seen.source.port(), port, "the server could not tell them apart");
            assert!(class.contains(&seen.source.port()), "{port} became {}, of another class", seen.source.port());
            for round in 0..10_u8 {
                first.exchange(&[round; 100]).unwrap();
                second.exchange(&[round + 100; 100]).unwrap();
            }

            let (first, first_seen) = rig.udp(one, 53);
            assert_eq!(first_seen.source, at(SNAT, family, port), "UDP {port}");
            let (second, second_seen) = rig.udp(other, 53);
            assert_ne!(second_seen.source.port(), port);
            assert!(class.contains(&second_seen.source.port()), "UDP {port} became {second_seen}");
            for round in 0..10_u8 {
                assert_eq!(first.exchange(&[round; 100], TIMEOUT).result.unwrap(), first_seen);
                assert_eq!(second.exchange(&[round + 100; 100], TIMEOUT).result.unwrap(), second_seen);
            }
        }
    }
}

#[test]
fn five_hundred_colliding_pairs_work() {
    let rig = Rig::start(&spec());
    for family in Family::ALL {
        let server = rig.tcp_server(at(SERVER_1, family, 8080));
        for port in 20_000..20_500 {
            let (mut first, seen) = rig.tcp(at(client(0), family, port), 80);
            let (mut second, _) = rig.tcp(at(client(1), family, port), 80);
            assert_eq!(seen.source.ip(), SNAT.ip(family));
            first.exchange(b"with both open").unwrap();
            second.exchange(b"with both open").unwrap();
        }
        let sources = server.accepted().into_iter().map(|seen| seen.source).collect::<std::collections::HashSet<_>>();
        // What has closed keeps its port for a while, so no port comes twice.
        assert_eq!(sources.len(), 1000, "each connection has its own port at the server");
    }
}

#[test]
fn a_used_up_range_drops_and_counts_and_serves_again_once_a_port_is_free() {
    let rig = Rig::with(&Options::default(), &spec(), &["--snat-ports", "2000-2003"]);
    let mut held = Vec::new();
    let mut servers = Vec::new();
    for family in Family::ALL {
        servers.push(rig.tcp_server(at(SERVER_1, family, 8080)));
        servers.push(rig.tcp_server(at(SERVER_2, family, 8080)));
        let before = rig.count("cluster_ingress", "ports_exhausted");
        let mut four = Vec::new();
        let mut ports = Vec::new();
        for _ in 0..4 {
            let (connection, seen) = rig.tcp(anyone(family), 80);
            assert_eq!(seen.source.ip(), SNAT.ip(family));
            ports.push(seen.source.port());
            four.push(connection);
        }
        ports.sort_unstable();
        assert_eq!(ports, [2000, 2001, 2002, 2003], "{family}");
        assert_eq!(fifth(&rig, family, SILENCE), Err(ErrorKind::TimedOut), "{family}");
        assert!(rig.count("cluster_ingress", "ports_exhausted") > before, "{family}: not counted");
        // The four that have a port are not disturbed, and towards another server the ports are free.
        for connection in &mut four {
            connection.exchange(b"still here").unwrap();
        }
        rig.tcp(anyone(family), 81);
        held.push((family, four));
    }
    for (_, four) in &mut held {
        four.pop().unwrap().reset().unwrap();
    }
    // A connection that was reset keeps its port for ten seconds.
    let deadline = Instant::now() + Duration::from_secs(30);
    for (family, _held) in &held {
        while fifth(&rig, *family, SILENCE) != Ok(()) {
            assert!(Instant::now() < deadline, "{family}: no port became free");
        }
    }
}

/// One more connection.
fn fifth(rig: &Rig, family: Family, timeout: Duration) -> Result<(), ErrorKind> {
    let connection = TcpConnection::open(&rig.client, anyone(family), router(family, 80), timeout);
    connection.map(|_| ()).map_err(|error| error.kind())
}

#[test]
fn a_used_up_range_drops_datagrams_too() {
    let rig = Rig::with(&Options::default(), &spec(), &["--snat-ports", "2000-2003"]);
    for family in Family::ALL {
        let server = rig.udp_server(at(SERVER_1, family, 53));
        let _other = rig.udp_server(at(SERVER_2, family, 53));
        let before = rig.count("cluster_ingress", "ports_exhausted");
        let four = [(); 4].map(|()| rig.udp(anyone(family), 53).0);
        let fifth = UdpClient::open(&rig.client, anyone(family), router(family, 53)).unwrap();
        let attempt = fifth.exchange(b"no port is left", SILENCE);
        assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(rig.count("cluster_ingress", "ports_exhausted") - before, 1, "{family}");
        assert_eq!(server.seen().len(), 4, "{family}");
        for client in &four {
            client.exchange(b"still here", TIMEOUT).result.unwrap();
        }
        let attempt = udp::exchange(&rig.client, anyone(family), router(family, 54), b"elsewhere", TIMEOUT);
        attempt.result.unwrap();
    }
}

#[test]
fn the_last_free_ports_of_a_range_are_found() {
    let rig = Rig::with(&Options::default(), &spec(), &["--snat-ports", "2000-2099"]);
    for family in Family::ALL {
        let _server = rig.udp_server(at(SERVER_1, family, 53));
        let searched = |rig: &Rig| {
            let status = rig.router.report("status").unwrap();
            let buckets = status["portSearches"].as_array().unwrap();
            buckets.iter().skip(1).map(|bucket| bucket.as_u64().unwrap()).sum::<u64>()
        };
        let held = (0..95).map(|_| rig.udp(anyone(family), 53)).collect::<Vec<_>>();
        let before = searched(&rig);
        let last = (0..5).map(|_| rig.udp(anyone(family), 53)).collect::<Vec<_>>();
        let ports = |held: &[(UdpClient, _)]| held.iter().map(port_of).collect::<std::collections::BTreeSet<_>>();
        let (mut all, rest) = (ports(&held), ports(&last));
        all.extend(rest);
        assert_eq!(all, (2000..=2099).collect(), "{family}");
        assert!(searched(&rig) > before, "{family}: the histogram of searches did not move");
        let one_more = udp::exchange(&rig.client, anyone(family), router(family, 53), b"none is left", SILENCE);
        assert_eq!(one_more.result.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}

fn port_of((_, seen): &(UdpClient, egress_lab::endpoint::Seen)) -> u16 {
    SocketAddr::port(&seen.source)
}
