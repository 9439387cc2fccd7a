//! What becomes of a packet that is not plainly a request or a reply: its verdict, its counter, and that it is untouched.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use egress_ebpf::addr::Port;
use egress_ebpf::contract::{Direction, Mark};
use egress_ebpf::verdict::DropReason::{
    ForeignDestination, Leak, Malformed, Unconfigured, Unsolicited, WrongInterface,
};
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::address::{ON_LINK, ROUTER, SERVER_1, SERVER_2, SNAT};
use egress_lab::{Family, wait_until};
use egress_user::compile::Protocol;

use crate::frame::{Body, CLUSTER_MAC, EXTERNAL_MAC, Frame, flag, octets, options_header, protocol, raw};
use crate::rig::{
    self, CLUSTER_LINK_LOCAL, EXTERNAL_LINK_LOCAL, Outcome, Rig, Setup, TCP_MOVED, UDP_MOVED, at, client,
};

const BROADCAST: [u8; 6] = [0xff; 6];
const MULTICAST_V4: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 0xfb];
const MULTICAST_V6: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const SOMEBODY_ELSE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];
const SYN: Body = Body::Tcp(flag::SYN);

/// Types of neighbour and multicast listener discovery.
const LINK_CONTROL: [u8; 8] = [130, 131, 132, 133, 134, 135, 136, 143];

/// Type of an ICMPv6 redirect.
const REDIRECT: u8 = 137;

fn socket(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn request(family: Family, port: u16, body: Body) -> Frame {
    Frame::request(client(0, family, 40_000), at(ROUTER, family, port), body)
}

/// Gives a frame to a hook, and checks that it leaves as it came.
#[track_caller]
fn check(rig: &mut Rig, hook: Hook, frame: &Frame, outcome: impl Into<Outcome>) {
    let bytes = frame.bytes();
    rig.run(hook, &bytes).is(outcome).untouched(&bytes);
}

#[test]
fn what_is_not_ip_passes_every_hook() {
    rig::with(&Setup::default(), |rig| {
        let arp = arp_of(IpAddr::from([0, 0, 0, 0]));
        for hook in Hook::ALL {
            let own =
                if matches!(hook, Hook::ClusterIngress | Hook::ClusterEgress) { CLUSTER_MAC } else { EXTERNAL_MAC };
            for frame in [
                raw(BROADCAST, 0x0806, &arp),
                raw(own, 0x0806, &arp),
                raw([1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[2, 7, 4]),
                raw(own, 0x8863, &[0; 46]),
                // IEEE 802.3 with a length in the place of the type.
                raw([1, 0x80, 0xc2, 0, 0, 0], 0x0026, &[0x42; 38]),
            ] {
                rig.run(hook, &frame).is(Verdict::Pass).untouched(&frame);
            }
        }
    });
}

/// An ARP request of this sender.
fn arp_of(sender: IpAddr) -> Vec<u8> {
    let asked = [0, 0, 0, 0, 0, 0, 192, 168, 12, 1];
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2, 0, 0, 0, 0, 0x99], &octets(sender), &asked].concat()
}

#[test]
fn arp_speaks_to_the_outside_for_the_routers_own_addresses_or_for_none() {
    rig::with(&Setup::default(), |rig| {
        let asks = |sender: IpAddr| raw(BROADCAST, 0x0806, &arp_of(sender));
        for sender in [SNAT.ip(Family::V4), IpAddr::from([0, 0, 0, 0])] {
            let frame = asks(sender);
            rig.run(Hook::ExternalEgress, &frame).is(Verdict::Pass).untouched(&frame);
        }
        for sender in [ROUTER.ip(Family::V4), ON_LINK.ip(Family::V4)] {
            rig.run(Hook::ExternalEgress, &asks(sender)).is(Leak);
            // To the cluster it may speak for whomever it likes.
            rig.run(Hook::ClusterEgress, &asks(sender)).is(Verdict::Pass);
        }
        rig.run(Hook::ExternalEgress, &asks(ROUTER.ip(Family::V4))[..27]).is(Malformed);
    });
}

