//! The lab itself: it passes what kernel NAT passes, and its detector finds what kernel NAT is told to leak.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use egress_lab::address::{GATEWAY, ON_LINK, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::capture::Capture;
use egress_lab::detector::{Detector, Offence};
use egress_lab::endpoint::any_port;
use egress_lab::inject::Injector;
use egress_lab::kernel_nat::{KernelNat, Rule};
use egress_lab::probe::{Kind, Outcome, Probe, Servers};
use egress_lab::tcp::{self, TcpServer};
use egress_lab::udp::{PacedStream, UdpClient, UdpServer};
use egress_lab::{Family, Lab, Options, wait_until};
use etherparse::PacketBuilder;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The example's rules for one family.
fn rules(family: Family) -> Vec<Rule> {
    let rule = |protocol, port, destination: IpAddr, target_port| Rule { protocol, port, destination, target_port };
    vec![
        rule("tcp", 80, SERVER_1.ip(family), Some(8080)),
        rule("udp", 7000, SERVER_1.ip(family), None),
        rule("tcp", 53, SERVER_2.ip(family), None),
        rule("udp", 53, SERVER_2.ip(family), None),
        rule("tcp", 90, ON_LINK.ip(family), None),
        rule("tcp", 91, GATEWAY.ip(family), None),
    ]
}

fn kernel_nat(families: &[Family]) -> KernelNat {
    KernelNat {
        rules: families.iter().flat_map(|family| rules(*family)).collect(),
        fallback: families.iter().map(|family| SERVER_2.ip(*family)).collect(),
        snat: Some(SNAT),
    }
}

/// A probe for each rule and for the fallback.
fn probes(family: Family) -> Vec<Probe> {
    let to = |port| SocketAddr::new(ROUTER.ip(family), port);
    let probe =
        |kind, port, server| Probe { kind, from: client(0).ip(family), to: to(port), server, source: SNAT.ip(family) };
    let fallback = |port| SocketAddr::new(SERVER_2.ip(family), port);
    let by_rule = rules(family).into_iter().map(|rule| {
        let kind = if rule.protocol == "tcp" { Kind::Tcp } else { Kind::Udp };
        probe(kind, rule.port, SocketAddr::new(rule.destination, rule.target_port.unwrap_or(rule.port)))
    });
    let by_fallback = [
        probe(Kind::Tcp, 81, fallback(81)),
        probe(Kind::Udp, 81, fallback(81)),
        probe(Kind::IcmpEcho, 77, fallback(0)),
    ];
    by_rule.chain(by_fallback).collect()
}

fn send_all(lab: &Lab, family: Family) -> Vec<Outcome> {
    let probes = probes(family);
    let servers = Servers::start(lab, &probes).unwrap();
    probes.iter().map(|probe| servers.send(lab, *probe, TIMEOUT)).collect()
}

#[test]
fn the_lab_sees_what_kernel_nat_does() {
    for options in [
        Options::default(),
        Options { offloads: false, ..Options::default() },
        Options::only(Family::V4),
        Options::only(Family::V6),
        Options { uplink_mtu: 1400, cluster_mtu: 9000, clients: 5, second_uplink: true, ..Options::default() },
        Options { node_addresses: false, ..Options::default() },
    ] {
        let lab = Lab::build(&options).unwrap();
        kernel_nat(&options.families).install(&lab, SNAT).unwrap();
        let detector = Detector::start(&lab, SNAT.both()).unwrap();
        for family in &options.families {
            for outcome in send_all(&lab, *family) {
                assert_eq!(outcome.verdict(), Ok(()), "{:?} with {options:?}", outcome.probe);
            }
        }
        detector.assert_clean().unwrap();
        let sources = detector.findings().unwrap().sources;
        for family in &options.families {
            assert!(sources.contains_key(&SNAT.ip(*family)), "the detector saw no {family} packet: {sources:?}");
        }
    }
}

