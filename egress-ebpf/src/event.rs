//! What the programs tell of flows and of drops, one record each, in a ring buffer; and how much they tell.
//!
//! Records are made where a flow begins or ends, where a packet is dropped, and, while somebody traces, where a packet is
//! decided about; never for the packets of an established flow. Each stream of records has its own budget on each CPU, so that a
//! storm of drops hides no flow.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};
use crate::contract::{Counter, Flow, FlowKey};
use crate::verdict::{DropReason, Hook, Verdict};

/// A record of `EVENTS` and `TRACED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// When it was made, monotonic clock.
    pub at_ns: u64,
    /// When the flow began, monotonic clock; 0 of what is no flow's.
    pub created_ns: u64,
    /// When the flow's last packet came, to the second, monotonic clock.
    pub last_seen_ns: u64,
    /// What the client has sent.
    pub requests: Counter,
    /// What the client was sent.
    pub replies: Counter,
    /// The packet as it arrived; of a flow, its requests.
    pub key: FlowKey,
    /// What it becomes, where [`TRANSLATION`] says that this is known: new source address.
    pub to_src: Addr,
    /// New destination address.
    pub to_dst: Addr,
    /// New source port, or echo identifier.
    pub to_src_port: Port,
    /// New destination port, or echo identifier.
    pub to_dst_port: Port,
    /// Index of the rule, or [`RULE_FALLBACK`](crate::contract::RULE_FALLBACK); it is known where the translation is.
    pub rule: u32,
    /// Length of the packet, link header included.
    pub len: u32,
    /// [`Kind`].
    pub kind: u8,
    /// [`Hook`] of the program.
    pub hook: u8,
    /// The packet's outcome: an [`Outcome`]'s number.
    pub outcome: u8,
    /// [`TUPLE`] and [`TRANSLATION`].
    pub known: u8,
    /// [`Why`].
    pub why: u8,
    /// Zero.
    pub pad: [u8; 7],
}

/// Bit of [`Event::known`]: the packet could be read, so [`Event::key`] says what it is.
pub const TUPLE: u8 = 1;
/// Bit of [`Event::known`]: a flow or a rule says what the packet becomes.
pub const TRANSLATION: u8 = 2;

/// What a record tells of.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A flow began.
    Opened = 0,
    /// A flow is forgotten.
    Closed = 1,
    /// A packet was dropped.
    Dropped = 2,
    /// A packet was decided about, and somebody wants to know.
    Traced = 3,
}

impl Kind {
    /// The one with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Opened),
            1 => Some(Self::Closed),
            2 => Some(Self::Dropped),
            3 => Some(Self::Traced),
            _ => None,
        }
    }

    /// Whose budget pays for it.
    #[inline(always)]
    pub const fn stream(self) -> Stream {
        match self {
            Self::Opened | Self::Closed => Stream::Flows,
            Self::Dropped => Stream::Drops,
            Self::Traced => Stream::Trace,
        }
    }
}

/// Records that share a budget; an index of `BUDGETS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Of flows.
    Flows = 0,
    /// Of drops.
    Drops = 1,
    /// Of traced packets.
    Trace = 2,
}

/// How many streams there are.
pub const STREAMS: u32 = 3;

/// Beside the outcome: which way it was decided.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The outcome says it all.
    Outcome = 0,
    /// A rule claims it, and it opens a flow.
    NewFlow = 1,
    /// It is a live flow's.
    KnownFlow = 2,
    /// An ICMP error about a live flow's packet.
    ErrorOfFlow = 3,
    /// A socket waits for it that the pod opened.
    PodSocket = 4,
    /// Its port is one of the pod's own (`--local-port`).
    LocalPort = 5,
    /// Of a kind that opens nothing and is answered by the stack: later fragments, ICMP that is no echo request, segments
    /// without SYN from the outside, link-local.
    Harmless = 6,
}

impl Why {
    /// All of them, by number.
    pub const ALL: [Self; 7] = [
        Self::Outcome,
        Self::NewFlow,
        Self::KnownFlow,
        Self::ErrorOfFlow,
        Self::PodSocket,
        Self::LocalPort,
        Self::Harmless,
    ];
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    On(Verdict),
    /// It ends.
    Dropped(DropReason),
}

/// Outcomes from this number on are drop reasons.
const FIRST_DROP: u8 = 128;

impl Outcome {
    /// The one with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        if number < FIRST_DROP {
            return match Verdict::from_number(number as u32) {
                Some(verdict) => Some(Self::On(verdict)),
                None => None,
            };
        }
        match DropReason::from_number((number - FIRST_DROP) as u32) {
            Some(reason) => Some(Self::Dropped(reason)),
            None => None,
        }
    }

    /// Its number.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "both are dense enumerations of fewer than 128")]
    pub const fn number(self) -> u8 {
        match self {
            Self::On(verdict) => verdict as u32 as u8,
            Self::Dropped(reason) => FIRST_DROP + reason as u32 as u8,
        }
    }

    /// The name that metrics and tables show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::On(verdict) => verdict.name(),
            Self::Dropped(reason) => reason.name(),
        }
    }
}