#[test]
fn another_vlan_passes() {
    rig::both(|rig, family| {
        let inside = request(family, TCP_MOVED, SYN).bytes();
        for ether_type in [0x8100, 0x88a8] {
            let tagged = raw(CLUSTER_MAC, ether_type, &[&[0, 7], &inside[12..]].concat());
            rig.run(Hook::ClusterIngress, &tagged).is(Verdict::Pass).untouched(&tagged);
            let tagged = raw(EXTERNAL_MAC, ether_type, &[&[0, 7], &inside[12..]].concat());
            rig.run(Hook::ExternalIngress, &tagged).is(Verdict::Pass).untouched(&tagged);
        }
    });
}

#[test]
fn multicast_and_broadcast_are_never_translated() {
    // With a fallback, which would take anything.
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let groups = match family {
                Family::V4 => {
                    [(MULTICAST_V4, "224.0.0.251"), (BROADCAST, "255.255.255.255"), (BROADCAST, "10.128.0.255")]
                }
                Family::V6 => [(MULTICAST_V6, "ff02::fb"), (MULTICAST_V6, "ff05::1:3"), (MULTICAST_V6, "ff0e::1")],
            };
            for (link_dst, ip) in groups {
                let frame =
                    request(family, 5353, Body::Udp).to(socket(ip, 5353)).with(|frame| frame.link_dst = link_dst);
                check(rig, Hook::ClusterIngress, &frame, Verdict::Pass);
                // And a group's address in a frame to the router alone.
                let frame = frame.with(|frame| frame.link_dst = CLUSTER_MAC);
                let wanted: Outcome =
                    if ip.starts_with("10.") { ForeignDestination.into() } else { Verdict::Pass.into() };
                check(rig, Hook::ClusterIngress, &frame, wanted);
                // From the outside it is dropped; nothing there has anything to announce to the pod.
                let frame = frame.from(at(ON_LINK, family, 5353)).with(|frame| frame.link_dst = link_dst);
                check(rig, Hook::ExternalIngress, &frame, Unsolicited);
                let frame = frame.with(|frame| frame.link_dst = EXTERNAL_MAC);
                check(rig, Hook::ExternalIngress, &frame, Unsolicited);
            }
            assert!(rig.entries().is_empty());
        });
    }
}

#[test]
fn a_broadcast_frame_to_the_routers_address_is_not_a_request() {
    rig::both(|rig, family| {
        for link_dst in [BROADCAST, SOMEBODY_ELSE] {
            let frame = request(family, TCP_MOVED, SYN).with(|frame| frame.link_dst = link_dst);
            check(rig, Hook::ClusterIngress, &frame, Verdict::Pass);
        }
        assert!(rig.entries().is_empty());
    });
}

#[test]
fn nothing_is_forwarded_that_no_rule_names() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            for host in [SERVER_1, SNAT, ON_LINK] {
                for body in [SYN, Body::Udp, Body::EchoRequest, Body::Other(protocol::GRE)] {
                    let port = if matches!(body, Body::Tcp(_) | Body::Udp) { TCP_MOVED } else { 0 };
                    let frame = request(family, 0, body).to(at(host, family, port));
                    check(rig, Hook::ClusterIngress, &frame, ForeignDestination);
                }
            }
            assert!(rig.entries().is_empty());
        });
    }
}

#[test]
fn what_no_rule_claims_is_left_to_the_stack_to_refuse() {
    rig::both(|rig, family| {
        for (port, body) in [(81, SYN), (TCP_MOVED, Body::Udp), (UDP_MOVED, SYN), (0, Body::EchoRequest)] {
            check(rig, Hook::ClusterIngress, &request(family, port, body), Verdict::Rejected);
        }
        assert!(rig.entries().is_empty());
    });
}

