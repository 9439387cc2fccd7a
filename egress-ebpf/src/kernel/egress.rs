//! Both egress hooks: the source half of the slow path, and the leak guard.

use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Direction, Mark, Side};
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::{Family, V4, V6};
use super::maps::SOURCES;
use super::packet::{Ends, Hop, L3, Packet};
use super::parsed::{Kind, Parsed, parse};
use super::request::ether_type;
use super::{Outcome, Scene, icmp, local};

/// The program on the cluster interface.
#[inline(always)]
pub(crate) fn cluster(packet: &mut Packet, scene: &Scene) -> Outcome {
    match packet.ether_type() {
        ether_type::IPV4 => leave_cluster::<V4>(packet, scene),
        ether_type::IPV6 => leave_cluster::<V6>(packet, scene),
        _ => Ok(Verdict::Pass),
    }
}

/// The program on the external interface.
#[inline(always)]
pub(crate) fn external(packet: &mut Packet, scene: &Scene) -> Outcome {
    match packet.ether_type() {
        ether_type::IPV4 => leave_external::<V4>(packet, scene),
        ether_type::IPV6 => leave_external::<V6>(packet, scene),
        ether_type::ARP => guard_arp(packet, scene),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn leave_cluster<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    match packet.mark().direction() {
        Some(direction) => finish::<F>(packet, scene, direction == Direction::Reply),
        None => Ok(Verdict::Local),
    }
}

#[inline(always)]
fn leave_external<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    match packet.mark().direction() {
        Some(direction) => finish::<F>(packet, scene, direction == Direction::Request),
        None => guard::<F>(packet, scene),
    }
}

/// Gives a half-translated packet its source: the one that its mark names.
///
/// `onward` says that it leaves by the other interface than it came in by. If not, it has been routed back, which no
/// translation means; but an ICMP error about such a packet, which the kernel marked like it, is on its way to the sender.
#[inline(always)]
fn finish<F: Family>(packet: &mut Packet, scene: &Scene, onward: bool) -> Outcome {
    let mark = packet.mark();
    let parsed = parse::<F>(packet)?;
    let (source, verdict) = if onward {
        (own_source::<F>(scene, mark)?, Verdict::SourceHalf)
    } else if parsed.kind == Kind::IcmpError {
        (icmp::made_by_kernel::<F>(packet, scene)?, Verdict::KernelError)
    } else {
        return Err(DropReason::WrongInterface);
    };
    let ends = Ends { src: source, dst: parsed.dst, src_port: parsed.source_after(mark), dst_port: parsed.dst_port };
    packet.rewrite::<F>(scene.config, ends, Hop::Kernel)?;
    packet.clear_mark();
    Ok(verdict)
}

/// The source that a mark names. On the external side it has to be the router's still: the address may have been taken away
/// since the flow began, and a process of the pod's own may set any mark.
#[inline(always)]
fn own_source<F: Family>(scene: &Scene, mark: Mark) -> Result<Addr, DropReason> {
    let source: Addr = *SOURCES.get(mark.source_index()).ok_or(DropReason::KernelCall)?;
    let to_outside = mark.direction() == Some(Direction::Request);
    if source.is_v4() != F::IS_V4 || (to_outside && local::address_index(scene, Side::External, &source).is_none()) {
        return Err(DropReason::Leak);
    }
    Ok(source)
}

/// Nothing leaves to the outside but from the router's own external addresses.
#[inline(always)]
fn guard<F: Family>(packet: &Packet, scene: &Scene) -> Outcome {
    let parsed = parse::<F>(packet)?;
    let own = local::address_index(scene, Side::External, &parsed.src).is_some();
    if own || speaks_for_the_link::<F>(parsed) { Ok(Verdict::Local) } else { Err(DropReason::Leak) }
}

/// Offset of the sender's address in an ARP packet for IPv4 over Ethernet (RFC 826).
const ARP_SENDER: u32 = 14;

/// ARP speaks for the router's own external addresses, or for none: a probe. Where the kernel finds no address of the
/// interface to ask with, it takes one of another's.
#[inline(always)]
fn guard_arp(packet: &Packet, scene: &Scene) -> Outcome {
    let sender: u32 = packet.read(L3 + ARP_SENDER)?;
    let own = local::address_index(scene, Side::External, &Addr::from_v4_word(sender)).is_some();
    if own || sender == 0 { Ok(Verdict::Pass) } else { Err(DropReason::Leak) }
}

/// Neighbour and multicast listener discovery, from an address that is still tentative or is the link's own.
#[inline(always)]
fn speaks_for_the_link<F: Family>(parsed: &Parsed) -> bool {
    let from_link = parsed.src == Addr::UNSPECIFIED || parsed.src.is_v6_link_local();
    !F::IS_V4 && from_link && parsed.kind == Kind::LinkControl
}
