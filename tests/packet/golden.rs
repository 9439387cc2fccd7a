//! Translation, byte by byte: a frame leaves as it came but for addresses, ports and the checksums that cover them; and the
//! reply is the way back, to the byte.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use egress_ebpf::contract::Direction;
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{Host, ROUTER, SERVER_1, SERVER_2, SNAT};

use crate::frame::{Body, CLUSTER_MAC, EXTERNAL_MAC, Frame, PEER_MAC, flag, options_header, protocol, routing_header};
use crate::rig::{
    self, Rig, Setup, TCP_KEPT, TCP_MOVED, TCP_TARGET, UDP_KEPT, UDP_MOVED, UDP_TARGET, assert_mark, at, client,
};

/// Port, or identifier, of the client.
const PORT: u16 = 40_001;

/// Follows a request out and its answer back. `destination` is where the rule sends it.
#[track_caller]
fn there_and_back(rig: &mut Rig, request: &Frame, destination: SocketAddr) {
    let family = Family::of(request.src.ip());
    let port = request.src.port();

    let half = request.to(destination);
    let run = rig.run(Hook::ClusterIngress, &request.bytes()).is(Verdict::Request).becomes(&half);
    assert_mark(run.mark(), Direction::Request, snat_index(family), port);

    let sent = half.from(at(SNAT, family, port));
    let run = rig.run_marked(Hook::ExternalEgress, run.frame(), run.mark()).is(Verdict::SourceHalf).becomes(&sent);
    assert_eq!(run.mark(), 0);

    let reply = sent.answer();
    let half = reply.to(request.src);
    let run = rig.run(Hook::ExternalIngress, &reply.bytes()).is(Verdict::Reply).becomes(&half);
    assert_mark(run.mark(), Direction::Reply, snat_index(family), request.dst.port());

    let received = half.from(request.dst);
    let run = rig.run_marked(Hook::ClusterEgress, run.frame(), run.mark()).is(Verdict::SourceHalf).becomes(&received);
    assert_eq!(run.mark(), 0);
    rig.assert_paired();
}

/// Both interfaces have IPv4's address at index 0, and IPv6's at 1.
fn snat_index(family: Family) -> u8 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

#[test]
fn every_rule_form_there_and_back() {
    rig::both(|rig, family| {
        let forms = [
            (Body::Tcp(flag::SYN), TCP_MOVED, TCP_TARGET),
            (Body::Tcp(flag::SYN), TCP_KEPT, TCP_KEPT),
            (Body::Udp, UDP_MOVED, UDP_TARGET),
            (Body::Udp, UDP_KEPT, UDP_KEPT),
        ];
        for (body, port, target) in forms {
            let request = Frame::request(client(0, family, PORT), at(ROUTER, family, port), body);
            there_and_back(rig, &request, at(SERVER_1, family, target));
        }
    });
}

#[test]
fn the_fallback_takes_every_other_port_and_protocol_there_and_back() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            for (body, port) in [(Body::Tcp(flag::SYN), 22), (Body::Udp, 22), (Body::Udp, TCP_MOVED)] {
                let request = Frame::request(client(0, family, PORT), at(ROUTER, family, port), body);
                there_and_back(rig, &request, at(SERVER_2, family, port));
            }
            let echo = Frame::request(client(0, family, PORT), at(ROUTER, family, 0), Body::EchoRequest);
            there_and_back(rig, &echo, at(SERVER_2, family, 0));
        });
    }
}

#[test]
fn a_protocol_without_ports_is_translated_by_its_addresses() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let request = Frame::request(client(0, family, 0), at(ROUTER, family, 0), Body::Other(protocol::GRE));
            there_and_back(rig, &request, at(SERVER_2, family, 0));
        });
    }
}

#[test]
fn the_fallback_of_one_family_is_not_the_other_ones() {
    for family in Family::ALL {
        let [other] = Family::ALL.into_iter().filter(|other| *other != family).collect::<Vec<_>>()[..] else {
            panic!()
        };
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let request = Frame::request(client(0, other, PORT), at(ROUTER, other, 22), Body::Udp).bytes();
            rig.run(Hook::ClusterIngress, &request).is(Verdict::Rejected).untouched(&request);
        });
    }
}

#[test]
fn the_payload_may_have_any_length() {
    rig::both(|rig, family| {
        for len in [0, 1, 2, 3, 7, 8, 100, 1001, 1400] {
            let payload: Vec<u8> = (0..len).map(|at| (at * 7 % 251) as u8).collect();
            for body in [Body::Tcp(flag::SYN), Body::Udp] {
                let port = if body == Body::Udp { UDP_MOVED } else { TCP_MOVED };
                let target = if body == Body::Udp { UDP_TARGET } else { TCP_TARGET };
                let request = Frame::request(client(0, family, 2000 + len), at(ROUTER, family, port), body);
                let request = request.with(|frame| frame.payload = payload.clone());
                there_and_back(rig, &request, at(SERVER_1, family, target));
            }
        }
    });
}