#[test]
fn what_keeps_the_link_going_passes() {
    // With a fallback, which would take anything.
    rig::with(&Setup::fallback(SERVER_2.ip(Family::V6)), |rig| {
        for kind in LINK_CONTROL {
            let message = |src: &str, dst: &str, link_dst| {
                let frame = Frame::request(socket(src, 0), socket(dst, 0), Body::Icmp(kind));
                frame.with(|frame| {
                    frame.link_dst = link_dst;
                    frame.ttl = 255;
                    frame.payload = vec![0; 20];
                })
            };
            check(rig, Hook::ClusterIngress, &message("fe80::1", CLUSTER_LINK_LOCAL, CLUSTER_MAC), Verdict::Pass);
            check(rig, Hook::ClusterIngress, &message("fd00:10::1", "fd00:10::2", CLUSTER_MAC), Verdict::Pass);
            check(rig, Hook::ClusterIngress, &message("fe80::1", "ff02::1", MULTICAST_V6), Verdict::Pass);
            check(rig, Hook::ExternalIngress, &message("fe80::1", EXTERNAL_LINK_LOCAL, EXTERNAL_MAC), Verdict::Pass);
            check(rig, Hook::ExternalIngress, &message("fd00:12::1", "fd00:12::99", EXTERNAL_MAC), Verdict::Pass);
            check(rig, Hook::ExternalIngress, &message("fe80::1", "ff02::1:ff00:99", MULTICAST_V6), Verdict::Pass);
            check(rig, Hook::ClusterEgress, &message(CLUSTER_LINK_LOCAL, "ff02::1", MULTICAST_V6), Verdict::Local);
            for src in ["::", EXTERNAL_LINK_LOCAL, "fe80::abcd", "fd00:12::99"] {
                check(rig, Hook::ExternalEgress, &message(src, "ff02::1:ff00:99", MULTICAST_V6), Verdict::Local);
            }
            check(rig, Hook::ExternalEgress, &message("fd00:10::1", "ff02::1", MULTICAST_V6), Leak);
        }
        // A redirect does not: it would tell a neighbour about a packet that should never have been forwarded.
        let redirect = Frame::request(socket("fe80::abcd", 0), socket("fd00:12::1", 0), Body::Icmp(REDIRECT));
        check(rig, Hook::ExternalEgress, &redirect, Leak);
        // A listener report has a router alert before it.
        let report = Frame::request(socket("::", 0), socket("ff02::16", 0), Body::Icmp(143)).with(|frame| {
            frame.extensions = vec![(protocol::HOP_BY_HOP, vec![0, 5, 2, 0, 0, 1, 0])];
            frame.payload = vec![0; 24];
        });
        check(rig, Hook::ExternalEgress, &report, Verdict::Local);
    });
}

#[test]
fn a_local_port_is_the_pods_own_in_spite_of_a_fallback() {
    for family in Family::ALL {
        let setup = Setup::fallback(SERVER_2.ip(family));
        let setup =
            setup.settings(|settings| settings.local_ports = vec![(Protocol::Tcp, 9100), (Protocol::Udp, 9101)]);
        rig::with(&setup, |rig| {
            check(rig, Hook::ClusterIngress, &request(family, 9100, SYN), Verdict::Local);
            check(rig, Hook::ClusterIngress, &request(family, 9101, Body::Udp), Verdict::Local);
            assert!(rig.entries().is_empty());
            rig.run(Hook::ClusterIngress, &request(family, 9100, Body::Udp).bytes()).is(Verdict::Request);
            rig.run(Hook::ClusterIngress, &request(family, 9101, SYN).bytes()).is(Verdict::Request);
        });
    }
}

#[test]
fn the_fallback_leaves_answers_to_the_pods_own_pings_alone() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let reply = request(family, 77, Body::EchoReply).with(|frame| frame.src.set_port(0));
            check(rig, Hook::ClusterIngress, &reply, Verdict::Local);
            assert!(rig.entries().is_empty());
        });
    }
}

#[test]
fn link_local_packets_are_the_pods_own() {
    rig::with(&Setup::fallback(SERVER_2.ip(Family::V6)), |rig| {
        for body in [SYN, Body::Udp, Body::EchoRequest] {
            let port = if body == Body::EchoRequest { 0 } else { TCP_MOVED };
            let frame = Frame::request(socket("fe80::1", 40_000), socket(CLUSTER_LINK_LOCAL, port), body);
            check(rig, Hook::ClusterIngress, &frame, Verdict::Local);
        }
    });
}

