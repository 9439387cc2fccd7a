//! The flow table: find, keep alive, open.
//!
//! A flow is two entries, one for each direction, each under the tuple of the packets as they arrive. A packet looks up its
//! own entry only, and writes that one only; the twin is looked at about once a minute ([`TWIN_TURNS_SHIFT`]), when the network
//! has changed, when a connection closes, and when an entry has been idle for as long as the shortest timeout of its protocol.
//!
//! [`TWIN_TURNS_SHIFT`]: egress_ebpf::contract::TWIN_TURNS_SHIFT

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Flow, FlowKey, HopKind, PORT_TRIES_BUCKETS, Side, Slice, source_index};
use egress_ebpf::event::Kind as Told;
use egress_ebpf::ports::{MAX_TRIES, Range, Search};
use egress_ebpf::table::state;
use egress_ebpf::tcp::{self, seen};
use egress_ebpf::timeout::{self, SECOND_NS, class, expired, protocol};
use egress_ebpf::verdict::DropReason;

use super::established::Frame as _;
use super::local::address_index;
use super::maps::{PORT_TRIES, Ports, SOURCES};
use super::packet::Packet;
use super::parsed::{Kind, Parsed};
use super::table::{self, Entered};
use super::{Scene, event, hop};

/// The live entry under this key. An expired one counts as absent; it stays until its flow begins anew ([`restart`]), until
/// another one takes its port, or until it is swept.
#[inline(always)]
pub(crate) fn find(scene: &Scene, key: &FlowKey) -> Option<&'static mut Flow> {
    let flow = table::find(key)?;
    let live = is_young(scene, key.protocol, flow) || !is_expired(scene, &mut scene.work().twin_key, key, flow);
    live.then_some(flow)
}

/// Whether an entry has been idle for less than any timeout of its protocol.
#[inline(always)]
pub(crate) fn is_young(scene: &Scene, protocol: u8, flow: &Flow) -> bool {
    timeout::is_young(protocol, flow, &scene.config.shortest_s, scene.now_ns)
}

/// Whether the next hops are to be looked up. One that the kernel knew nothing of may be there by now, and one that is known
/// from the client's packets alone is learned anew from those.
#[inline(always)]
pub(crate) fn is_due(scene: &Scene, flow: &Flow) -> bool {
    let unsure = flow.hop_kind == HopKind::Kernel as u8 || flow.return_kind == HopKind::Link as u8;
    (unsure && is_stale(scene, flow)) || flow.is_hop_due(scene.now_ns, scene.config.changed_ns)
}

#[inline(always)]
fn is_stale(scene: &Scene, flow: &Flow) -> bool {
    scene.now_ns.saturating_sub(flow.last_seen_ns) >= SECOND_NS
}

/// Notes that the flow is alive, and what it has seen. An entry is written to once a second, or when there is news.
#[inline(always)]
pub(crate) fn note(scene: &Scene, flow: &mut Flow, seen: u8) {
    if seen != flow.seen || is_stale(scene, flow) {
        flow.seen = seen;
        flow.last_seen_ns = scene.now_ns;
    }
}

/// The entry opposite to `flow`, which is under `key`.
#[inline(always)]
fn twin_entry(twin_key: &mut FlowKey, key: &FlowKey, flow: &Flow) -> Option<&'static mut Flow> {
    *twin_key = key.twin(flow);
    table::find(twin_key)
}

/// Also leaves the twin's key in `twin_key`.
#[inline(always)]
fn is_expired(scene: &Scene, twin_key: &mut FlowKey, key: &FlowKey, flow: &Flow) -> bool {
    let twin = twin_entry(twin_key, key, flow);
    expired(key.protocol, flow, key.is_request(), twin.as_deref(), &scene.config.timeouts_s, scene.now_ns)
}

/// Removes the flow that has an entry under `WORK`'s `over`, and tells of it. An entry that is gone already is what is wanted.
// A global BPF function for the verifier, as `open_flow`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget_flow() -> u32 {
    let Some(scene) = super::scene() else { return FAILED };
    let work = scene.work();
    let Some(flow) = table::find(&work.over) else { return OPENED };
    if is_young(&scene, work.over.protocol, flow) {
        // Another CPU has made a new one in its place.
        return OPENED;
    }
    work.twin_key = work.over.twin(flow);
    if !work.over.is_request() {
        // Its requests' entry comes first.
        core::mem::swap(&mut work.over, &mut work.twin_key);
    }
    // An entry that is removed may be another flow's at once.
    let [request, reply] = &mut work.gone;
    if let Some(flow) = table::find(&work.over) {
        *request = *flow;
    }
    let twin = table::find(&work.twin_key);
    let has_reply = twin.is_some();
    if let Some(twin) = twin {
        *reply = *twin;
    }
    // Told by whoever removes it, once.
    let was_there = table::remove(&work.over);
    table::remove(&work.twin_key);
    if was_there {
        event::closed(&scene, &work.over, request, has_reply.then_some(reply));
    }
    OPENED
}

