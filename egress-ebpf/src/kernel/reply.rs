//! External ingress: replies, and nothing that would open something.

use egress_ebpf::contract::{Direction, Side};
use egress_ebpf::tcp;
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::{Family, V4, V6};
use super::headers::{Headers, Kind, Transport};
use super::packet::{Ends, Packet};
use super::request::{ether_type, forget_forged_mark};
use super::{Outcome, Scene, flow, local};

/// The program.
#[inline(always)]
pub(crate) fn ingress(packet: &mut Packet, scene: &Scene) -> Outcome {
    if packet.is_tagged() {
        return Ok(Verdict::Pass);
    }
    forget_forged_mark(packet);
    match packet.ether_type() {
        ether_type::IPV4 => reply::<V4>(packet, scene),
        ether_type::IPV6 => reply::<V6>(packet, scene),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn reply<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    let headers = F::headers(packet, super::packet::L3)?;
    let mut transport = Transport::read::<F>(packet, &headers)?;
    if matches!(transport.kind, Kind::LinkControl) {
        return Ok(Verdict::Pass);
    }
    if !packet.is_for_host() || headers.dst.is_multicast() {
        return Err(DropReason::Unsolicited);
    }
    transport.join_fragments(&headers, Side::External, scene)?;
    let key = &mut scene.work().key;
    *key = transport.flow_key(&headers, Direction::Reply);
    let Some(flow) = flow::find(scene, key) else {
        return unsolicited::<F>(packet, scene, &headers, &transport);
    };
    flow::touch(scene, key, flow, packet.len(), transport.tcp_flags);
    // Slow path: the destination now, the source at egress.
    let ends = Ends {
        src: headers.src,
        dst: flow.to_dst,
        src_port: transport.src_port,
        dst_port: flow.to_dst_port,
    };
    let mark = flow.mark;
    packet.rewrite::<F>(scene.config, &headers, &transport, &ends)?;
    packet.set_mark(mark);
    Ok(Verdict::Reply)
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
