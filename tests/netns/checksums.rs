//! Checksums and offloads: large transfers whole, and no wrong checksum at any hop.

use std::net::UdpSocket;

use egress_lab::address::{ROUTER, SERVER_1, SNAT, client};
use egress_lab::capture::Capture;
use egress_lab::detector::Detector;
use egress_lab::packet::{self, Content, payload_with_zero_checksum, udp_checksum};
use egress_lab::topology::{CLUSTER_INTERFACE, EXTERNAL_INTERFACE, MASTER, OUTSIDE_INTERFACE, switch_offloads_off};
use egress_lab::udp::send_with_checksum;
use egress_lab::{Family, Netns, Options, tcp, wait_until};

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};

fn rig(offloads: bool) -> Rig {
    let options = Options { offloads, ..Options::default() };
    Rig::with(&options, &Spec::new().tcp(80, SERVER_1, 8080).udp(53, SERVER_1, None), &[])
}

/// A second detector, where replies arrive: their source is the router and nobody else. The first is where requests do.
fn at_the_client(rig: &Rig) -> Detector {
    Detector::watch(&rig.client, "c0", ROUTER.both(), !rig.options.offloads).unwrap()
}

fn transfer(offloads: bool) {
    let rig = rig(offloads);
    let replies = at_the_client(&rig);
    for family in Family::ALL {
        let _server = rig.tcp_server(at(SERVER_1, family, 8080));
        // The server echoes: both directions are loaded.
        let bulk = tcp::bulk(&rig.client, anyone(family), router(family, 80), 100_000_000, TIMEOUT).result.unwrap();
        assert!(bulk.is_intact(), "{bulk:?}");
        assert_eq!(bulk.seen.source.ip(), SNAT.ip(family));
    }
    replies.assert_clean().unwrap();
}

#[test]
fn a_hundred_megabytes_arrive_whole_with_offloads() {
    transfer(true);
}

#[test]
fn a_hundred_megabytes_arrive_whole_without_offloads_and_every_checksum_is_right() {
    transfer(false);
}