impl Event {
    /// Tells what a flow adds up to. `key` and `flow` are its requests' entry, `reply` is the other one.
    // Field by field: a record that is put together first would be on the programs' stack.
    #[inline(always)]
    pub fn set_flow(&mut self, key: &FlowKey, flow: &Flow, reply: Option<&Flow>) {
        self.created_ns = flow.created_ns;
        self.last_seen_ns = flow.last_seen_ns;
        self.requests.packets = flow.packets;
        self.requests.bytes = flow.bytes;
        self.replies.packets = 0;
        self.replies.bytes = 0;
        if let Some(reply) = reply {
            self.replies.packets = reply.packets;
            self.replies.bytes = reply.bytes;
            if reply.last_seen_ns > self.last_seen_ns {
                self.last_seen_ns = reply.last_seen_ns;
            }
        }
        self.key = *key;
        self.set_translation(flow);
        self.known = TUPLE | TRANSLATION;
    }

    /// Tells what a packet of this entry becomes.
    #[inline(always)]
    pub fn set_translation(&mut self, flow: &Flow) {
        self.to_src = flow.to_src;
        self.to_dst = flow.to_dst;
        self.to_src_port = flow.to_src_port;
        self.to_dst_port = flow.to_dst_port;
        self.rule = flow.rule;
    }

    /// The program that made it.
    pub fn hook(&self) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| *hook as u32 == u32::from(self.hook))
    }

    /// Whether all of these bits of [`known`](Self::known) are set.
    pub const fn knows(&self, what: u8) -> bool {
        self.known & what == what
    }
}

/// Value of `LOG`: what is told of flows and drops. Zero is nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Logging {
    /// One flow in so many is told of.
    pub one_in: u32,
    /// Most records a second of flows, and of drops, on each CPU; 0 switches all off.
    pub rate: u32,
}

/// Value of `TRACE`: which packets somebody wants to know of. Zero is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Filter {
    /// Until when, monotonic clock: whoever traces says it again before, and if he is no more, tracing ends by itself.
    pub until_ns: u64,
    /// Address on either side of the translation; unspecified for any.
    pub addr: Addr,
    /// Most records a second on each CPU.
    pub rate: u32,
    /// Port on either side of the translation; 0 for any.
    pub port: Port,
    /// IP protocol; 0 for any.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl Filter {
    /// Whether a packet is one of those: what it is, and what its flow makes of it.
    #[inline(always)]
    pub fn takes(&self, key: &FlowKey, flow: Option<&Flow>) -> bool {
        if self.protocol != 0 && self.protocol != key.protocol {
            return false;
        }
        let addr = self.addr == Addr::UNSPECIFIED
            || self.addr == key.src
            || self.addr == key.dst
            || flow.is_some_and(|flow| self.addr == flow.to_src || self.addr == flow.to_dst);
        let port = self.port == Port::NONE
            || self.port == key.src_port
            || self.port == key.dst_port
            || flow.is_some_and(|flow| self.port == flow.to_src_port || self.port == flow.to_dst_port);
        addr && port
    }
}

/// Value of `BUDGETS`: what is left to be told of a stream, and what was not told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// Records lost because there were too many.
    pub over_rate: u64,
    /// Records lost because nobody had read the earlier ones.
    pub no_room: u64,
    /// When it was filled up last, in seconds.
    pub filled_s: u32,
    /// Records left.
    pub left: u32,
}

/// A budget that was not used up is saved for so many seconds: what comes in bursts is told whole.
pub const BURST_S: u32 = 5;

impl Budget {
    /// Pays for a record, if there is anything left.
    #[inline(always)]
    pub fn pay(&mut self, now_s: u32, rate: u32) -> bool {
        let passed_s = now_s.wrapping_sub(self.filled_s);
        if passed_s != 0 {
            let passed_s = if passed_s < BURST_S { passed_s } else { BURST_S };
            let most = rate * BURST_S;
            let left = self.left + passed_s * rate;
            self.left = if left < most { left } else { most };
            self.filled_s = now_s;
        }
        // A rate that was lowered meanwhile.
        if self.left == 0 || rate == 0 {
            self.over_rate += 1;
            return false;
        }
        self.left -= 1;
        true
    }
}

/// The highest rate: `left` cannot overflow.
pub const MAX_RATE: u32 = 1_000_000;

/// Whether a flow is one of the sample: its beginning and its end get the same answer, from whoever asks.
#[inline(always)]
pub const fn is_sampled(key: &FlowKey, created_ns: u64, one_in: u32) -> bool {
    if one_in <= 1 {
        return one_in == 1;
    }
    let ends = (key.src.spread() as u64) << 32 | (key.src_port.get() as u64) << 16 | key.dst_port.get() as u64;
    let hash = (created_ns ^ ends).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((hash >> 32) as u32).is_multiple_of(one_in)
}

const _: () = assert!(size_of::<Event>() == 152);
const _: () = assert!(size_of::<Logging>() == 8);
const _: () = assert!(size_of::<Filter>() == 32);
const _: () = assert!(size_of::<Budget>() == 24);
const _: () = assert!(Verdict::ALL.len() < FIRST_DROP as usize && DropReason::ALL.len() < FIRST_DROP as usize);

