//! External ingress: replies, and nothing that would open something.

use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Direction, Flow, Side};
use egress_ebpf::tcp;
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::{Family, V4, V6};
use super::forward::forward;
use super::packet::Packet;
use super::parsed::{Kind, join_fragments, parse};
use super::request::ether_type;
use super::{Outcome, Scene, established, flow, icmp, local};

/// The program.
#[inline(always)]
pub(crate) fn ingress(packet: &mut Packet, scene: &Scene) -> Outcome {
    if packet.is_tagged() {
        return Ok(Verdict::Pass);
    }
    packet.clear_mark();
    match packet.ether_type() {
        ether_type::IPV4 => reply::<V4>(packet, scene),
        ether_type::IPV6 => reply::<V6>(packet, scene),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn reply<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    if let Some(outcome) = established::forward::<F, _>(packet, scene, Direction::Reply) {
        return outcome;
    }
    let parsed = parse::<F>(packet)?;
    if parsed.kind == Kind::LinkControl {
        return Ok(Verdict::Pass);
    }
    if !packet.is_for_host() || parsed.dst.is_multicast() {
        return Err(DropReason::Unsolicited);
    }
    join_fragments(parsed, Side::External)?;
    match flow_of::<F>(packet, scene)? {
        Some(flow) => forward::<F>(packet, scene, flow, Direction::Reply),
        None => unsolicited::<F>(packet, scene),
    }
}

#[inline(always)]
fn flow_of<F: Family>(packet: &Packet, scene: &Scene) -> Result<Option<&'static mut Flow>, DropReason> {
    let work = scene.work();
    work.neighbour = Addr::UNSPECIFIED;
    if work.parsed.kind == Kind::IcmpError {
        return match icmp::arriving::<F>(packet, scene, Direction::Reply) {
            Ok(flow) => Ok(Some(flow)),
            Err(DropReason::IcmpUnmatched) => Ok(None),
            Err(reason) => Err(reason),
        };
    }
    work.key = work.parsed.flow_key(Direction::Reply);
    let Some(flow) = flow::find(scene, &scene.work().key) else { return Ok(None) };
    flow::touch(packet, scene, flow);
    Ok(Some(flow))
}

/// A packet of no flow: only what the pod itself asked for, and what can open nothing, goes up to its stack.
#[inline(always)]
fn unsolicited<F: Family>(packet: &Packet, scene: &Scene) -> Outcome {
    let parsed = &scene.work().parsed;
    if local::address_index(scene, Side::External, &parsed.dst).is_none() {
        return Err(DropReason::Unsolicited);
    }
    let harmless = match parsed.kind {
        // The stack answers with a reset, or the pod's own connection takes it.
        Kind::Tcp => !tcp::opens(parsed.flags),
        Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::OtherIcmp => true,
        // A later fragment: without its first one, which was looked at, the stack makes nothing of it.
        Kind::Absent => true,
        _ => false,
    };
    if harmless || local::opened_by_pod::<F>(packet) {
        return Ok(Verdict::Local);
    }
    Err(DropReason::Unsolicited)
}
