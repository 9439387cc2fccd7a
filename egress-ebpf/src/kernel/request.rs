//! Cluster ingress: requests.

use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Action, Direction, Flow, FlowKey, RuleKey, RuleValue, Side};
use egress_ebpf::event::Why;
use egress_ebpf::verdict::{DropReason, Hook, Verdict};

use super::family::{Family, V4, V6};
use super::forward::forward;
use super::maps::RULES;
use super::packet::Packet;
use super::parsed::{Kind, join_fragments, parse};
use super::{Outcome, Scene, established, event, flow, icmp, local, table};

/// EtherTypes, network order.
pub(crate) mod ether_type {
    pub(crate) const IPV4: u16 = 0x0800_u16.to_be();
    pub(crate) const ARP: u16 = 0x0806_u16.to_be();
    pub(crate) const IPV6: u16 = 0x86dd_u16.to_be();
}

/// The program.
#[inline(always)]
pub(crate) fn ingress(packet: &mut Packet, scene: &Scene) -> Outcome {
    if packet.is_tagged() || !packet.is_for_host() {
        return Ok(Verdict::Pass);
    }
    packet.clear_mark();
    match packet.ether_type() {
        ether_type::IPV4 => request::<V4>(packet, scene),
        ether_type::IPV6 => request::<V6>(packet, scene),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn request<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    if let Some(outcome) = established::forward::<F, _>(packet, scene, Direction::Request) {
        return outcome;
    }
    let outcome = decide::<F>(packet, scene);
    event::decided(packet, Hook::ClusterIngress, &outcome);
    outcome
}

#[inline(always)]
fn decide<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    scene.work().why = Why::Outcome;
    let parsed = parse::<F>(packet)?;
    if parsed.dst.is_multicast() || parsed.kind == Kind::LinkControl {
        return Ok(Verdict::Pass);
    }
    join_fragments(parsed, Side::Cluster)?;
    match flow_of::<F>(packet, scene)? {
        Claim::Flow(flow) => forward::<F>(packet, scene, flow, Direction::Request),
        Claim::Not(verdict) => Ok(verdict),
    }
}

/// The flow of the packet, which it may be the first of.
#[inline(always)]
fn flow_of<F: Family>(packet: &Packet, scene: &Scene) -> Result<Claim, DropReason> {
    let work = scene.work();
    work.neighbour = Addr::UNSPECIFIED;
    if work.parsed.kind == Kind::IcmpError {
        return icmp_error::<F>(packet, scene);
    }
    work.key = work.parsed.flow_key(Direction::Request);
    if flow::opens(&work.parsed) {
        fetch_flow();
    }
    let flow = match flow::find(scene, &scene.work().key) {
        Some(flow) => {
            scene.work().why = Why::KnownFlow;
            flow::reopen_if_closed(scene, flow);
            flow
        }
        None => match claim::<F>(packet, scene)? {
            None => {
                scene.work().why = Why::NewFlow;
                flow::open(scene)?
            }
            Some(verdict) => return Ok(Claim::Not(verdict)),
        },
    };
    flow::touch(packet, scene, flow);
    Ok(Claim::Flow(flow))
}

/// An error about a reply goes to the destination that sent it; any other is about the pod's own packets.
#[inline(always)]
fn icmp_error<F: Family>(packet: &Packet, scene: &Scene) -> Result<Claim, DropReason> {
    match icmp::arriving::<F>(packet, scene, Direction::Request) {
        Ok(flow) => {
            scene.work().why = Why::ErrorOfFlow;
            Ok(Claim::Flow(flow))
        }
        Err(DropReason::IcmpUnmatched) => match local::address_index(scene, Side::Cluster, &scene.work().parsed.dst) {
            Some(_) => Ok(Claim::Not(Verdict::Local)),
            None => Err(DropReason::ForeignDestination),
        },
        Err(reason) => Err(reason),
    }
}

/// Whose a packet is.
enum Claim {
    /// A flow's.
    Flow(&'static mut Flow),
    /// None that is translated.
    Not(Verdict),
}

/// Who a packet of no flow is for. A rule that claims it is then in `WORK`, as is the index of the router's address that it
/// came to.
#[inline(always)]
fn claim<F: Family>(packet: &Packet, scene: &Scene) -> Result<Option<Verdict>, DropReason> {
    let parsed = &scene.work().parsed;
    let Some(router_index) = local::address_index(scene, Side::Cluster, &parsed.dst) else {
        return Err(DropReason::ForeignDestination);
    };
    // A later fragment of no flow goes where its first one went, which no rule claimed either.
    let follows = parsed.kind == Kind::Absent;
    if follows || parsed.dst.is_v6_link_local() {
        return Ok(Some(local(scene, Why::Harmless)));
    }
    if local::opened_by_pod::<F>(packet) {
        return Ok(Some(local(scene, Why::PodSocket)));
    }
    let Some(rule) = rule_for(scene, &scene.work().key) else {
        return Ok(Some(Verdict::Rejected));
    };
    if rule.action == Action::Local as u8 {
        return Ok(Some(local(scene, Why::LocalPort)));
    }
    // Answers to the pod's own pings, and what no host forwards.
    if matches!(parsed.kind, Kind::EchoReply | Kind::OtherIcmp) {
        return Ok(Some(local(scene, Why::Harmless)));
    }
    let work = scene.work();
    work.rule = *rule;
    work.router_index = router_index;
    Ok(None)
}

#[inline(always)]
fn local(scene: &Scene, why: Why) -> Verdict {
    scene.work().why = why;
    Verdict::Local
}

/// Has the processor fetch both entries of the flow that `WORK`'s packet most likely belongs to, or begins: one wait for memory
/// instead of two, which are far from every cache in a large table. It is a guess: the flow may have another port.
// A global BPF function for the verifier, and for its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fetch_flow() -> u32 {
    let Some(scene) = super::scene() else { return 1 };
    let work = scene.work();
    let Some(rule) = rule_for(&scene, &work.key) else { return 1 };
    let Some((source, _)) = flow::source_for(&scene, &work.key.src) else { return 1 };
    work.reply_key = rule.reply_key(&work.key, source);
    table::fetch(scene.shape, &work.reply_key);
    table::fetch(scene.shape, &work.key);
    0
}

/// The rule for a port, else the fallback.
#[inline(always)]
fn rule_for(scene: &Scene, key: &FlowKey) -> Option<&'static RuleValue> {
    rule_at(scene, key, key.protocol, key.dst_port).or_else(|| rule_at(scene, key, 0, Port::NONE))
}

#[inline(always)]
fn rule_at(scene: &Scene, key: &FlowKey, protocol: u8, port: Port) -> Option<&'static RuleValue> {
    let family = if key.dst.is_v4() { V4::VERSION } else { V6::VERSION };
    let key = RuleKey { generation: scene.generation, family, protocol, pad: 0, port, pad2: 0 };
    // SAFETY: the map is not preallocated: an entry is freed only after every program that may see it has ended.
    unsafe { RULES.get(&key) }
}
