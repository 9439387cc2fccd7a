//! The source port of a new flow: the client's own, else another of its class, and never one that is taken.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use egress_ebpf::contract::Direction;
use egress_ebpf::verdict::DropReason::{NoSourceAddress, PortsExhausted};
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_2, SNAT, external};
use egress_lab::packet::{Content, read};

use crate::frame::{Body, Frame, flag};
use crate::rig::{self, Setup, TCP_KEPT, TCP_MOVED, UDP_KEPT, UDP_MOVED, at, client, ends};

const SYN: Body = Body::Tcp(flag::SYN);

fn request(number: u8, family: Family, port: u16, to: u16, body: Body) -> Frame {
    Frame::request(client(number, family, port), at(ROUTER, family, to), body)
}

#[test]
fn the_clients_port_is_kept_while_it_is_free() {
    rig::both(|rig, family| {
        for port in [1, 80, 511, 600, 1023, 1024, 40_000, 65_535] {
            assert_eq!(rig.source_port(&request(0, family, port, TCP_MOVED, SYN)), port);
            // To another port of the server's, and by another protocol, it is as free as before.
            assert_eq!(rig.source_port(&request(1, family, port, TCP_KEPT, SYN)), port);
            assert_eq!(rig.source_port(&request(1, family, port, UDP_MOVED, Body::Udp)), port);
        }
    });
}

#[test]
fn a_port_that_is_taken_becomes_another_of_its_class() {
    rig::both(|rig, family| {
        let classes = [(22, 1..=511), (700, 600..=1023), (512, 600..=1023), (599, 600..=1023), (40_000, 1024..=65_535)];
        for (port, class) in classes {
            for body in [SYN, Body::Udp] {
                let to = if body == Body::Udp { UDP_KEPT } else { TCP_KEPT };
                let mut taken = HashSet::new();
                for number in 0..20 {
                    let got = rig.source_port(&request(number, family, port, to, body.clone()));
                    assert!(class.contains(&got), "{port} became {got}");
                    assert!(taken.insert(got), "{got} twice");
                }
                // 512 to 599 belong to a class that hands out none of them: as nf_nat does, even the first is moved.
                assert_eq!(taken.contains(&port), class.contains(&port));
            }
        }
        rig.assert_paired();
    });
}

#[test]
fn an_echo_identifier_that_is_taken_becomes_another() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let ids: HashSet<u16> =
                (0..50).map(|number| rig.source_port(&request(number, family, 7, 0, Body::EchoRequest))).collect();
            assert_eq!(ids.len(), 50);
            assert!(ids.contains(&7));
        });
    }
}

#[test]
fn a_protocol_without_ports_serves_one_client_per_destination() {
    for family in Family::ALL {
        rig::with(&Setup::fallback(SERVER_2.ip(family)), |rig| {
            let gre = |number| request(number, family, 0, 0, Body::Other(47)).bytes();
            rig.run(Hook::ClusterIngress, &gre(0)).is(Verdict::Request);
            rig.run(Hook::ClusterIngress, &gre(1)).is(PortsExhausted);
            rig.run(Hook::ClusterIngress, &gre(0)).is(Verdict::Request);
        });
    }
}

#[test]
fn remapped_flows_come_back_to_their_own_client() {
    rig::both(|rig, family| {
        for number in 0..10 {
            let syn = request(number, family, 40_000, TCP_MOVED, SYN);
            let sent = rig.request(&syn);
            let (source, server) = ends(&sent);
            let reply = Frame::outside(server, source, Body::Tcp(flag::SYN | flag::ACK));
            let received = rig.reply(&reply);
            assert_eq!(ends(&received), (syn.dst, syn.src));
            rig::assert_same(&received, &reply.from(syn.dst).to(syn.src));
        }
    });
}

#[test]
fn a_configured_range_is_kept_to() {
    let setup = Setup::default().settings(|settings| settings.snat_ports = Some((20_000, 20_099)));
    for family in Family::ALL {
        rig::with(&setup, |rig| {
            let mut taken = HashSet::new();
            // Fits, lies below, lies above.
            assert_eq!(rig.source_port(&request(0, family, 20_050, TCP_MOVED, SYN)), 20_050);
            taken.insert(20_050);
            for number in 0..100 {
                if number == 50 {
                    continue;
                }
                let client_port = [80, 20_050, 60_000][usize::from(number % 3)];
                let port = rig.source_port(&request(number + 1, family, client_port, TCP_MOVED, SYN));
                assert!((20_000..=20_099).contains(&port), "{port}");
                assert!(taken.insert(port), "{port} twice");
            }
            // All hundred are found, down to the last; then none is.
            assert_eq!(taken.len(), 100);
            rig.run(Hook::ClusterIngress, &request(150, family, 1, TCP_MOVED, SYN).bytes()).is(PortsExhausted);
        });
    }
}

