//! Tell user space of flows that begin and end, of drops, and of the packets that somebody traces.
//!
//! Nothing here is called for the packet of an established flow. A record is made in the ring buffer itself: there is no room
//! for one on the stack. What is not told is counted.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::programs::TcContext;
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{Direction, Flow, FlowKey};
use egress_ebpf::event::{Budget, Event, Kind, Logging, Outcome, TRANSLATION, TUPLE, Why, is_sampled};
use egress_ebpf::timeout::SECOND_NS;
use egress_ebpf::verdict::{DropReason, Hook, Verdict};

use super::established::Frame as _;
use super::maps::{BUDGETS, EVENTS, LOG, TRACE, TRACED, Work};
use super::packet::Packet;
use super::request::ether_type;
use super::{Scene, work};

/// The flow of `WORK`'s key begins, or ends to begin anew.
#[inline(always)]
pub(crate) fn of_flow(kind: Kind) {
    if logging().is_some() {
        tell_flow(kind as u32);
    }
}

/// A flow is removed: `key` and `flow` were its requests' entry.
#[inline(always)]
pub(crate) fn closed(scene: &Scene, key: &FlowKey, flow: &Flow, reply: Option<&mut Flow>) {
    tell_of(scene, Kind::Closed, key, flow, reply.as_deref());
}

#[inline(always)]
fn tell_of(scene: &Scene, kind: Kind, key: &FlowKey, flow: &Flow, reply: Option<&Flow>) {
    let Some(Logging { one_in, rate }) = logging() else { return };
    if !is_sampled(key, flow.created_ns, *one_in) {
        return;
    }
    let Some(mut record) = reserve(kind, scene.now_ns, *rate) else { return };
    begin(&mut record, kind, scene.now_ns).set_flow(key, flow, reply);
    record.submit(0);
}

/// A packet ends here.
#[inline(always)]
pub(crate) fn dropped(packet: &Packet, hook: Hook, reason: DropReason) {
    if logging().is_some() || is_traced() {
        tell_packet(packet.ctx().skb.skb, hook as u32, u32::from(Outcome::Dropped(reason).number()));
    }
}

/// A packet goes on that something had to be decided about.
#[inline(always)]
pub(crate) fn decided(packet: &Packet, hook: Hook, outcome: &Result<Verdict, DropReason>) {
    if let Ok(verdict) = outcome
        && is_traced()
    {
        tell_packet(packet.ctx().skb.skb, hook as u32, u32::from(Outcome::On(*verdict).number()));
    }
}

#[inline(always)]
fn logging() -> Option<&'static Logging> {
    LOG.get(0).filter(|log| log.rate != 0)
}

/// Whether somebody traces, or did and has ended without saying so.
#[inline(always)]
fn is_traced() -> bool {
    TRACE.get(0).is_some_and(|filter| filter.until_ns != 0)
}

// Global BPF functions: the verifier walks them once, and they have stacks of their own.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_flow(kind: u32) -> u32 {
    let kind = if kind == Kind::Opened as u32 { Kind::Opened } else { Kind::Closed };
    let Some(scene) = super::scene() else { return 0 };
    let work = scene.work();
    let Some(entry) = super::table::find(&work.key) else { return 0 };
    work.twin_key = work.key.twin(entry);
    let reply = super::table::find(&work.twin_key);
    tell_of(&scene, kind, &work.key, entry, reply.as_deref());
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_packet(ctx: *mut __sk_buff, hook: u32, outcome: u32) -> u32 {
    let packet = Packet::new(TcContext::new(ctx));
    let Some(work) = work() else { return 0 };
    // SAFETY: the helper takes nothing and reads the clock.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let Some(outcome) = Outcome::from_number((outcome & 0xff) as u8) else { return 0 };
    let known = know(&packet, work, hook, outcome);
    let flow = flow_of(work, outcome);
    let told = Told { packet: &packet, work, now_ns, hook, outcome, known, flow };
    if let Outcome::Dropped(_) = outcome
        && let Some(log) = logging()
    {
        tell(&told, Kind::Dropped, log.rate);
    }
    if let Some(filter) = TRACE.get(0)
        && filter.until_ns > now_ns
        && known == TUPLE
        && filter.takes(&told.work.told, flow)
    {
        tell(&told, Kind::Traced, filter.rate);
    }
    0
}