/// Every hop, in the order of a request's way.
fn hops(rig: &Rig) -> [(&Netns, &'static str); 7] {
    let [first, _] = &rig.servers;
    [
        (&rig.client, "c0"),
        (rig.router_netns(), CLUSTER_INTERFACE),
        (rig.router_netns(), EXTERNAL_INTERFACE),
        (&rig.node, MASTER),
        (&rig.outside, OUTSIDE_INTERFACE),
        (&rig.outside, "o1"),
        (first, "eth0"),
    ]
}

#[test]
fn offloads_may_differ_from_hop_to_hop() {
    // Switched off one after the other, from the client on and from the server on: each hop is the first without, once, and
    // the last with.
    for from_the_client in [true, false] {
        let rig = rig(true);
        let mut hops = hops(&rig);
        if !from_the_client {
            hops.reverse();
        }
        for (netns, device) in hops {
            switch_offloads_off(netns, device).unwrap();
            for family in Family::ALL {
                let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
                let _udp = rig.udp_server(at(SERVER_1, family, 53));
                let bulk = tcp::bulk(&rig.client, anyone(family), router(family, 80), 3_000_000, TIMEOUT).result;
                assert!(bulk.unwrap().is_intact(), "{family}, {device}");
                rig.udp(anyone(family), 53);
            }
        }
    }
}

#[test]
fn datagrams_of_every_size_arrive_whole() {
    for offloads in [true, false] {
        let rig = rig(offloads);
        let replies = at_the_client(&rig);
        for family in Family::ALL {
            let _server = rig.udp_server(at(SERVER_1, family, 53));
            let (socket, seen) = rig.udp(anyone(family), 53);
            // The last ones are more than a packet holds, and the answers are longer by a line.
            for size in [0, 1, 2, 3, 4, 63, 64, 511, 512, 1200, 1371, 1372, 1460, 1472, 1473, 4000, 8000] {
                let payload = (0..size).map(|at: u32| at.to_le_bytes()[0] ^ 0x5a).collect::<Vec<_>>();
                let attempt = socket.exchange(&payload, TIMEOUT);
                assert_eq!(attempt.result.unwrap(), seen, "{size} bytes, {family}, offloads {offloads}");
            }
        }
        replies.assert_clean().unwrap();
    }
}

/// The checksum field of the datagram that carries this payload, as it arrives.
fn arrived(capture: &Capture, payload: &[u8]) -> u16 {
    capture
        .wait_for("the datagram to arrive", TIMEOUT, |frame| {
            let Content::Ip(packet) = packet::read(&frame.bytes) else { return None };
            let checksum = packet.udp_checksum()?;
            (packet.payload.get(8..) == Some(payload)).then(|| {
                assert_eq!(packet.wrong_checksum(), None, "{packet:?}");
                checksum
            })
        })
        .unwrap()
}

#[test]
fn a_checksum_that_computes_to_zero_is_all_ones() {
    let rig = rig(false);
    let replies = at_the_client(&rig);
    let [first, _] = &rig.servers;
    let (at_server, at_client) = (Capture::start(first, "eth0").unwrap(), Capture::start(&rig.client, "c0").unwrap());
    for family in Family::ALL {
        let server = rig.udp_server(at(SERVER_1, family, 53));
        let (from, to) = (at(client(0), family, 30_000), router(family, 53));
        let translated = (at(SNAT, family, 30_000), server.address());
        let (socket, _) = rig.udp(from, 53);
        let client_socket = &socket;
        for rest in [&b"odd"[..], b"even"] {
            // As it leaves the client, and as it reaches the server.
            let before = payload_with_zero_checksum(from, to, rest);
            let after = payload_with_zero_checksum(translated.0, translated.1, rest);
            assert_ne!(before, after);
            client_socket.exchange(&before, TIMEOUT).result.unwrap();
            assert_eq!(arrived(&at_server, &before), udp_checksum(translated.0, translated.1, &before));
            client_socket.exchange(&after, TIMEOUT).result.unwrap();
            assert_eq!(arrived(&at_server, &after), 0xffff, "{family}, {rest:?}");
        }
        drop(server);
        let server = first.run(|| UdpSocket::bind(translated.1)).unwrap();
        for rest in [&b"odd"[..], b"even"] {
            let before = payload_with_zero_checksum(translated.1, translated.0, rest);
            let after = payload_with_zero_checksum(to, from, rest);
            server.send_to(&before, translated.0).unwrap();
            assert_eq!(arrived(&at_client, &before), udp_checksum(to, from, &before));
            server.send_to(&after, translated.0).unwrap();
            assert_eq!(arrived(&at_client, &after), 0xffff, "{family}, {rest:?}");
        }
    }
    replies.assert_clean().unwrap();
}

// Only IPv4 knows datagrams without a checksum (RFC 8200, section 8.1).
#[test]
fn no_checksum_stays_no_checksum() {
    for offloads in [true, false] {
        let rig = rig(offloads);
        let family = Family::V4;
        let [first, _] = &rig.servers;
        let server = rig.udp_server(at(SERVER_1, family, 53));
        let (at_server, at_client) =
            (Capture::start(first, "eth0").unwrap(), Capture::start(&rig.client, "c0").unwrap());
        let (from, to) = (at(client(0), family, 30_000), router(family, 53));
        for payload in [&b"odd"[..], b"even", b""] {
            send_with_checksum(&rig.client, from, to, payload, 0).unwrap();
            assert_eq!(arrived(&at_server, payload), 0, "{payload:?}");
            wait_until("the server to read it", TIMEOUT, || server.seen().contains_key(&at(SNAT, family, 30_000)))
                .unwrap();
            let reply = [b"reply to ", payload].concat();
            send_with_checksum(first, server.address(), at(SNAT, family, 30_000), &reply, 0).unwrap();
            assert_eq!(arrived(&at_client, &reply), 0, "{reply:?}");
        }
    }
}
