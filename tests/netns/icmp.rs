//! ICMP and ICMPv6 errors: whoever reads one finds the packet quoted that he himself sent.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use egress_lab::address::{Host, ROUTER, SERVER_1, SNAT, external};
use egress_lab::frame::{Body, Frame};
use egress_lab::udp::UdpClient;
use egress_lab::{Family, tcp, wait_until};

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};
use crate::wire::{End, GHOST_SERVER, Wire, gateway, request_ends, translated_ends, unlimited_errors};

/// A host of the external network that nobody is.
const NOBODY: Host = external(77);

#[test]
fn a_closed_port_at_the_destination_is_refused_at_the_client() {
    let rig = Rig::start(&Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, 7001));
    for family in Family::ALL {
        let attempt = tcp::exchange(&rig.client, anyone(family), router(family, 80), b"anybody?", TIMEOUT);
        assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::ConnectionRefused, "TCP, {family}");
        let socket = UdpClient::open(&rig.client, anyone(family), router(family, 7000)).unwrap();
        // The first by the kernel, the second past it.
        for _ in 0..2 {
            let error = socket.exchange(b"anybody?", TIMEOUT).result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "UDP, {family}");
        }
    }
}

#[test]
fn a_closed_port_at_the_client_is_refused_at_the_server() {
    let rig = Rig::start(&Spec::new().udp(7000, SERVER_1, 7001));
    let [first, _] = &rig.servers;
    for family in Family::ALL {
        let server = rig.udp_server(at(SERVER_1, family, 7001));
        let (socket, seen) = rig.udp(anyone(family), 7000);
        drop((socket, server));
        let server = first.run(|| UdpSocket::bind(seen.server)).unwrap();
        first.run(|| server.connect(seen.source)).unwrap();
        server.send(b"still there?").unwrap();
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(server.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{family}");
    }
}

#[test]
fn a_destination_that_is_not_there_is_reported() {
    let rig = Rig::start(&Spec::new().tcp(80, NOBODY, None).udp(7000, NOBODY, None));
    std::thread::scope(|scope| {
        for family in Family::ALL {
            let rig = &rig;
            scope.spawn(move || {
                let attempt = tcp::exchange(&rig.client, anyone(family), router(family, 80), b"anybody?", TIMEOUT);
                assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::HostUnreachable, "TCP, {family}");
            });
            scope.spawn(move || {
                let socket = UdpClient::open(&rig.client, anyone(family), router(family, 7000)).unwrap();
                socket.hear_errors().unwrap();
                for time in ["first", "second"] {
                    let error = socket.exchange(b"anybody?", TIMEOUT).result.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "UDP, the {time} time, {family}");
                }
            });
        }
    });
}

#[test]
fn a_destination_that_goes_away_is_reported() {
    // The outside has its address at first.
    let rig = Rig::start(&Spec::new().udp(7000, NOBODY, None));
    impatient(&rig);
    std::thread::scope(|scope| {
        for family in Family::ALL {
            let rig = &rig;
            scope.spawn(move || {
                let ip = NOBODY.ip(family);
                let length = if ip.is_ipv4() { 24 } else { 64 };
                let nodad = if ip.is_ipv4() { "" } else { " nodad" };
                rig.outside.ip_lines(&format!("address add {ip}/{length} dev s0{nodad}\n")).unwrap();
                let server = egress_lab::udp::UdpServer::start(&rig.outside, SocketAddr::new(ip, 7000)).unwrap();
                let (socket, _) = rig.udp(anyone(family), 7000);
                socket.hear_errors().unwrap();
                drop(server);
                // It would tell the client itself, if it were to forward.
                let lines = format!("route add blackhole {ip}\naddress del {ip}/{length} dev s0\n");
                rig.outside.ip_lines(&lines).unwrap();
                wait_until("the client to be told that the host is unreachable", TIMEOUT, || {
                    let result = socket.exchange(b"still there?", std::time::Duration::from_millis(200)).result;
                    result.unwrap_err().kind() == ErrorKind::HostUnreachable
                })
                .unwrap();
            });
        }
    });
}

