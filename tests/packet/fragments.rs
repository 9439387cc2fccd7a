//! Packets in fragments: the first one carries the ports, the later ones follow it.

use egress_ebpf::verdict::DropReason::{ChecksumElsewhere, FragmentUnknown, Malformed, Unsolicited};
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT};

use crate::frame::{Body, Frame, flag};
use crate::rig::{self, Rig, Setup, TCP_MOVED, TCP_TARGET, UDP_MOVED, UDP_TARGET, at, client};

const PORT: u16 = 40_001;

/// A datagram of the client's, and where the rule sends it.
fn datagram(family: Family) -> (Frame, std::net::SocketAddr) {
    let request = Frame::request(client(0, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
    (request.with(|frame| frame.payload = vec![0x5a; 101]), at(SERVER_1, family, UDP_TARGET))
}

/// Sends one part the whole way, and checks each byte. `whole` is what the unfragmented datagram becomes: its checksum is in
/// the first part.
#[track_caller]
fn check_part(rig: &mut Rig, hooks: [Hook; 2], verdict: Verdict, part: &Frame, half: &Frame, whole: &Frame) {
    let as_part = |frame: &Frame| frame.with(|frame| frame.part = part.part).bytes();
    let run = rig.run(hooks[0], &part.bytes()).is(verdict);
    assert_eq!(run.frame(), as_part(half));
    let run = rig.run_marked(hooks[1], run.frame(), run.mark()).is(Verdict::SourceHalf);
    assert_eq!(run.frame(), as_part(whole));
    assert_eq!(run.mark(), 0);
}

const OUT: [Hook; 2] = [Hook::ClusterIngress, Hook::ExternalEgress];
const BACK: [Hook; 2] = [Hook::ExternalIngress, Hook::ClusterEgress];

#[test]
fn fragments_are_translated_both_ways() {
    rig::both(|rig, family| {
        let (request, server) = datagram(family);
        let half = request.to(server);
        let sent = half.from(at(SNAT, family, PORT));
        // Three parts: the second ends nothing and starts nothing.
        let (first, rest) = request.parts(0xabcd, 48);
        let (middle, last) = (with_part(&rest, 48, 24, true), with_part(&rest, 72, 1000, false));
        for part in [first, middle, last] {
            check_part(rig, OUT, Verdict::Request, &part, &half, &sent);
        }
        let reply = sent.answer().with(|frame| frame.payload = vec![0xa5; 99]);
        let half = reply.to(request.src);
        let received = half.from(request.dst);
        let (first, later) = reply.parts(0x1111, 16);
        check_part(rig, BACK, Verdict::Reply, &first, &half, &received);
        check_part(rig, BACK, Verdict::Reply, &later, &half, &received);
        let flow = rig.flow();
        assert_eq!((flow.request_packets, flow.reply_packets), (3, 2));
    });
}

fn with_part(frame: &Frame, start: usize, len: usize, more: bool) -> Frame {
    frame.with(|frame| {
        let part = frame.part.as_mut().unwrap();
        (part.start, part.len, part.more) = (start, len, more);
    })
}

#[test]
fn echoes_and_segments_in_fragments_too() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let echo = Frame::request(client(0, family, PORT), at(ROUTER, family, 0), Body::EchoRequest);
            let half = echo.to(at(SERVER_2, family, 0));
            let (first, later) = echo.parts(1, 16);
            for part in [first, later] {
                check_part(rig, OUT, Verdict::Request, &part, &half, &half.from(at(SNAT, family, PORT)));
            }
            let syn = Frame::request(client(0, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(flag::SYN));
            let half = syn.to(at(SERVER_1, family, TCP_TARGET));
            let (first, later) = syn.parts(2, 24);
            for part in [first, later] {
                check_part(rig, OUT, Verdict::Request, &part, &half, &half.from(at(SNAT, family, PORT)));
            }
        });
    }
}