#[test]
fn the_detector_finds_packets_that_were_not_translated() {
    let lab = Lab::build(&Options::default()).unwrap();
    let nat = KernelNat { snat: None, ..kernel_nat(&Family::ALL) };
    nat.install(&lab, SNAT).unwrap();
    for family in Family::ALL {
        let detector = Detector::start(&lab, SNAT.both()).unwrap();
        let server = SocketAddr::new(SERVER_1.ip(family), 7000);
        let _server = UdpServer::start(lab.server(SERVER_1).unwrap(), server).unwrap();
        let to = SocketAddr::new(ROUTER.ip(family), 7000);
        let udp = UdpClient::open(&lab.client, any_port(client(0).ip(family)), to).unwrap();
        // Nothing can come back: the outside knows no way to the client.
        assert!(udp.exchange(b"leak", Duration::from_millis(100)).result.is_err());
        let findings = detector.findings().unwrap();
        let leaked = Offence::Leak { source: client(0).ip(family), destination: server.ip(), protocol: Some(17) };
        assert!(findings.offences().any(|offence| *offence == leaked), "{family}: {findings:?}");
        let error = detector.assert_clean().unwrap_err().to_string();
        assert!(error.contains(&format!("leak: {} -> {}", client(0).ip(family), server.ip())), "{error}");
        let file = error.split("frames in ").nth(1).unwrap().split(')').next().unwrap();
        assert!(std::fs::metadata(file).unwrap().len() > 40, "{file}");
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn a_large_transfer_comes_back_whole() {
    for offloads in [true, false] {
        let options = Options { offloads, ..Options::default() };
        let lab = Lab::build(&options).unwrap();
        kernel_nat(&Family::ALL).install(&lab, SNAT).unwrap();
        let detector = Detector::start(&lab, SNAT.both()).unwrap();
        for family in Family::ALL {
            let server = SocketAddr::new(SERVER_1.ip(family), 8080);
            let _server = TcpServer::start(lab.server(SERVER_1).unwrap(), server).unwrap();
            let (from, to) = (any_port(client(1).ip(family)), SocketAddr::new(ROUTER.ip(family), 80));
            let bulk = tcp::bulk(&lab.client, from, to, 20 << 20, Duration::from_secs(20)).result.unwrap();
            assert!(bulk.is_intact(), "{bulk:?}");
            assert_eq!(bulk.seen.source.ip(), SNAT.ip(family));
        }
        detector.assert_clean().unwrap();
    }
}

#[test]
fn a_paced_stream_counts_what_is_lost() {
    let lab = Lab::build(&Options::default()).unwrap();
    kernel_nat(&Family::ALL).install(&lab, SNAT).unwrap();
    for family in Family::ALL {
        let server = SocketAddr::new(SERVER_1.ip(family), 7000);
        let running = UdpServer::start(lab.server(SERVER_1).unwrap(), server).unwrap();
        let to = SocketAddr::new(ROUTER.ip(family), 7000);
        let udp = UdpClient::open(&lab.client, any_port(client(0).ip(family)), to).unwrap();
        // Warm: the first packet of all waits for neighbours, which is not what is measured.
        udp.exchange(b"warm", TIMEOUT).result.unwrap();
        let stream = PacedStream::start(udp, Duration::from_millis(1)).unwrap();
        wait_until("the stream to flow", TIMEOUT, || stream.answered() > 100).unwrap();
        let report = stream.finish().unwrap();
        assert!(report.is_perfect(), "{report:?}");
        assert_eq!(report.answered.keys().map(|seen| seen.server).collect::<Vec<_>>(), [server]);

        let udp = UdpClient::open(&lab.client, any_port(client(0).ip(family)), to).unwrap();
        let stream = PacedStream::start(udp, Duration::from_millis(1)).unwrap();
        wait_until("the stream to flow", TIMEOUT, || stream.answered() > 20).unwrap();
        drop(running);
        let report = stream.finish().unwrap();
        // Whatever was under way when the server went is lost, or refused by its host; never both unseen.
        assert!(report.is_perfect() || !report.lost.is_empty(), "{report:?}");
    }
}

#[test]
fn a_refused_connection_fails_at_once() {
    let lab = Lab::build(&Options::default()).unwrap();
    for family in Family::ALL {
        let to = SocketAddr::new(ROUTER.ip(family), 80);
        let attempt = tcp::exchange(&lab.client, any_port(client(0).ip(family)), to, b"anybody?", TIMEOUT);
        assert_eq!(attempt.result.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(attempt.took < Duration::from_secs(1), "{:?}", attempt.took);
        let udp = UdpClient::open(&lab.client, any_port(client(0).ip(family)), to).unwrap();
        let attempt = udp.exchange(b"anybody?", TIMEOUT);
        assert_eq!(attempt.result.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn an_injected_frame_arrives_as_it_was_sent() {
    let lab = Lab::build(&Options::default()).unwrap();
    let capture = Capture::start(&lab.router, "eth0").unwrap();
    let injector = Injector::open(&lab.client, "c0").unwrap();
    let (from, to) = (lab.client.mac("c0").unwrap(), lab.router.mac("eth0").unwrap());
    let mut frame = Vec::new();
    // A source that the lab has no route to.
    let builder = PacketBuilder::ethernet2(from, to).ipv4([172, 30, 0, 5], ROUTER.v4.octets(), 64).udp(9, 7000);
    builder.write(&mut frame, b"from afar").unwrap();
    injector.send(&frame).unwrap();
    let arrived = capture.wait_for("the frame", TIMEOUT, |seen| (seen.bytes == frame).then_some(seen.length)).unwrap();
    assert_eq!(arrived, frame.len());
}

#[test]
fn the_configuration_shows_what_was_left_behind() {
    let lab = Lab::build(&Options::default()).unwrap();
    let before = lab.configuration().unwrap();
    assert_eq!(lab.configuration().unwrap(), before);
    kernel_nat(&Family::ALL).install(&lab, SNAT).unwrap();
    assert!(lab.configuration().unwrap().contains("macvlan mode bridge"));
    lab.router.ip(["link", "delete", "net1"]).unwrap();
    // The original has replaced the default routes and switched forwarding on, and puts nothing back.
    assert_ne!(lab.configuration().unwrap(), before);
    lab.router
        .ip_lines("route add default via 10.128.0.1 dev eth0\nroute add default via fd00:10::1 dev eth0")
        .unwrap();
    lab.router.sysctl(["net.ipv6.conf.all.forwarding=0"]).unwrap();
    assert_eq!(lab.configuration().unwrap(), before);
}

#[test]
fn nothing_of_a_lab_is_left_when_it_is_dropped() {
    let lab = Lab::build(&Options::default()).unwrap();
    let names = lab.all().map(|netns| netns.name().to_owned());
    let mut sleeper = lab.client.command("sleep").arg("600").spawn().unwrap();
    wait_until("the sleeper to be inside", TIMEOUT, || {
        !lab.client.ip(["netns", "pids", lab.client.name()]).unwrap_or_default().is_empty()
    })
    .unwrap();
    drop(lab);
    assert!(sleeper.try_wait().unwrap().is_some(), "what ran in the namespace is still there");
    for name in names {
        assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "{name} is still there");
    }
}
