//! Both egress hooks: the source half of the slow path, and the leak guard.

use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Direction, Mark, Side};
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::{Family, V4, V6};
use super::headers::{Headers, Kind, Part, Transport};
use super::maps::SOURCES;
use super::packet::{Ends, L3, Packet};
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
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn leave_cluster<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    match packet.mark().direction() {
        Some(direction) => finish::<F>(packet, scene, direction == Direction::Reply),
        None if packet.mark() == Mark::DONE => done(packet),
        None => Ok(Verdict::Local),
    }
}

#[inline(always)]
fn leave_external<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    match packet.mark().direction() {
        Some(direction) => finish::<F>(packet, scene, direction == Direction::Request),
        None if packet.mark() == Mark::DONE => done(packet),
        None => guard::<F>(packet, scene),
    }
}

/// Nothing is left to do for a redirected packet.
#[inline(always)]
fn done(packet: &mut Packet) -> Outcome {
    packet.clear_mark();
    Ok(Verdict::Redirected)
}

/// Gives a half-translated packet its source: the one that its mark names.
///
/// `onward` says that it leaves by the other interface than it came in by. If not, it has been routed back, which no
/// translation means; but an ICMP error about such a packet, which the kernel marked like it, is on its way to the sender.
#[inline(always)]
fn finish<F: Family>(packet: &mut Packet, scene: &Scene, onward: bool) -> Outcome {
    let mark = packet.mark();
    let headers = F::headers(packet, L3)?;
    let transport = Transport::read::<F>(packet, &headers, Part::Whole)?;
    let (source, verdict) = if onward {
        (*SOURCES.get(mark.source_index()).ok_or(DropReason::KernelCall)?, Verdict::SourceHalf)
    } else if matches!(transport.kind, Kind::IcmpError) {
        (icmp::made_by_kernel::<F>(packet, scene)?, Verdict::KernelError)
    } else {
        return Err(DropReason::WrongInterface);
    };
    let ends = Ends {
        src: source,
        dst: headers.dst,
        src_port: transport.source_after(mark),
        dst_port: transport.dst_port,
    };
    packet.rewrite::<F>(scene.config, &headers, &transport, &ends)?;
    packet.clear_mark();
    Ok(verdict)
}

/// Nothing leaves to the outside but from the router's own external addresses.
#[inline(always)]
fn guard<F: Family>(packet: &Packet, scene: &Scene) -> Outcome {
    let headers = F::headers(packet, L3)?;
    if local::address_index(scene, Side::External, &headers.src).is_some() || speaks_for_the_link::<F>(packet, &headers) {
        return Ok(Verdict::Local);
    }
    Err(DropReason::Leak)
}

/// Neighbour and multicast listener discovery, from an address that is still tentative or is the link's own.
#[inline(always)]
fn speaks_for_the_link<F: Family>(packet: &Packet, headers: &Headers) -> bool {
    if F::IS_V4 || !(headers.src == Addr::UNSPECIFIED || headers.src.is_v6_link_local()) {
        return false;
    }
    matches!(Transport::read::<F>(packet, headers, Part::Whole), Ok(Transport { kind: Kind::LinkControl, .. }))
}