/// Closes a socket and waits until a packet finds it gone.
fn close(socket: UdpSocket, is_gone: impl FnMut() -> bool) {
    drop(socket);
    // A program that another test starts at this moment has the socket too, until it has become that program.
    wait_until("the socket to be gone", Duration::from_secs(10), is_gone).unwrap();
}

#[test]
fn the_fallback_leaves_what_the_pod_asked_for_alone() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let server = client(0, family, 53);
            let answer_to = |port| Frame::request(server, at(ROUTER, family, port), Body::Udp);
            // A connected socket, of whatever port.
            let socket = UdpSocket::bind(at(ROUTER, family, 777)).unwrap();
            socket.connect(server).unwrap();
            check(rig, Hook::ClusterIngress, &answer_to(777), Verdict::Local);
            // One with an ephemeral port; and once it is closed, the port is anybody's.
            let socket = UdpSocket::bind(at(ROUTER, family, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            check(rig, Hook::ClusterIngress, &answer_to(port), Verdict::Local);
            close(socket, || {
                rig.run(Hook::ClusterIngress, &answer_to(port).bytes()).outcome() == Verdict::Request.into()
            });
            // A server of the pod's is not a client of anybody's.
            let _server = UdpSocket::bind(at(ROUTER, family, 778)).unwrap();
            rig.run(Hook::ClusterIngress, &answer_to(778).bytes()).is(Verdict::Request);
        });
    }
}

#[test]
fn all_of_a_datagram_for_the_pod_is_left_alone_in_fragments_too() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let socket = UdpSocket::bind(at(ROUTER, family, 777)).unwrap();
            socket.connect(client(0, family, 53)).unwrap();
            let (first, later) = Frame::request(client(0, family, 53), at(ROUTER, family, 777), Body::Udp).parts(9, 16);
            check(rig, Hook::ClusterIngress, &first, Verdict::Local);
            check(rig, Hook::ClusterIngress, &later, Verdict::Local);

            let socket = UdpSocket::bind(at(SNAT, family, 777)).unwrap();
            socket.connect(at(ON_LINK, family, 53)).unwrap();
            let (first, later) = Frame::outside(at(ON_LINK, family, 53), at(SNAT, family, 777), Body::Udp).parts(9, 16);
            check(rig, Hook::ExternalIngress, &first, Verdict::Local);
            check(rig, Hook::ExternalIngress, &later, Verdict::Local);
            assert!(rig.entries().is_empty());
        });
    }
}

#[test]
fn a_forged_mark_is_taken_off() {
    for family in Family::ALL {
        rig::with(&Setup::default(), |rig| {
            let forged =
                [Direction::Request, Direction::Reply].map(|direction| Mark::new(direction, 0, Port::new(80)).0);
            for mark in forged {
                let frame = request(family, 81, SYN).bytes();
                assert_eq!(rig.run_marked(Hook::ClusterIngress, &frame, mark).is(Verdict::Rejected).mark(), 0);
                let frame = Frame::outside(at(ON_LINK, family, 80), at(SNAT, family, 81), Body::Tcp(flag::ACK)).bytes();
                assert_eq!(rig.run_marked(Hook::ExternalIngress, &frame, mark).is(Verdict::Local).mark(), 0);
            }
            // Somebody else's mark is somebody else's business.
            let frame = request(family, 81, SYN).bytes();
            assert_eq!(rig.run_marked(Hook::ClusterIngress, &frame, 0x1234).is(Verdict::Rejected).mark(), 0x1234);
        });
    }
}

