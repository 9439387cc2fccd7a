//! The flow table: find, keep alive, open.
//!
//! A flow is two entries, one for each direction, each under the tuple of the packets as they arrive. A packet looks up its
//! own entry only, and writes that one only; the twin is looked at once a second, when a connection closes, and when an
//! entry has been idle for longer than the shortest timeout.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use bytemuck::Zeroable as _;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{
    Direction, Flow, FlowKey, Mark, PORT_TRIES_BUCKETS, RuleValue, Side, Slice, source_index,
};
use egress_ebpf::ports::{MAX_TRIES, Range, Search};
use egress_ebpf::tcp::{self, seen};
use egress_ebpf::timeout::{SECOND_NS, expired, protocol};
use egress_ebpf::verdict::DropReason;

use super::Scene;
use super::family::Family;
use super::headers::{Kind, Transport};
use super::local::address_index;
use super::maps::{FLOWS, PORT_TRIES, SOURCES};

const EEXIST: i32 = -17;

/// The entry under this key, whatever its age.
#[inline(always)]
fn entry(key: &FlowKey) -> Option<&'static mut Flow> {
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the element stays mapped while the program runs. It may be changed or reused by another CPU meanwhile; its
    // fields are plain integers, of which each is read or written whole, and a live flow's entry is never removed.
    Some(unsafe { &mut *flow })
}

/// The live entry under this key. An expired one counts as absent, and is removed with its twin.
#[inline(always)]
pub(crate) fn find(scene: &Scene, key: &FlowKey) -> Option<&'static mut Flow> {
    let flow = entry(key)?;
    let idle_ns = scene.now_ns.saturating_sub(flow.last_seen_ns);
    if idle_ns < u64::from(scene.config.shortest_timeout_s) * SECOND_NS || !is_expired(scene, key, flow) {
        return Some(flow);
    }
    remove(key, flow);
    None
}

/// Whether a live flow has this key, without touching it.
#[inline(always)]
fn is_expired(scene: &Scene, key: &FlowKey, flow: &Flow) -> bool {
    let twin = entry(&key.twin(flow));
    expired(key.protocol, flow, key.is_request(), twin.as_deref(), &scene.config.timeouts_s, scene.now_ns)
}

#[inline(always)]
fn remove(key: &FlowKey, flow: &Flow) {
    let twin = key.twin(flow);
    // An entry that is gone already is what is wanted.
    let _ = FLOWS.remove(&twin);
    let _ = FLOWS.remove(key);
}

/// Accounts for one more packet of an existing flow.
#[inline(always)]
pub(crate) fn touch(scene: &Scene, key: &FlowKey, flow: &mut Flow, len: u32, tcp_flags: u8) {
    flow.packets += 1;
    flow.bytes += u64::from(len);
    let seen = if key.protocol == protocol::TCP { tcp::observe(flow.seen, tcp_flags) } else { flow.seen | seen::ANY };
    if seen != flow.seen {
        flow.seen = seen;
    } else if scene.now_ns.saturating_sub(flow.last_seen_ns) < SECOND_NS {
        return;
    }
    flow.last_seen_ns = scene.now_ns;
    mend_twin(scene, key, flow);
}

/// Puts a lost twin back, from what this entry knows: with the same port, never another.
#[inline(always)]
fn mend_twin(scene: &Scene, key: &FlowKey, flow: &Flow) {
    let twin_key = key.twin(flow);
    if entry(&twin_key).is_some() {
        return;
    }
    let (side, direction, port) = if key.is_request() {
        (Side::Cluster, Direction::Reply, key.dst_port)
    } else {
        (Side::External, Direction::Request, key.dst_port)
    };
    let Some(index) = address_index(scene, side, &key.dst) else { return };
    let twin = flow.reversed(key, Mark::new(direction, index as u8, port));
    // Another CPU may have been faster.
    let _ = FLOWS.insert(&twin_key, &twin, u64::from(BPF_NOEXIST));
}

/// Starts a closed connection's flow anew, under the same translation, for a client that reuses its port.
#[inline(always)]
pub(crate) fn reopen_if_closed(scene: &Scene, key: &FlowKey, flow: &mut Flow, tcp_flags: u8) {
    if key.protocol != protocol::TCP || !tcp::opens(tcp_flags) {
        return;
    }
    let Some(twin) = entry(&key.twin(flow)) else { return };
    if tcp::reopens(tcp_flags, flow.seen, twin.seen) {
        flow.seen = 0;
        flow.created_ns = scene.now_ns;
        twin.seen = 0;
        twin.created_ns = scene.now_ns;
    }
}