/// Has the router notice within seconds that a neighbour is gone.
fn impatient(rig: &Rig) {
    for family in ["ipv4", "ipv6"] {
        let settings = ["base_reachable_time_ms=1000", "delay_first_probe_time=1", "retrans_time_ms=300"];
        let settings = settings.map(|setting| format!("net.{family}.neigh.net1.{setting}"));
        rig.router_netns().sysctl(settings.iter().map(String::as_str)).unwrap();
    }
}

/// Type and code of "time exceeded in transit".
fn time_exceeded(family: Family) -> [u8; 2] {
    match family {
        Family::V4 => [11, 0],
        Family::V6 => [3, 0],
    }
}

/// Type and code of "port unreachable".
fn port_unreachable(family: Family) -> [u8; 2] {
    match family {
        Family::V4 => [3, 3],
        Family::V6 => [1, 4],
    }
}

/// An error about `about`, as it is quoted whole where it went no further.
fn error_about(source: IpAddr, kind: [u8; 2], about: &Frame, ttl: u8) -> Frame {
    let quote = about.with(|frame| frame.ttl = ttl).packet();
    Frame::error(source, about.source.ip(), kind, [0; 4], &quote)
}

/// Waits for an error, whatever its own hop count and type of service are.
#[track_caller]
fn expect_error(wire: &Wire, at: End, wanted: &Frame) {
    let ends = (wanted.source.ip(), wanted.destination.ip());
    let body = &wanted.packet()[wanted.header_length()..];
    let found = wait_until("the error", TIMEOUT, || {
        wire.has_seen(at, |packet| (packet.source, packet.destination) == ends && packet.payload == body)
    });
    if found.is_err() {
        // Tells what has arrived instead.
        wire.expect(at, wanted);
    }
}

#[test]
fn a_route_is_traced_through_the_router() {
    let wire = Wire::start(&Spec::new().udp(33434, SERVER_1, 33435));
    for family in Family::ALL {
        let source = ROUTER.ip(family);
        for (port, established) in [(40_000, false), (40_001, true)] {
            let (from, to) = request_ends(family, port, 33434);
            let probe = |ttl, payload: &str| {
                let frame = Frame::new(from, to, Body::Udp);
                Frame { ttl, payload: payload.as_bytes().to_vec(), ..frame }
            };
            if established {
                let first = probe(9, "opens the flow");
                wire.send(End::Client, &first);
                expect_error(&wire, End::Client, &error_about(source, port_unreachable(family), &first, 7));
            }
            for (ttl, who) in [(1, "the router"), (2, "the gateway"), (3, "the server")] {
                let probe = probe(ttl, &format!("to be answered by {who}"));
                let kind = if ttl == 3 { port_unreachable(family) } else { time_exceeded(family) };
                wire.send(End::Client, &probe);
                // Each of them saw the packet with one hop left.
                expect_error(&wire, End::Client, &error_about(source, kind, &probe, 1));
            }
        }
    }
}

#[test]
fn a_route_is_traced_from_the_server_back_to_the_client() {
    let wire = Wire::start(&Spec::new().udp(7000, GHOST_SERVER, 7001));
    for family in Family::ALL {
        let (from, to) = request_ends(family, 40_000, 7000);
        let (snat, server) = translated_ends(family, 40_000, 7001);
        let request = Frame::new(from, to, Body::Udp);
        wire.passes(End::Client, &request, &request.between(snat, server).forwarded());
        let reply = Frame { ttl: 1, ..Frame::new(server, snat, Body::Udp) };
        wire.send(End::Outside, &reply);
        expect_error(&wire, End::Outside, &error_about(SNAT.ip(family), time_exceeded(family), &reply, 1));
        assert!(!wire.has_seen(End::Client, |packet| packet.source == to.ip() && packet.protocol == 17));
    }
}