/// Accounts for one more packet of `WORK`'s flow.
#[inline(always)]
pub(crate) fn touch(packet: &Packet, scene: &Scene, flow: &mut Flow) {
    let work = scene.work();
    let (key, flags) = (&work.key, work.parsed.flags);
    flow.packets += 1;
    flow.bytes += u64::from(packet.len());
    let seen = if has_states(key.protocol) { tcp::observe(flow.seen, flags) } else { flow.seen | seen::ANY };
    let opens = key.is_request() && flow.packets == 1;
    let due = is_due(scene, flow);
    let care = match due {
        _ if opens => Care::Flow,
        true if is_twin_due(scene, flow) => Care::Flow,
        true => Care::Hop,
        false => Care::None,
    };
    if care != Care::None {
        flow.last_seen_ns = scene.now_ns;
    }
    note(scene, flow, seen);
    match care {
        Care::None => {}
        Care::Hop => {
            let ifindex = if key.is_request() { scene.config.external_ifindex } else { scene.config.cluster_ifindex };
            refresh_hop(packet.ctx().skb.skb, ifindex);
        }
        Care::Flow => {
            refresh_flow(packet.ctx().skb.skb);
        }
    }
}

/// What a packet is to look after beside itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    None,
    /// Its own next hop. In a large table the other direction's entry is far from every cache.
    Hop,
    /// Both directions' next hops, and that there are both entries.
    Flow,
}

/// Whether the other direction's entry is to be looked at too: now and then, and where only requests tell the client's place.
#[inline(always)]
pub(crate) fn is_twin_due(scene: &Scene, flow: &Flow) -> bool {
    flow.return_kind == HopKind::Link as u8 || flow.is_twin_due(scene.now_ns, scene.config.changed_ns)
}

/// Whether the packet is one that begins a connection.
#[inline(always)]
pub(crate) fn opens(parsed: &Parsed) -> bool {
    has_states(parsed.protocol) && tcp::opens(parsed.flags)
}

/// Whether packets of this protocol open and close what they belong to.
#[inline(always)]
fn has_states(protocol: u8) -> bool {
    protocol == protocol::TCP || protocol == protocol::SCTP
}

/// Looks the next hop of `WORK`'s packet up. The neighbour that it goes to is then in `WORK`, if there is one.
// A global BPF function for the verifier, as `open_flow`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn refresh_hop(ctx: *mut __sk_buff, ifindex: u32) -> u32 {
    let Some(scene) = super::scene() else { return FAILED };
    let work = scene.work();
    let Some(flow) = table::find(&work.key) else { return FAILED };
    hop::refresh(ctx, &scene, ifindex, flow);
    OPENED
}

/// Puts a lost twin back, and looks both next hops up, as [`refresh_hop`] does.
// A global BPF function for the verifier, as `open_flow`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refresh_flow(ctx: *mut __sk_buff) -> u32 {
    let Some(scene) = super::scene() else { return FAILED };
    let Some(flow) = table::find(&scene.work().key) else { return FAILED };
    let Some(twin) = twin_or_mended(&scene, flow) else { return FAILED };
    let work = scene.work();
    if work.key.is_request() {
        hop::refresh_return(ctx, &scene, twin);
        hop::refresh(ctx, &scene, scene.config.external_ifindex, flow);
    } else {
        hop::refresh(ctx, &scene, scene.config.cluster_ifindex, flow);
    }
    flow.return_kind = twin.hop_kind;
    twin.return_kind = flow.hop_kind;
    OPENED
}

/// The other direction's entry. A lost one is put back, from what this entry knows: with the same port, never another.
#[inline(always)]
fn twin_or_mended(scene: &Scene, flow: &Flow) -> Option<&'static mut Flow> {
    let work = scene.work();
    if let Some(twin) = twin_entry(&mut work.twin_key, &work.key, flow) {
        return Some(twin);
    }
    let key = &work.key;
    let side = if key.is_request() { Side::Cluster } else { Side::External };
    let index = address_index(scene, side, &key.dst)?;
    let work = scene.work();
    work.flow = flow.reversed(&work.key, index);
    // Another CPU may have been faster.
    table::enter(&work.twin_key);
    table::find(&work.twin_key)
}

