//! The XDP programs: what they take leaves just as by the tc programs, and everything else comes to those untouched.

use std::thread::sleep;
use std::time::Duration;

use egress_ebpf::contract::Direction;
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT};

use crate::frame::{Body, CLUSTER_MAC, EXTERNAL_MAC, Frame, PEER_MAC, flag, options_header, protocol};
use crate::rig::{self, Rig, Setup, TCP_KEPT, TCP_MOVED, TCP_TARGET, UDP_KEPT, UDP_MOVED, UDP_TARGET, at, client};

const PORT: u16 = 40_001;

/// A rig that redirects, and a fallback for SCTP.
fn with(test: impl Fn(&mut Rig, Family) + Sync) {
    for family in Family::ALL {
        let setup = Setup::fallback(SERVER_2.ip(family)).settings(|settings| settings.redirect = true);
        rig::with(&setup, |rig| {
            // For a moment after new tables, every packet looks its next hop up.
            sleep(Duration::from_millis(300));
            test(rig, family);
        });
    }
}

/// A request of each kind that the programs take, each of a flow of its own, with the port at the destination.
fn requests(family: Family) -> Vec<(Frame, Frame)> {
    let request = |port, body| Frame::request(client(0, family, PORT), at(ROUTER, family, port), body);
    let to_server = |port| at(SERVER_1, family, port);
    let bare = |frame: Frame| frame.with(|frame| frame.no_checksum = true);
    let mut requests = vec![
        (request(TCP_MOVED, Body::Tcp(flag::ACK)), to_server(TCP_TARGET)),
        (request(TCP_KEPT, Body::Tcp(flag::ACK | flag::PSH)), to_server(TCP_KEPT)),
        (request(UDP_MOVED, Body::Udp), to_server(UDP_TARGET)),
        (request(UDP_KEPT, Body::Udp), to_server(UDP_KEPT)),
        (sctp(family), at(SERVER_2, family, SCTP_PORT)),
    ];
    if family == Family::V4 {
        let other = request(UDP_MOVED, Body::Udp).from(client(0, family, PORT + 1));
        requests.push((bare(other), to_server(UDP_TARGET)));
    }
    let sent = |request: &Frame, destination| {
        let mut sent = request.from(at(SNAT, family, request.src.port())).to(destination);
        if request.protocol() == SCTP {
            sent.payload.clone_from(&request.payload);
        }
        sent
    };
    requests.into_iter().map(|(request, to)| (request.clone(), sent(&request, to))).collect()
}

/// IP protocol number.
const SCTP: u8 = 132;
const SCTP_PORT: u16 = 9899;

