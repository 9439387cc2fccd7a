//! The life of a flow: its states, its timeouts, and what survives.

use std::time::Duration;

use egress_ebpf::contract::{Direction, HOP_TURN_SHIFT, TWIN_TURNS_SHIFT};
use egress_ebpf::timeout::Class;
use egress_ebpf::verdict::DropReason::{TableFull, Unsolicited};
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT};
use egress_user::datapath::Tally;

use crate::frame::flag::{ACK, FIN, PSH, RST, SYN};
use crate::frame::{Body, Frame};
use crate::rig::{self, Rig, Setup, TCP_KEPT, TCP_MOVED, TCP_TARGET, UDP_MOVED, UDP_TARGET, at, client, ends};

const PORT: u16 = 40_001;

/// One TCP connection through the router.
struct Connection<'a> {
    rig: &'a mut Rig,
    family: Family,
}

impl<'a> Connection<'a> {
    fn new(rig: &'a mut Rig, family: Family) -> Self {
        Self { rig, family }
    }

    fn open(rig: &'a mut Rig, family: Family) -> Self {
        let mut connection = Self::new(rig, family);
        connection.client(SYN).server(SYN | ACK).client(ACK);
        connection
    }

    /// The client sends a segment, which leaves with the client's port.
    #[track_caller]
    fn client(&mut self, flags: u8) -> &mut Self {
        let segment =
            Frame::request(client(0, self.family, PORT), at(ROUTER, self.family, TCP_MOVED), Body::Tcp(flags));
        assert_eq!(self.rig.source_port(&segment), PORT);
        self
    }

    /// The server sends a segment.
    #[track_caller]
    fn server(&mut self, flags: u8) -> &mut Self {
        let (server, source) = (at(SERVER_1, self.family, TCP_TARGET), at(SNAT, self.family, PORT));
        let received = self.rig.reply(&Frame::outside(server, source, Body::Tcp(flags)));
        assert_eq!(ends(&received), (at(ROUTER, self.family, TCP_MOVED), client(0, self.family, PORT)));
        self
    }

    /// Checks the state that `flows` shows, and how long it lasts.
    #[track_caller]
    fn is(&mut self, class: Class) -> &mut Self {
        let flow = self.rig.flow();
        assert_eq!(flow.state, class.name());
        let expires = u64::from(class.default_s());
        assert!(flow.expires_s <= expires && flow.expires_s + 2 > expires, "{flow:?}");
        self
    }
}

#[test]
fn a_handshake_step_by_step() {
    rig::both(|rig, family| {
        let mut connection = Connection::new(rig, family);
        connection.client(SYN).is(Class::TcpSynSent);
        connection.client(SYN).is(Class::TcpSynSent);
        connection.server(SYN | ACK).is(Class::TcpSynRecv);
        connection.client(ACK).is(Class::TcpEstablished);
        connection.client(PSH | ACK).server(PSH | ACK).is(Class::TcpEstablished);
    });
}

#[test]
fn a_close_from_either_end() {
    rig::both(|rig, family| {
        let mut connection = Connection::open(rig, family);
        connection.client(FIN | ACK).is(Class::TcpFinWait);
        connection.server(ACK).server(PSH | ACK).is(Class::TcpFinWait);
        connection.server(FIN | ACK).is(Class::TcpTimeWait);
        connection.client(ACK).is(Class::TcpTimeWait);
    });
    rig::both(|rig, family| {
        let mut connection = Connection::open(rig, family);
        connection.server(FIN | ACK).client(ACK).is(Class::TcpCloseWait);
        connection.client(PSH | ACK).is(Class::TcpCloseWait);
        connection.client(FIN | ACK).server(ACK).is(Class::TcpTimeWait);
    });
}

#[test]
fn a_refused_connection_is_closed() {
    rig::both(|rig, family| {
        Connection::new(rig, family).client(SYN).server(RST | ACK).is(Class::TcpClose);
    });
}