/// Starts a closed connection's flow anew, under the same translation, for a client that reuses its port.
#[inline(always)]
pub(crate) fn reopen_if_closed(scene: &Scene, flow: &mut Flow) {
    let work = scene.work();
    let flags = work.parsed.flags;
    if !opens(&work.parsed) {
        return;
    }
    let Some(twin) = twin_entry(&mut work.twin_key, &work.key, flow) else { return };
    if tcp::reopens(flags, class(work.key.protocol, flow.seen, twin.seen, 0)) {
        event::of_flow(Told::Closed);
        for half in [flow, twin] {
            half.seen = 0;
            half.created_ns = scene.now_ns;
            half.packets = 0;
            half.bytes = 0;
        }
        event::of_flow(Told::Opened);
    }
}

/// Opens the flow of `WORK`'s key, for a request that `WORK`'s rule claims.
#[inline(always)]
pub(crate) fn open(scene: &Scene) -> Result<&'static mut Flow, DropReason> {
    let work = scene.work();
    work.seen = if has_states(work.key.protocol) { tcp::first(work.parsed.flags) } else { 0 };
    work.ports = match work.parsed.kind {
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::Dccp => Ports::Transport,
        Kind::EchoRequest => Ports::Identifier,
        _ => Ports::Fixed,
    };
    let planned = plan_flow();
    match if planned == PLANNED { open_flow() } else { planned } {
        OPENED => table::find(&scene.work().key).ok_or(DropReason::TableFull),
        NO_SOURCE => Err(DropReason::NoSourceAddress),
        NO_PORT => Err(DropReason::PortsExhausted),
        NO_ROOM => Err(DropReason::TableFull),
        _ => Err(DropReason::KernelCall),
    }
}

// What the two functions below return; a BPF function returns a number.
const OPENED: u32 = 0;
const TAKEN: u32 = 1;
const NO_SOURCE: u32 = 2;
const NO_PORT: u32 = 3;
const NO_ROOM: u32 = 4;
const FAILED: u32 = 5;
const EXPIRED: u32 = 6;
const PLANNED: u32 = 7;

/// Prepares the flow that `WORK` describes, unless an expired one begins anew in its place.
// Global BPF functions, with their arguments in a map: the verifier walks each once, instead of once for each family and each
// way that leads here, and its stack is not that of the program that calls it. They are two, so that with what the second calls the
// stacks are no deeper than all kernels let them be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn plan_flow() -> u32 {
    let Some(scene) = super::scene() else { return FAILED };
    let work = scene.work();
    let Some((source, slot)) = source_for(&scene, &work.key.src) else { return NO_SOURCE };
    if restart(&scene, &source, slot, work.rule.target_port(&work.key)) {
        return OPENED;
    }
    work.reply_key = work.rule.reply_key(&work.key, source);
    work.flow = Flow {
        to_src: work.key.dst,
        to_dst: work.key.src,
        to_src_port: work.key.dst_port,
        to_dst_port: work.key.src_port,
        state: state::FREE,
        created_ns: scene.now_ns,
        last_seen_ns: scene.now_ns,
        packets: 0,
        bytes: 0,
        rule: work.rule.rule,
        seen: 0,
        hop_kind: HopKind::Kernel as u8,
        return_kind: HopKind::Kernel as u8,
        source: work.router_index,
        hop: [0; 6],
        reach: 0,
        distance: 0,
    };
    work.slot = slot;
    PLANNED
}

/// Opens the flow that was planned: reserves the reply's tuple, then enters the request's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_flow() -> u32 {
    let Some(scene) = super::scene() else { return FAILED };
    let reserved = reserve(&scene);
    if reserved != OPENED {
        return reserved;
    }
    let work = scene.work();
    work.flow.to_src = work.reply_key.dst;
    work.flow.to_dst = work.reply_key.src;
    work.flow.to_src_port = work.reply_key.dst_port;
    work.flow.to_dst_port = work.reply_key.src_port;
    work.flow.source = work.slot;
    work.flow.seen = work.seen;
    enter_request(&scene)
}

/// Begins an expired flow anew where it stands, if the rules would translate it so today. Nothing is removed then: the packet
/// of another CPU, which does the same at the same time, may be using the entries. Else what is left of it is removed.
#[inline(always)]
fn restart(scene: &Scene, source: &Addr, slot: u8, target_port: Port) -> bool {
    let work = scene.work();
    let Some(flow) = table::find(&work.key) else { return false };
    if is_young(scene, work.key.protocol, flow) {
        // Another CPU has been faster.
        return true;
    }
    let is_same = flow.to_src == *source
        && flow.to_dst == work.rule.destination
        && flow.to_dst_port == target_port
        && flow.source == slot
        && is_first_choice(scene, flow.to_src_port);
    let twin = twin_entry(&mut work.twin_key, &work.key, flow);
    match twin {
        Some(twin) if is_same && twin.source == work.router_index && work.twin_key.twin(twin) == work.key => {
            event::of_flow(Told::Closed);
            begin(flow, scene.now_ns, work.rule.rule, work.seen);
            begin(twin, scene.now_ns, work.rule.rule, 0);
            event::of_flow(Told::Opened);
            true
        }
        _ => {
            work.over = work.key;
            forget_flow();
            false
        }
    }
}