/// An SCTP packet with a data chunk, ports and all in its payload, as its checksum, which covers no address.
fn sctp(family: Family) -> Frame {
    let ports = [PORT.to_be_bytes(), SCTP_PORT.to_be_bytes()].concat();
    let chunk = [0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    let payload = [&ports[..], &[0, 0, 0, 9], &[0xde, 0xad, 0xbe, 0xef], &chunk].concat();
    Frame::request(client(0, family, 0), at(ROUTER, family, 0), Body::Other(SCTP)).with(|frame| frame.payload = payload)
}

/// The reply to an SCTP packet.
fn answered(sent: &Frame) -> Frame {
    let mut reply = sent.answer();
    if sent.protocol() == SCTP {
        reply.payload.clone_from(&sent.payload);
        reply.payload[..2].copy_from_slice(&SCTP_PORT.to_be_bytes());
        reply.payload[2..4].copy_from_slice(&PORT.to_be_bytes());
    }
    reply
}

/// A hop less, to the neighbour on the other link.
fn leaves(frame: &Frame, by: [u8; 6]) -> Frame {
    frame.with(|frame| {
        frame.ttl -= 1;
        (frame.link_dst, frame.link_src) = (PEER_MAC, by);
    })
}

/// Lets the tc programs open the flow of a request and see one packet each way.
fn open(rig: &mut Rig, request: &Frame, sent: &Frame) {
    rig.run(Hook::ClusterIngress, &request.bytes()).is(Verdict::RequestRedirected);
    rig.run(Hook::ExternalIngress, &answered(sent).bytes()).is(Verdict::ReplyRedirected);
}

#[test]
fn what_xdp_takes_leaves_as_by_tc_in_both_directions() {
    with(|rig, family| {
        for (request, sent) in requests(family) {
            open(rig, &request, &sent);
            let reply = answered(&sent);
            let mut received = reply.from(request.dst).to(request.src);
            received.payload.clone_from(&reply.payload);
            let ways = [
                (Hook::ClusterIngress, Verdict::RequestRedirected, &request, leaves(&sent, EXTERNAL_MAC)),
                (Hook::ExternalIngress, Verdict::ReplyRedirected, &reply, leaves(&received, CLUSTER_MAC)),
            ];
            for (hook, by_tc, frame, left) in ways {
                // SCTP's checksum is a made-up one, which has to stay.
                let check = |run: rig::Run| match frame.protocol() {
                    SCTP => assert_eq!(run.frame(), left.bytes()),
                    _ => drop(run.becomes(&left)),
                };
                check(rig.run_settled(hook, &frame.bytes()).is(by_tc));
                check(rig.run_xdp_settled(hook, &frame.bytes()).is(Verdict::Accelerated));
            }
        }
        rig.assert_paired();
    });
}

#[test]
fn every_length_and_every_checksum_is_kept_right() {
    with(|rig, family| {
        let request = Frame::request(client(0, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
        let sent = request.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, UDP_TARGET));
        open(rig, &request, &sent);
        for len in 0..1400_u16 {
            let payload: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(7919) >> 3) as u8).collect();
            let with = |frame: &Frame| frame.with(|frame| frame.payload.clone_from(&payload));
            rig.run_xdp_settled(Hook::ClusterIngress, &with(&request).bytes())
                .is(Verdict::Accelerated)
                .becomes(&leaves(&with(&sent), EXTERNAL_MAC));
        }
        // The two zeros of UDP's checksum: a sum of zero is written as its other form.
        let mut zeros = 0;
        for word in 0..=u16::MAX {
            let with = |frame: &Frame| frame.with(|frame| frame.payload = word.to_be_bytes().to_vec());
            let wanted = leaves(&with(&sent), EXTERNAL_MAC).bytes();
            let at = request.l4() + 6;
            if wanted[at..at + 2] == [0xff, 0xff] {
                zeros += 1;
                let run = rig.run_xdp_settled(Hook::ClusterIngress, &with(&request).bytes());
                assert_eq!(run.is(Verdict::Accelerated).frame(), wanted);
            }
        }
        assert_eq!(zeros, 1, "one word of 65,536 makes the sum zero");
    });
}

#[test]
fn counters_state_and_age_of_a_flow_are_shared_with_tc() {
    with(|rig, family| {
        let request = Frame::request(client(0, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(flag::ACK));
        let sent = request.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, TCP_TARGET));
        open(rig, &request, &sent);
        let packets = |rig: &Rig| rig.entry(Direction::Request).map(|(_, flow)| (flow.packets, flow.bytes)).unwrap();
        for _ in 0..3 {
            rig.feed(Hook::ClusterIngress, &request.bytes(), 0);
            rig.forget_counted();
            let (before, bytes) = packets(rig);
            rig.run_xdp(Hook::ClusterIngress, &request.bytes()).is(Verdict::Accelerated);
            assert_eq!(packets(rig), (before + 1, bytes + request.bytes().len() as u64));
        }

        // The end of a connection is seen here too.
        let fin = request.with(|frame| frame.body = Body::Tcp(flag::FIN | flag::ACK));
        rig.run_xdp_settled(Hook::ClusterIngress, &fin.bytes()).is(Verdict::Accelerated);
        let fin = answered(&sent).with(|frame| frame.body = Body::Tcp(flag::FIN | flag::ACK));
        rig.run_xdp_settled(Hook::ExternalIngress, &fin.bytes()).is(Verdict::Accelerated);
        assert_eq!(rig.flow().state, "tcp-time-wait");

        // And that it is still there, once a second.
        let seen = |rig: &Rig| rig.entry(Direction::Request).map(|(_, flow)| flow.last_seen_ns).unwrap();
        let before = seen(rig);
        sleep(Duration::from_millis(1200));
        rig.run_xdp_settled(Hook::ClusterIngress, &request.bytes()).is(Verdict::Accelerated);
        assert!(seen(rig) > before);
    });
}

