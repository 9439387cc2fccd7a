//! External ingress: replies, and nothing that would open something.

use egress_ebpf::contract::{Direction, Side};
use egress_ebpf::tcp;
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::{Family, V4, V6};
use super::forward::forward;
use super::headers::{Headers, Kind, Part, Transport};
use super::packet::{L3, Packet};
use super::request::ether_type;
use super::{Outcome, Scene, flow, icmp, local};

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
    let headers = F::headers(packet, L3)?;
    let mut transport = Transport::read::<F>(packet, &headers, Part::Whole)?;
    if matches!(transport.kind, Kind::LinkControl) {
        return Ok(Verdict::Pass);
    }
    if !packet.is_for_host() || headers.dst.is_multicast() {
        return Err(DropReason::Unsolicited);
    }
    transport.join_fragments(&headers, Side::External, scene)?;
    let flow = if matches!(transport.kind, Kind::IcmpError) {
        match icmp::arriving::<F>(packet, scene, Direction::Reply) {
            Ok(flow) => Some(flow),
            Err(DropReason::IcmpUnmatched) => None,
            Err(reason) => return Err(reason),
        }
    } else {
        scene.work().key = transport.flow_key(&headers, Direction::Reply);
        flow::find(scene, &scene.work().key).map(|flow| {
            flow::touch(packet, scene, flow, transport.tcp_flags);
            flow
        })
    };
    match flow {
        Some(flow) => forward::<F>(packet, scene, &headers, &transport, flow, Direction::Reply),
        None => unsolicited::<F>(packet, scene, &headers, &transport),
    }
}

/// A packet of no flow: only what the pod itself asked for, and what can open nothing, goes up to its stack.
#[inline(always)]
fn unsolicited<F: Family>(packet: &Packet, scene: &Scene, headers: &Headers, transport: &Transport) -> Outcome {
    if local::address_index(scene, Side::External, &headers.dst).is_none() {
        return Err(DropReason::Unsolicited);
    }
    let harmless = match transport.kind {
        // The stack answers with a reset, or the pod's own connection takes it.
        Kind::Tcp => !tcp::opens(transport.tcp_flags),
        Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::OtherIcmp => true,
        _ => false,
    };
    if harmless || local::opened_by_pod::<F>(packet, scene, headers, transport) {
        return Ok(Verdict::Local);
    }
    Err(DropReason::Unsolicited)
}
