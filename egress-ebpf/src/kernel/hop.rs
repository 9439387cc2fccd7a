//! Where a flow's packets go next.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as Route,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_skb_load_bytes};
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Config, Flow, HopKind, LinkHop};

use super::family::{Family, V4, V6};
use super::size;

/// The next hop out of `ifindex` by the routing table, and the neighbour that it is. Where there is none, one that was
/// learned from the wire is kept.
#[inline(always)]
pub(crate) fn refresh(ctx: *mut __sk_buff, ifindex: u32, flow: &mut Flow, neighbour: &mut Addr) {
    *neighbour = Addr::UNSPECIFIED;
    match way(ctx, ifindex, &flow.to_src, &flow.to_dst, neighbour) {
        Way::None if flow.hop_kind == HopKind::Link as u8 => {}
        way => take(&way, flow),
    }
}

/// The next hop back to the client whose request `ctx` is: by the routing table, else to where the request came from.
#[inline(always)]
pub(crate) fn refresh_return(ctx: *mut __sk_buff, config: &Config, flow: &mut Flow, neighbour: &mut Addr) {
    let way = way(ctx, config.cluster_ifindex, &flow.to_src, &flow.to_dst, neighbour);
    if !matches!(way, Way::None) {
        return take(&way, flow);
    }
    let mut to = [0_u8; 6];
    // SAFETY: the context is valid; the helper writes six bytes into a buffer of six. Offset 6 is the link source.
    if unsafe { bpf_skb_load_bytes(ctx.cast(), 6, to.as_mut_ptr().cast(), 6) } == 0 {
        flow.hop = LinkHop { to, from: config.cluster_mac };
        flow.hop_kind = HopKind::Link as u8;
    }
}

/// What the routing table says of a destination.
enum Way {
    /// No way out of the interface.
    None,
    /// By a neighbour that is not known to be there: new, or silent of late. The kernel asks for it, and tells the sender if
    /// nobody answers, which a redirected packet's sender would never learn.
    Unresolved,
    /// By a neighbour, so addressed.
    Neighbour(LinkHop),
}

#[inline(always)]
fn take(way: &Way, flow: &mut Flow) {
    flow.hop_kind = match way {
        Way::None | Way::Unresolved => HopKind::Kernel,
        Way::Neighbour(hop) => {
            flow.hop = *hop;
            HopKind::Neighbour
        }
    } as u8;
}

#[inline(always)]
fn way(ctx: *mut __sk_buff, ifindex: u32, src: &Addr, dst: &Addr, neighbour: &mut Addr) -> Way {
    // SAFETY: every field is a number or an array of numbers.
    let mut route: Route = unsafe { core::mem::zeroed() };
    route.ifindex = ifindex;
    let family = if dst.is_v4() { V4::ADDRESS_FAMILY } else { V6::ADDRESS_FAMILY };
    route.family = family;
    if dst.is_v4() {
        route.__bindgen_anon_3.ipv4_src = src.v4_word();
        route.__bindgen_anon_4.ipv4_dst = dst.v4_word();
    } else {
        route.__bindgen_anon_3.ipv6_src = src.words();
        route.__bindgen_anon_4.ipv6_dst = dst.words();
    }
    let size = size::<Route>().cast_signed();
    // SAFETY: the context is valid, `route` lives on the stack, and its size goes with it.
    let answer = unsafe { bpf_fib_lookup(ctx.cast(), &raw mut route, size, BPF_FIB_LOOKUP_OUTPUT) };
    let resolved = answer == i64::from(BPF_FIB_LKUP_RET_SUCCESS);
    let found = resolved || answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH);
    if !found || route.ifindex != ifindex {
        return Way::None;
    }
    // A gateway of the other family is one that `forward` cannot name; the kernel can.
    if !resolved || route.family != family {
        return Way::Unresolved;
    }
    *neighbour = if dst.is_v4() {
        // SAFETY: the family says which field holds the next hop.
        Addr::from_v4_word(unsafe { route.__bindgen_anon_4.ipv4_dst })
    } else {
        // SAFETY: as above.
        Addr::from_v6_words(unsafe { route.__bindgen_anon_4.ipv6_dst })
    };
    Way::Neighbour(LinkHop { to: route.dmac, from: route.smac })
}
