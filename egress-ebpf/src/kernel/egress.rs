//! Both egress hooks: the source half of the slow path, and the leak guard.

use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Direction, Mark, Side};
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::{Family, V4, V6};
use super::headers::{Headers, Kind, Transport};
use super::maps::SOURCES;
use super::packet::{Ends, L3, Packet};
use super::request::ether_type;
use super::{Outcome, Scene, local};

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
    let mark = Mark(packet.mark());
    match mark.direction() {
        None => Ok(Verdict::Local),
        Some(Direction::Reply) => source_half::<F>(packet, scene, mark),
        Some(Direction::Request) => Err(DropReason::WrongInterface),
    }
}

#[inline(always)]
fn leave_external<F: Family>(packet: &mut Packet, scene: &Scene) -> Outcome {
    let mark = Mark(packet.mark());
    match mark.direction() {
        Some(Direction::Request) => source_half::<F>(packet, scene, mark),
        Some(Direction::Reply) => Err(DropReason::WrongInterface),
        None => guard::<F>(packet, scene),
    }
}

/// Gives the packet the source that its mark names, and takes the mark off: nobody behind this interface shall meet it.
#[inline(always)]
fn source_half<F: Family>(packet: &mut Packet, scene: &Scene, mark: Mark) -> Outcome {
    let headers = F::headers(packet, L3)?;
    let transport = Transport::read::<F>(packet, &headers)?;
    let source: Addr = *SOURCES.get(mark.source_index()).ok_or(DropReason::KernelCall)?;
    let ends = Ends {
        src: source,
        dst: headers.dst,
        src_port: source_port(&transport, mark),
        dst_port: transport.dst_port,
    };
    packet.rewrite::<F>(scene.config, &headers, &transport, &ends)?;
    packet.set_mark(0);
    Ok(Verdict::SourceHalf)
}

#[inline(always)]
fn source_port(transport: &Transport, mark: Mark) -> egress_ebpf::addr::Port {
    match transport.kind {
        Kind::Tcp | Kind::Udp | Kind::Dccp | Kind::Sctp | Kind::EchoRequest => mark.port(),
        _ => transport.src_port,
    }
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
    matches!(Transport::read::<F>(packet, headers), Ok(Transport { kind: Kind::LinkControl, .. }))
}
