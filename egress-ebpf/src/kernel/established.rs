//! The short way: a packet of an established flow, about which there is nothing to decide.
//!
//! Most packets are plain TCP or UDP of a flow that is alive and whose next hop is known, and change nothing in it but its
//! state and its counters. They are read and written where they lie: every call that is saved counts, since on many processors each return
//! costs as much as all the arithmetic here. A packet that differs in any way is left as it is, and takes the way through
//! everything, which alone decides.
//!
//! It is the same way in a tc program and in an XDP program: a [`Frame`] is what differs.

use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Config, Direction, Flow, HopKind, config_flag};
use egress_ebpf::sctp;
use egress_ebpf::tcp::{self, flag, seen};
use egress_ebpf::timeout::protocol;
use egress_ebpf::verdict::{DropReason, Verdict};

use super::family::Family;
use super::forward::{hop_of, out_of};
use super::packet::{Ends, Head, L3, LinkHop};
use super::parsed::{Fragment, Kind, Parsed};
use super::{Outcome, Scene, flow, hop, table};

/// A frame, as the kind of program has it that is run on it.
pub(crate) trait Frame {
    /// Bytes, link header included.
    fn len(&self) -> u32;

    /// The first `len` bytes, if they lie together.
    fn head(&self, len: u32) -> Option<Head>;

    /// Whether it came to the link address of the interface that packets of this direction come in by.
    fn is_for_router(&self, config: &Config, direction: Direction) -> bool;

    /// Whether its transport checksum is of a kind that [`rewrite_in_place`](Self::rewrite_in_place) knows how to change.
    fn has_known_checksum<F: Family>(&self, head: &Head, parsed: &Parsed) -> Option<bool>;

    /// Whether the packet, or each segment that it will be cut into, fits the interface.
    fn fits(&self, config: &Config, ifindex: u32) -> bool;

    /// Counts one more hop and gives the packet, whose headers lie in `head` without anything between them, these ends, and
    /// every checksum what that asks for.
    fn rewrite_in_place<F: Family>(
        &mut self,
        config: &Config,
        head: &Head,
        parsed: &Parsed,
        ends: &Ends,
    ) -> Result<(), DropReason>;

    /// Looks the next hop of `WORK`'s flow up again. The neighbour that it is is then in `WORK`. `None` where a program of this
    /// kind leaves that to others.
    fn refresh_hop(&self, ifindex: u32) -> Option<()>;

    /// Sends it out of an interface: to a link address, or to a neighbour through the kernel, which then takes note that somebody
    /// speaks to it.
    fn send<F: Family>(&mut self, ifindex: u32, hop: &LinkHop<'_>, neighbour: Option<&Addr>) -> Result<(), DropReason>;

    /// What to call that.
    fn verdict(direction: Direction) -> Verdict;
}

/// Translates the packet and sends it on; `None` if it is not of that kind.
#[inline(always)]
pub(crate) fn forward<F: Family, P: Frame>(frame: &mut P, scene: &Scene, direction: Direction) -> Option<Outcome> {
    if scene.config.flags & config_flag::REDIRECT == 0 || !frame.is_for_router(scene.config, direction) {
        return None;
    }
    let work = scene.work();
    let head = read::<F>(frame, &mut work.parsed)?;
    // What begins a connection would wait for the flow's entry here, and for its twin there. (UDP has no flag that says so.)
    if tcp::opens(work.parsed.flags) {
        return None;
    }
    work.key = work.parsed.flow_key(direction);
    let flow = table::find_at_once(scene.shape, &work.key)?;
    let parsed = &work.parsed;
    let seen = settled(scene, parsed, flow)?;
    let ifindex = out_of(scene.config, direction);
    if !frame.fits(scene.config, ifindex) || !frame.has_known_checksum::<F>(&head, parsed)? {
        return None;
    }
    let due = flow::is_due(scene, flow);
    if due {
        if flow::is_twin_due(scene, flow) {
            return None;
        }
        if !hop::take_known(scene, ifindex, flow) {
            frame.refresh_hop(ifindex)?;
        }
        if flow.hop_kind == HopKind::Kernel as u8 {
            return None;
        }
        flow.last_seen_ns = scene.now_ns;
    }
    flow::note(scene, flow, seen);
    flow.packets += 1;
    flow.bytes += u64::from(frame.len());
    work.ends = Ends { src: flow.to_src, dst: flow.to_dst, src_port: flow.to_src_port, dst_port: flow.to_dst_port };
    let rewritten = frame.rewrite_in_place::<F>(scene.config, &head, &work.parsed, &work.ends);
    let neighbour = (due && work.neighbour != Addr::UNSPECIFIED).then_some(&work.neighbour);
    let hop = hop_of(scene.config, flow, direction);
    Some(rewritten.and_then(|()| frame.send::<F>(ifindex, &hop, neighbour)).map(|()| P::verdict(direction)))
}

/// Reads a packet that has nothing between its IP header and its transport header, and a hop left.
#[inline(always)]
fn read<F: Family>(frame: &impl Frame, parsed: &mut Parsed) -> Option<Head> {
    let l4 = L3 + F::PLAIN;
    let mut head = frame.head(l4 + 8)?;
    parsed.l3 = L3;
    F::read_fixed(&head.read(L3)?, parsed).ok()?;
    if !parsed.is_sound || parsed.l4 != l4 || parsed.fragment != Fragment::Whole || parsed.ttl <= 1 {
        return None;
    }
    match parsed.protocol {
        protocol::TCP => {
            head = frame.head(l4 + 20)?;
            parsed.set_tcp();
            parsed.flags = head.read(l4 + 13)?;
        }
        protocol::UDP => {
            parsed.set_udp();
            parsed.flags = flag::ACK;
        }
        protocol::SCTP => {
            // Twelve bytes of header, then the first chunk, which starts with its type.
            head = frame.head(l4 + 14)?;
            parsed.set_sctp();
            let [first, _]: [u8; 2] = head.read(l4 + 12)?;
            parsed.flags = sctp::flags(first);
        }
        _ => return None,
    }
    parsed.has_ports = true;
    [parsed.src_port, parsed.dst_port] = head.read(l4)?;
    parsed.has_length(frame.len()).then_some(head)
}

/// What the flow has seen with this packet, if it is a flow that is redirected and alive.
#[inline(always)]
fn settled(scene: &Scene, parsed: &Parsed, flow: &Flow) -> Option<u8> {
    let has_states = parsed.kind != Kind::Udp;
    let seen = if has_states { tcp::observe(flow.seen, parsed.flags) } else { flow.seen | seen::ANY };
    // A new port would need an SCTP packet's whole length in its checksum.
    let is_light = parsed.kind != Kind::Sctp || flow.keeps_ports(parsed.src_port, parsed.dst_port);
    let settled = flow.hop_kind != HopKind::Kernel as u8 && is_light && flow::is_young(scene, parsed.protocol, flow);
    settled.then_some(seen)
}
