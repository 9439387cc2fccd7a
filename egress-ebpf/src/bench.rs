//! The benchmark's own programs: a source of packets, what takes them off the wire, and the cheapest forwarding there is.
//! An object of its own; nothing of it is in the router's.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macro wraps each function in a public one of its own")]

use aya_ebpf::bindings::{
    __sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, xdp_action,
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use egress_ebpf::source::{
    AT_ENTRANCE, AT_SINK, BALANCE_AT, MAGIC, Plan, Tally, V4_BYTES, V6_BYTES, balance, flow, fold,
};

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);

#[map]
static POSITION: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static TALLY: PerCpuArray<Tally> = PerCpuArray::with_max_entries(2, 0);

/// Next hop of [`redirect`], IPv4's and IPv6's: interface, address family, address.
#[map]
static HOP: Array<[u32; 6]> = Array::with_max_entries(2, 0);

/// EtherTypes, network order.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;
/// Offset of the IP header.
const L3: usize = 14;

/// Writes the frame of the next flow, and sends it.
#[xdp]
pub fn source(ctx: XdpContext) -> u32 {
    write_next(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn write_next(ctx: &XdpContext) -> Option<u32> {
    let plan = PLAN.get(0)?;
    let position = POSITION.get_ptr_mut(0)?;
    // SAFETY: the pointer is into the map's only element; one source runs at a time.
    let number = unsafe { *position };
    let next = number.wrapping_add(plan.step);
    let next = if next >= plan.flows { next - plan.flows } else { next };
    // SAFETY: as above.
    unsafe { *position = next };
    if plan.family == 4 {
        write::<{ V4_BYTES / 4 }, 12, 20>(ctx, plan, number)?;
    } else {
        write::<{ V6_BYTES / 4 }, 8, 40>(ctx, plan, number)?;
    }
    // SAFETY: the helper takes numbers only.
    Some(unsafe { bpf_redirect(plan.ifindex, 0) } as u32)
}

/// Writes a frame of so many words, whose IP header is `HEADER` bytes long and has its source address at `SOURCE`.
#[inline(always)]
fn write<const WORDS: usize, const SOURCE: usize, const HEADER: usize>(
    ctx: &XdpContext,
    plan: &Plan,
    number: u32,
) -> Option<()> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + WORDS * 4 > end {
        return None;
    }
    let frame = start as *mut [u32; WORDS];
    let template = (&raw const plan.template).cast::<[u32; WORDS]>();
    // SAFETY: the template is at least this long, four bytes aligned, and in a map.
    let words = unsafe { *template };
    // SAFETY: the frame is so long, as checked; frames begin four bytes aligned.
    unsafe { *frame = words };
    let (client, port, rule) = flow(plan, number);
    let address_bytes = (HEADER - SOURCE) / 2;
    let l4 = L3 + HEADER;
    put(start, L3 + SOURCE + address_bytes - 2, client);
    put(start, l4, port);
    put(start, l4 + 2, rule);
    put(start, l4 + 8 + BALANCE_AT, balance(plan.sum, client + port + rule));
    if HEADER == 20 {
        put(start, L3 + 10, !fold(plan.header_sum + client) & 0xffff);
    }
    Some(())
}

/// Writes a number, network order, at a constant offset within a frame whose length was checked.
#[inline(always)]
fn put(start: usize, offset: usize, number: u32) {
    // SAFETY: every caller's offset is a constant below the length that `write` compared.
    unsafe { *((start + offset) as *mut u16) = (number as u16).to_be() };
}

/// Drops our packets at the router's entrance: what is left is the cost of getting them there.
#[classifier]
pub fn entrance(ctx: TcContext) -> i32 {
    take(&ctx, AT_ENTRANCE, false)
}

/// Drops our packets at the far end.
#[classifier]
pub fn sink(ctx: TcContext) -> i32 {
    take(&ctx, AT_SINK, false)
}

/// As [`sink`], and keeps the times at which the destination changes.
#[classifier]
pub fn timed_sink(ctx: TcContext) -> i32 {
    take(&ctx, AT_SINK, true)
}

#[inline(always)]
fn take(ctx: &TcContext, place: u32, timed: bool) -> i32 {
    recognise(ctx, place, timed).unwrap_or(TC_ACT_UNSPEC)
}

#[inline(always)]
fn recognise(ctx: &TcContext, place: u32, timed: bool) -> Option<i32> {
    // SAFETY: a program's context pointer is valid while it runs.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    let (source, destination) = match protocol {
        IPV4 => ends::<12, 20>(ctx)?,
        IPV6 => ends::<8, 40>(ctx)?,
        _ => return None,
    };
    // SAFETY: the element belongs to this CPU, and programs of one hook are not preempted by others on it.
    let tally = unsafe { &mut *TALLY.get_ptr_mut(place)? };
    tally.packets += 1;
    tally.sources += u64::from(source);
    tally.odd += u64::from(destination & 1);
    if timed {
        // SAFETY: the helper takes nothing and reads the clock.
        let now = unsafe { bpf_ktime_get_ns() };
        if destination & 1 == 0 {
            tally.last_even_ns = now;
        } else if tally.first_odd_ns == 0 {
            tally.first_odd_ns = now;
        }
    }
    Some(TC_ACT_SHOT)
}

