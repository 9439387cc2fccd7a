//! What must hold for any bytes at all: a declared verdict, and nothing out to the outside but from the router's own
//! addresses.

use std::net::SocketAddr;

use egress_ebpf::addr::Port;
use egress_ebpf::contract::{Direction, Mark};
use egress_ebpf::verdict::Hook;
use egress_lab::Family;
use egress_lab::address::{self, Host, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_user::datapath::Tally;

use crate::frame::{
    Body, CLUSTER_MAC, ETHERNET, EXTERNAL_MAC, Frame, octets, options_header, protocol, routing_header,
};
use crate::rig::{
    self, EXTERNAL_LINK_LOCAL, Rig, Setup, TCP_KEPT, TCP_MOVED, UDP_KEPT, UDP_MOVED, goes_on, is_redirected,
};

/// Frames of the random run.
const FRAMES: u32 = 20_000;

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

/// xorshift64*, enough to wander with.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 40) as u8
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
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
            Mark::new(direction, index, Port::new(random.next() as u16)).0
        }
        _ => {
            let mark = random.next() as u32;
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

#[test]
fn any_bytes_get_a_declared_verdict_and_nothing_leaks() {
    let seed = std::env::var("EGRESS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(seed_of_now);
    for (family, redirect) in [(Family::V4, false), (Family::V6, false), (Family::V4, true), (Family::V6, true)] {
        let setup = Setup::fallback(SERVER_2.ip(family)).settings(|settings| settings.redirect = redirect);
        rig::with(&setup, |rig| {
            let mut random = Random(seed ^ u64::from(redirect) << 32);
            let before = rig.counted_packets();
            let mut runs = 0;
            for number in 0..FRAMES / 4 {
                let bytes = frame(&mut random);
                let mark = mark(&mut random);
                let case = std::panic::AssertUnwindSafe(|| {
                    Hook::ALL.iter().map(|hook| follow(rig, *hook, &bytes, mark)).sum::<u64>()
                });
                match std::panic::catch_unwind(case) {
                    Ok(more) => runs += more,
                    Err(panic) => {
                        eprintln!("EGRESS_SEED={seed} frame {number} mark {mark:#x}: {bytes:02x?}");
                        std::panic::resume_unwind(panic);
                    }
                }
                // Time passes, so that flows expire, and one that does not is met by later packets.
                if number % 1000 == 999 {
                    rig.pass_time(std::time::Duration::from_secs(20));
                }
            }
            // A verdict is what is counted, and every run was counted once.
            assert_eq!(rig.counted_packets() - before, runs, "EGRESS_SEED={seed}");
            rig.datapath().sweep(&mut Tally::default()).unwrap();
        });
    }
    eprintln!("EGRESS_SEED={seed}");
}

fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    (now.as_nanos() as u64) | 1
}
