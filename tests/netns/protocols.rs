//! What is neither TCP nor UDP, and what no translation touches.

use egress_lab::Family;
use egress_lab::address::ROUTER;
use egress_lab::frame::{Body, Frame};

use crate::rig::{Spec, at};
use crate::wire::{End, GHOST_CLIENT_2, GHOST_SERVER, Wire, request_ends, translated_ends};

const GRE: u8 = 47;

/// Opens a flow, and then sends two more packets each way, past the kernel. Checks every byte.
#[track_caller]
fn there_and_back(wire: &Wire, request: &Frame, sent: &Frame) {
    let reply = Frame { payload: b"and this is what comes back".to_vec(), ..sent.answer() };
    let reply = Frame { traffic_class: 0x29, flow_label: 0x1_2345, id: 0xfedc, dont_fragment: false, ..reply };
    let received = reply.between(request.destination, request.source).forwarded();
    wire.passes(End::Client, request, sent);
    let redirected = || {
        let requests = wire.rig.count("cluster_ingress", "request_redirected");
        (requests, wire.rig.count("external_ingress", "reply_redirected"))
    };
    let (requests, replies) = redirected();
    for number in 0..2_u16 {
        let numbered = |frame: &Frame| Frame { id: u32::from(number), ..frame.clone() };
        wire.passes(End::Client, &numbered(request), &numbered(sent));
        wire.passes(End::Outside, &numbered(&reply), &numbered(&received));
    }
    assert_eq!(redirected(), (requests + 2, replies + 2), "{request:?}");
}

#[test]
fn nothing_but_addresses_ports_checksums_and_one_hop_changes() {
    for family in Family::ALL {
        let wire = Wire::start(
            &Spec::new()
                .tcp(80, GHOST_SERVER, 8080)
                .udp(7000, GHOST_SERVER, 7001)
                .sctp(9000, GHOST_SERVER, 9001)
                .fallback(GHOST_SERVER.ip(family)),
        );
        let mut bodies = vec![
            (Body::Tcp(0x10), 80, 8080),
            // Flags of congestion control, urgent data, push.
            (Body::Tcp(0xf8), 80, 8080),
            (Body::Tcp(0x10), 81, 81),
            (Body::Udp, 7000, 7001),
            (Body::Udp, 81, 81),
            (Body::EchoRequest, 0, 0),
            (Body::Sctp, 9000, 9001),
            (Body::Sctp, 9002, 9002),
            (Body::SctpUnchecked, 9000, 9001),
            (Body::Other(GRE), 0, 0),
        ];
        if family == Family::V4 {
            bodies.push((Body::UdpUnchecked, 7000, 7001));
        }
        for (client_port, (body, port, target)) in (40_000..).zip(bodies) {
            // The class of service, both bits of congestion notification, an odd flow label; don't-fragment and not.
            for (number, traffic_class) in (0_u8..).zip([0x00, 0xb8, 0x03, 0xff]) {
                let portless = matches!(body, Body::Other(_));
                let client_port = if portless { 0 } else { client_port + 100 * u16::from(number) };
                let (from, to) = request_ends(family, client_port, port);
                let (snat, server) = translated_ends(family, client_port, target);
                let request = Frame::new(from, to, body.clone());
                let request = Frame {
                    traffic_class,
                    flow_label: 0xa_bcde,
                    dont_fragment: number % 2 == 0,
                    ttl: 255 - number,
                    // Begins with the type of SCTP's chunk of data.
                    payload: (0..33 + number).collect(),
                    ..request
                };
                let sent = request.between(snat, server).forwarded();
                if portless && number > 0 {
                    // The same flow as before: the first packet is redirected too.
                    wire.passes(End::Client, &request, &sent);
                    continue;
                }
                there_and_back(&wire, &request, &sent);
            }
        }
    }
}