/// Type, code and the four bytes behind the checksum of every error that there is; the address family's own MTU among them.
fn kinds(family: Family) -> Vec<([u8; 2], [u8; 4])> {
    let codes = |kind: u8, codes: std::ops::RangeInclusive<u8>| codes.map(move |code| ([kind, code], [0; 4]));
    match family {
        Family::V4 => {
            // Unreachable (code 4 tells an MTU), source quench, time exceeded in transit and in reassembly, parameter problem.
            let unreachable = codes(3, 0..=15).filter(|(kind, _)| *kind != [3, 4]);
            let rest = codes(4, 0..=0).chain(codes(11, 0..=1)).chain(codes(12, 0..=2));
            unreachable.chain([([3, 4], [0, 0, 0x05, 0x14])]).chain(rest).collect()
        }
        // Unreachable, packet too big, time exceeded in transit and in reassembly, parameter problem with its pointer.
        Family::V6 => codes(1, 0..=6)
            .chain([([2, 0], [0, 0, 0x05, 0x14])])
            .chain(codes(3, 0..=1))
            .chain((0..=2).map(|code| ([4, code], [0, 0, 0, 40])))
            .collect(),
    }
}

/// A flow by every kind of header: what the client sends, and what becomes of it.
fn flows(family: Family) -> Vec<(Frame, Frame)> {
    let flow = |source_port, port, target_port, body| {
        let (from, to) = request_ends(family, source_port, port);
        let (snat, server) = translated_ends(family, source_port, target_port);
        let request = Frame::new(from, to, body);
        let sent = request.between(snat, server).forwarded();
        (request, sent)
    };
    let mut flows = vec![
        flow(40_000, 80, 8080, Body::Tcp(0x02)),
        flow(40_001, 7000, 7001, Body::Udp),
        flow(40_002, 81, 81, Body::Tcp(0x02)),
        flow(40_003, 81, 81, Body::Udp),
        flow(40_004, 0, 0, Body::EchoRequest),
        flow(40_005, 9000, 9000, Body::Sctp),
        flow(40_006, 9001, 9002, Body::Sctp),
        flow(0, 0, 0, Body::Other(47)),
    ];
    if family == Family::V4 {
        flows.push(flow(40_007, 7000, 7001, Body::UdpUnchecked));
    }
    for (number, (request, sent)) in flows.iter_mut().enumerate() {
        // More than an IPv4 error must quote, and no two alike.
        let payload = (0..200_u8).map(|byte| byte ^ u8::try_from(number).unwrap()).collect::<Vec<_>>();
        (request.payload, sent.payload) = (payload.clone(), payload);
        if matches!(request.body, Body::Sctp) {
            // A chunk of data, by its type.
            (request.payload[0], sent.payload[0]) = (0, 0);
        }
    }
    flows
}

fn every_protocol(family: Family) -> Spec {
    Spec::new()
        .tcp(80, GHOST_SERVER, 8080)
        .udp(7000, GHOST_SERVER, 7001)
        .sctp(9001, GHOST_SERVER, 9002)
        .fallback(GHOST_SERVER.ip(family))
}

/// What an error quotes of `sent`, in the words of whoever sent `own`, which is the same before translation. A CRC covers what
/// an error does not quote, so it stays as it was on the wire; so does a TCP checksum of which half is there.
fn quotes(sent: &Frame, own: &Frame, length: usize) -> [Vec<u8>; 2] {
    let (theirs, mut ours) = (sent.quote(length), own.with(|frame| frame.ttl = sent.ttl).quote(length));
    let crc = sent.header_length() + 8..sent.header_length() + 12;
    if sent.body == Body::Sctp && length >= 12 {
        ours[crc.clone()].copy_from_slice(&theirs[crc]);
    }
    if matches!(sent.body, Body::Tcp(_)) && length == 17 {
        ours.pop();
        ours.extend(theirs.last());
    }
    [theirs, ours]
}

