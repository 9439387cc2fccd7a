//! The flow table, by the packets of its flows: what was entered is found, wherever it is.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use egress_ebpf::contract::{Direction, FlowKey};
use egress_ebpf::verdict::DropReason::TableFull;
use egress_ebpf::verdict::{Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ROUTER, SERVER_1, SNAT};
use egress_lab::random::Random;
use egress_user::datapath::{Entry, Tally};

use crate::frame::{Body, Frame};
use crate::races::race;
use crate::rig::{self, Rig, Setup, UDP_MOVED, UDP_TARGET, at, client, ends, goes_on};

/// The client of the flow of this number: the families take turns.
fn from(number: u16) -> SocketAddr {
    client(0, Family::ALL[usize::from(number % 2)], 10_000 + number)
}

fn request(from: SocketAddr) -> Frame {
    Frame::request(from, at(ROUTER, Family::of(from.ip()), UDP_MOVED), Body::Udp)
}

/// Whose flow it is.
fn of(Entry { key, flow, .. }: &Entry) -> SocketAddr {
    let (addr, port) = if key.is_request() { (key.src, key.src_port) } else { (flow.to_dst, flow.to_dst_port) };
    SocketAddr::new(addr.into(), port.get())
}

/// Removes a client's flow, as user space does.
fn remove(rig: &Rig, client: SocketAddr) {
    let table = rig.table();
    let both: Vec<_> = table.iter().filter(|entry| of(entry) == client).collect();
    assert_eq!(both.len(), 2, "{client}");
    assert!(both.iter().all(|entry| table.remove(entry)));
}

/// What a frame is after the programs of both hooks.
fn through(rig: &Rig, [ingress, egress]: [Hook; 2], frame: &Frame) -> Vec<u8> {
    let half = rig.feed(ingress, &frame.bytes(), 0);
    assert!(goes_on(&half));
    rig.feed(egress, &half.frame, half.mark).frame
}

/// Checks that these clients' flows and no others are in the table, that packets find them both ways, and that nothing is opened
/// by that.
#[track_caller]
fn assert_has(rig: &mut Rig, clients: &[SocketAddr]) {
    let searches = |rig: &Rig| rig.reader().port_tries().unwrap().iter().sum::<u64>();
    let before = searches(rig);
    for client in clients {
        let family = Family::of(client.ip());
        let (server, source) = (at(SERVER_1, family, UDP_TARGET), at(SNAT, family, client.port()));
        let sent = through(rig, [Hook::ClusterIngress, Hook::ExternalEgress], &request(*client));
        assert_eq!(ends(&sent), (source, server));
        let received =
            through(rig, [Hook::ExternalIngress, Hook::ClusterEgress], &Frame::outside(server, source, Body::Udp));
        assert_eq!(ends(&received), (at(ROUTER, family, UDP_MOVED), *client));
    }
    rig.forget_counted();
    assert_eq!(searches(rig), before, "a flow was opened once more");
    let table = rig.table();
    let keys: HashSet<FlowKey> = table.iter().map(|entry| entry.key).collect();
    let entries = 2 * clients.len();
    assert_eq!((table.iter().count(), keys.len(), table.used()), (entries, entries, entries));
    assert!(table.iter().all(|entry| table.find(&entry.key).is_some_and(|found| found.place == entry.place)));
    rig.assert_paired();
}

/// Entries of one direction that others keep from home.
fn displaced(rig: &Rig, direction: Direction) -> Vec<Entry> {
    let mut entries: Vec<_> = rig.table().iter().filter(|entry| entry.key.direction == direction as u8).collect();
    entries.retain(|entry| entry.flow.distance != 0);
    entries
}

#[test]
fn a_table_takes_as_many_flows_as_was_said_and_finds_each() {
    const ROOM: u16 = 1000;
    rig::sized(u32::from(ROOM), |rig| {
        rig.install(&Setup::default());
        let mut clients: Vec<_> = (0..ROOM).map(from).collect();
        for client in &clients {
            rig.request(&request(*client));
        }
        let refuse = |rig: &mut Rig, number| {
            let frame = request(from(number)).bytes();
            rig.run(Hook::ClusterIngress, &frame).is(TableFull).untouched(&frame);
        };
        refuse(rig, ROOM);
        refuse(rig, ROOM + 1);
        for direction in [Direction::Request, Direction::Reply] {
            assert!(displaced(rig, direction).len() > usize::from(ROOM) / 10, "hardly any is displaced");
        }
        assert_has(rig, &clients);
        // One goes, one comes.
        remove(rig, clients.swap_remove(123));
        rig.request(&request(from(ROOM)));
        clients.push(from(ROOM));
        refuse(rig, ROOM + 1);
        assert_has(rig, &clients);
    });
}

#[test]
fn what_is_between_an_entry_and_its_home_may_go() {
    const ROOM: u16 = 300;
    const TIMES: usize = 20;
    rig::sized(u32::from(ROOM), |rig| {
        rig.install(&Setup::default());
        let mut clients: Vec<_> = (0..ROOM).map(from).collect();
        let mut next = ROOM;
        clients.iter().for_each(|client| drop(rig.request(&request(*client))));
        for direction in [Direction::Request, Direction::Reply].repeat(TIMES) {
            let far = displaced(rig, direction).into_iter().max_by_key(|entry| entry.flow.distance).unwrap();
            let table = rig.table();
            let home = far.place - u32::from(far.flow.distance);
            let between: HashSet<_> = (home..far.place).filter_map(|place| table.at(place)).map(|it| of(&it)).collect();
            clients.retain(|client| *client == of(&far) || !between.contains(client));
            between.into_iter().filter(|client| *client != of(&far)).for_each(|client| remove(rig, client));
            assert_has(rig, &clients);
            // Others take the room, and say how far theirs reach.
            while clients.len() < usize::from(ROOM) {
                clients.push(from(next));
                rig.request(&request(from(next)));
                next += 1;
            }
            assert_has(rig, &clients);
        }
    });
}