#[test]
fn nothing_is_opened_from_the_outside() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let from_outside = |port, body| Frame::outside(at(ON_LINK, family, 40_000), at(SNAT, family, port), body);
            let _listener = TcpListener::bind(at(SNAT, family, 80)).unwrap();
            let _server = UdpSocket::bind(at(SNAT, family, 80)).unwrap();
            for body in [
                SYN,
                Body::Tcp(flag::SYN | flag::PSH),
                Body::Tcp(flag::SYN | flag::FIN),
                Body::Udp,
                Body::Other(protocol::GRE),
                Body::Other(132),
            ] {
                for port in [80, 81] {
                    let port = if matches!(body, Body::Other(_)) { 0 } else { port };
                    check(rig, Hook::ExternalIngress, &from_outside(port, body.clone()), Unsolicited);
                }
            }
            // What can open nothing is for the stack to answer.
            for flags in [flag::SYN | flag::ACK, flag::ACK, flag::RST, flag::RST | flag::ACK, flag::FIN | flag::ACK, 0]
            {
                check(rig, Hook::ExternalIngress, &from_outside(80, Body::Tcp(flags)), Verdict::Local);
            }
            check(rig, Hook::ExternalIngress, &from_outside(0, Body::EchoRequest), Verdict::Local);
            check(
                rig,
                Hook::ExternalIngress,
                &from_outside(7, Body::EchoReply).from(at(ON_LINK, family, 0)),
                Verdict::Local,
            );
            assert!(rig.entries().is_empty());
        });
    }
}

#[test]
fn nothing_passes_through_from_the_outside() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            // To a client, to the router's other address, to a host of the far side: none is this interface's.
            for dst in [client(0, family, 80), at(ROUTER, family, 80), at(SERVER_1, family, 80)] {
                for body in [SYN, Body::Tcp(flag::ACK), Body::Udp, Body::EchoRequest, Body::EchoReply] {
                    let frame = Frame::outside(at(ON_LINK, family, 80), dst, body);
                    check(rig, Hook::ExternalIngress, &frame, Unsolicited);
                }
            }
        });
    }
}

