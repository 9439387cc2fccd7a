//! What must hold for any bytes at all: a declared verdict, and nothing out to the outside but from the router's own
//! addresses.

use std::collections::HashSet;
use std::io::{Write as _, stderr};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::{Duration, Instant};

use egress_ebpf::addr::Port;
use egress_ebpf::contract::{Direction, Mark};
use egress_ebpf::verdict::{DropReason, Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{self, Host, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::random::Random;
use egress_user::datapath::Tally;

use crate::frame::{
    Body, CLUSTER_MAC, ETHERNET, EXTERNAL_MAC, Frame, octets, options_header, protocol, routing_header, seal,
};
use crate::rig::{
    self, Counters, EXTERNAL_LINK_LOCAL, Rig, Setup, TCP_KEPT, TCP_MOVED, UDP_KEPT, UDP_MOVED, goes_on, is_left,
    is_redirected,
};

/// Frames of the random run, if EGRESS_FRAMES does not say how many.
const FRAMES: u64 = 1_000_000;

/// Checks that a frame which left the external interface has a source that may: an own address, or, for neighbour and
/// listener discovery, none or a link-local one. Reads the bytes by itself.
#[track_caller]
fn assert_no_leak(frame: &[u8]) {
    let ether_type = u16::from_be_bytes([frame[12], frame[13]]);
    let (source, own) = match ether_type {
        0x0800 => (&frame[ETHERNET + 12..ETHERNET + 16], octets(SNAT.ip(Family::V4))),
        0x86dd => (&frame[ETHERNET + 8..ETHERNET + 24], octets(SNAT.ip(Family::V6))),
        _ => return,
    };
    if source == own || source == octets(EXTERNAL_LINK_LOCAL.parse().unwrap()) {
        return;
    }
    let link_local = source.len() == 16 && (source == [0; 16] || source[0] == 0xfe && source[1] & 0xc0 == 0x80);
    assert!(link_local && is_link_control(frame), "leaked {frame:02x?}");
}

/// Whether an IPv6 packet is ICMPv6 of the link's own kinds, by a walk of its headers.
fn is_link_control(frame: &[u8]) -> bool {
    let (mut next, mut at) = (frame[ETHERNET + 6], ETHERNET + 40);
    while [protocol::HOP_BY_HOP, protocol::ROUTING, protocol::DESTINATION, protocol::FRAGMENT].contains(&next) {
        let eights = if next == protocol::FRAGMENT { 0 } else { usize::from(frame[at + 1]) };
        next = frame[at];
        at += 8 + 8 * eights;
    }
    next == protocol::ICMPV6 && matches!(frame[at], 130..=137 | 143)
}

/// A packet that means something to the router, or nearly.
fn sensible(random: &mut Random) -> Frame {
    let family = random.pick(&Family::ALL);
    let hosts: [Host; 8] = [client(0), client(1), client(2), ROUTER, SNAT, SERVER_1, SERVER_2, address::ON_LINK];
    let ports = [0, 1, TCP_MOVED, TCP_KEPT, UDP_MOVED, UDP_KEPT, 5001, 8080, 40_000, 40_001, 65_535];
    let end = |random: &mut Random| SocketAddr::new(random.pick(&hosts).ip(family), random.pick(&ports));
    let body = match random.below(8) {
        0 | 1 => Body::Tcp(random.byte() & 0x3f),
        2 | 3 => Body::Udp,
        4 => Body::EchoRequest,
        5 => Body::EchoReply,
        6 => Body::Icmp(random.byte()),
        _ => Body::Other(random.byte()),
    };
    let (mut src, mut dst) = (end(random), end(random));
    if random.chance(2) {
        // A request or a reply, plainly.
        let out = random.chance(2);
        let ip = |host: Host| host.ip(family);
        src.set_ip(if out { ip(client(0)) } else { ip(SERVER_1) });
        dst.set_ip(if out { ip(ROUTER) } else { ip(SNAT) });
    }
    let mut frame = Frame::request(src, dst, body);
    frame.link_dst = random.pick(&[CLUSTER_MAC, EXTERNAL_MAC]);
    let len = random.below(64) + 4;
    frame.payload = random.bytes(len);
    if matches!(frame.body, Body::Icmp(_)) && random.chance(2) {
        let quoted = sensible_plain(random, family).bytes()[ETHERNET..].to_vec();
        frame.payload = [vec![0; 4], quoted].concat();
    }
    frame.ttl = random.byte();
    if family == Family::V6 {
        for _ in 0..random.below(4) {
            let eights = random.below(2) as u8;
            let header = match random.below(3) {
                0 => options_header(protocol::HOP_BY_HOP, eights),
                1 => options_header(protocol::DESTINATION, eights),
                _ => routing_header(random.below(2) as u8),
            };
            frame.extensions.push(header);
        }
    } else if random.chance(4) {
        frame.options = vec![1; 4 * random.below(11)];
    }
    if random.chance(4) {
        let (first, later) = frame.parts(random.below(4) as u32, 8 * (random.below(4) + 1));
        frame = if random.chance(2) { first } else { later };
    }
    frame
}

fn sensible_plain(random: &mut Random, family: Family) -> Frame {
    let server = SocketAddr::new(SERVER_1.ip(family), 8080);
    let body = random.pick(&[Body::Tcp(0x10), Body::Udp, Body::EchoReply, Body::EchoRequest]);
    Frame::request(server, SocketAddr::new(random.pick(&[client(0), SNAT]).ip(family), 40_000), body)
}

/// Bytes that are a packet, nearly one, or none; as many as the kernel asks for to try a program on them.
fn frame(random: &mut Random) -> Vec<u8> {
    let mut bytes = any_frame(random);
    let least = match bytes[12..14] {
        [0x08, 0x00] => ETHERNET + 20,
        [0x86, 0xdd] => ETHERNET + 40,
        _ => ETHERNET + 1,
    };
    while bytes.len() < least {
        bytes.push(random.byte());
    }
    bytes
}

fn any_frame(random: &mut Random) -> Vec<u8> {
    if random.chance(10) {
        let len = ETHERNET + random.below(150);
        let mut bytes = random.bytes(len);
        let ether_type: [u8; 2] =
            random.pick(&[[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00], [bytes[12], bytes[13]]]);
        bytes[12..14].copy_from_slice(&ether_type);
        bytes[..6].copy_from_slice(&random.pick(&[CLUSTER_MAC, EXTERNAL_MAC]));
        return bytes;
    }
    let mut bytes = sensible(random).bytes();
    if random.chance(2) {
        for _ in 0..random.below(4) {
            // Mostly in the headers.
            let limit = if random.chance(2) { bytes.len() } else { bytes.len().min(64) };
            let at = random.below(limit);
            bytes[at] = if random.chance(2) { random.byte() } else { bytes[at] ^ (1 << random.below(8)) };
        }
    }
    // Else little of what IPv4 headers may say would be looked at.
    if random.chance(2) {
        seal(&mut bytes);
    }
    if random.chance(8) {
        bytes.truncate(ETHERNET + random.below(bytes.len() - ETHERNET + 1));
    }
    if random.chance(16) {
        let len = random.below(40);
        bytes.extend(random.bytes(len));
    }
    bytes
}

/// A mark that a frame may come with: none, one of ours, anybody's. That of a packet which was translated whole is not among
/// them: the guard takes it at its word.
fn mark(random: &mut Random) -> u32 {
    match random.below(4) {
        0 | 1 => 0,
        2 => {
            let direction = random.pick(&[Direction::Request, Direction::Reply]);
            let index = if random.chance(4) { random.byte() } else { random.below(4) as u8 };
            Mark::new(direction, index, Port::new(random.word())).0
        }
        _ => {
            let mark = random.long();
            if Mark(mark) == Mark::DONE { 0 } else { mark }
        }
    }
}

/// Runs one frame through a hook, and what it lets through further on. Returns how many runs that made.
pub(crate) fn follow(rig: &mut Rig, hook: Hook, bytes: &[u8], mark: u32) -> u64 {
    let run = rig.feed(hook, bytes, mark);
    assert_eq!(run.frame.len(), bytes.len());
    let mut runs = 1;
    if !goes_on(&run) {
        return runs;
    }
    match hook {
        Hook::ExternalEgress => assert_no_leak(&run.frame),
        Hook::ClusterEgress => {}
        Hook::ClusterIngress if is_redirected(&run) => runs += follow(rig, Hook::ExternalEgress, &run.frame, run.mark),
        Hook::ExternalIngress if is_redirected(&run) => runs += follow(rig, Hook::ClusterEgress, &run.frame, run.mark),
        // The kernel routes what ingress lets through: anywhere, for all we know.
        Hook::ClusterIngress | Hook::ExternalIngress => {
            runs += follow(rig, Hook::ExternalEgress, &run.frame, run.mark);
            runs += follow(rig, Hook::ClusterEgress, &run.frame, run.mark);
        }
    }
    runs
}

/// Runs one frame through the XDP program of an ingress hook. Returns whether that took it; if not, it is as it came.
fn accelerate(rig: &mut Rig, hook: Hook, bytes: &[u8]) -> bool {
    let run = rig.feed_xdp(hook, bytes);
    assert_eq!(run.frame.len(), bytes.len());
    if is_left(&run) {
        assert_eq!(run.frame, bytes);
        return false;
    }
    if hook == Hook::ClusterIngress {
        assert_no_leak(&run.frame);
    }
    true
}

#[test]
fn any_bytes_get_a_declared_verdict_and_nothing_leaks() {
    let seed = Random::seed();
    let frames = rig::frames(FRAMES);
    let started = Instant::now();
    let worlds = [(Family::V4, false), (Family::V6, false), (Family::V4, true), (Family::V6, true)];
    let wandered: Vec<(u64, HashSet<&str>)> = thread::scope(|scope| {
        let wander = |(number, (family, redirect))| {
            let setup = Setup::fallback(SERVER_2.ip(family)).settings(|settings| settings.redirect = redirect);
            let mut wandered = (0, HashSet::new());
            rig::with(&setup, |rig| wandered = wander(rig, seed, number, frames / 4));
            wandered
        };
        let threads: Vec<_> = (0..4).zip(worlds).map(|world| scope.spawn(move || wander(world))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let runs: u64 = wandered.iter().map(|(runs, _)| runs).sum();
    let met: HashSet<_> = wandered.iter().flat_map(|(_, met)| met).collect();
    let took = started.elapsed().as_secs_f64();
    let rate = frames as f64 / took;
    // Past the harness, which would show it only when something fails.
    writeln!(stderr(), "EGRESS_SEED={seed}: {frames} frames, {runs} runs, {took:.0} s, {rate:.0} frames/s").unwrap();
    // What needs more than a frame: a full table, a failing kernel, an address or settings taken away. And what random
    // frames have once in a million, which has tests of its own: parts of SCTP, and errors of a real kernel's. Everything else they have tens of times at least.
    let beyond = [DropReason::TableFull, DropReason::KernelCall, DropReason::NoSourceAddress, DropReason::Unconfigured];
    let rare = [DropReason::ChecksumElsewhere.name(), Verdict::KernelError.name()];
    let within = DropReason::ALL.iter().filter(|reason| !beyond.contains(reason)).map(|reason| reason.name());
    let outcomes = Verdict::ALL.iter().map(|verdict| verdict.name()).chain(within);
    let unmet: Vec<_> = outcomes.filter(|name| !rare.contains(name) && !met.contains(name)).collect();
    assert!(frames < FRAMES || unmet.is_empty(), "outcomes that no frame had: {unmet:?}; EGRESS_SEED={seed}");
}

/// Gives so many frames to one program each, and what that lets through to those further on. Returns how many runs that made, and
/// the outcomes that were met.
fn wander(rig: &mut Rig, seed: u64, number: u64, frames: u64) -> (u64, HashSet<&'static str>) {
    let mut random = Random::new(seed.wrapping_add(number));
    let before = rig.counters();
    let mut runs = 0;
    for at in 0..frames {
        let bytes = frame(&mut random);
        let mark = mark(&mut random);
        // Mostly where it says that it arrives.
        let hook = match bytes[..6] == EXTERNAL_MAC {
            _ if random.chance(4) => random.pick(&[Hook::ClusterEgress, Hook::ExternalEgress]),
            is_outside if is_outside != random.chance(16) => Hook::ExternalIngress,
            _ => Hook::ClusterIngress,
        };
        // A frame meets the XDP program first, where there is one.
        let xdp = !hook.is_egress() && random.chance(2);
        let case = AssertUnwindSafe(|| match if xdp { accelerate(rig, hook, &bytes) } else { false } {
            true => 1,
            false => follow(rig, hook, &bytes, mark),
        });
        match catch_unwind(case) {
            Ok(more) => runs += more,
            Err(panic) => {
                eprintln!("EGRESS_SEED={seed} world {number} frame {at} {hook:?} mark {mark:#x}: {bytes:02x?}");
                resume_unwind(panic);
            }
        }
        // Time passes, so that flows expire, and one that does not is met by later packets.
        if at % 4000 == 3999 {
            rig.pass_time(Duration::from_secs(20));
        }
        if at % 8000 == 7999 {
            rig.datapath().sweep(&mut Tally::default(), false).unwrap();
        }
    }
    // A verdict is what is counted, and every run was counted once.
    let counted = |counters: &Counters| counters.values().map(|(packets, _)| packets).sum::<u64>();
    let now = rig.counters();
    assert_eq!(counted(&now) - counted(&before), runs, "EGRESS_SEED={seed}");
    let moved = now.into_iter().filter(|(name, count)| before.get(name) != Some(count));
    (runs, moved.map(|((_, outcome), _)| outcome).collect())
}
