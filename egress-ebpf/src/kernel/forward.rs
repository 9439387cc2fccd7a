//! Send a translated packet on: past the kernel's stack where nothing speaks against it, else through it.

use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Config, Direction, Flow, HopKind, config_flag};
use egress_ebpf::verdict::Verdict;

use super::established::Frame as _;
use super::family::Family;
use super::packet::{Ends, Hop, LinkHop, Packet};
use super::parsed::Parsed;
use super::{Outcome, Scene};

/// Translates a packet by its flow and sends it on.
///
/// Fast: both ends are rewritten here and the packet is redirected to the flow's next hop. Slow: the destination is
/// rewritten here and the source at egress, from the mark; in between the kernel routes, fragments, and answers with ICMP
/// errors, all of which it does better than we could.
#[inline(always)]
pub(crate) fn forward<F: Family>(packet: &mut Packet, scene: &Scene, flow: &Flow, direction: Direction) -> Outcome {
    let parsed = &scene.work().parsed;
    if !may_redirect::<F>(scene.config, parsed, flow, direction)
        || !packet.fits(scene.config, out_of(scene.config, direction))
    {
        let ends = Ends { src: parsed.src, dst: flow.to_dst, src_port: parsed.src_port, dst_port: flow.to_dst_port };
        let mark = flow.mark(direction);
        packet.rewrite::<F>(scene.config, ends, Hop::Kernel)?;
        packet.set_mark(mark);
        return Ok(match direction {
            Direction::Request => Verdict::Request,
            Direction::Reply => Verdict::Reply,
        });
    }
    let ends = Ends { src: flow.to_src, dst: flow.to_dst, src_port: flow.to_src_port, dst_port: flow.to_dst_port };
    packet.rewrite::<F>(scene.config, ends, Hop::Count)?;
    let neighbour = &scene.work().neighbour;
    let just_found = *neighbour != Addr::UNSPECIFIED;
    let hop = hop_of(scene.config, flow, direction);
    packet.send::<F>(out_of(scene.config, direction), &hop, just_found.then_some(neighbour))?;
    Ok(redirected(direction))
}

/// What a packet is that was redirected by a tc program.
#[inline(always)]
pub(crate) fn redirected(direction: Direction) -> Verdict {
    match direction {
        Direction::Request => Verdict::RequestRedirected,
        Direction::Reply => Verdict::ReplyRedirected,
    }
}

/// The interface that packets of this direction leave by.
#[inline(always)]
pub(crate) fn out_of(config: &Config, direction: Direction) -> u32 {
    match direction {
        Direction::Request => config.external_ifindex,
        Direction::Reply => config.cluster_ifindex,
    }
}

/// How the flow's packets are addressed there.
#[inline(always)]
pub(crate) fn hop_of<'a>(config: &'a Config, flow: &'a Flow, direction: Direction) -> LinkHop<'a> {
    let from = match direction {
        Direction::Request => &config.external_mac,
        Direction::Reply => &config.cluster_mac,
    };
    LinkHop { to: &flow.hop, from }
}

#[inline(always)]
fn may_redirect<F: Family>(config: &Config, parsed: &Parsed, flow: &Flow, direction: Direction) -> bool {
    let client = match direction {
        Direction::Request => flow.return_kind,
        Direction::Reply => flow.hop_kind,
    };
    // What the kernel does better with fragments and extension headers, it cannot do at all for a client that no route leads
    // back to: it might drop the packet for that alone.
    let routed = client != HopKind::Link as u8;
    let simple = if routed { parsed.is_plain::<F>() } else { parsed.is_without_options::<F>() };
    config.flags & config_flag::REDIRECT != 0 && flow.hop_kind != HopKind::Kernel as u8 && simple && parsed.ttl > 1
}