/// Quoted bytes of the transport header and what follows: as few as an error may (RFC 792), TCP's header up to its checksum and
/// with half of it, an odd number, and all.
const QUOTED: [usize; 5] = [8, 17, 18, 51, usize::MAX / 2];

#[test]
fn every_error_about_every_protocol_reaches_the_client() {
    for family in Family::ALL {
        let wire = Wire::start(&every_protocol(family));
        for (request, sent) in flows(family) {
            wire.passes(End::Client, &request, &sent);
            for (kind, rest) in kinds(family) {
                for length in QUOTED {
                    let [theirs, ours] = quotes(&sent, &request, length);
                    let error = Frame::error(gateway(family), SNAT.ip(family), kind, rest, &theirs);
                    let wanted = Frame::error(ROUTER.ip(family), request.source.ip(), kind, rest, &ours).forwarded();
                    wire.passes(End::Outside, &error, &wanted);
                }
            }
        }
    }
}

#[test]
fn every_error_about_every_protocol_reaches_the_server() {
    for family in Family::ALL {
        let wire = Wire::start(&every_protocol(family));
        for (request, sent) in flows(family) {
            wire.passes(End::Client, &request, &sent);
            let reply = Frame { payload: request.payload.clone(), ..sent.answer() };
            let received = reply.between(request.destination, request.source).forwarded();
            wire.passes(End::Outside, &reply, &received);
            for (kind, rest) in kinds(family) {
                for length in QUOTED {
                    let [theirs, ours] = quotes(&received, &reply, length);
                    let error = Frame::error(request.source.ip(), ROUTER.ip(family), kind, rest, &theirs);
                    let wanted = Frame::error(SNAT.ip(family), GHOST_SERVER.ip(family), kind, rest, &ours).forwarded();
                    wire.passes(End::Client, &error, &wanted);
                }
            }
        }
    }
}

#[test]
fn an_error_may_quote_options_extension_headers_and_a_first_fragment() {
    for family in Family::ALL {
        let wire = Wire::start(&every_protocol(family));
        for (request, sent) in flows(family) {
            let odd = |frame: &Frame| match family {
                Family::V4 => frame.with(|frame| frame.options = vec![1; 8]),
                // Destination options, padding alone.
                Family::V6 => frame.with(|frame| frame.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])]),
            };
            let (request, sent) = (odd(&request), odd(&sent));
            wire.passes(End::Client, &request, &sent);
            let first = |frame: &Frame| frame.parts(104).remove(0);
            for (request, sent) in [(request.clone(), sent.clone()), (first(&request), first(&sent))] {
                for (kind, rest) in kinds(family) {
                    let [theirs, ours] = quotes(&sent, &request, 64);
                    let error = Frame::error(gateway(family), SNAT.ip(family), kind, rest, &theirs);
                    let wanted = Frame::error(ROUTER.ip(family), request.source.ip(), kind, rest, &ours).forwarded();
                    wire.passes(End::Outside, &error, &wanted);
                }
            }
        }
    }
}