/// Opens a flow for a request that a rule claims: reserves the reply's tuple, then enters the request's.
#[inline(always)]
pub(crate) fn open<F: Family>(
    scene: &Scene,
    key: &FlowKey,
    router_index: u32,
    rule: &RuleValue,
    transport: &Transport,
) -> Result<&'static mut Flow, DropReason> {
    let (source, source_slot) = source_for::<F>(scene, &key.src).ok_or(DropReason::NoSourceAddress)?;
    let target_port = if rule.target_port == Port::NONE { key.dst_port } else { rule.target_port };
    let mut reply_key = FlowKey {
        src: rule.destination,
        dst: source,
        src_port: target_port,
        dst_port: key.src_port,
        protocol: key.protocol,
        direction: Direction::Reply as u8,
        pad: [0; 2],
    };
    let first_seen = if key.protocol == protocol::TCP { tcp::first(transport.tcp_flags) } else { seen::ANY };
    let mut flow = Flow {
        created_ns: scene.now_ns,
        last_seen_ns: scene.now_ns,
        rule: rule.rule,
        to_src: key.dst,
        to_dst: key.src,
        to_src_port: key.dst_port,
        to_dst_port: key.src_port,
        mark: Mark::new(Direction::Reply, router_index as u8, key.dst_port).0,
        ..Flow::zeroed()
    };
    reserve(scene, &mut reply_key, &flow, key, transport.kind)?;

    flow.to_src = source;
    flow.to_dst = rule.destination;
    flow.to_src_port = reply_key.dst_port;
    flow.to_dst_port = target_port;
    flow.mark = Mark::new(Direction::Request, source_slot, reply_key.dst_port).0;
    flow.seen = first_seen & !seen::ANY;
    match FLOWS.insert(key, &flow, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        // Another CPU opened the same flow meanwhile: its translation is the one in force, and ours gives its port back.
        Err(EEXIST) => {
            if let Some(winner) = entry(key) && key.twin(winner) != reply_key {
                let _ = FLOWS.remove(&reply_key);
            }
        }
        Err(_) => {
            let _ = FLOWS.remove(&reply_key);
            return Err(DropReason::TableFull);
        }
    }
    entry(key).ok_or(DropReason::TableFull)
}

/// The external address that this client's flows come from: the same one for all of them (RFC 4787 REQ-2, "paired").
#[inline(always)]
fn source_for<F: Family>(scene: &Scene, client: &Addr) -> Option<(Addr, u8)> {
    let Slice { first, count } = if F::IS_V4 { scene.config.snat_v4 } else { scene.config.snat_v6 };
    if count == 0 {
        return None;
    }
    let slot = u32::from(first) + client.spread() % u32::from(count);
    let addr = SOURCES.get(source_index(Side::External, slot as u8))?;
    Some((*addr, slot as u8))
}

/// Enters `flow` under `reply_key`, with the first port that is free; `reply_key` then holds it.
#[inline(always)]
fn reserve(scene: &Scene, reply_key: &mut FlowKey, flow: &Flow, owner: &FlowKey, kind: Kind) -> Result<(), DropReason> {
    let range = match kind {
        Kind::Tcp | Kind::Udp | Kind::Dccp => Range::of(owner.src_port.get(), configured_ports(scene)),
        Kind::EchoRequest => Range::IDENTIFIERS,
        // No port, or one that cannot be changed: this tuple or none.
        _ => return try_port(scene, reply_key, flow, owner).map_or(Err(DropReason::PortsExhausted), |outcome| outcome),
    };
    let mut search = Search::new(range, random());
    if !range.contains(owner.src_port.get()) {
        reply_key.dst_port = Port::new(search.next(0).ok_or(DropReason::PortsExhausted)?);
    }
    for tries in 0..=MAX_TRIES {
        if let Some(outcome) = try_port(scene, reply_key, flow, owner) {
            count_tries(tries);
            return outcome;
        }
        let fresh = if search.wants_random() { random() } else { 0 };
        let Some(port) = search.next(fresh) else { break };
        reply_key.dst_port = Port::new(port);
    }
    Err(DropReason::PortsExhausted)
}

/// Takes the tuple if it is free, expired, or already this owner's. `None`: somebody else has it.
#[inline(always)]
fn try_port(scene: &Scene, reply_key: &FlowKey, flow: &Flow, owner: &FlowKey) -> Option<Result<(), DropReason>> {
    match FLOWS.insert(reply_key, flow, u64::from(BPF_NOEXIST)) {
        Ok(()) => return Some(Ok(())),
        Err(EEXIST) => {}
        Err(_) => return Some(Err(DropReason::TableFull)),
    }
    let holder = entry(reply_key)?;
    if reply_key.twin(holder) == *owner {
        return Some(Ok(()));
    }
    if !is_expired(scene, reply_key, holder) {
        return None;
    }
    remove(reply_key, holder);
    FLOWS.insert(reply_key, flow, u64::from(BPF_NOEXIST)).is_ok().then_some(Ok(()))
}

#[inline(always)]
fn configured_ports(scene: &Scene) -> Option<(u16, u16)> {
    let (first, last) = (scene.config.snat_port_first, scene.config.snat_port_last);
    (first != 0 && last >= first).then_some((first, last))
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: the helper takes nothing and has no effect but on its own state.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
fn count_tries(tries: u32) {
    let bucket = u32::BITS - tries.leading_zeros();
    let bucket = if bucket < PORT_TRIES_BUCKETS { bucket } else { PORT_TRIES_BUCKETS - 1 };
    if let Some(counter) = PORT_TRIES.get_ptr_mut(bucket) {
        // SAFETY: the element belongs to this CPU, and a program is not preempted by another on its CPU.
        unsafe { *counter += 1 };
    }
}