/// Last two bytes of source and destination, if the packet is one of ours.
#[inline(always)]
fn ends<const SOURCE: usize, const HEADER: usize>(ctx: &TcContext) -> Option<(u32, u32)> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + L3 + HEADER + 8 + MAGIC.len() > end {
        return None;
    }
    let magic = (start + L3 + HEADER + 8) as *const u16;
    // SAFETY: the frame is so long, as checked above.
    let first = unsafe { *magic };
    // SAFETY: as above.
    let second = unsafe { *magic.add(1) };
    let [a, b, c, d] = MAGIC;
    if first != u16::from_ne_bytes([a, b]) || second != u16::from_ne_bytes([c, d]) {
        return None;
    }
    let address_bytes = (HEADER - SOURCE) / 2;
    let source = (start + L3 + SOURCE + address_bytes - 2) as *const u16;
    // SAFETY: as above.
    let last_of_source = unsafe { *source };
    let destination = (start + L3 + HEADER - 2) as *const u16;
    // SAFETY: as above.
    let last_of_destination = unsafe { *destination };
    Some((u32::from(u16::from_be(last_of_source)), u32::from(u16::from_be(last_of_destination))))
}

/// Sends every packet of ours to one neighbour, as it is: what forwarding in a tc program costs at the least.
#[classifier]
pub fn redirect(ctx: TcContext) -> i32 {
    send_on(&ctx).unwrap_or(TC_ACT_UNSPEC)
}

#[inline(always)]
fn send_on(ctx: &TcContext) -> Option<i32> {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: a program's context pointer is valid while it runs.
    let protocol = unsafe { (*skb).protocol };
    match protocol {
        IPV4 => ends::<12, 20>(ctx)?,
        IPV6 => ends::<8, 40>(ctx)?,
        _ => return None,
    };
    let [ifindex, family, a, b, c, d] = *HOP.get(u32::from(protocol == IPV6))?;
    let address = if protocol == IPV4 {
        bpf_redir_neigh__bindgen_ty_1 { ipv4_nh: a }
    } else {
        bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: [a, b, c, d] }
    };
    let mut hop = bpf_redir_neigh { nh_family: family, __bindgen_anon_1: address };
    // SAFETY: `hop` lives on the stack and its size goes with it.
    Some(unsafe { bpf_redirect_neigh(ifindex, &raw mut hop, size_of_val(&hop) as i32, 0) } as i32)
}

/// Never reached: there is no panicking path here, and the verifier would refuse the endless loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Licence of the object, for helpers that ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