#[test]
fn a_later_fragment_before_its_first_is_dropped() {
    rig::both(|rig, family| {
        let (request, _) = datagram(family);
        let (first, later) = request.parts(7, 16);
        rig.run(Hook::ClusterIngress, &later.bytes()).is(FragmentUnknown).untouched(&later.bytes());
        rig.run(Hook::ClusterIngress, &first.bytes()).is(Verdict::Request);
        rig.run(Hook::ClusterIngress, &later.bytes()).is(Verdict::Request);
        // Another datagram's, another protocol's, and the same on the other side.
        let (_, other) = request.parts(8, 16);
        rig.run(Hook::ClusterIngress, &other.bytes()).is(FragmentUnknown);
        let other = later.with(|frame| frame.body = Body::Tcp(flag::ACK));
        rig.run(Hook::ClusterIngress, &other.bytes()).is(FragmentUnknown);
        let (_, outside) = Frame::outside(request.src, request.dst, Body::Udp).parts(7, 16);
        rig.run(Hook::ExternalIngress, &outside.bytes()).is(FragmentUnknown);
    });
}

#[test]
fn fragments_open_nothing_from_the_outside() {
    rig::both(|rig, family| {
        let datagram = Frame::outside(at(SERVER_1, family, 53), at(SNAT, family, 9), Body::Udp);
        let (first, later) = datagram.parts(3, 16);
        rig.run(Hook::ExternalIngress, &first.bytes()).is(Unsolicited);
        // Without its first one, which was dropped, the stack makes nothing of it.
        rig.run(Hook::ExternalIngress, &later.bytes()).is(Verdict::Local);
        let (first, later) = datagram.to(client(0, family, 9)).parts(3, 16);
        rig.run(Hook::ExternalIngress, &first.bytes()).is(Unsolicited);
        rig.run(Hook::ExternalIngress, &later.bytes()).is(Unsolicited);
    });
}

#[test]
fn a_datagram_that_fits_one_fragment_is_whole() {
    // RFC 6946: an "atomic" fragment. Its identification must not mix with that of any other.
    rig::with(&Setup::default(), |rig| {
        let (request, server) = datagram(Family::V6);
        let atomic = request.parts(7, 16).0.with(|frame| {
            let part = frame.part.as_mut().unwrap();
            (part.len, part.more) = (10_000, false);
        });
        let run = rig.run(Hook::ClusterIngress, &atomic.bytes()).is(Verdict::Request);
        assert_eq!(run.frame(), atomic.to(server).bytes());
        let (_, later) = request.parts(7, 16);
        rig.run(Hook::ClusterIngress, &later.bytes()).is(FragmentUnknown);
    });
}

#[test]
fn a_first_fragment_that_is_too_short_for_its_header_is_dropped() {
    rig::both(|rig, family| {
        let syn = Frame::request(client(0, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(flag::SYN));
        for len in [8, 16] {
            let (first, later) = syn.parts(1, len);
            rig.run(Hook::ClusterIngress, &first.bytes()).is(Malformed).untouched(&first.bytes());
            rig.run(Hook::ClusterIngress, &later.bytes()).is(FragmentUnknown);
        }
        assert!(rig.entries().is_empty());
    });
}

#[test]
fn a_part_of_sctp_whose_port_would_change_is_dropped() {
    /// An INIT, with a checksum that is no offload's zero.
    fn init(client: std::net::SocketAddr, family: Family) -> Frame {
        let ports = [40_001_u16.to_be_bytes(), 9_u16.to_be_bytes()].concat();
        let payload = [&ports[..], &[0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 20], &[7; 16]].concat();
        Frame::request(client, at(ROUTER, family, 0), Body::Other(132)).with(|frame| frame.payload = payload)
    }
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            // Somebody else's association has the port. A whole packet gets another one, and the checksum for it.
            for client in [client(0, family, 0), client(1, family, 0)] {
                let half = rig.run(Hook::ClusterIngress, &init(client, family).bytes()).is(Verdict::Request);
                rig.run_marked(Hook::ExternalEgress, half.frame(), half.mark()).is(Verdict::SourceHalf);
            }
            // Of a first part nobody can tell what the other ones add to it.
            let (first, _) = init(client(1, family, 0), family).parts(7, 24);
            let half = rig.run(Hook::ClusterIngress, &first.bytes()).is(Verdict::Request);
            rig.run_marked(Hook::ExternalEgress, half.frame(), half.mark()).is(ChecksumElsewhere);
        });
    }
}
