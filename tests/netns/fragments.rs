//! Packets in parts, with options and with extension headers.

use std::net::UdpSocket;
use std::time::Duration;

use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, client};
use egress_lab::frame::{Body, Frame, Part};
use egress_lab::icmp::Echo;

use crate::rig::{Rig, Spec, TIMEOUT, at};
use crate::wire::{End, GHOST_SERVER, Wire, request_ends, translated_ends};

fn spec() -> Spec {
    Spec::new().tcp(80, GHOST_SERVER, 8080).udp(7000, GHOST_SERVER, 7001)
}

/// A datagram of 101 bytes, and what becomes of it.
fn datagram(family: Family, port: u16) -> (Frame, Frame) {
    let (from, to) = request_ends(family, port, 7000);
    let (snat, server) = translated_ends(family, port, 7001);
    let request = Frame::new(from, to, Body::Udp);
    let request = Frame { payload: (0..101).collect(), dont_fragment: false, ..request };
    let sent = request.between(snat, server).forwarded();
    (request, sent)
}

#[test]
fn fragments_in_order_are_translated_both_ways() {
    for family in Family::ALL {
        let wire = Wire::start(&spec());
        for port in [40_000, 40_000, 40_001] {
            let (request, sent) = datagram(family, port);
            for (part, wanted) in request.parts(48).iter().zip(&sent.parts(48)) {
                wire.passes(End::Client, part, wanted);
            }
            let reply = Frame { payload: (100..200).collect(), dont_fragment: false, ..sent.answer() };
            let received = reply.between(request.destination, request.source).forwarded();
            for (part, wanted) in reply.parts(48).iter().zip(&received.parts(48)) {
                wire.passes(End::Outside, part, wanted);
            }
        }
        // Whole again, by the same flow.
        let (request, sent) = datagram(family, 40_000);
        wire.passes(End::Client, &request, &sent);
    }
}

#[test]
fn a_fragment_before_its_first_is_dropped_and_counted() {
    for family in Family::ALL {
        let wire = Wire::start(&spec());
        let (request, sent) = datagram(family, 40_000);
        let [first, middle, last] = &request.parts(48)[..] else { panic!() };
        let [sent_first, sent_middle, sent_last] = &sent.parts(48)[..] else { panic!() };
        let before = wire.rig.count("cluster_ingress", "fragment_unknown");
        wire.send(End::Client, last);
        wire.send(End::Client, middle);
        wire.passes(End::Client, first, sent_first);
        assert_eq!(wire.rig.count("cluster_ingress", "fragment_unknown") - before, 2);
        assert!(!wire.has_seen(End::Outside, |packet| packet.fragment && packet.payload.len() != 48));
        // Its first one is known now.
        wire.passes(End::Client, last, sent_last);
        wire.passes(End::Client, middle, sent_middle);
        // From the other side.
        let (reply, received) = (sent.answer(), request.answer().forwarded());
        let before = wire.rig.count("external_ingress", "fragment_unknown");
        let (parts, wanted) = (reply.parts(16), received.parts(16));
        wire.send(End::Outside, &parts[1]);
        wire.passes(End::Outside, &parts[0], &wanted[0]);
        assert_eq!(wire.rig.count("external_ingress", "fragment_unknown") - before, 1);
    }
}

/// What a socket of the server's reads: every datagram, as it was put together.
fn read_all(socket: &UdpSocket, until: &[u8]) -> Vec<Vec<u8>> {
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut all = Vec::new();
    loop {
        let mut buffer = vec![0; 2000];
        let length = socket.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        if buffer == until {
            return all;
        }
        all.push(buffer);
    }
}