#[cfg(test)]
mod tests {
    extern crate std;
    use core::mem::offset_of;
    use core::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn key(port: u16) -> FlowKey {
        FlowKey {
            src: addr("10.128.0.1"),
            dst: addr("10.128.0.2"),
            src_port: Port::new(port),
            dst_port: Port::new(80),
            protocol: 6,
            ..FlowKey::zeroed()
        }
    }

    /// A reader of another build finds each field where it was.
    #[test]
    fn a_record_lies_as_it_always_did() {
        assert_eq!(
            [offset_of!(Event, at_ns), offset_of!(Event, created_ns), offset_of!(Event, last_seen_ns)],
            [0, 8, 16]
        );
        assert_eq!([offset_of!(Event, requests), offset_of!(Event, replies), offset_of!(Event, key)], [24, 40, 56]);
        assert_eq!([offset_of!(Event, to_src), offset_of!(Event, to_dst)], [96, 112]);
        assert_eq!([offset_of!(Event, to_src_port), offset_of!(Event, to_dst_port)], [128, 130]);
        assert_eq!([offset_of!(Event, rule), offset_of!(Event, len), offset_of!(Event, kind)], [132, 136, 140]);
        assert_eq!([offset_of!(Event, hook), offset_of!(Event, outcome), offset_of!(Event, known)], [141, 142, 143]);
        assert_eq!([offset_of!(Event, why), offset_of!(Event, pad)], [144, 145]);
        for number in 0..=255 {
            assert!(Kind::from_number(number).is_none_or(|kind| kind as u8 == number));
            assert!(Outcome::from_number(number).is_none_or(|outcome| outcome.number() == number));
        }
        for reason in DropReason::ALL {
            let outcome = Outcome::Dropped(*reason);
            assert_eq!(Outcome::from_number(outcome.number()), Some(outcome));
        }
        for (number, why) in (0..).zip(Why::ALL) {
            assert_eq!(why as u8, number);
        }
    }

    #[test]
    fn a_budget_pays_the_rate_and_saves_a_little() {
        let mut budget = Budget::default();
        let paid = |budget: &mut Budget, now_s, wanted: u32| (0..wanted).filter(|_| budget.pay(now_s, 10)).count();
        assert_eq!(paid(&mut budget, 100, 80), 50, "a burst");
        assert_eq!(budget.over_rate, 30);
        assert_eq!(paid(&mut budget, 101, 30), 10);
        assert_eq!(paid(&mut budget, 103, 30), 20);
        assert_eq!(budget.over_rate, 60);
        assert_eq!(paid(&mut budget, 1000, 70), 50, "saved for a while only");
        // Across the end of the seconds that a word can count, and with the rate at its highest.
        let mut budget = Budget { filled_s: u32::MAX, left: MAX_RATE * BURST_S, ..Budget::default() };
        assert!(budget.pay(0, MAX_RATE));
        assert_eq!(budget.left, MAX_RATE * BURST_S - 1);
        assert!(!budget.pay(0, 0));
    }

    #[test]
    fn one_flow_in_so_many_is_of_the_sample() {
        let sampled = |one_in| (0..64_000).filter(|port| is_sampled(&key(*port), 5_000_000_000, one_in)).count();
        assert_eq!((sampled(0), sampled(1)), (0, 64_000));
        for one_in in [2, 10, 100] {
            let expected = 64_000 / one_in as usize;
            let found = sampled(one_in);
            assert!(found.abs_diff(expected) < expected / 5, "{found} of {expected}");
        }
        // The clock's ticks and a client that uses one port again and again.
        let again = (0..10_000_u64).filter(|tick| is_sampled(&key(1000), tick * 4_000_000, 10)).count();
        assert!(again.abs_diff(1000) < 200, "{again}");
    }

    #[test]
    fn a_filter_takes_either_side_of_the_translation() {
        let key = key(40_000);
        let flow = Flow {
            to_src: addr("192.168.12.99"),
            to_dst: addr("203.0.113.26"),
            to_src_port: Port::new(40_001),
            to_dst_port: Port::new(8080),
            ..Flow::zeroed()
        };
        let takes = |filter: Filter| filter.takes(&key, Some(&flow));
        let any = Filter::zeroed();
        assert!(takes(any) && takes(Filter { protocol: 6, ..any }) && !takes(Filter { protocol: 17, ..any }));
        for ip in ["10.128.0.1", "10.128.0.2", "192.168.12.99", "203.0.113.26"] {
            assert!(takes(Filter { addr: addr(ip), ..any }), "{ip}");
        }
        for port in [40_000, 80, 40_001, 8080] {
            assert!(takes(Filter { port: Port::new(port), ..any }), "{port}");
        }
        assert!(!takes(Filter { addr: addr("10.128.0.3"), ..any }) && !takes(Filter { port: Port::new(81), ..any }));
        let untranslated = Filter { port: Port::new(8080), ..any }.takes(&key, None);
        assert!(!untranslated, "nothing is known of its translation");
    }
}