#[test]
fn exhaustion_drops_counts_and_leaks_nothing() {
    let setup = Setup::default().settings(|settings| settings.snat_ports = Some((20_000, 20_003)));
    for family in Family::ALL {
        for (body, to) in [(SYN, TCP_MOVED), (Body::Udp, UDP_MOVED)] {
            rig::with(&setup, |rig| {
                let ports: HashSet<u16> =
                    (0..4).map(|number| rig.source_port(&request(number, family, 40_000, to, body.clone()))).collect();
                assert_eq!(ports, HashSet::from([20_000, 20_001, 20_002, 20_003]));
                let fifth = request(4, family, 40_000, to, body.clone()).bytes();
                for _ in 0..3 {
                    rig.run(Hook::ClusterIngress, &fifth).is(PortsExhausted).untouched(&fifth);
                }
                // Those that have a port go on.
                rig.request(&request(0, family, 40_000, to, body.clone()));
                assert_eq!(rig.entries().len(), 8);
                rig.assert_paired();
                // And another rule's ports are its own.
                let other = if body == SYN { TCP_KEPT } else { UDP_KEPT };
                rig.request(&request(4, family, 40_000, other, body.clone()));
            });
        }
    }
}

#[test]
fn the_port_of_an_expired_flow_is_free() {
    let setup = Setup::default().settings(|settings| settings.snat_ports = Some((20_000, 20_000)));
    for family in Family::ALL {
        rig::with(&setup, |rig| {
            assert_eq!(rig.source_port(&request(0, family, 40_000, UDP_MOVED, Body::Udp)), 20_000);
            let second = request(1, family, 40_001, UDP_MOVED, Body::Udp);
            rig.pass_time(Duration::from_secs(29));
            rig.run(Hook::ClusterIngress, &second.bytes()).is(PortsExhausted);
            rig.pass_time(Duration::from_secs(2));
            assert_eq!(rig.source_port(&second), 20_000);
            assert_eq!(rig.flow().client, second.src);
            assert_eq!(rig.entries().len(), 2, "the expired flow's other entry is gone too");
            rig.assert_paired();
        });
    }
}

#[test]
fn the_same_flow_twice_is_one_flow() {
    rig::both(|rig, family| {
        let syn = request(0, family, 40_000, TCP_MOVED, SYN);
        let first = rig.request(&syn);
        let second = rig.request(&syn);
        assert_eq!(first, second);
        assert_eq!(rig.entries().len(), 2);
        assert_eq!(rig.flow().request_packets, 2);
    });
}

#[test]
fn two_rules_to_one_destination_do_not_meet() {
    // Both rules' flows have the same reply tuple but for the source port.
    for family in Family::ALL {
        let mut setup = Setup::default();
        setup.table.rules.retain(|rule| rule.port.get() == TCP_MOVED && Family::of(rule.destination) == family);
        let mut second = setup.table.rules[0];
        (second.index, second.port) = (1, 81.try_into().unwrap());
        setup.table.rules.push(second);
        rig::with(&setup, |rig| {
            let (a, b) = (request(0, family, 40_000, TCP_MOVED, SYN), request(0, family, 40_000, 81, SYN));
            assert_eq!(rig.source_port(&a), 40_000);
            let port = rig.source_port(&b);
            assert_ne!(port, 40_000);
            let reply = |port| Frame::outside(setup.server(), at(SNAT, family, port), Body::Tcp(flag::SYN | flag::ACK));
            assert_eq!(ends(&rig.reply(&reply(40_000))), (a.dst, a.src));
            assert_eq!(ends(&rig.reply(&reply(port))), (b.dst, b.src));
        });
    }
}

#[test]
fn a_client_has_one_address_and_all_are_used() {
    for family in Family::ALL {
        let snat: Vec<IpAddr> = [99, 100, 101, 102].map(|last| external(last).ip(family)).to_vec();
        let setup = Setup { snat: snat.clone(), ..Setup::default() };
        rig::with(&setup, |rig| {
            let mut used = HashSet::new();
            for number in 0..64 {
                let sources: HashSet<IpAddr> = [(TCP_MOVED, SYN), (TCP_KEPT, SYN), (UDP_MOVED, Body::Udp)]
                    .map(|(to, body)| {
                        let sent = rig.request(&request(number, family, 40_000 + u16::from(number), to, body));
                        let Content::Ip(packet) = read(&sent) else { panic!() };
                        packet.source
                    })
                    .into();
                assert_eq!(sources.len(), 1, "RFC 4787 REQ-2: paired");
                used.extend(sources);
            }
            assert_eq!(used, snat.into_iter().collect());
        });
    }
}

#[test]
fn a_family_without_an_address_to_come_from_is_dropped() {
    for family in Family::ALL {
        let mut setup = Setup::default();
        setup.snat.retain(|address| Family::of(*address) != family);
        rig::with(&setup, |rig| {
            let syn = request(0, family, 40_000, TCP_MOVED, SYN).bytes();
            rig.run(Hook::ClusterIngress, &syn).is(NoSourceAddress).untouched(&syn);
            assert!(rig.entries().is_empty());
        });
    }
}

#[test]
fn searches_are_counted_by_their_length() {
    rig::both(|rig, family| {
        let before = rig.reader().port_tries().unwrap();
        for number in 0..3 {
            rig.request(&request(number, family, 40_000, TCP_MOVED, SYN));
        }
        let after = rig.reader().port_tries().unwrap();
        let moved: Vec<u64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
        assert_eq!(moved.iter().sum::<u64>(), 3);
        assert_eq!(moved[0], 1, "the first kept its port at once");
        let replies = rig.entries().into_iter().filter(|(key, _)| key.direction == Direction::Reply as u8).count();
        assert_eq!(replies, 3);
    });
}