#[inline(always)]
fn begin(flow: &mut Flow, now_ns: u64, rule: u32, seen: u8) {
    flow.created_ns = now_ns;
    flow.last_seen_ns = now_ns;
    flow.packets = 0;
    flow.bytes = 0;
    flow.rule = rule;
    flow.seen = seen;
    flow.hop_kind = HopKind::Kernel as u8;
    flow.return_kind = HopKind::Kernel as u8;
}

/// Whether a new flow of `WORK`'s client would be given this source port if it were free: the client's own.
#[inline(always)]
fn is_first_choice(scene: &Scene, port: Port) -> bool {
    let work = scene.work();
    let client_port = work.key.src_port;
    let in_range = match work.ports {
        Ports::Fixed | Ports::Identifier => true,
        Ports::Transport => Range::of(client_port.get(), configured_ports(scene)).contains(client_port.get()),
    };
    port == client_port && in_range
}

#[inline(always)]
fn enter_request(scene: &Scene) -> u32 {
    let work = scene.work();
    match table::enter(&work.key) {
        Entered::Now => {
            event::of_flow(Told::Opened);
            OPENED
        }
        // Another CPU opened the same flow meanwhile: its translation is the one in force, and ours gives its port back.
        Entered::Before => {
            let work = scene.work();
            if let Some(winner) = table::find(&work.key) {
                work.twin_key = work.key.twin(winner);
                if work.twin_key != work.reply_key {
                    table::remove(&work.reply_key);
                }
            }
            OPENED
        }
        outcome => {
            table::remove(&scene.work().reply_key);
            if outcome == Entered::NoRoom { NO_ROOM } else { FAILED }
        }
    }
}

/// The external address that this client's flows come from: the same one for all of them (RFC 4787 REQ-2, "paired").
#[inline(always)]
pub(crate) fn source_for(scene: &Scene, client: &Addr) -> Option<(Addr, u8)> {
    let Slice { first, count } = if client.is_v4() { scene.config.snat_v4 } else { scene.config.snat_v6 };
    if count == 0 {
        return None;
    }
    let position = u32::from(first) + (((client.spread() & 0xffff) * u32::from(count)) >> 16);
    let slot = *scene.config.snat_slots.get(position as usize)?;
    let addr = SOURCES.get(source_index(Side::External, slot))?;
    Some((*addr, slot))
}

/// Enters `work.flow` under `work.reply_key`, with the first port that is free; the key then holds it.
#[inline(always)]
fn reserve(scene: &Scene) -> u32 {
    let work = scene.work();
    let client_port = work.key.src_port.get();
    let range = match work.ports {
        Ports::Fixed => {
            let mut outcome = try_port();
            if outcome == EXPIRED {
                forget_flow();
                outcome = try_port();
            }
            return if outcome == TAKEN || outcome == EXPIRED { NO_PORT } else { outcome };
        }
        Ports::Transport => Range::of(client_port, configured_ports(scene)),
        Ports::Identifier => Range::IDENTIFIERS,
    };
    work.search = Search::new(range, random());
    if !range.contains(client_port) {
        let Some(port) = work.search.next(0) else { return NO_PORT };
        work.reply_key.dst_port = Port::new(port);
    }
    for tries in 0..=MAX_TRIES {
        let outcome = try_port();
        if outcome == EXPIRED {
            // The next round finds it free.
            forget_flow();
        } else if outcome != TAKEN {
            count_tries(tries);
            return outcome;
        }
    }
    NO_PORT
}

/// Takes the tuple in `WORK` if it is free, or already that of the same flow. If not, moves on to the next port, unless it is that
/// of a flow which has expired, and which is then in `WORK` as the one that is over.
// Global for the verifier, as `open_flow`: inlined into the search it would be walked 241 times.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn try_port() -> u32 {
    let Some(scene) = super::scene() else { return FAILED };
    let work = scene.work();
    match table::enter(&work.reply_key) {
        Entered::Now => return OPENED,
        Entered::Before => {}
        Entered::NoRoom => return NO_ROOM,
        Entered::Failed => return FAILED,
    }
    let work = scene.work();
    if let Some(holder) = table::find(&work.reply_key) {
        work.twin_key = work.reply_key.twin(holder);
        if work.twin_key == work.key {
            return OPENED;
        }
        if is_expired(&scene, &mut work.twin_key, &work.reply_key, holder) {
            work.over = work.reply_key;
            return EXPIRED;
        }
    }
    let fresh = if work.search.wants_random() { random() } else { 0 };
    let Some(port) = work.search.next(fresh) else { return NO_PORT };
    work.reply_key.dst_port = Port::new(port);
    TAKEN
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
