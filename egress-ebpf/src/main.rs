//! The BPF object: four tc programs, attached to the router's two interfaces, and two XDP programs that take established
//! flows' packets before them where the devices can.
//!
//! ```text
//!            cluster_ingress ──request──▶ kernel ──▶ external_egress
//!   clients ◀────────────── eth0   router   net1 ──────────────▶ destinations
//!             cluster_egress ◀── kernel ◀──reply── external_ingress
//! ```
//!
//! The destination is rewritten at ingress; the kernel then routes the packet, decrements its TTL, fragments it or answers
//! it with an ICMP error; the source is rewritten at egress, from the mark that ingress left. (A packet whose source were
//! rewritten at ingress would carry a local address as its source, which the kernel drops as a martian.)
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "atomic operations, which the target has and the standard library does not offer for it"
)]
#![expect(missing_docs, unreachable_pub, reason = "the program macro wraps each function in a public one of its own")]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a map key handed over by value is copied to the stack, which has 512 bytes"
)]

mod kernel;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use egress_ebpf::contract::Direction;
use egress_ebpf::verdict::Hook;

use kernel::{accelerate, egress, reply, request, run};

/// Requests arrive.
#[classifier]
#[inline(always)]
pub fn cluster_ingress(ctx: TcContext) -> i32 {
    run(ctx, Hook::ClusterIngress, request::ingress)
}

/// Slow-path replies and the pod's own packets leave.
#[classifier]
#[inline(always)]
pub fn cluster_egress(ctx: TcContext) -> i32 {
    run(ctx, Hook::ClusterEgress, egress::cluster)
}

/// Replies arrive.
#[classifier]
#[inline(always)]
pub fn external_ingress(ctx: TcContext) -> i32 {
    run(ctx, Hook::ExternalIngress, reply::ingress)
}

/// Slow-path requests and the pod's own packets leave.
#[classifier]
#[inline(always)]
pub fn external_egress(ctx: TcContext) -> i32 {
    run(ctx, Hook::ExternalEgress, egress::external)
}

/// Requests of established flows, before [`cluster_ingress`] sees them.
#[xdp(frags)]
#[inline(always)]
pub fn xdp_request(ctx: XdpContext) -> u32 {
    accelerate(ctx, Hook::ClusterIngress, Direction::Request)
}

/// Replies of established flows, before [`external_ingress`] sees them.
#[xdp(frags)]
#[inline(always)]
pub fn xdp_reply(ctx: XdpContext) -> u32 {
    accelerate(ctx, Hook::ExternalIngress, Direction::Reply)
}

/// Answers, as its verdict, whether the kernel knows `BPF_F_IPV6` of `bpf_l4_csum_replace`: 1 yes, 0 no. Run once by the
/// loader, never attached.
#[classifier]
pub fn probe_csum_ipv6(ctx: TcContext) -> i32 {
    kernel::packet::knows_csum_ipv6(&ctx).into()
}

/// Never reached: the kernel code has no panicking path, and the verifier would refuse the endless loop if it had one.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Licence of the object, for helpers that ask for it. The sources are MIT OR Apache-2.0.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
