//! Packets that are not what they say: cut off, with wrong lengths and versions, with headers behind headers.

use egress_ebpf::addr::Port;
use egress_ebpf::contract::{Direction, Mark};
use egress_ebpf::verdict::DropReason::{ExtensionHeader, Malformed};
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT};
use egress_user::datapath::Tally;

use crate::frame::{Body, ETHERNET, Frame, flag, options_header, protocol, routing_header, seal};
use crate::rig::{self, Outcome, Rig, Setup, TCP_MOVED, UDP_MOVED, at, client};
use crate::safety::follow;

const PORT: u16 = 40_001;
const SYN: Body = Body::Tcp(flag::SYN);

fn request(family: Family, body: Body) -> Frame {
    let port = match body {
        Body::Tcp(_) => TCP_MOVED,
        Body::Udp => UDP_MOVED,
        _ => 0,
    };
    Frame::request(client(0, family, PORT), at(ROUTER, family, port), body)
}

/// One of each kind, whole and in fragments.
fn kinds(family: Family) -> Vec<Frame> {
    let error = if family == Family::V4 { 3 } else { 1 };
    let bodies =
        [SYN, Body::Tcp(flag::ACK), Body::Udp, Body::EchoRequest, Body::EchoReply, Body::Other(132), Body::Other(33)];
    let mut frames: Vec<Frame> = bodies.into_iter().map(|body| request(family, body)).collect();
    // An error that quotes the answer to a request.
    let quoted = request(family, Body::Udp).answer().bytes()[ETHERNET..].to_vec();
    frames.push(request(family, Body::Icmp(error)).with(|frame| frame.payload = [vec![0; 4], quoted].concat()));
    let (first, later) = request(family, Body::Udp).parts(1, 16);
    frames.extend([first, later]);
    match family {
        Family::V4 => frames.push(request(family, SYN).with(|frame| frame.options = vec![1; 12])),
        Family::V6 => frames.push(request(family, SYN).with(|frame| {
            frame.extensions = vec![options_header(0, 1), routing_header(0), options_header(protocol::DESTINATION, 0)];
        })),
    }
    frames
}

/// Bytes that a frame has to have for the kernel to try a program on it: the fixed IP header.
fn least(family: Family) -> usize {
    ETHERNET + if family == Family::V4 { 20 } else { 40 }
}

/// Gives bytes to every program, with every mark, and follows what ingress lets through. Returns how many runs that made.
fn everywhere(rig: &mut Rig, bytes: &[u8]) -> u64 {
    let marks = [Direction::Request, Direction::Reply].map(|direction| Mark::new(direction, 0, Port::new(PORT)).0);
    let runs = Hook::ALL.map(|hook| [0, marks[0], marks[1]].map(|mark| follow(rig, hook, bytes, mark)));
    runs.as_flattened().iter().sum()
}

#[test]
fn cut_off_anywhere() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let before = rig.counted_packets();
            let mut runs = 0;
            for frame in kinds(family) {
                let bytes = frame.bytes();
                for len in least(family)..=bytes.len() {
                    runs += everywhere(rig, &bytes[..len]);
                    // And to the other interface.
                    let mut outside = bytes[..len].to_vec();
                    outside[..6].copy_from_slice(&crate::frame::EXTERNAL_MAC);
                    runs += everywhere(rig, &outside);
                }
            }
            assert_eq!(rig.counted_packets() - before, runs, "each run has one outcome");
        });
    }
}

#[test]
fn a_packet_that_ends_before_it_says_is_malformed() {
    rig::both(|rig, family| {
        for body in [SYN, Body::Udp] {
            let frame = request(family, body);
            let bytes = frame.bytes();
            for len in least(family)..bytes.len() {
                rig.run(Hook::ClusterIngress, &bytes[..len]).is(Malformed).untouched(&bytes[..len]);
                rig.run(Hook::ExternalEgress, &bytes[..len]).is(Malformed);
            }
            assert!(rig.entries().is_empty());
            rig.run(Hook::ClusterIngress, &bytes).is(Verdict::Request);
            rig.datapath().sweep(&mut Tally::default(), false).unwrap();
            let (key, _) = rig.entry(Direction::Request).unwrap();
            rig.remove_entry(&key);
            let (key, _) = rig.entry(Direction::Reply).unwrap();
            rig.remove_entry(&key);
        }
    });
}

#[test]
fn padding_of_the_link_is_not_the_packet() {
    // A short packet in a frame of the least length; what follows it may hold anything.
    rig::both(|rig, family| {
        let frame = request(family, Body::Udp).with(|frame| frame.payload = vec![1]);
        let padded = [frame.bytes(), vec![0xee; 40]].concat();
        let run = rig.run(Hook::ClusterIngress, &padded).is(Verdict::Request);
        let wanted = [frame.to(Setup::default().udp_server(family)).bytes(), vec![0xee; 40]].concat();
        assert_eq!(run.frame(), wanted);
        // Its header must not be taken from there.
        for payload_len in 0..8 {
            let mut bytes = frame.bytes();
            match family {
                Family::V4 => bytes[16..18].copy_from_slice(&(20 + payload_len as u16).to_be_bytes()),
                Family::V6 => bytes[18..20].copy_from_slice(&(payload_len as u16).to_be_bytes()),
            }
            seal(&mut bytes);
            rig.run(Hook::ClusterIngress, &bytes).is(Malformed).untouched(&bytes);
        }
    });
}

#[test]
fn a_wrong_version_is_malformed() {
    rig::both(|rig, family| {
        let right = if family == Family::V4 { 4 } else { 6 };
        for version in (0..16).filter(|version| *version != right) {
            let mut bytes = request(family, SYN).bytes();
            bytes[ETHERNET] = version << 4 | bytes[ETHERNET] & 0xf;
            seal(&mut bytes);
            rig.run(Hook::ClusterIngress, &bytes).is(Malformed).untouched(&bytes);
            rig.run(Hook::ExternalEgress, &bytes).is(Malformed);
        }
    });
}

