//! Does a packet belong to the router's own pod?

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{AddressKey, Side};
use egress_ebpf::tcp;

use super::family::{Family, V4, V6};
use super::maps::ADDRESSES;
use super::packet::Packet;
use super::parsed::{Kind, Parsed};
use super::{Scene, size};

/// `TCP_LISTEN` in the kernel's socket states.
const TCP_LISTEN: u32 = 10;

/// Index in `SOURCES` of an address of one of the router's interfaces, if it is one.
#[inline(always)]
pub(crate) fn address_index(scene: &Scene, side: Side, addr: &Addr) -> Option<u8> {
    let key = &mut scene.work().address_key;
    *key = AddressKey { addr: *addr, side: side as u8, generation: scene.generation, pad: [0; 2] };
    // SAFETY: the map is not preallocated: an entry is freed only after a grace period; the value is copied at once.
    let index = unsafe { ADDRESSES.get(&*key) }?;
    Some((*index & 0xff) as u8)
}

/// Whether a socket of the router's own namespace, opened from there, waits for the packet in `WORK`. A listener does not
/// count: to serve clients, a port is declared local.
#[inline(always)]
pub(crate) fn opened_by_pod<F: Family>(packet: &Packet) -> bool {
    let ctx = packet.ctx().skb.skb;
    (if F::IS_V4 { opened_by_pod_v4(ctx) } else { opened_by_pod_v6(ctx) }) != 0
}

// Global BPF functions, so that what a socket is looked up by is not on the stack of the program that asks.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn opened_by_pod_v4(ctx: *mut __sk_buff) -> u32 {
    has_socket::<V4>(ctx).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn opened_by_pod_v6(ctx: *mut __sk_buff) -> u32 {
    has_socket::<V6>(ctx).into()
}

#[inline(always)]
fn has_socket<F: Family>(ctx: *mut __sk_buff) -> bool {
    let Some(scene) = super::scene() else { return false };
    let (packet, parsed) = (&Packet::new(TcContext::new(ctx)), &scene.work().parsed);
    match parsed.kind {
        Kind::Tcp if tcp::opens(parsed.flags) => false,
        Kind::Tcp => has_tcp_socket::<F>(packet, parsed),
        Kind::Udp => has_udp_socket::<F>(packet, &scene, parsed),
        _ => false,
    }
}

#[inline(always)]
fn has_tcp_socket<F: Family>(packet: &Packet, parsed: &Parsed) -> bool {
    let (mut tuple, size) = socket_tuple::<F>(parsed);
    // SAFETY: the context is valid, the tuple lives on the stack, and its size is the family's.
    let socket = unsafe { bpf_skc_lookup_tcp(packet.ctx().skb.skb.cast(), &raw mut tuple, size, CURRENT_NETNS, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the lookup returned a socket and holds a reference to it.
    let state = unsafe { (*socket).state };
    // SAFETY: the reference is given back once, and the pointer is not used again.
    unsafe { bpf_sk_release(socket.cast()) };
    state != TCP_LISTEN
}

/// An unconnected UDP socket counts when its port is an ephemeral one: it was given by the kernel, to a client.
#[inline(always)]
fn has_udp_socket<F: Family>(packet: &Packet, scene: &Scene, parsed: &Parsed) -> bool {
    let (mut tuple, size) = socket_tuple::<F>(parsed);
    // SAFETY: the context is valid, the tuple lives on the stack, and its size is the family's.
    let socket = unsafe { bpf_sk_lookup_udp(packet.ctx().skb.skb.cast(), &raw mut tuple, size, CURRENT_NETNS, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the lookup returned a socket and holds a reference to it.
    let peer_port = unsafe { (*socket).dst_port };
    // SAFETY: the reference is given back once, and the pointer is not used again.
    unsafe { bpf_sk_release(socket.cast()) };
    let local_port = parsed.dst_port.get();
    let ephemeral = local_port >= scene.config.local_port_first && local_port <= scene.config.local_port_last;
    peer_port != 0 || ephemeral
}

/// Sign-extended, as the kernel compares it.
const CURRENT_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

#[inline(always)]
fn socket_tuple<F: Family>(parsed: &Parsed) -> (bpf_sock_tuple, u32) {
    let (sport, dport) = (parsed.src_port.wire(), parsed.dst_port.wire());
    if F::IS_V4 {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: parsed.src.v4_word(),
            daddr: parsed.dst.v4_word(),
            sport,
            dport,
        };
        let size = size::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>();
        (bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }, size)
    } else {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: parsed.src.words(),
            daddr: parsed.dst.words(),
            sport,
            dport,
        };
        let size = size::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>();
        (bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } }, size)
    }
}
