//! Cluster ingress: requests.

use egress_ebpf::contract::{Action, Direction, Flow, FlowKey, Mark, RuleKey, RuleValue, Side};
use egress_ebpf::addr::Port;
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::{Family, V4, V6};
use super::headers::{Headers, Kind, Transport};
use super::maps::RULES;
use super::packet::{Ends, Packet};
use super::{Outcome, Scene, flow, local};

/// EtherTypes, network order.
pub(crate) mod ether_type {
    pub(crate) const IPV4: u16 = 0x0800_u16.to_be();
    pub(crate) const IPV6: u16 = 0x86dd_u16.to_be();
}

/// The program.
#[inline(always)]
pub(crate) fn ingress(packet: &mut Packet, scene: &Scene) -> Outcome {
    if packet.is_tagged() || !packet.is_for_host() {
        return Ok(Verdict::Pass);
    }
    forget_forged_mark(packet);
    match packet.ether_type() {
        ether_type::IPV4 => request::<V4>(packet, scene),
        ether_type::IPV6 => request::<V6>(packet, scene),
        _ => Ok(Verdict::Pass),
    }
}

/// Nobody but this datapath may say that a packet is half translated.
#[inline(always)]
pub(crate) fn forget_forged_mark(packet: &mut Packet) {
    if Mark(packet.mark()).direction().is_some() {
        packet.set_mark(0);
    }
}

#[inline(always)]
fn request<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    let headers = F::headers(packet, super::packet::L3)?;
    if headers.dst.is_multicast() {
        return Ok(Verdict::Pass);
    }
    let mut transport = Transport::read::<F>(packet, &headers)?;
    transport.join_fragments(&headers, Side::Cluster, scene)?;
    if matches!(transport.kind, Kind::LinkControl) {
        return Ok(Verdict::Pass);
    }
    let key = &mut scene.work().key;
    *key = transport.flow_key(&headers, Direction::Request);
    let flow = match flow::find(scene, key) {
        Some(flow) => {
            flow::reopen_if_closed(scene, key, flow, transport.tcp_flags);
            flow
        }
        None => match claim::<F>(packet, scene, &headers, &transport, key)? {
            Claim::Translate => flow::open(scene, &transport)?,
            Claim::Not(verdict) => return Ok(verdict),
        },
    };
    translate::<F>(packet, scene, &headers, &transport, key, flow)
}

/// Who a packet of no flow is for.
enum Claim {
    /// A rule's, which is in `WORK` then, as is the index of the router's address that it came to.
    Translate,
    /// Nobody's here.
    Not(Verdict),
}

#[inline(always)]
fn claim<F: Family>(
    packet: &Packet,
    scene: &Scene,
    headers: &Headers,
    transport: &Transport,
    key: &FlowKey,
) -> Result<Claim, DropReason> {
    let Some(router_index) = local::address_index(scene, Side::Cluster, &headers.dst) else {
        return Err(DropReason::ForeignDestination);
    };
    if headers.dst.is_v6_link_local() || local::opened_by_pod::<F>(packet, scene, headers, transport) {
        return Ok(Claim::Not(Verdict::Local));
    }
    let Some(rule) = rule_for::<F>(scene, key) else {
        return Ok(Claim::Not(Verdict::Rejected));
    };
    // Answers to the pod's own pings, and errors about its own packets.
    if rule.action == Action::Local as u8 || matches!(transport.kind, Kind::EchoReply | Kind::IcmpError | Kind::OtherIcmp) {
        return Ok(Claim::Not(Verdict::Local));
    }
    let work = scene.work();
    work.rule = *rule;
    work.router_index = router_index;
    Ok(Claim::Translate)
}

/// The rule for a port, else the fallback.
#[inline(always)]
fn rule_for<F: Family>(scene: &Scene, key: &FlowKey) -> Option<&'static RuleValue> {
    rule_at::<F>(scene, key.protocol, key.dst_port).or_else(|| rule_at::<F>(scene, 0, Port::NONE))
}

#[inline(always)]
fn rule_at<F: Family>(scene: &Scene, protocol: u8, port: Port) -> Option<&'static RuleValue> {
    let key = RuleKey { generation: scene.generation, family: F::VERSION, protocol, pad: 0, port, pad2: 0 };
    // SAFETY: the map is not preallocated: an entry is freed only after every program that may see it has ended.
    unsafe { RULES.get(&key) }
}

/// Slow path: the destination now, the source at egress.
#[inline(always)]
fn translate<F: Family>(
    packet: &mut Packet,
    scene: &Scene,
    headers: &Headers,
    transport: &Transport,
    key: &FlowKey,
    flow: &mut Flow,
) -> Outcome {
    flow::touch(scene, key, flow, packet.len(), transport.tcp_flags);
    let ends = Ends {
        src: headers.src,
        dst: flow.to_dst,
        src_port: transport.src_port,
        dst_port: flow.to_dst_port,
    };
    let mark = flow.mark;
    packet.rewrite::<F>(scene.config, headers, transport, &ends)?;
    packet.set_mark(mark);
    Ok(Verdict::Request)
}