#[test]
fn a_home_reaches_no_farther_than_its_entries() {
    const ROOM: u16 = 300;
    rig::sized(u32::from(ROOM), |rig| {
        rig.install(&Setup::default());
        let clients: Vec<_> = (0..ROOM).map(from).collect();
        clients.iter().for_each(|client| drop(rig.request(&request(*client))));
        let is_at_home = |entry: &Entry| entry.flow.distance == 0 && entry.key.is_request();
        let reach = |rig: &Rig, entry: &Entry| rig.table().reach(entry.place);
        let homes: Vec<_> = rig.table().iter().filter(|it| is_at_home(it) && reach(rig, it) > Some(0)).collect();
        assert!(homes.len() > usize::from(ROOM) / 20, "{} homes reach beyond themselves", homes.len());
        clients.iter().for_each(|client| remove(rig, *client));
        for home in homes {
            rig.request(&request(of(&home)));
            assert_eq!((rig.table().at(home.place).map(|it| it.key), reach(rig, &home)), (Some(home.key), Some(0)));
            remove(rig, of(&home));
        }
    });
}

#[test]
fn an_entry_whose_home_is_free_is_found_at_once() {
    const ROOM: u16 = 300;
    rig::sized(u32::from(ROOM), |rig| {
        rig.install(&Setup::default().settings(|settings| settings.redirect = true));
        for client in (0..ROOM).map(from) {
            rig.run(Hook::ClusterIngress, &request(client).bytes()).is(Verdict::RequestRedirected);
        }
        let mut freed = 0;
        for far in displaced(rig, Direction::Request) {
            let Some(home) = rig.table().at(far.place - u32::from(far.flow.distance)) else { continue };
            // What was there may be the flow's own reply, or be gone with another flow.
            if of(&home) == of(&far) || rig.table().find(&far.key).is_none() {
                continue;
            }
            remove(rig, of(&home));
            freed += 1;
            rig.run_xdp_settled(Hook::ClusterIngress, &request(of(&far)).bytes()).is(Verdict::Accelerated);
        }
        assert!(freed > usize::from(ROOM) / 20, "{freed} homes");
    });
}

#[test]
fn flows_come_and_go_by_the_thousands_and_none_is_lost() {
    const ROOM: usize = 200;
    const ROUNDS: u16 = 30;
    let seed = Random::seed();
    eprintln!("EGRESS_SEED={seed}");
    let mut random = Random::new(seed);
    rig::sized(ROOM as u32, |rig| {
        rig.install(&Setup::default());
        let (mut clients, mut next) = (Vec::new(), 0);
        for _ in 0..ROUNDS {
            while clients.len() < ROOM {
                clients.push(from(next));
                rig.request(&request(from(next)));
                next += 1;
            }
            assert_has(rig, &clients);
            // Half of them by user space, a quarter by the sweep.
            for _ in 0..ROOM / 2 {
                remove(rig, clients.swap_remove(random.below(clients.len())));
            }
            let expired: HashSet<_> = (0..ROOM / 4).map(|_| clients.swap_remove(random.below(clients.len()))).collect();
            let entries: Vec<_> = rig.table().iter().filter(|entry| expired.contains(&of(entry))).collect();
            for Entry { key, mut flow, .. } in entries {
                flow.last_seen_ns = 0;
                rig.set_entry(&key, &flow);
            }
            let swept = rig.datapath().sweep(&mut Tally::default(), false).unwrap();
            assert_eq!((swept.live, swept.removed), (clients.len(), expired.len()));
            assert_has(rig, &clients);
        }
        assert!(next > 4000, "{next} flows");
    });
}

#[test]
fn what_the_programs_remove_makes_room() {
    const ROOM: u16 = 100;
    rig::sized(u32::from(ROOM), |rig| {
        rig.install(&Setup::default());
        let old: Vec<_> = (0..ROOM).map(from).collect();
        old.iter().for_each(|client| drop(rig.request(&request(*client))));
        rig.pass_time(Duration::from_secs(31));
        // Each takes the port of one that has expired, which goes, though nobody sweeps and the table is full.
        let new: Vec<_> = old.iter().map(|old| client(1, Family::of(old.ip()), old.port())).collect();
        new.iter().for_each(|client| drop(rig.request(&request(*client))));
        assert_has(rig, &new);
    });
}

#[test]
fn two_processors_that_enter_flows_at_once_lose_none() {
    // So small that they often want one place; not quite filled, since an attempt that fails counts for a moment.
    const ROOM: u16 = 16;
    const EACH: u16 = 7;
    const TIMES: u16 = 500;
    let seed = Random::seed();
    eprintln!("EGRESS_SEED={seed}");
    let mut random = Random::new(seed);
    rig::sized(u32::from(ROOM), |rig| {
        rig.install(&Setup::default());
        for time in 0..TIMES {
            let clients: Vec<_> = (0..2 * EACH).map(|number| from(2 * EACH * time + number)).collect();
            let frames: Vec<_> = clients.iter().map(|client| request(*client).bytes()).collect();
            let (one, other) = frames.split_at(usize::from(EACH));
            for departure in race(rig, [one, other], &mut random).into_iter().flatten() {
                assert!(goes_on(&departure));
            }
            assert_has(rig, &clients);
            clients.into_iter().for_each(|client| remove(rig, client));
            assert_eq!(rig.table().used(), 0);
        }
    });
}