/// A packet that is told of.
struct Told<'a> {
    packet: &'a Packet,
    work: &'a Work,
    now_ns: u64,
    hook: u32,
    outcome: Outcome,
    known: u8,
    flow: Option<&'static Flow>,
}

#[inline(always)]
fn tell(told: &Told<'_>, kind: Kind, rate: u32) {
    let Some(mut record) = reserve(kind, told.now_ns, rate) else { return };
    let event = begin(&mut record, kind, told.now_ns);
    event.hook = (told.hook & 0xff) as u8;
    event.outcome = told.outcome.number();
    event.len = told.packet.len();
    event.known = told.known;
    event.key = told.work.told;
    if let Outcome::On(_) = told.outcome {
        event.why = told.work.why as u8;
    }
    translate(event, told.work, told.outcome, told.flow);
    record.submit(0);
}

/// Puts the key that the packet would have as a flow's into `WORK`, as far as it could be read.
#[inline(always)]
fn know(packet: &Packet, work: &mut Work, hook: u32, outcome: Outcome) -> u8 {
    let is_ip = matches!(packet.ether_type(), ether_type::IPV4 | ether_type::IPV6);
    let unread = matches!(outcome, Outcome::Dropped(DropReason::Unconfigured));
    if !is_ip || unread || work.parsed.dst == Addr::UNSPECIFIED {
        work.told = bytemuck::Zeroable::zeroed();
        return 0;
    }
    let from_client = hook == Hook::ClusterIngress as u32 || hook == Hook::ExternalEgress as u32;
    work.told = work.parsed.flow_key(if from_client { Direction::Request } else { Direction::Reply });
    TUPLE
}

/// The entry that says what the packet becomes.
#[inline(always)]
fn flow_of(work: &Work, outcome: Outcome) -> Option<&'static Flow> {
    let translated = matches!(work.why, Why::NewFlow | Why::KnownFlow | Why::ErrorOfFlow);
    match outcome {
        Outcome::On(_) if translated => super::table::find(&work.key).map(|flow| &*flow),
        _ => None,
    }
}

/// Tells what the packet becomes, or what a rule would have made of it if there had been a port or room for its flow.
#[inline(always)]
fn translate(event: &mut Event, work: &Work, outcome: Outcome, flow: Option<&Flow>) {
    if let Some(flow) = flow {
        event.created_ns = flow.created_ns;
        event.set_translation(flow);
        event.known |= TRANSLATION;
        return;
    }
    let Outcome::Dropped(reason) = outcome else { return };
    if matches!(reason, DropReason::NoSourceAddress | DropReason::PortsExhausted | DropReason::TableFull) {
        event.to_dst = work.rule.destination;
        event.to_dst_port = work.rule.target_port(&work.key);
        event.rule = work.rule.rule;
        if reason != DropReason::NoSourceAddress {
            event.to_src = work.reply_key.dst;
        }
        event.known |= TRANSLATION;
    }
}

/// Room for a record, if its stream has any left to spend.
#[inline(always)]
fn reserve(kind: Kind, now_ns: u64, rate: u32) -> Option<RingBufEntry<Event>> {
    let budget = BUDGETS.get_ptr_mut(kind.stream() as u32)?;
    // SAFETY: the element belongs to this CPU, and a program is not preempted by another on its CPU.
    let budget: &mut Budget = unsafe { &mut *budget };
    #[expect(clippy::cast_possible_truncation, reason = "differences of seconds are looked at, modulo a word")]
    let now_s = (now_ns / SECOND_NS) as u32;
    if !budget.pay(now_s, rate) {
        return None;
    }
    // Asked once: Linux 6.1 forgets that a record which was there once is there.
    match if matches!(kind, Kind::Traced) { TRACED.reserve(0) } else { EVENTS.reserve(0) } {
        Some(record) => Some(record),
        None => {
            budget.no_room += 1;
            None
        }
    }
}

/// A record that tells nothing yet.
#[inline(always)]
fn begin(record: &mut RingBufEntry<Event>, kind: Kind, now_ns: u64) -> &mut Event {
    let event = record.as_mut_ptr();
    // SAFETY: the reserved bytes are this program's until it gives them back, aligned to eight, and as many as an `Event` has; it
    // is made of integers, of which any bytes are one.
    let event = unsafe { &mut *event };
    *event = bytemuck::Zeroable::zeroed();
    event.at_ns = now_ns;
    event.kind = kind as u8;
    event
}