#[test]
fn sctp_of_every_size_has_a_right_crc() {
    for family in Family::ALL {
        let wire = Wire::start(&Spec::new().sctp(9000, GHOST_SERVER, None).sctp(9001, GHOST_SERVER, 36_412).sctp(
            9002,
            GHOST_SERVER,
            1,
        ));
        for (client_port, (port, target)) in (40_000..).zip([(9000, 9000), (9001, 36_412), (9002, 1)]) {
            let (from, to) = request_ends(family, client_port, port);
            let (snat, server) = translated_ends(family, client_port, target);
            // INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, and data; the sizes are the whole SCTP packet's.
            for (chunk, size) in [(1, 20), (2, 100), (10, 1400), (11, 16), (0, 20), (0, 100), (0, 1400), (0, 1480 - 28)]
            {
                let request = Frame::new(from, to, Body::Sctp);
                let mut payload = (0..size - 12).map(|at: u16| at.to_le_bytes()[0] ^ 0x5a).collect::<Vec<_>>();
                payload[0] = chunk;
                let request = Frame { payload: payload.clone(), ..request };
                let sent = request.between(snat, server).forwarded();
                let reply = Frame { payload, ..sent.answer() };
                let received = reply.between(to, from).forwarded();
                if matches!(chunk, 1 | 10 | 0) {
                    wire.passes(End::Client, &request, &sent);
                }
                if matches!(chunk, 2 | 11 | 0) {
                    wire.passes(End::Outside, &reply, &received);
                }
                // A checksum that the device is to compute stays zero.
                if chunk == 0 {
                    let unchecked = |frame: &Frame| Frame { body: Body::SctpUnchecked, ..frame.clone() };
                    wire.passes(End::Client, &unchecked(&request), &unchecked(&sent));
                    wire.passes(End::Outside, &unchecked(&reply), &unchecked(&received));
                }
            }
        }
    }
}

#[test]
fn two_clients_of_sctp_share_a_port_by_another_one() {
    for family in Family::ALL {
        let wire = Wire::start(&Spec::new().sctp(9000, GHOST_SERVER, None));
        let (from, to) = request_ends(family, 40_000, 9000);
        let (snat, server) = translated_ends(family, 40_000, 9000);
        let init = Frame { payload: [&[1, 0, 0, 20][..], &[7; 16]].concat(), ..Frame::new(from, to, Body::Sctp) };
        wire.passes(End::Client, &init, &init.between(snat, server).forwarded());
        wire.send(End::Client, &init.between(at(GHOST_CLIENT_2, family, 40_000), to));
        // Its port is the router's choice, and its CRC right for it.
        let second = wire
            .at_outside
            .wait_for("the second association", crate::rig::TIMEOUT, |frame| {
                let bytes = crate::wire::ip_bytes(frame)?;
                let start = bytes.len().checked_sub(32)?;
                let port = u16::from_be_bytes([bytes[start], bytes[start + 1]]);
                (bytes.ends_with(&init.payload) && port != 40_000).then_some(port)
            })
            .unwrap();
        let chosen = std::net::SocketAddr::new(snat.ip(), second);
        wire.expect(End::Outside, &init.between(chosen, server).forwarded());
        let reply =
            Frame { payload: [&[2, 0, 0, 20][..], &[8; 16]].concat(), ..Frame::new(server, chosen, Body::Sctp) };
        wire.passes(End::Outside, &reply, &reply.between(to, at(GHOST_CLIENT_2, family, 40_000)).forwarded());
    }
}

// A protocol without ports tells one client's packets from another's by the destination alone, and all of them come from the
// one SNAT address: so the second client of the same destination would take the first one's replies. It is refused.
#[test]
fn a_protocol_without_ports_serves_one_client_of_a_destination() {
    for family in Family::ALL {
        let wire = Wire::start(&Spec::new().fallback(GHOST_SERVER.ip(family)));
        let (from, to) = request_ends(family, 0, 0);
        let (snat, server) = translated_ends(family, 0, 0);
        let request = Frame::new(from, to, Body::Other(GRE));
        there_and_back(&wire, &request, &request.between(snat, server).forwarded());
        let before = wire.rig.count("cluster_ingress", "ports_exhausted");
        let stranger = request.between(at(GHOST_CLIENT_2, family, 0), at(ROUTER, family, 0));
        let stranger = Frame { payload: b"somebody else's".to_vec(), ..stranger };
        for _ in 0..3 {
            wire.send(End::Client, &stranger);
        }
        // The first one is served as before; another protocol's packets are another flow.
        wire.passes(End::Client, &request, &request.between(snat, server).forwarded());
        let other = Frame { body: Body::Other(50), ..stranger.clone() };
        wire.passes(End::Client, &other, &other.between(snat, server).forwarded());
        assert_eq!(wire.rig.count("cluster_ingress", "ports_exhausted") - before, 3, "{family}");
        assert!(
            !wire.has_seen(End::Outside, |packet| { packet.protocol == GRE && packet.payload == stranger.payload })
        );
    }
}