#[test]
fn an_error_about_no_flow_is_not_forwarded() {
    for family in Family::ALL {
        let wire = Wire::start(&every_protocol(family));
        let (request, sent) = flows(family).remove(1);
        wire.passes(End::Client, &request, &sent);
        let reply = sent.answer();
        let received = reply.between(request.destination, request.source).forwarded();
        wire.passes(End::Outside, &reply, &received);

        let about = |from: End, quote: &[u8]| match from {
            End::Outside => Frame::error(gateway(family), SNAT.ip(family), port_unreachable(family), [0; 4], quote),
            End::Client => {
                Frame::error(request.source.ip(), ROUTER.ip(family), port_unreachable(family), [0; 4], quote)
            }
        };
        let elsewhere = |frame: &Frame| frame.with(|frame| frame.destination.set_port(7));
        let other_source = |frame: &Frame| frame.with(|frame| frame.source.set_port(7));
        let later = |frame: &Frame| frame.parts(16).remove(1);
        for (from, frame, opposite) in [(End::Outside, &sent, &reply), (End::Client, &received, &request)] {
            let strangers = [elsewhere(frame), other_source(frame), later(frame), (*opposite).clone()];
            for stranger in &strangers {
                wire.send(from, &about(from, &stranger.quote(64)));
            }
            // Quotations that end before the ports, and before the header does.
            for length in [0, 1, 3] {
                wire.send(from, &about(from, &frame.quote(length)));
            }
            for length in [0, 1, 19] {
                wire.send(from, &about(from, &frame.packet()[..length]));
            }
        }
        // What comes after has been looked at after.
        let again = request.with(|frame| frame.payload = b"the last request".to_vec());
        wire.passes(End::Client, &again, &again.between(sent.source, sent.destination).forwarded());
        let again = reply.with(|frame| frame.payload = b"the last reply".to_vec());
        wire.passes(End::Outside, &again, &again.between(request.destination, request.source).forwarded());
        let [kind, code] = port_unreachable(family);
        for end in [End::Client, End::Outside] {
            assert!(!wire.has_seen(end, |packet| packet.icmp() == Some((kind, code))), "{family}, at the {end:?}");
        }
    }
}

// IPv6 redirects are neighbour discovery, which is never translated.
#[test]
fn a_redirect_is_for_the_router_alone() {
    let family = Family::V4;
    let wire = Wire::start(&every_protocol(family));
    let (request, sent) = flows(family).remove(1);
    wire.passes(End::Client, &request, &sent);
    let reply = sent.answer();
    let received = reply.between(request.destination, request.source).forwarded();
    wire.passes(End::Outside, &reply, &received);
    for code in 0..=3 {
        let to = [192, 168, 12, 50];
        wire.send(End::Outside, &Frame::error(gateway(family), SNAT.ip(family), [5, code], to, &sent.quote(8)));
        let to = [10, 128, 0, 51];
        let error = Frame::error(request.source.ip(), ROUTER.ip(family), [5, code], to, &received.quote(8));
        wire.send(End::Client, &error);
    }
    let again = reply.with(|frame| frame.payload = b"the last reply".to_vec());
    wire.passes(End::Outside, &again, &again.between(request.destination, request.source).forwarded());
    let again = request.with(|frame| frame.payload = b"the last request".to_vec());
    wire.passes(End::Client, &again, &again.between(sent.source, sent.destination).forwarded());
    for end in [End::Client, End::Outside] {
        assert!(!wire.has_seen(end, |packet| packet.icmp().is_some_and(|(kind, _)| kind == 5)), "at the {end:?}");
    }
}

#[test]
fn a_socket_is_told_where_its_hops_ran_out() {
    let rig = Rig::start(&Spec::new().udp(7000, SERVER_1, 7001));
    unlimited_errors(&rig);
    for family in Family::ALL {
        let _server = rig.udp_server(at(SERVER_1, family, 7001));
        let socket = UdpClient::open(&rig.client, anyone(family), router(family, 7000)).unwrap();
        socket.hear_errors().unwrap();
        // For the router alone, for the gateway too, and then, with the flow open, again.
        for hops in [1, 2, 64, 1, 2] {
            socket.set_hops(hops).unwrap();
            let result = socket.exchange(b"how far?", TIMEOUT).result;
            match hops {
                64 => assert_eq!(result.unwrap().server, at(SERVER_1, family, 7001)),
                _ => assert_eq!(result.unwrap_err().kind(), ErrorKind::HostUnreachable, "{hops} hops, {family}"),
            }
        }
    }
}