#[test]
fn what_the_pod_asked_the_outside_comes_in() {
    rig::both(|rig, family| {
        let server = at(ON_LINK, family, 53);
        let answer_to = |port| Frame::outside(server, at(SNAT, family, port), Body::Udp);
        let socket = UdpSocket::bind(at(SNAT, family, 777)).unwrap();
        socket.connect(server).unwrap();
        check(rig, Hook::ExternalIngress, &answer_to(777), Verdict::Local);
        check(rig, Hook::ExternalIngress, &answer_to(777).from(at(SERVER_1, family, 53)), Unsolicited);
        let socket = UdpSocket::bind(at(SNAT, family, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        check(rig, Hook::ExternalIngress, &answer_to(port), Verdict::Local);
        close(socket, || rig.run(Hook::ExternalIngress, &answer_to(port).bytes()).outcome() == Unsolicited.into());
    });
}

#[test]
fn only_the_routers_own_addresses_leave_to_the_outside() {
    rig::both(|rig, family| {
        let leaving = |src: SocketAddr, body| Frame::outside(src, at(SERVER_1, family, 80), body);
        for body in [SYN, Body::Udp, Body::EchoRequest, Body::Other(protocol::GRE)] {
            check(rig, Hook::ExternalEgress, &leaving(at(SNAT, family, 40_000), body.clone()), Verdict::Local);
            for foreign in [client(0, family, 40_000), at(ROUTER, family, 40_000), at(ON_LINK, family, 40_000)] {
                check(rig, Hook::ExternalEgress, &leaving(foreign, body.clone()), Leak);
            }
            let nobody = if family == Family::V4 { "0.0.0.0" } else { "::" };
            check(rig, Hook::ExternalEgress, &leaving(socket(nobody, 68), body), Leak);
        }
        if family == Family::V6 {
            check(rig, Hook::ExternalEgress, &leaving(socket(EXTERNAL_LINK_LOCAL, 546), Body::Udp), Verdict::Local);
            for body in [SYN, Body::Udp, Body::EchoRequest, Body::Icmp(1)] {
                check(rig, Hook::ExternalEgress, &leaving(socket("fe80::abcd", 546), body.clone()), Leak);
                // Nor behind a header that hides what it is.
                let hidden = leaving(socket("fe80::abcd", 546), body);
                let hidden = hidden.with(|frame| frame.extensions = vec![options_header(protocol::DESTINATION, 0)]);
                check(rig, Hook::ExternalEgress, &hidden, Leak);
            }
        }
        // A later fragment says nothing of what it is, and has to have an own source as well.
        let (_, later) = leaving(client(0, family, 40_000), Body::Udp).parts(1, 16);
        check(rig, Hook::ExternalEgress, &later, Leak);
    });
}

#[test]
fn the_pods_own_packets_leave_to_the_cluster() {
    rig::both(|rig, family| {
        for body in [SYN, Body::Udp, Body::EchoRequest] {
            let frame = request(family, 0, body).from(at(ROUTER, family, 80)).to(client(0, family, 81));
            check(rig, Hook::ClusterEgress, &frame, Verdict::Local);
        }
    });
}

#[test]
fn half_a_translation_never_leaves_by_the_wrong_interface() {
    rig::both(|rig, family| {
        let frame = request(family, TCP_MOVED, SYN).bytes();
        let mark = |direction| Mark::new(direction, 0, Port::new(80)).0;
        let run = rig.run_marked(Hook::ClusterEgress, &frame, mark(Direction::Request));
        run.is(WrongInterface).untouched(&frame);
        let run = rig.run_marked(Hook::ExternalEgress, &frame, mark(Direction::Reply));
        run.is(WrongInterface).untouched(&frame);
    });
}

#[test]
fn a_mark_of_no_address_lets_nothing_out() {
    // A process with the right to set marks must not be able to send from an address that is not the router's.
    rig::both(|rig, family| {
        let frame = request(family, TCP_MOVED, SYN).bytes();
        let other_familys = if family == Family::V4 { 1 } else { 0 };
        for index in [other_familys, 7, 255] {
            let mark = Mark::new(Direction::Request, index, Port::new(80)).0;
            rig.run_marked(Hook::ExternalEgress, &frame, mark).is(Leak);
        }
    });
}

#[test]
fn an_address_that_was_taken_away_is_not_sent_from() {
    rig::both(|rig, family| {
        let frame = request(family, TCP_MOVED, SYN);
        rig.request(&frame);
        let mut setup = Setup::default();
        setup.snat.retain(|address| Family::of(*address) != family);
        rig.install(&setup);
        let half = rig.run(Hook::ClusterIngress, &frame.bytes());
        if half.goes_on() {
            rig.run_marked(Hook::ExternalEgress, half.frame(), half.mark()).is(Leak);
        }
    });
}

#[test]
fn an_unconfigured_datapath_drops_everything() {
    rig::bare(|rig| {
        for hook in Hook::ALL {
            for family in Family::ALL {
                let frame = request(family, TCP_MOVED, SYN).bytes();
                rig.run(hook, &frame).is(Unconfigured).untouched(&frame);
            }
            let frame = raw(BROADCAST, 0x0806, &[0; 28]);
            rig.run(hook, &frame).is(Unconfigured).untouched(&frame);
        }
    });
}

#[test]
fn ipv4_mapped_addresses_in_ipv6_are_not_ipv4() {
    // ::ffff:10.128.0.2 in an IPv6 header has the map form of the router's IPv4 address.
    let mapped = |host: egress_lab::address::Host| IpAddr::V6(host.v4.to_ipv6_mapped());
    rig::with(&Setup::fallback(SERVER_2.ip(Family::V4)), |rig| {
        let v6 = |src, dst, body| Frame::request(SocketAddr::new(src, 40_000), SocketAddr::new(dst, TCP_MOVED), body);
        let frame = v6(client(0, Family::V6, 0).ip(), mapped(ROUTER), SYN);
        let run = rig.run(Hook::ClusterIngress, &frame.bytes());
        assert!(!matches!(run.outcome(), Outcome::On(Verdict::Request | Verdict::RequestRedirected)), "{run:?}");
        let frame = v6(mapped(egress_lab::address::client(0)), mapped(ROUTER), SYN);
        let run = rig.run(Hook::ClusterIngress, &frame.bytes());
        assert!(!matches!(run.outcome(), Outcome::On(Verdict::Request | Verdict::RequestRedirected)), "{run:?}");
        assert!(rig.entries().is_empty());
        let frame = v6(mapped(SNAT), SERVER_1.ip(Family::V6), SYN);
        rig.run(Hook::ExternalEgress, &frame.bytes()).is(Malformed);
    });
}