#[test]
fn a_reset_is_believed_until_its_sender_goes_on() {
    rig::both(|rig, family| {
        let mut connection = Connection::open(rig, family);
        connection.server(RST).is(Class::TcpClose);
        connection.client(ACK).is(Class::TcpClose);
        connection.server(PSH | ACK).is(Class::TcpEstablished);
        connection.client(RST | ACK).is(Class::TcpClose);
        connection.client(PSH | ACK).is(Class::TcpEstablished);
    });
}

#[test]
fn a_connection_is_picked_up_in_mid_stream() {
    rig::both(|rig, family| {
        let mut connection = Connection::new(rig, family);
        connection.client(PSH | ACK).is(Class::TcpEstablished);
        connection.server(PSH | ACK).is(Class::TcpEstablished);
        connection.client(FIN | ACK).is(Class::TcpFinWait);
    });
}

// It takes no more than a packet, which nobody answers for five days.
#[test]
fn a_segment_that_every_receiver_drops_makes_no_flow_that_lasts() {
    rig::both(|rig, family| {
        let mut connection = Connection::new(rig, family);
        connection.client(0).is(Class::TcpSynSent);
        connection.client(FIN).client(PSH).client(0).is(Class::TcpSynSent);
        connection.server(RST | ACK).is(Class::TcpClose);
        connection.client(SYN).server(SYN | ACK).client(ACK).is(Class::TcpEstablished);
        connection.client(0).server(FIN).is(Class::TcpEstablished);
        assert_eq!(connection.rig.entries().len(), 2);
    });
}

#[test]
fn a_syn_reopens_what_has_closed_with_the_same_port() {
    rig::both(|rig, family| {
        let mut connection = Connection::open(rig, family);
        connection.client(FIN | ACK).server(FIN | ACK).client(ACK).is(Class::TcpTimeWait);
        connection.client(SYN).is(Class::TcpSynSent);
        connection.server(SYN | ACK).client(ACK).is(Class::TcpEstablished);
        connection.server(RST).is(Class::TcpClose);
        connection.client(SYN).is(Class::TcpSynSent);
        assert_eq!(connection.rig.entries().len(), 2);
    });
}

#[test]
fn a_stray_syn_does_not_end_a_live_connection() {
    rig::both(|rig, family| {
        let mut connection = Connection::open(rig, family);
        connection.client(SYN).is(Class::TcpEstablished);
        connection.server(FIN | ACK).client(SYN).is(Class::TcpCloseWait);
    });
}

fn udp(family: Family, port: u16) -> Frame {
    Frame::request(client(0, family, port), at(ROUTER, family, UDP_MOVED), Body::Udp)
}

fn udp_answer(family: Family, port: u16) -> Frame {
    Frame::outside(at(SERVER_1, family, UDP_TARGET), at(SNAT, family, port), Body::Udp)
}

#[test]
fn udp_lives_longer_once_it_is_a_stream() {
    rig::both(|rig, family| {
        rig.request(&udp(family, PORT));
        assert_eq!(rig.flow().state, Class::Udp.name());
        rig.reply(&udp_answer(family, PORT));
        assert_eq!(rig.flow().state, Class::Udp.name(), "an answer alone may be a lookup's");
        rig.pass_time(Duration::from_secs(3));
        assert_eq!(rig.flow().state, Class::Udp.name(), "however long ago that was");
        rig.request(&udp(family, PORT));
        assert_eq!(rig.flow().state, Class::UdpStream.name());
    });
}

#[test]
fn an_expired_flow_is_absent_though_nobody_sweeps() {
    rig::both(|rig, family| {
        rig.request(&udp(family, PORT));
        rig.pass_time(Duration::from_secs(29));
        rig.reply(&udp_answer(family, PORT));
        rig.pass_time(Duration::from_secs(119));
        rig.reply(&udp_answer(family, PORT));
        rig.pass_time(Duration::from_secs(121));
        assert!(rig.flows().is_empty());
        assert_eq!(rig.entries().len(), 2, "nobody has swept");
        rig.run(Hook::ExternalIngress, &udp_answer(family, PORT).bytes()).is(Unsolicited);
        assert!(rig.flows().is_empty(), "no answer brings it back");
        rig.request(&udp(family, PORT));
        let flow = rig.flow();
        assert_eq!((flow.request_packets, flow.reply_packets), (1, 0), "a new flow");
        assert!(flow.age_s < 2 && flow.state == Class::Udp.name(), "{flow:?}");
        rig.reply(&udp_answer(family, PORT));
        rig.assert_paired();
    });
}

