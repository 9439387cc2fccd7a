//! The short way: a packet of an established flow, about which there is nothing to decide.
//!
//! Most packets are plain TCP or UDP of a flow that is alive and whose next hop is known, and change nothing in it but its
//! state and its counters. They are read and written where they lie: every call that is saved counts, since on many processors each return
//! costs as much as all the arithmetic here. A packet that differs in any way is left as it is, and takes the way through
//! everything, which alone decides.

use egress_ebpf::contract::{Direction, Flow, HopKind, config_flag};
use egress_ebpf::tcp::{self, flag, seen};
use egress_ebpf::timeout::protocol;

use super::family::Family;
use super::forward::{out_of, send_on};
use super::packet::{Ends, Head, L3, Packet};
use super::parsed::{Fragment, Kind, Parsed};
use super::{Outcome, Scene, flow};

/// Translates the packet and sends it on; `None` if it is not of that kind.
#[inline(always)]
pub(crate) fn forward<F: Family>(packet: &mut Packet, scene: &Scene, direction: Direction) -> Option<Outcome> {
    if scene.config.flags & config_flag::REDIRECT == 0 || !packet.is_for_host() {
        return None;
    }
    let work = scene.work();
    let head = read::<F>(packet, &mut work.parsed)?;
    work.key = work.parsed.flow_key(direction);
    let flow = flow::entry(&work.key)?;
    let parsed = &work.parsed;
    let seen = settled(scene, parsed, flow)?;
    if !packet.fits(scene.config, out_of(scene.config, direction)) {
        return None;
    }
    flow::note(scene, flow, seen);
    flow.packets += 1;
    flow.bytes += u64::from(packet.len());
    work.ends = Ends { src: flow.to_src, dst: flow.to_dst, src_port: flow.to_src_port, dst_port: flow.to_dst_port };
    let rewritten = packet.rewrite_in_place::<F>(scene.config, &head, &work.parsed, &work.ends);
    Some(rewritten.and_then(|()| send_on::<F>(packet, scene, flow, direction, None)))
}

/// Reads a packet that has nothing between its IP header and its transport header, and a hop left.
#[inline(always)]
fn read<F: Family>(packet: &Packet, parsed: &mut Parsed) -> Option<Head> {
    let l4 = L3 + F::PLAIN;
    let mut head = packet.head(l4 + 8)?;
    parsed.l3 = L3;
    F::read_fixed(&head.read(L3)?, parsed).ok()?;
    if !parsed.is_sound || parsed.l4 != l4 || parsed.fragment != Fragment::Whole || parsed.ttl <= 1 {
        return None;
    }
    match parsed.protocol {
        protocol::TCP => {
            head = packet.head(l4 + 20)?;
            parsed.set_tcp();
            parsed.flags = head.read(l4 + 13)?;
        }
        protocol::UDP => {
            parsed.set_udp();
            parsed.flags = flag::ACK;
        }
        _ => return None,
    }
    parsed.has_ports = true;
    [parsed.src_port, parsed.dst_port] = head.read(l4)?;
    parsed.has_length(packet.len()).then_some(head)
}

/// What the flow has seen with this packet, if it is a flow that is redirected, alive, and sure of its next hop.
#[inline(always)]
fn settled(scene: &Scene, parsed: &Parsed, flow: &Flow) -> Option<u8> {
    let seen = if parsed.kind == Kind::Tcp { tcp::observe(flow.seen, parsed.flags) } else { flow.seen | seen::ANY };
    let opens = parsed.kind == Kind::Tcp && tcp::opens(parsed.flags);
    let settled = flow.hop_kind != HopKind::Kernel as u8 && !opens && flow::is_young(scene, flow);
    (settled && !flow::is_due(scene, flow)).then_some(seen)
}
