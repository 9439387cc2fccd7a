//! Where a flow's packets go next.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as Route,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_skb_load_bytes};
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Flow, HopKind};
use egress_ebpf::timeout::SECOND_NS;

use super::family::{Family, V4, V6};
use super::maps::{HOPS, KnownHop};
use super::{Scene, size};

/// The next hop out of `ifindex` of the packet and its flow. The neighbour that it is is then in `WORK`, if the kernel is to be told
/// that somebody speaks to it. Where there is none, one that was learned from the wire is kept.
#[inline(always)]
pub(crate) fn refresh(ctx: *mut __sk_buff, scene: &Scene, ifindex: u32, flow: &mut Flow) {
    match known_or_found(ctx, scene, ifindex, flow, Goes::There) {
        Way::None if flow.hop_kind == HopKind::Link as u8 => {}
        way => take(&way, flow),
    }
}

/// The next hop back to the client whose request `ctx` is: by the routing table, else to where the request came from.
#[inline(always)]
pub(crate) fn refresh_return(ctx: *mut __sk_buff, scene: &Scene, flow: &mut Flow) {
    let way = known_or_found(ctx, scene, scene.config.cluster_ifindex, flow, Goes::Elsewhere);
    if !matches!(way, Way::None) {
        return take(&way, flow);
    }
    let mut to = [0_u8; 6];
    // SAFETY: the context is valid; the helper writes six bytes into a buffer of six. Offset 6 is the link source.
    if unsafe { bpf_skb_load_bytes(ctx.cast(), 6, to.as_mut_ptr().cast(), 6) } == 0 {
        flow.hop = to;
        flow.hop_kind = HopKind::Link as u8;
    }
}

/// How long what one flow looked up serves others with the same ends: long enough for many new flows, and short beside
/// [`HOP_TURN_SHIFT`](egress_ebpf::contract::HOP_TURN_SHIFT).
const KNOWN_FOR_NS: u64 = SECOND_NS;

/// Whether the packet at hand goes where is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    There,
    Elsewhere,
}

/// Takes the next hop out of `ifindex` that is known on this CPU of such packets, unless the kernel is still to be told that
/// somebody speaks to it. Returns whether there was one; `WORK` then holds no neighbour.
#[inline(always)]
pub(crate) fn take_known(scene: &Scene, ifindex: u32, flow: &mut Flow) -> bool {
    scene.work().neighbour = Addr::UNSPECIFIED;
    match known(ifindex, flow) {
        Some(known) if is_of(scene, known, ifindex, flow) && known.untold == Addr::UNSPECIFIED => {
            take(&Way::Neighbour(known.hop), flow);
            true
        }
        _ => false,
    }
}

/// Where it is kept what is known of such packets.
#[inline(always)]
fn known(ifindex: u32, flow: &Flow) -> Option<&'static mut KnownHop> {
    let known = HOPS.get_ptr_mut(KnownHop::place(&flow.to_src, &flow.to_dst, ifindex))?;
    // SAFETY: the element belongs to this CPU, where a program is not preempted by another.
    Some(unsafe { &mut *known })
}

/// Whether what is kept there is of such packets, and was looked up lately.
#[inline(always)]
fn is_of(scene: &Scene, known: &KnownHop, ifindex: u32, flow: &Flow) -> bool {
    let is_fresh =
        known.looked_up_ns >= scene.config.changed_ns && scene.now_ns.saturating_sub(known.looked_up_ns) < KNOWN_FOR_NS;
    is_fresh && known.ifindex == ifindex && known.src == flow.to_src && known.dst == flow.to_dst
}

/// The way of a flow's packets, by what is known on this CPU of such packets, or by the routing table. A neighbour is told of once:
/// by the first packet that goes to it.
#[inline(always)]
fn known_or_found(ctx: *mut __sk_buff, scene: &Scene, ifindex: u32, flow: &Flow, goes: Goes) -> Way {
    let neighbour = &mut scene.work().neighbour;
    *neighbour = Addr::UNSPECIFIED;
    let Some(known) = known(ifindex, flow) else { return Way::None };
    let way = if is_of(scene, known, ifindex, flow) {
        Way::Neighbour(known.hop)
    } else {
        let way = find(ctx, ifindex, &flow.to_src, &flow.to_dst, neighbour);
        let Way::Neighbour(hop) = way else { return way };
        let (src, dst, looked_up_ns) = (flow.to_src, flow.to_dst, scene.now_ns);
        *known = KnownHop { src, dst, looked_up_ns, ifindex, hop, untold: *neighbour };
        way
    };
    *neighbour = Addr::UNSPECIFIED;
    if goes == Goes::There {
        *neighbour = known.untold;
        known.untold = Addr::UNSPECIFIED;
    }
    way
}

/// What the routing table says of a destination.
enum Way {
    /// No way out of the interface.
    None,
    /// By a neighbour that is not known to be there: new, or silent of late. The kernel asks for it, and tells the sender if
    /// nobody answers, which a redirected packet's sender would never learn.
    Unresolved,
    /// By a neighbour of this link address.
    Neighbour([u8; 6]),
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
fn find(ctx: *mut __sk_buff, ifindex: u32, src: &Addr, dst: &Addr, neighbour: &mut Addr) -> Way {
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
    // A gateway of the other family is one that `forward` cannot name; the kernel can. Older kernels give a neighbour that they
    // still ask for, without an address.
    if !resolved || route.family != family || route.dmac == [0; 6] {
        return Way::Unresolved;
    }
    *neighbour = if dst.is_v4() {
        // SAFETY: the family says which field holds the next hop.
        Addr::from_v4_word(unsafe { route.__bindgen_anon_4.ipv4_dst })
    } else {
        // SAFETY: as above.
        Addr::from_v6_words(unsafe { route.__bindgen_anon_4.ipv6_dst })
    };
    Way::Neighbour(route.dmac)
}