#[test]
fn every_sum_that_a_checksum_can_have() {
    // One payload word runs through the values that make sums wrap, and the checksum 0 and 0xffff.
    rig::both(|rig, family| {
        for body in [Body::Tcp(flag::SYN), Body::Udp] {
            let port = if body == Body::Udp { UDP_MOVED } else { TCP_MOVED };
            let target = if body == Body::Udp { UDP_TARGET } else { TCP_TARGET };
            for word in (0..=u16::MAX).step_by(257) {
                let request = Frame::request(client(0, family, PORT), at(ROUTER, family, port), body.clone());
                let request = request.with(|frame| frame.payload = word.to_be_bytes().to_vec());
                there_and_back(rig, &request, at(SERVER_1, family, target));
            }
        }
    });
}

#[test]
fn ipv4_options_stay_as_they_are() {
    rig::with(&Setup::default(), |rig| {
        for options in [vec![1; 4], vec![1; 8], vec![1; 40]] {
            for (body, port, target) in
                [(Body::Tcp(flag::SYN), TCP_MOVED, TCP_TARGET), (Body::Udp, UDP_MOVED, UDP_TARGET)]
            {
                let request = Frame::request(client(0, Family::V4, PORT), at(ROUTER, Family::V4, port), body);
                let request = request.with(|frame| frame.options = options.clone());
                there_and_back(rig, &request, at(SERVER_1, Family::V4, target));
            }
        }
    });
}

#[test]
fn ipv6_extension_headers_stay_as_they_are() {
    let hop_by_hop = || options_header(protocol::HOP_BY_HOP, 0);
    let destination = |eights| options_header(protocol::DESTINATION, eights);
    let chains = [
        vec![hop_by_hop()],
        vec![destination(0)],
        vec![destination(3)],
        vec![routing_header(0)],
        vec![hop_by_hop(), destination(0), routing_header(0), destination(1)],
    ];
    rig::with(&Setup::default(), |rig| {
        for chain in chains {
            for (body, port, target) in
                [(Body::Tcp(flag::SYN), TCP_MOVED, TCP_TARGET), (Body::Udp, UDP_MOVED, UDP_TARGET)]
            {
                let request = Frame::request(client(0, Family::V6, PORT), at(ROUTER, Family::V6, port), body);
                let request = request.with(|frame| frame.extensions = chain.clone());
                there_and_back(rig, &request, at(SERVER_1, Family::V6, target));
            }
        }
    });
}

#[test]
fn no_udp_checksum_stays_none_on_ipv4() {
    rig::with(&Setup::default(), |rig| {
        let request = Frame::request(client(0, Family::V4, PORT), at(ROUTER, Family::V4, UDP_MOVED), Body::Udp);
        there_and_back(rig, &request.with(|frame| frame.no_checksum = true), at(SERVER_1, Family::V4, UDP_TARGET));
    });
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    rig::both(|rig, family| {
        let request = Frame::request(client(0, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
        // The payload that makes the finished datagram's sum all ones: its checksum, with that payload zero.
        let zeros = request.with(|frame| frame.payload = vec![0, 0]);
        let sent = zeros.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, UDP_TARGET));
        let checksum_at = sent.l4() + 6;
        let checksum = sent.bytes()[checksum_at..checksum_at + 2].to_vec();
        let request = zeros.with(|frame| frame.payload = checksum);
        let sent = rig.request(&request);
        assert_eq!(sent[checksum_at..checksum_at + 2], [0xff, 0xff]);
        let wanted = request.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, UDP_TARGET));
        rig::assert_same(&sent, &wanted);
    });
}

#[test]
fn the_way_past_the_stack_is_both_halves_in_one_and_a_hop_less() {
    let setup = Setup::default().settings(|settings| settings.redirect = true);
    for family in Family::ALL {
        for (body, port, target) in [(Body::Tcp(flag::ACK), TCP_MOVED, TCP_TARGET), (Body::Udp, UDP_MOVED, UDP_TARGET)]
        {
            rig::with(&setup, |rig| {
                // For a moment after new tables, every packet looks its next hop up. An emulated machine's clock may be late.
                sleep(Duration::from_secs(1));
                let request = Frame::request(client(0, family, PORT), at(ROUTER, family, port), body);
                let sent = request.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, target));
                let hop_less = |frame: &Frame| frame.with(|frame| frame.ttl -= 1);
                // By what the flow knows of its neighbour.
                let addressed = |frame: &Frame, from: [u8; 6]| {
                    hop_less(frame).with(|frame| (frame.link_dst, frame.link_src) = (PEER_MAC, from))
                };
                // The first is addressed by the kernel, later.
                rig.run(Hook::ClusterIngress, &request.bytes())
                    .is(Verdict::RequestRedirected)
                    .becomes(&hop_less(&sent));
                let left = addressed(&sent, EXTERNAL_MAC);
                let run = rig.run_settled(Hook::ClusterIngress, &request.bytes()).is(Verdict::RequestRedirected);
                let run = run.becomes(&left);
                let run = rig.run_marked(Hook::ExternalEgress, run.frame(), run.mark()).is(Verdict::Redirected);
                assert_eq!(run.becomes(&left).mark(), 0);

                let reply = sent.answer();
                let left = addressed(&reply.to(request.src).from(request.dst), CLUSTER_MAC);
                let run = rig.run_settled(Hook::ExternalIngress, &reply.bytes()).is(Verdict::ReplyRedirected);
                let run = run.becomes(&left);
                let run = rig.run_marked(Hook::ClusterEgress, run.frame(), run.mark()).is(Verdict::Redirected);
                assert_eq!(run.becomes(&left).mark(), 0);

                // What the kernel has to answer or take apart goes its way.
                let last_hop = request.with(|frame| frame.ttl = 1);
                rig.run(Hook::ClusterIngress, &last_hop.bytes()).is(Verdict::Request);
                let large = request.with(|frame| frame.payload = vec![0; 1501]);
                rig.run(Hook::ClusterIngress, &large.bytes()).is(Verdict::Request);
                let special = request.with(|frame| match family {
                    Family::V4 => frame.options = vec![1; 4],
                    Family::V6 => frame.extensions = vec![options_header(protocol::DESTINATION, 0)],
                });
                rig.run(Hook::ClusterIngress, &special.bytes()).is(Verdict::Request);
            });
        }
    }
}