// What it left in the table is used again only where the rules would make the same of it today.
#[test]
fn an_expired_flow_that_comes_back_follows_the_rules_of_today() {
    rig::both(|rig, family| {
        let expire = |rig: &mut Rig| {
            rig.request(&udp(family, PORT));
            rig.pass_time(Duration::from_secs(31));
            assert!(rig.flows().is_empty());
        };
        // Another destination.
        expire(rig);
        let mut setup = Setup::default();
        for rule in &mut setup.table.rules {
            rule.destination = SERVER_2.ip(Family::of(rule.destination));
        }
        rig.install(&setup);
        assert_eq!(ends(&rig.request(&udp(family, PORT))).1, at(SERVER_2, family, UDP_TARGET));
        assert_eq!(rig.entries().len(), 2);
        // Another source address.
        expire(rig);
        let other = egress_lab::address::external(120).ip(family);
        setup.snat = vec![other];
        rig.install(&setup);
        assert_eq!(ends(&rig.request(&udp(family, PORT))).0.ip(), other);
        assert_eq!(rig.entries().len(), 2);
        // Ports that do not have the client's.
        expire(rig);
        setup.settings.snat_ports = Some((20_000, 20_009));
        rig.install(&setup);
        assert!((20_000..=20_009).contains(&rig.source_port(&udp(family, PORT))));
        assert_eq!(rig.entries().len(), 2);
        rig.assert_paired();
        // No rule.
        expire(rig);
        setup.table.rules.clear();
        rig.install(&setup);
        rig.run(Hook::ClusterIngress, &udp(family, PORT).bytes()).is(Verdict::Rejected);
    });
}