#[test]
fn everything_else_is_left_to_tc_untouched() {
    with(|rig, family| {
        let request = Frame::request(client(0, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(flag::ACK));
        let sent = request.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, TCP_TARGET));
        let datagram = Frame::request(client(0, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
        let left = |rig: &mut Rig, frame: &[u8]| {
            let before = rig.entries();
            rig.run_xdp(Hook::ClusterIngress, frame).is_left(frame);
            assert_eq!(rig.entries(), before);
        };
        // No flow yet.
        left(rig, &request.bytes());
        open(rig, &request, &sent);
        open(rig, &datagram, &datagram.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, UDP_TARGET)));

        let changed = |change: fn(&mut Frame)| request.with(change).bytes();
        let first_part = datagram.parts(7, 16).0.bytes();
        let mut tagged = request.bytes();
        tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
        let frames = [
            ("opens a connection", changed(|frame| frame.body = Body::Tcp(flag::SYN))),
            ("has no hop left", changed(|frame| frame.ttl = 1)),
            ("is for another host of the link", changed(|frame| frame.link_dst = PEER_MAC)),
            ("is of another VLAN", tagged),
            ("does not fit the other link", changed(|frame| frame.payload = vec![0; 1480])),
            ("is of another flow", request.from(client(0, family, PORT + 1)).bytes()),
            ("is a part of a datagram", first_part),
            ("is an echo", Frame { body: Body::EchoRequest, ..request.clone() }.bytes()),
            ("ends within its TCP header", request.bytes()[..request.l4() + 19].to_vec()),
            ("ends within its IP header", request.bytes()[..30].to_vec()),
            ("is no more than a link header", request.bytes()[..14].to_vec()),
            (
                "has something between its headers",
                match family {
                    Family::V4 => changed(|frame| frame.options = vec![1; 4]),
                    Family::V6 => changed(|frame| frame.extensions = vec![options_header(protocol::DESTINATION, 0)]),
                },
            ),
        ];
        for (what, frame) in frames {
            eprintln!("a frame that {what}");
            left(rig, &frame);
        }
        // One that waits for a device to finish its checksum holds the pseudo-header's sum alone.
        for (frame, at) in [(&request, 16), (&datagram, 6)] {
            let mut partial = frame.bytes();
            let at = frame.l4() + at;
            let sum = !frame.with(|frame| frame.payload.clear()).pseudo_checksum(partial.len() - frame.l4());
            partial[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            left(rig, &partial);
        }
        // One whose hop is to be looked up again.
        let whole = request.bytes();
        rig.datapath().refresh_hops().unwrap();
        sleep(Duration::from_millis(20));
        left(rig, &whole);
    });
}

#[test]
fn without_the_way_past_the_stack_xdp_takes_nothing() {
    rig::both(|rig, family| {
        let request = Frame::request(client(0, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
        rig.request(&request);
        rig.run_xdp(Hook::ClusterIngress, &request.bytes()).is_left(&request.bytes());
    });
}

#[test]
fn an_unconfigured_datapath_leaves_the_drop_to_tc() {
    rig::bare(|rig| {
        let request = Frame::request(client(0, Family::V4, PORT), at(ROUTER, Family::V4, UDP_MOVED), Body::Udp);
        rig.run_xdp(Hook::ClusterIngress, &request.bytes()).is_left(&request.bytes());
    });
}
