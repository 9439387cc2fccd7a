//! ICMP and ICMPv6 errors: they quote the packet that they are about, and whoever reads one has to find the packet quoted
//! that he himself sent.
//!
//! An error that arrives belongs to the flow of the packet it quotes, in the other direction than that packet's: it is
//! translated as that flow's packets are, and its quotation the other way round. One that the kernel makes about a packet
//! that was half translated when it failed is put right at egress: the mark, which the kernel reflects, says which flow.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Direction, Flow};
use egress_ebpf::verdict::DropReason;

use super::family::{Family, V4, V6};
use super::maps::SOURCES;
use super::packet::{Ends, Packet};
use super::parsed::parse_quoted;
use super::{Scene, answer, flow};

/// Length of an ICMP error's own header.
const ICMP_HEADER: u32 = 8;

/// Finds the flow of an error that arrives in `direction`, and puts its quotation right. The error itself is then to be
/// forwarded as that flow's packets are.
#[inline(always)]
pub(crate) fn arriving<F: Family>(
    packet: &Packet,
    scene: &Scene,
    direction: Direction,
) -> Result<&'static mut Flow, DropReason> {
    let ctx = packet.ctx().skb.skb;
    let answer =
        if F::IS_V4 { icmp_v4_arriving(ctx, direction as u32) } else { icmp_v6_arriving(ctx, direction as u32) };
    answer::decode(answer)?;
    let flow = flow::find(scene, &scene.work().key).ok_or(DropReason::IcmpUnmatched)?;
    // An error does not touch the flow, so nothing was looked up for it: what stands there is another packet's.
    scene.work().neighbour = Addr::UNSPECIFIED;
    Ok(flow)
}

/// Puts the quotation of an error right that the kernel made about a packet of the mark's direction after its destination
/// was rewritten, and before its source was: the quoted packet gets its old destination back. Returns that destination, from
/// which the error comes.
#[inline(always)]
pub(crate) fn made_by_kernel<F: Family>(packet: &Packet, scene: &Scene) -> Result<Addr, DropReason> {
    let ctx = packet.ctx().skb.skb;
    answer::decode(if F::IS_V4 { icmp_v4_made_by_kernel(ctx) } else { icmp_v6_made_by_kernel(ctx) })?;
    Ok(scene.work().old_destination)
}

// Global BPF functions, so that the verifier walks them once and the programs' stacks stay small. They return 0, or a drop
// reason's number and one.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn icmp_v4_arriving(ctx: *mut __sk_buff, direction: u32) -> u32 {
    answer::encode(quotation_of_arriving::<V4>(ctx, direction))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn icmp_v6_arriving(ctx: *mut __sk_buff, direction: u32) -> u32 {
    answer::encode(quotation_of_arriving::<V6>(ctx, direction))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn icmp_v4_made_by_kernel(ctx: *mut __sk_buff) -> u32 {
    answer::encode(kernels_own::<V4>(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn icmp_v6_made_by_kernel(ctx: *mut __sk_buff) -> u32 {
    answer::encode(kernels_own::<V6>(ctx))
}

#[inline(always)]
fn quotation_of_arriving<F: Family>(ctx: *mut __sk_buff, direction: u32) -> Result<(), DropReason> {
    let mut packet = Packet::new(TcContext::new(ctx));
    let scene = super::scene().ok_or(DropReason::Unconfigured)?;
    let quoted = parse_quoted::<F>(&packet, scene.work().parsed.l4 + ICMP_HEADER)?;
    let direction = if direction == Direction::Request as u32 { Direction::Request } else { Direction::Reply };
    scene.work().key = quoted.answer_key(direction);
    let flow = flow::find(&scene, &scene.work().key).ok_or(DropReason::IcmpUnmatched)?;
    packet.rewrite_quoted::<F>(Ends {
        src: flow.to_dst,
        dst: flow.to_src,
        src_port: flow.to_dst_port,
        dst_port: flow.to_src_port,
    })
}

#[inline(always)]
fn kernels_own<F: Family>(ctx: *mut __sk_buff) -> Result<(), DropReason> {
    let mut packet = Packet::new(TcContext::new(ctx));
    let scene = super::scene().ok_or(DropReason::Unconfigured)?;
    let mark = packet.mark();
    let answers = match mark.direction() {
        Some(Direction::Request) => Direction::Reply,
        Some(Direction::Reply) => Direction::Request,
        None => return Err(DropReason::WrongInterface),
    };
    let quoted = parse_quoted::<F>(&packet, scene.work().parsed.l4 + ICMP_HEADER)?;
    let source: Addr = *SOURCES.get(mark.source_index()).ok_or(DropReason::KernelCall)?;
    let work = scene.work();
    work.key = quoted.answer_key(answers);
    work.key.dst = source;
    work.key.dst_port = quoted.source_after(mark);
    let flow = flow::find(&scene, &scene.work().key).ok_or(DropReason::IcmpUnmatched)?;
    scene.work().old_destination = flow.to_src;
    packet.rewrite_quoted::<F>(Ends {
        src: quoted.src,
        dst: flow.to_src,
        src_port: quoted.src_port,
        dst_port: flow.to_src_port,
    })
}