#[test]
fn an_expired_flow_that_comes_back_has_its_own_port_if_that_is_free_by_then() {
    rig::both(|rig, family| {
        rig.request(&Frame::request(client(1, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp));
        assert_ne!(rig.source_port(&udp(family, PORT)), PORT);
        rig.pass_time(Duration::from_secs(31));
        assert_eq!(rig.source_port(&udp(family, PORT)), PORT);
        rig.assert_paired();
        assert_eq!(rig.entries().len(), 2, "whose port it took has gone");
    });
}

#[test]
fn a_second_of_silence_ends_a_flow_whose_timeout_is_a_second() {
    let setup = Setup::default().settings(|settings| settings.timeouts_s = [1; 16]);
    for family in Family::ALL {
        rig::with(&setup, |rig| {
            rig.request(&udp(family, PORT));
            rig.reply(&udp_answer(family, PORT));
            egress_lab::wait_until("the flow to expire", Duration::from_secs(5), || rig.flows().is_empty()).unwrap();
            rig.run(Hook::ExternalIngress, &udp_answer(family, PORT).bytes()).is(Unsolicited);
        });
    }
}

#[test]
fn traffic_one_way_keeps_both_entries() {
    rig::both(|rig, family| {
        rig.request(&udp(family, PORT));
        rig.reply(&udp_answer(family, PORT));
        // A stream, from now on.
        rig.pass_time(Duration::from_secs(3));
        rig.reply(&udp_answer(family, PORT));
        for _ in 0..20 {
            rig.pass_time(Duration::from_secs(60));
            rig.reply(&udp_answer(family, PORT));
        }
        rig.pass_time(Duration::from_secs(60));
        rig.request(&udp(family, PORT));
        let flow = rig.flow();
        assert_eq!((flow.request_packets, flow.reply_packets), (2, 22));
        for _ in 0..20 {
            rig.pass_time(Duration::from_secs(60));
            rig.request(&udp(family, PORT));
        }
        rig.reply(&udp_answer(family, PORT));
        rig.assert_paired();
    });
}

#[test]
fn a_lost_twin_comes_back_with_the_same_port() {
    rig::both(|rig, family| {
        // Remapped, so that a new choice of port would show.
        rig.request(&udp(family, PORT));
        let second = Frame::request(client(1, family, PORT), at(ROUTER, family, UDP_MOVED), Body::Udp);
        let port = rig.source_port(&second);
        assert_ne!(port, PORT);
        let entry_of = |rig: &Rig, direction: Direction| {
            let mut entries = rig.entries();
            entries.retain(|(key, flow)| {
                let from = if direction == Direction::Request { key.src } else { flow.to_dst };
                key.direction == direction as u8 && from == second.src.ip().into()
            });
            assert!(entries.len() < 2);
            entries.pop()
        };
        for lost in [Direction::Reply, Direction::Request] {
            let (key, before) = entry_of(rig, lost).unwrap();
            rig.remove_entry(&key);
            // The twin's first packet of its next minute notices, which begins in a second.
            let minute = 1_u64 << (HOP_TURN_SHIFT + TWIN_TURNS_SHIFT);
            let direction = if lost == Direction::Reply { Direction::Request } else { Direction::Reply };
            let (key, mut twin) = entry_of(rig, direction).unwrap();
            twin.created_ns = twin.last_seen_ns.wrapping_sub(minute - 1_000_000_000);
            rig.set_entry(&key, &twin);
            rig.pass_time(Duration::from_secs(2));
            match lost {
                Direction::Reply => assert_eq!(rig.source_port(&second), port),
                Direction::Request => {
                    let received = rig.reply(&udp_answer(family, port));
                    assert_eq!(ends(&received), (second.dst, second.src));
                }
            }
            let (_, after) = entry_of(rig, lost).unwrap();
            let what = |flow: &egress_ebpf::contract::Flow| {
                (flow.to_src, flow.to_dst, flow.to_src_port, flow.to_dst_port, flow.source, flow.rule)
            };
            assert_eq!(what(&after), what(&before));
            rig.assert_paired();
            assert_eq!(rig.source_port(&second), port);
            assert_eq!(ends(&rig.reply(&udp_answer(family, port))), (second.dst, second.src));
        }
    });
}

#[test]
fn a_request_without_its_entry_takes_its_reserved_port_again() {
    rig::both(|rig, family| {
        rig.request(&udp(family, PORT));
        let (key, _) = rig.entry(Direction::Request).unwrap();
        rig.remove_entry(&key);
        assert_eq!(rig.source_port(&udp(family, PORT)), PORT);
        assert_eq!(rig.entries().len(), 2);
        rig.assert_paired();
    });
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_every_old_one() {
    // Nobody evicts: a flood of new flows must not end one that lives (cases F1, F6).
    const ROOM: u16 = 64;
    rig::sized(u32::from(ROOM), |rig| {
        let family = Family::V4;
        rig.install(&Setup::default().settings(|settings| settings.flows = u32::from(ROOM)));
        for port in 0..ROOM {
            rig.request(&udp(family, 10_000 + port));
        }
        assert_eq!(rig.flows().len(), usize::from(ROOM), "the table holds what was asked for");
        for port in 0..1000 {
            let frame = udp(family, 20_000 + port).bytes();
            rig.run(Hook::ClusterIngress, &frame).is(TableFull).untouched(&frame);
        }
        for port in 0..ROOM {
            rig.request(&udp(family, 10_000 + port));
            rig.reply(&udp_answer(family, 10_000 + port));
        }
        rig.assert_paired();
        assert_eq!(rig.flows().len(), usize::from(ROOM));
        // Room again, once one has expired and been swept.
        let (key, mut flow) = rig.entries().into_iter().find(|(key, _)| key.src_port.get() == 10_007).unwrap();
        let twin_key = key.twin(&flow);
        let (_, mut twin) = rig.entries().into_iter().find(|(key, _)| *key == twin_key).unwrap();
        flow.last_seen_ns = 0;
        twin.last_seen_ns = 0;
        rig.set_entry(&key, &flow);
        rig.set_entry(&twin_key, &twin);
        let swept = rig.datapath().sweep(&mut Tally::default(), false).unwrap();
        // And more of it: nine tenths stay, since none of these is more than begun.
        let stay = usize::from(ROOM) * 9 / 10;
        assert_eq!((swept.live, swept.removed, swept.gave_way), (stay, 1, usize::from(ROOM) - 1 - stay));
        rig.request(&udp(family, 30_000));
    });
}

#[test]
fn a_sweep_removes_what_has_expired_and_nothing_else() {
    rig::both(|rig, family| {
        Connection::open(rig, family);
        rig.request(&udp(family, PORT));
        rig.pass_time(Duration::from_secs(31));
        let swept = rig.datapath().sweep(&mut Tally::default(), false).unwrap();
        assert_eq!((swept.live, swept.removed), (1, 1));
        assert_eq!(rig.flow().state, Class::TcpEstablished.name());
        rig.assert_paired();
    });
}

#[test]
fn an_edit_moves_new_flows_and_leaves_live_ones() {
    rig::both(|rig, family| {
        let live = Frame::request(client(0, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(SYN));
        let fresh = live.from(client(1, family, PORT));
        assert_eq!(ends(&rig.request(&live)).1, at(SERVER_1, family, TCP_TARGET));
        let data = live.with(|frame| frame.body = Body::Tcp(PSH | ACK));

        // The rule goes to another host.
        let mut setup = Setup::default();
        for rule in &mut setup.table.rules {
            rule.destination = SERVER_2.ip(Family::of(rule.destination));
        }
        rig.install(&setup);
        assert_eq!(ends(&rig.request(&data)).1, at(SERVER_1, family, TCP_TARGET));
        assert_eq!(ends(&rig.request(&fresh)).1, at(SERVER_2, family, TCP_TARGET));
        let reply = Frame::outside(at(SERVER_1, family, TCP_TARGET), at(SNAT, family, PORT), Body::Tcp(SYN | ACK));
        assert_eq!(ends(&rig.reply(&reply)), (live.dst, live.src));

        // The rule goes away.
        setup.table.rules.retain(|rule| rule.port.get() != TCP_MOVED);
        rig.install(&setup);
        assert_eq!(ends(&rig.request(&data)).1, at(SERVER_1, family, TCP_TARGET));
        rig.run(Hook::ClusterIngress, &live.from(client(2, family, PORT)).bytes()).is(Verdict::Rejected);

        // And comes back, with everything in the other family as it was.
        rig.install(&Setup::default());
        assert_eq!(ends(&rig.request(&live.from(client(2, family, PORT)))).1, at(SERVER_1, family, TCP_TARGET));
        let kept = Frame::request(client(2, family, PORT), at(ROUTER, family, TCP_KEPT), Body::Tcp(SYN));
        assert_eq!(ends(&rig.request(&kept)).1, at(SERVER_1, family, TCP_KEPT));
    });
}

#[test]
fn an_edit_of_the_addresses_leaves_live_flows_their_source() {
    rig::both(|rig, family| {
        rig.request(&udp(family, PORT));
        // A new address before the old one, in the specification's order.
        let mut setup = Setup::default();
        setup.snat.insert(0, egress_lab::address::external(120).ip(family));
        rig.install(&setup);
        assert_eq!(ends(&rig.request(&udp(family, PORT))).0, at(SNAT, family, PORT));
        rig.reply(&udp_answer(family, PORT));
    });
}

#[test]
fn restoring_brings_the_tables_of_before_back() {
    rig::both(|rig, family| {
        let syn = |number| Frame::request(client(number, family, PORT), at(ROUTER, family, TCP_MOVED), Body::Tcp(SYN));
        let mut setup = Setup::default();
        setup.table.rules.clear();
        rig.install(&setup);
        rig.run(Hook::ClusterIngress, &syn(0).bytes()).is(Verdict::Rejected);
        rig.datapath().restore().unwrap();
        rig.run(Hook::ClusterIngress, &syn(0).bytes()).is(Verdict::Request);
    });
}