// Nothing is to leave with a header checksum that no host accepts: the kernel drops what comes so, and so does this.
#[test]
fn a_wrong_header_checksum_is_malformed_on_every_way() {
    for redirect in [false, true] {
        rig::with(&Setup::default().settings(|settings| settings.redirect = redirect), |rig| {
            let sent = request(Family::V4, SYN);
            let reply =
                Frame::outside(Setup::default().server(), at(SNAT, Family::V4, PORT), Body::Tcp(flag::SYN | flag::ACK));
            let answers = [(Hook::ClusterIngress, sent.bytes()), (Hook::ExternalIngress, reply.bytes())];
            // Of no flow, of one that has begun, and of one whose packets are read and written in place.
            for round in 0..4 {
                for (hook, bytes) in &answers {
                    let mut damaged = bytes.clone();
                    for bit in 0..16 {
                        damaged[ETHERNET + 10 + bit / 8] ^= 1 << (bit % 8);
                        rig.run(*hook, &damaged).is(Malformed).untouched(&damaged);
                        damaged.copy_from_slice(bytes);
                    }
                    // The two forms of zero are one.
                    assert!(rig.run(*hook, bytes).goes_on(), "round {round}");
                }
            }
            // An error quotes a header as somebody else has left it.
            let mut quoted =
                sent.from(at(SNAT, Family::V4, PORT)).to(Setup::default().server()).bytes()[ETHERNET..].to_vec();
            quoted[10] ^= 0xff;
            let error = Frame::outside(at(SERVER_1, Family::V4, 0), at(SNAT, Family::V4, 0), Body::Icmp(3))
                .with(|frame| frame.payload = [vec![0; 4], quoted].concat());
            assert!(rig.run(Hook::ExternalIngress, &error.bytes()).goes_on());
        });
    }
}

#[test]
fn a_header_shorter_than_a_header_is_malformed() {
    rig::with(&Setup::default(), |rig| {
        for words in 0..5 {
            let mut bytes = request(Family::V4, SYN).bytes();
            bytes[ETHERNET] = 0x40 | words;
            seal(&mut bytes);
            rig.run(Hook::ClusterIngress, &bytes).is(Malformed).untouched(&bytes);
        }
        // Longer than the packet.
        let mut bytes = request(Family::V4, SYN).with(|frame| frame.payload.clear()).bytes();
        bytes[ETHERNET] = 0x4f;
        rig.run(Hook::ClusterIngress, &bytes).is(Malformed).untouched(&bytes);
    });
}

#[test]
fn as_many_extension_headers_as_rfc_8200_lists_and_no_more() {
    rig::with(&Setup::default(), |rig| {
        let chain = |count| vec![options_header(protocol::DESTINATION, 0); count];
        for count in 0..9 {
            for body in [SYN, Body::Udp] {
                let bytes = request(Family::V6, body).with(|frame| frame.extensions = chain(count)).bytes();
                let outcome: Outcome = if count <= 5 { Verdict::Request.into() } else { ExtensionHeader.into() };
                let run = rig.run(Hook::ClusterIngress, &bytes).is(outcome);
                if count > 5 {
                    run.untouched(&bytes);
                }
            }
        }
        // They hide nothing from the guard either: a chain too long to see through does not leave.
        let bytes =
            request(Family::V6, SYN).from(at(SNAT, Family::V6, 1)).with(|frame| frame.extensions = chain(6)).bytes();
        rig.run(Hook::ExternalEgress, &bytes).is(ExtensionHeader);
    });
}

#[test]
fn a_source_routed_packet_is_not_translated() {
    rig::with(&Setup::fallback(SERVER_2.ip(Family::V6)), |rig| {
        for segments in [1, 2, 255] {
            for before in [vec![], vec![options_header(0, 0), options_header(protocol::DESTINATION, 0)]] {
                let chain = [before, vec![routing_header(segments)]].concat();
                let bytes = request(Family::V6, SYN).with(|frame| frame.extensions = chain.clone()).bytes();
                rig.run(Hook::ClusterIngress, &bytes).is(ExtensionHeader).untouched(&bytes);
                let bytes = Frame::outside(at(SERVER_1, Family::V6, 1), at(SNAT, Family::V6, 2), SYN)
                    .with(|frame| frame.extensions = chain)
                    .bytes();
                rig.run(Hook::ExternalIngress, &bytes).is(ExtensionHeader).untouched(&bytes);
            }
        }
    });
}

#[test]
fn an_extension_header_that_leads_out_of_the_packet_is_malformed() {
    rig::with(&Setup::default(), |rig| {
        for length in [4, 10, 100, 255] {
            let mut bytes =
                request(Family::V6, SYN).with(|frame| frame.extensions = vec![options_header(0, 0)]).bytes();
            bytes[ETHERNET + 41] = length;
            let run = rig.run(Hook::ClusterIngress, &bytes);
            assert_eq!(run.outcome(), Malformed.into(), "length {length}");
        }
    });
}

#[test]
fn no_next_header_is_a_protocol_like_any_other() {
    rig::with(&Setup::fallback(SERVER_2.ip(Family::V6)), |rig| {
        let bytes = request(Family::V6, Body::Other(59)).bytes();
        rig.run(Hook::ClusterIngress, &bytes).is(Verdict::Request);
    });
    rig::with(&Setup::default(), |rig| {
        let bytes = request(Family::V6, Body::Other(59)).bytes();
        rig.run(Hook::ClusterIngress, &bytes).is(Verdict::Rejected);
    });
}
