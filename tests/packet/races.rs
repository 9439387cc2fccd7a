//! Two packets of one new flow, on two processors at once: what comes of it is one flow, whoever was first.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use egress_ebpf::contract::{Direction, FlowKey};
use egress_ebpf::verdict::Hook;
use egress_lab::Family;
use egress_lab::address::ROUTER;
use egress_lab::processor::Core;
use egress_lab::random::Random;
use egress_user::datapath::Departure;

use crate::frame::{Body, Frame, flag};
use crate::rig::{self, Rig, Setup, TCP_MOVED, UDP_MOVED, at, client, goes_on};

/// How many flows two packets meet in before the table is emptied, and how often that is done.
const FLOWS: u16 = 200;
const BATCHES: u16 = 10;
/// A packet starts up to so many turns of a loop after the other: about as many as opening a flow takes.
const LATENESS: usize = 40;

fn request(number: u8, family: Family, port: u16, body: &Body) -> Frame {
    let to = if *body == Body::Udp { UDP_MOVED } else { TCP_MOVED };
    Frame::request(client(number, family, port), at(ROUTER, family, to), body.clone())
}

/// Gives frames to two processors, as many to each, the first ones at once, and so on. What becomes of each pair.
pub(crate) fn race(rig: &Rig, frames: [&[Vec<u8>]; 2], random: &mut Random) -> Vec<[Departure; 2]> {
    let arrived = AtomicUsize::new(0);
    let run = |core: Core, frames: &[Vec<u8>], mut random: Random| {
        core.stay().unwrap();
        let meet = |(number, frame): (usize, &Vec<u8>)| {
            let late = random.below(LATENESS);
            arrived.fetch_add(1, Ordering::AcqRel);
            while arrived.load(Ordering::Acquire) < 2 * (number + 1) {
                spin_loop();
            }
            for _ in 0..late {
                spin_loop();
            }
            rig.feed(Hook::ClusterIngress, frame, 0)
        };
        frames.iter().enumerate().map(meet).collect::<Vec<_>>()
    };
    let [one, other] = Core::two().unwrap().map(|core| (core, Random::new(random.number())));
    thread::scope(|scope| {
        let other = scope.spawn(|| run(other.0, frames[1], other.1));
        // Not on this thread, which is to stay free.
        let one = scope.spawn(|| run(one.0, frames[0], one.1)).join().unwrap();
        one.into_iter().zip(other.join().unwrap()).map(|(one, other)| [one, other]).collect()
    })
}

/// The flows that searched for a port.
fn searches(rig: &Rig) -> u64 {
    rig.reader().port_tries().unwrap().iter().sum()
}

fn empty(rig: &mut Rig) {
    for (key, _) in rig.entries() {
        rig.remove_entry(&key);
    }
}

/// Has two packets meet in flow after flow, of a table in which `prepare` has made so many entries of other flows. Returns how
/// often a flow searched for a port.
#[track_caller]
fn meet(rig: &mut Rig, family: Family, body: &Body, mut prepare: impl FnMut(&mut Rig, &[u16]) -> usize) -> u64 {
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let mut searched = 0;
    for batch in 0..BATCHES {
        let ports = (0..FLOWS).map(|number| 20_000 + batch * FLOWS + number).collect::<Vec<_>>();
        let others = prepare(rig, &ports);
        let frames = ports.iter().map(|port| request(0, family, *port, body).bytes()).collect::<Vec<_>>();
        let before = searches(rig);
        let departures = race(rig, [&frames, &frames], &mut random);
        searched += searches(rig) - before;
        // One pair a flow, no half of one, and no port that is held for nobody.
        rig.assert_paired();
        let entries = rig.entries();
        assert_eq!(entries.len(), others + 2 * usize::from(FLOWS), "EGRESS_SEED={seed}");
        for (port, pair) in ports.iter().zip(departures) {
            let from = client(0, family, *port);
            let is_from =
                |key: &FlowKey| key.is_request() && key.src == from.ip().into() && key.src_port.get() == *port;
            let entry = entries.iter().find(|(key, _)| is_from(key));
            let (_, flow) = entry.unwrap_or_else(|| panic!("no flow of port {port}, EGRESS_SEED={seed}"));
            for departure in pair {
                assert!(goes_on(&departure), "EGRESS_SEED={seed}");
                assert_eq!(departure.mark, flow.mark(Direction::Request).0, "the port of the flow, EGRESS_SEED={seed}");
            }
        }
        empty(rig);
    }
    searched
}

/// Checks that some flows were opened by both processors: else none of the packets met, and nothing is shown.
#[track_caller]
fn assert_met(searched: u64) {
    assert!(searched > u64::from(FLOWS) * u64::from(BATCHES), "no two packets met");
}

const BODIES: [Body; 2] = [Body::Tcp(flag::SYN), Body::Udp];

#[test]
fn two_processors_that_open_one_flow_make_one() {
    rig::both(|rig, family| {
        for body in BODIES {
            assert_met(meet(rig, family, &body, |_, _| 0));
        }
    });
}

#[test]
fn two_processors_that_draw_a_port_for_one_flow_keep_one() {
    rig::both(|rig, family| {
        for body in BODIES {
            // Each port is somebody else's, so that each processor finds another one.
            assert_met(meet(rig, family, &body, |rig, ports| {
                for port in ports {
                    rig.feed(Hook::ClusterIngress, &request(1, family, *port, &body).bytes(), 0);
                }
                2 * ports.len()
            }));
        }
    });
}

#[test]
fn two_processors_that_find_one_flow_expired_make_one() {
    let setup = Setup::default().settings(|settings| settings.timeouts_s = [1; 16]);
    for family in Family::ALL {
        rig::with(&setup, |rig| {
            let searched = meet(rig, family, &Body::Udp, |rig, ports| {
                for port in ports {
                    rig.feed(Hook::ClusterIngress, &request(0, family, *port, &Body::Udp).bytes(), 0);
                }
                rig.pass_time(Duration::from_secs(2));
                0
            });
            assert_eq!(searched, 0, "an expired flow is used again");
        });
    }
}