#[test]
fn what_one_flow_has_looked_up_serves_the_next_until_the_network_changes() {
    for family in Family::ALL {
        let setup = Setup::fallback(SERVER_2.ip(family)).settings(|settings| settings.redirect = true);
        rig::with(&setup, |rig| {
            sleep(Duration::from_secs(1));
            // A port that no rule has goes to the fallback.
            let new = |rig: &mut Rig, port: u16, destination: Host| {
                let (to, target) = if destination == SERVER_1 { (UDP_MOVED, UDP_TARGET) } else { (7777, 7777) };
                let request = Frame::request(client(0, family, port), at(ROUTER, family, to), Body::Udp);
                let sent = request.from(at(SNAT, family, port)).to(at(destination, family, target));
                let run = rig.run(Hook::ClusterIngress, &request.bytes()).is(Verdict::RequestRedirected);
                // Whose addresses are still the sender's the kernel addresses, later.
                let by_kernel = run.frame()[..12] == request.bytes()[..12];
                let left = sent.with(|frame| {
                    frame.ttl -= 1;
                    if !by_kernel {
                        (frame.link_dst, frame.link_src) = (PEER_MAC, EXTERNAL_MAC);
                    }
                });
                run.becomes(&left);
                by_kernel
            };
            assert!(new(rig, 1000, SERVER_1), "nobody knows of a next hop yet");
            assert!(!new(rig, 1001, SERVER_1));
            assert!(new(rig, 1002, SERVER_2), "another destination may have another next hop");
            assert!(!new(rig, 1003, SERVER_2));
            rig.datapath().refresh_hops().unwrap();
            assert!(new(rig, 1004, SERVER_1), "the network has changed");
            // What was looked up at the moment of the change may be of before.
            sleep(Duration::from_millis(100));
            assert!(new(rig, 1005, SERVER_1));
            assert!(!new(rig, 1006, SERVER_1));
            sleep(Duration::from_millis(1100));
            assert!(new(rig, 1007, SERVER_1), "known for a second and no longer");
            // A flow that is due asks the kernel, which so keeps asking whether the neighbour is there.
            sleep(Duration::from_millis(4400));
            assert!(new(rig, 1001, SERVER_1));
            assert!(!new(rig, 1001, SERVER_1));
        });
    }
}

/// Else a client that changes its link address would be lost for as long as it speaks.
#[test]
fn a_request_that_looks_the_way_back_up_leaves_it_to_the_reply_to_tell_the_neighbour() {
    for family in Family::ALL {
        let setup = Setup::default().settings(|settings| settings.redirect = true);
        rig::with(&setup, |rig| {
            let request = Frame::request(client(0, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
            let reply = request.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, UDP_TARGET)).answer();
            rig.run(Hook::ClusterIngress, &request.bytes()).is(Verdict::RequestRedirected);
            rig.run(Hook::ExternalIngress, &reply.bytes()).is(Verdict::ReplyRedirected);
            rig.datapath().refresh_hops().unwrap();
            sleep(Duration::from_millis(100));
            rig.run(Hook::ClusterIngress, &request.bytes()).is(Verdict::RequestRedirected);
            for by_kernel in [true, false] {
                let run = rig.run(Hook::ExternalIngress, &reply.bytes()).is(Verdict::ReplyRedirected);
                assert_eq!(run.frame()[..12] == reply.bytes()[..12], by_kernel);
            }
        });
    }
}

#[test]
fn a_neighbour_that_is_not_known_to_be_there_is_left_to_the_kernel() {
    let setup = Setup::default().settings(|settings| settings.redirect = true);
    for family in Family::ALL {
        rig::with(&setup, |rig| {
            // The gateway is known, this client is not.
            let request = Frame::request(client(1, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
            let sent = request.from(at(SNAT, family, PORT)).to(at(SERVER_1, family, UDP_TARGET));
            rig.run(Hook::ClusterIngress, &request.bytes()).is(Verdict::RequestRedirected);
            rig.run(Hook::ExternalIngress, &sent.answer().bytes()).is(Verdict::Reply);
        });
    }
}