#[test]
fn odd_fragments_never_corrupt_what_the_server_reads() {
    for family in Family::ALL {
        let wire = Wire::start(&Spec::new().udp(7000, SERVER_1, 7001));
        let [first_server, _] = &wire.rig.servers;
        let socket = first_server.run(|| UdpSocket::bind(at(SERVER_1, family, 7001))).unwrap();
        let (request, _) = datagram(family, 40_000);
        let numbered = |id: u32| Frame { id, ..request.clone() };
        let send = |parts: &[&Frame]| parts.iter().for_each(|part| wire.send(End::Client, part));
        let part =
            |frame: &Frame, start, length, more| frame.with(|frame| frame.part = Some(Part { start, length, more }));
        // Doubled, all of them; a part twice after the end; the last straight after the first.
        let parts = |id| numbered(id).parts(48);
        let [first, middle, last] = &parts(1)[..] else { panic!() };
        send(&[first, middle, last]);
        let [first, middle, last] = &parts(2)[..] else { panic!() };
        send(&[first, last, middle]);
        let [first, middle, last] = &parts(3)[..] else { panic!() };
        send(&[first, middle, middle, last]);
        let whole = vec![request.payload.clone(); 3];
        // Overlapping with other content; a first one again, with other ports; a part beyond the end: whatever the server
        // makes of those, it must not be a datagram that nobody sent.
        let frame = numbered(4);
        let other = frame.with(|frame| frame.payload = vec![0xee; 101]);
        send(&[&part(&frame, 0, 48, true), &part(&other, 40, 48, true), &part(&frame, 48, 48, true)]);
        send(&[&part(&frame, 96, 48, false)]);
        let frame = numbered(5);
        let other = frame.with(|frame| frame.source.set_port(40_009));
        send(&[&part(&frame, 0, 48, true), &part(&other, 0, 48, true), &part(&frame, 48, 480, false)]);
        let frame = numbered(6);
        send(&[&part(&frame, 0, 48, true), &part(&frame, 0, 0, true), &part(&frame, 48, 480, false)]);
        let end = numbered(7).with(|frame| frame.payload = b"the end".to_vec());
        wire.send(End::Client, &end);
        let read = read_all(&socket, b"the end");
        assert_eq!(read.iter().take(3).cloned().collect::<Vec<_>>(), whole, "{family}");
        assert!(read.iter().all(|datagram| *datagram == request.payload), "{family}: {read:?}");
    }
}

#[test]
fn a_large_echo_is_answered() {
    for family in Family::ALL {
        let rig = Rig::start(&Spec::new().fallback(SERVER_2.ip(family)));
        let (from, to) = (client(0).ip(family), ROUTER.ip(family));
        for size in [1400, 1500, 4000, 20_000] {
            let payload = (0..size).map(|at: u32| at.to_le_bytes()[0]).collect::<Vec<_>>();
            let echo = Echo { from, to, id: 77, sequence: 1, payload: &payload };
            assert_eq!(echo.exchange(&rig.client, TIMEOUT).result.unwrap(), to, "{size} bytes, {family}");
        }
    }
}

/// Sends a packet twice both ways, of which none goes past the kernel, and checks each byte.
fn by_the_kernel(wire: &Wire, request: &Frame, sent: &Frame) {
    let redirected = || {
        wire.rig.count("cluster_ingress", "request_redirected") + wire.rig.count("external_ingress", "reply_redirected")
    };
    let before = redirected();
    let reply = Frame { options: sent.options.clone(), extensions: sent.extensions.clone(), ..sent.answer() };
    let received = reply.between(request.destination, request.source).forwarded();
    for _ in 0..2 {
        wire.passes(End::Client, request, sent);
        wire.passes(End::Outside, &reply, &received);
    }
    assert_eq!(redirected(), before);
}

#[test]
fn packets_with_options_go_by_the_kernel() {
    let wire = Wire::start(&spec());
    // No operation and end of list; a timestamp request without room, a router alert.
    for options in [vec![1, 1, 1, 0], vec![1; 40], vec![148, 4, 0, 0]] {
        for (body, port, target) in [(Body::Udp, 7000, 7001), (Body::Tcp(0x10), 80, 8080)] {
            let (from, to) = request_ends(Family::V4, 40_000, port);
            let (snat, server) = translated_ends(Family::V4, 40_000, target);
            let request = Frame { options: options.clone(), ..Frame::new(from, to, body) };
            by_the_kernel(&wire, &request, &request.between(snat, server).forwarded());
        }
    }
}

#[test]
fn a_route_is_recorded() {
    let wire = Wire::start(&spec());
    let (request, sent) = datagram(Family::V4, 40_000);
    // Record route with room for three addresses, of which the first is to be written (RFC 791).
    let recorded = |own: [u8; 4], pointer| [&[7, 15, pointer][..], &own, &[0; 8], &[0]].concat();
    let request = Frame { options: recorded([0; 4], 4), ..request };
    wire.send(End::Client, &request);
    // The router writes the address of the interface by which it sends.
    wire.expect(End::Outside, &Frame { options: recorded([192, 168, 12, 99], 8), ..sent });
}

/// Options of 8 bytes and a multiple more, padding alone.
fn padding(number: u8, eights: u8) -> (u8, Vec<u8>) {
    let length = 4 + 8 * eights;
    (number, [vec![eights, 1, length], vec![0; length.into()]].concat())
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

/// A routing header of the type that experiments have (RFC 4727), with no addresses.
fn routing(segments_left: u8) -> (u8, Vec<u8>) {
    (ROUTING, vec![0, 253, segments_left, 0, 0, 0, 0])
}

#[test]
fn extension_headers_stay_as_they_are() {
    let wire = Wire::start(&spec());
    for extensions in [
        vec![padding(HOP_BY_HOP, 0)],
        vec![padding(DESTINATION, 0)],
        vec![padding(DESTINATION, 4)],
        vec![routing(0)],
        vec![padding(HOP_BY_HOP, 0), padding(DESTINATION, 0), routing(0), padding(DESTINATION, 1)],
    ] {
        for (body, port, target) in [(Body::Udp, 7000, 7001), (Body::Tcp(0x10), 80, 8080)] {
            let (from, to) = request_ends(Family::V6, 40_000, port);
            let (snat, server) = translated_ends(Family::V6, 40_000, target);
            let request = Frame { extensions: extensions.clone(), ..Frame::new(from, to, body) };
            by_the_kernel(&wire, &request, &request.between(snat, server).forwarded());
        }
    }
    // Before a fragment header, in a later part too.
    let (request, sent) = datagram(Family::V6, 40_001);
    let extended = |frame: &Frame| frame.with(|frame| frame.extensions = vec![padding(HOP_BY_HOP, 0)]);
    for (part, wanted) in extended(&request).parts(48).iter().zip(&extended(&sent).parts(48)) {
        wire.passes(End::Client, part, wanted);
    }
}

#[test]
fn a_source_routed_packet_is_dropped_and_counted() {
    let wire = Wire::start(&spec());
    let before = wire.rig.count("cluster_ingress", "extension_header");
    let (request, sent) = datagram(Family::V6, 40_000);
    for segments_left in [1, 2, 255] {
        wire.send(End::Client, &request.with(|frame| frame.extensions = vec![routing(segments_left)]));
    }
    // Six headers are more than the router walks.
    wire.send(End::Client, &request.with(|frame| frame.extensions = vec![padding(DESTINATION, 0); 6]));
    wire.passes(End::Client, &request, &sent);
    assert_eq!(wire.rig.count("cluster_ingress", "extension_header") - before, 4);
    assert!(!wire.has_seen(End::Outside, |packet| packet.protocol == 17 && packet.ttl != request.ttl - 1));
    let seen = wire.at_outside.frames().unwrap();
    let ours = seen.iter().filter_map(crate::wire::ip_bytes).filter(|bytes| bytes.ends_with(&request.payload));
    assert_eq!(ours.count(), 1, "only the one without extension headers");
    let silent = Duration::ZERO;
    assert!(
        wire.at_client
            .wait_for("an answer", silent, |frame| {
                crate::wire::ip_bytes(frame).is_some_and(|bytes| bytes.ends_with(&request.payload)).then_some(())
            })
            .is_err(),
        "nobody is told"
    );
}
