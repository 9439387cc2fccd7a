//! The contract: every map that user space and the kernel share, its keys and its values.
//!
//! All types are `repr(C)` with explicit padding and derive `bytemuck::Pod`, which refuses padding; sizes are asserted.
//! Changing any of them means a new [`LAYOUT`].

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};
use crate::table;
use crate::timeout::{CLASSES, GROUPS};

/// Version of everything in this module; part of the path under which the maps are pinned.
pub const LAYOUT: u32 = 3;

/// Names of the maps, as in the object and under the pin directory.
pub mod map {
    /// `Array<u32>`, one element: the [`Config`](super::Config) and the rules in force are those of this generation, 0 or 1.
    pub const ACTIVE: &str = "ACTIVE";
    /// `Array<Config>`, one for each generation.
    pub const CONFIG: &str = "CONFIG";
    /// `Hash<AddressKey, u32>`: the router's own addresses, and their index in `SOURCES`.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// `Array<Addr>`: by interface and index, what a [`Mark`](super::Mark) names.
    pub const SOURCES: &str = "SOURCES";
    /// `Hash<RuleKey, RuleValue>`.
    pub const RULES: &str = "RULES";
    /// `Array<Place>`, two entries a flow: see [`table`](crate::table). May be mapped into memory.
    pub const FLOWS: &str = "FLOWS";
    /// `Array<Shape>`, one element: how entries are found in `FLOWS`. Written once, before any program runs.
    pub const SHAPE: &str = "SHAPE";
    /// `Array<u32>`, one element: the entries in `FLOWS`. May be mapped into memory; changed atomically.
    pub const USED: &str = "USED";
    /// `Array<u32>`, [`LOCKS`](crate::table::LOCKS) elements: taken by programs that enter something into `FLOWS`.
    pub const LOCKS: &str = "LOCKS";
    /// `LruHash<FragmentKey, FragmentPorts>`.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// `PerCpuArray<Counter>`, indexed by [`verdict_index`](crate::verdict::verdict_index) and
    /// [`drop_index`](crate::verdict::drop_index).
    pub const COUNTERS: &str = "COUNTERS";
    /// `PerCpuArray<u64>`: port searches by the number of ports tried, as powers of two.
    pub const PORT_TRIES: &str = "PORT_TRIES";

    /// `Array<Logging>`, one element: what is told of flows and drops.
    pub const LOG: &str = "LOG";
    /// `Array<Filter>`, one element: which packets are traced.
    pub const TRACE: &str = "TRACE";
    /// `RingBuf` of [`Event`](crate::event::Event)s: flows that began or were forgotten by a program, and drops.
    pub const EVENTS: &str = "EVENTS";
    /// `RingBuf` of [`Event`](crate::event::Event)s: packets that were decided about.
    pub const TRACED: &str = "TRACED";
    /// `PerCpuArray<Budget>`, indexed by [`Stream`](crate::event::Stream).
    pub const BUDGETS: &str = "BUDGETS";

    /// All of them.
    pub const ALL: [&str; 17] = [
        ACTIVE, CONFIG, ADDRESSES, SOURCES, RULES, FLOWS, SHAPE, USED, LOCKS, FRAGMENTS, COUNTERS, PORT_TRIES, LOG,
        TRACE, EVENTS, TRACED, BUDGETS,
    ];
}

/// Entries of `RULES`: two generations of 65,535 ports for two families, with room for several protocols.
pub const MAX_RULES: u32 = 1 << 19;
/// Entries of `ADDRESSES`.
pub const MAX_ADDRESSES: u32 = 2048;
/// Addresses of one interface that a [`Mark`] can name.
pub const SOURCES_PER_SIDE: u32 = 256;
/// Entries of `FRAGMENTS`.
pub const MAX_FRAGMENTS: u32 = 8192;
/// Bytes of `EVENTS`: more than a second's records at the usual rate.
pub const EVENTS_BYTES: u32 = 256 * 1024;
/// Bytes of `TRACED`.
pub const TRACED_BYTES: u32 = 64 * 1024;
/// Buckets of `PORT_TRIES`: the first try, then up to 2, 4, 8 ... 128 and more.
pub const PORT_TRIES_BUCKETS: u32 = 10;

/// One of the router's two interfaces.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where clients are.
    Cluster = 0,
    /// Where destinations are.
    External = 1,
}

/// Settings of one generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Config {
    /// Interface index of the cluster interface; 0 while unconfigured.
    pub cluster_ifindex: u32,
    /// Interface index of the external interface.
    pub external_ifindex: u32,
    /// [`config_flag`] bits.
    pub flags: u32,
    /// Which of [`snat_slots`](Self::snat_slots) are IPv4's.
    pub snat_v4: Slice,
    /// Which of [`snat_slots`](Self::snat_slots) are IPv6's.
    pub snat_v6: Slice,
    /// `--snat-ports`: first and last port, host order; 0 for none.
    pub snat_port_first: u16,
    /// See [`snat_port_first`](Self::snat_port_first).
    pub snat_port_last: u16,
    /// The router namespace's `ip_local_port_range`, host order.
    pub local_port_first: u16,
    /// See [`local_port_first`](Self::local_port_first).
    pub local_port_last: u16,
    /// Idle timeouts in seconds, by [`Class`](crate::timeout::Class).
    pub timeouts_s: [u32; CLASSES],
    /// The shortest of [`timeouts_s`](Self::timeouts_s) that a protocol's flow can have, by its [`Group`](crate::timeout::Group):
    /// an entry younger than this is alive, whatever it is doing.
    pub shortest_s: [u32; GROUPS],
    /// Zero.
    pub pad: u32,
    /// When the way on may last have changed, monotonic clock: a flow that was last seen before looks its next hops up again.
    pub changed_ns: u64,
    /// A frame of at most this length, link header included, fits both interfaces: no need to ask.
    pub always_fits: u32,
    /// Link address of the cluster interface.
    pub cluster_mac: [u8; 6],
    /// Link address of the external interface.
    pub external_mac: [u8; 6],
    /// Addresses that flows come from, as indices in `SOURCES`, external side. An address keeps its index from one
    /// generation to the next, whatever is added or removed beside it: flows name it by that index.
    pub snat_slots: [u8; SOURCES_PER_SIDE as usize],
}

/// A run of slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Slice {
    /// The first.
    pub first: u16,
    /// How many.
    pub count: u16,
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// The kernel knows `BPF_F_IPV6` of `bpf_l4_csum_replace`.
    pub const CSUM_IPV6: u32 = 1;
    /// Established flows are sent past the stack where nothing speaks against it.
    pub const REDIRECT: u32 = 2;
}

/// Key of `ADDRESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AddressKey {
    /// The address.
    pub addr: Addr,
    /// [`Side`].
    pub side: u8,
    /// Generation, 0 or 1.
    pub generation: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Key of `RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleKey {
    /// Generation, 0 or 1.
    pub generation: u8,
    /// 4 or 6.
    pub family: u8,
    /// IP protocol; 0 for the fallback.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Port that clients connect to; 0 for the fallback.
    pub port: Port,
    /// Zero.
    pub pad2: u16,
}

/// Value of `RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleValue {
    /// Where to.
    pub destination: Addr,
    /// Which port there; 0 keeps the port.
    pub target_port: Port,
    /// [`Action`].
    pub action: u8,
    /// Zero.
    pub pad: u8,
    /// Position in the specification, or [`RULE_FALLBACK`].
    pub rule: u32,
}

impl RuleValue {
    /// The port there that packets under this key go to.
    #[inline(always)]
    pub const fn target_port(&self, key: &FlowKey) -> Port {
        if self.target_port.wire() == Port::NONE.wire() { key.dst_port } else { self.target_port }
    }

    /// The key that replies have to a flow whose requests have `key`, which leaves from `source` with its client's port.
    #[inline(always)]
    pub const fn reply_key(&self, key: &FlowKey, source: Addr) -> FlowKey {
        FlowKey {
            src: self.destination,
            dst: source,
            src_port: self.target_port(key),
            dst_port: key.src_port,
            protocol: key.protocol,
            direction: Direction::Reply as u8,
            pad: [0; 2],
        }
    }
}

/// [`RuleValue::rule`] and [`Flow::rule`] of the fallback.
pub const RULE_FALLBACK: u32 = u32::MAX;

/// What a rule does.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Translate and send on.
    Translate = 0,
    /// Leave the packet to the pod itself (`--local-port`).
    Local = 1,
}

/// Direction of a flow entry: which interface its packets arrive on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a client, on the cluster interface.
    Request = 0,
    /// From a destination, on the external interface.
    Reply = 1,
}

/// Element of `FLOWS`: an entry, or room for one. Two neighbouring cache lines.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// Whose entry it is, if it is one.
    pub key: FlowKey,
    /// The entry.
    pub flow: Flow,
}

/// Value of `SHAPE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Shape {
    /// Elements of `FLOWS`.
    pub places: u32,
    /// Entries that it takes: two for each flow.
    pub limit: u32,
    /// Random numbers, which the hash is made with.
    pub secret: [u64; table::WORDS],
}

/// Key of a flow's entry: a packet as it arrives, and where.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Source address of the packet.
    pub src: Addr,
    /// Destination address of the packet.
    pub dst: Addr,
    /// Source port; of an echo request its identifier; 0 where there is none.
    pub src_port: Port,
    /// Destination port; of an echo reply its identifier; 0 where there is none.
    pub dst_port: Port,
    /// IP protocol.
    pub protocol: u8,
    /// [`Direction`].
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl FlowKey {
    /// From its parts, eight bytes at a time: a processor that reads what it has just written in smaller pieces waits.
    #[inline(always)]
    pub fn new(src: &Addr, dst: &Addr, [src_port, dst_port]: [Port; 2], protocol: u8, direction: Direction) -> Self {
        let pair = |one: u32, next: u32| -> u64 { bytemuck::cast([one, next]) };
        let ([a, b, c, d], [e, f, g, h]) = (src.words(), dst.words());
        let rest = u16::from_ne_bytes([protocol, direction as u8]);
        let rest: u64 = bytemuck::cast([src_port.wire(), dst_port.wire(), rest, 0]);
        bytemuck::cast([pair(a, b), pair(c, d), pair(e, f), pair(g, h), rest])
    }

    /// Whether it is the same, eight bytes at a time.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let words = |key: &Self| -> [u64; table::WORDS] { bytemuck::cast(*key) };
        let ([a, b, c, d, e], [v, w, x, y, z]) = (words(self), words(other));
        (a ^ v) | (b ^ w) | (c ^ x) | (d ^ y) | (e ^ z) == 0
    }

    /// Whether packets of this entry come from clients.
    #[inline(always)]
    pub const fn is_request(&self) -> bool {
        self.direction == Direction::Request as u8
    }

    /// Key of the other entry of the flow whose entry under this key is `flow`: the tuple that the packet becomes, turned
    /// round.
    #[inline(always)]
    pub const fn twin(&self, flow: &Flow) -> Self {
        Self {
            src: flow.to_dst,
            dst: flow.to_src,
            src_port: flow.to_dst_port,
            dst_port: flow.to_src_port,
            protocol: self.protocol,
            direction: self.direction ^ 1,
            pad: [0; 2],
        }
    }
}

/// A flow's entry: what the packet becomes, and what is known of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// New source address.
    pub to_src: Addr,
    /// New destination address.
    pub to_dst: Addr,
    /// New source port, or echo identifier.
    pub to_src_port: Port,
    /// New destination port, or echo identifier.
    pub to_dst_port: Port,
    /// The table's: whether this is an entry, and a part of its key's hash. See [`table`].
    pub state: u32,
    /// When the flow began, monotonic clock.
    pub created_ns: u64,
    /// When this direction last sent a packet, to the second, monotonic clock.
    pub last_seen_ns: u64,
    /// Packets of this direction.
    pub packets: u64,
    /// Bytes of this direction, link headers included.
    pub bytes: u64,
    /// Index of the rule, or [`RULE_FALLBACK`].
    pub rule: u32,
    /// What this direction has sent, [`tcp::seen`](crate::tcp::seen) bits.
    pub seen: u8,
    /// [`HopKind`] of [`hop`](Self::hop).
    pub hop_kind: u8,
    /// [`HopKind`] of the other direction's.
    pub return_kind: u8,
    /// Index of the new source in `SOURCES`, for the slow path.
    pub source: u8,
    /// Link address that packets of this direction go to.
    pub hop: [u8; 6],
    /// The table's, and of the place, not of the entry: how far from it the entries are that belong here.
    pub reach: u8,
    /// The table's: how far from its home the entry is.
    pub distance: u8,
}

/// How long a flow's next hop is used before it is looked up again, if nothing is known to have changed: about four
/// seconds, as a power of two nanoseconds. What another flow with the same ends has looked up within the last second, on the same
/// CPU, serves as well. The packet that asks the kernel goes to the neighbour through it, so that it keeps asking whether the
/// neighbour is there.
pub const HOP_TURN_SHIFT: u32 = 32;

/// In one turn of so many, as a power of two, the other direction's entry is looked at too: about once a minute.
pub const TWIN_TURNS_SHIFT: u32 = 4;

/// How a flow entry's packets reach their next hop on the fast path.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopKind {
    /// Unknown: the kernel routes them.
    Kernel = 0,
    /// [`Flow::hop`] is that of a neighbour which the kernel knows.
    Neighbour = 1,
    /// [`Flow::hop`] is that of the last request, turned round: no route leads back.
    Link = 2,
}

impl Flow {
    /// The other entry of this flow, whose own key is `key`: same flow, opposite translation.
    #[inline(always)]
    pub const fn reversed(&self, key: &FlowKey, source: u8) -> Self {
        Self {
            to_src: key.dst,
            to_dst: key.src,
            to_src_port: key.dst_port,
            to_dst_port: key.src_port,
            state: 0,
            created_ns: self.created_ns,
            last_seen_ns: self.last_seen_ns,
            packets: 0,
            bytes: 0,
            rule: self.rule,
            seen: 0,
            hop_kind: HopKind::Kernel as u8,
            return_kind: self.hop_kind,
            source,
            hop: [0; 6],
            reach: 0,
            distance: 0,
        }
    }

    /// What the slow path writes on packets of this direction.
    #[inline(always)]
    pub const fn mark(&self, direction: Direction) -> Mark {
        Mark::new(direction, self.source, self.to_src_port)
    }

    /// Whether a packet with these ports keeps them.
    #[inline(always)]
    pub const fn keeps_ports(&self, src: Port, dst: Port) -> bool {
        self.to_src_port.wire() == src.wire() && self.to_dst_port.wire() == dst.wire()
    }

    /// Whether a packet that comes now looks its next hop up again. It is settled for the turn that the flow was last seen in;
    /// turns are counted from the flow's beginning, so that not all flows' end at once.
    #[inline(always)]
    pub const fn is_hop_due(&self, now_ns: u64, changed_ns: u64) -> bool {
        self.last_seen_ns < changed_ns || self.is_in_another_turn(now_ns, HOP_TURN_SHIFT)
    }

    /// Whether it looks after the other direction's entry as well.
    #[inline(always)]
    pub const fn is_twin_due(&self, now_ns: u64, changed_ns: u64) -> bool {
        self.last_seen_ns < changed_ns || self.is_in_another_turn(now_ns, HOP_TURN_SHIFT + TWIN_TURNS_SHIFT)
    }

    #[inline(always)]
    const fn is_in_another_turn(&self, now_ns: u64, shift: u32) -> bool {
        let now = now_ns.wrapping_sub(self.created_ns) >> shift;
        let then = self.last_seen_ns.wrapping_sub(self.created_ns) >> shift;
        now != then
    }
}

/// Key of `FRAGMENTS`: all fragments of one datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// IPv4 (16 bits) or IPv6 (32 bits) identification, network order.
    pub id: u32,
    /// IP protocol.
    pub protocol: u8,
    /// [`Side`] it arrived on.
    pub side: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of `FRAGMENTS`: what only the first fragment says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentPorts {
    /// As in [`FlowKey`].
    pub src_port: Port,
    /// As in [`FlowKey`].
    pub dst_port: Port,
    /// When the first fragment came, monotonic clock, in seconds.
    pub seen_s: u32,
}

/// Value of `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, link headers included.
    pub bytes: u64,
}

/// What the slow path leaves in `skb->mark` between ingress and egress: which source the packet still has to get.
///
/// Bits 31-24 say that it is ours and for which direction, 23-16 index an address in `SOURCES`, 15-0 are the port in host
/// order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u32);

const MARK_REQUEST: u32 = 0xe6 << 24;
const MARK_REPLY: u32 = 0xe7 << 24;
const MARK_DONE: u32 = 0xe8 << 24;
const MARK_MAGIC: u32 = 0xff << 24;

impl Mark {
    /// A packet that was translated wholly at ingress: nothing is left to do at egress but to take the mark off.
    pub const DONE: Self = Self(MARK_DONE);

    /// Whether the mark is one of ours.
    #[inline(always)]
    pub const fn is_ours(self) -> bool {
        self.direction().is_some() || self.0 == MARK_DONE
    }

    /// A packet of `direction` is to get the source address of this index, and this port.
    #[inline(always)]
    pub const fn new(direction: Direction, index: u8, port: Port) -> Self {
        let magic = match direction {
            Direction::Request => MARK_REQUEST,
            Direction::Reply => MARK_REPLY,
        };
        Self(magic | (index as u32) << 16 | port.get() as u32)
    }

    /// Which direction the packet is of; `None` if the mark is not ours.
    #[inline(always)]
    pub const fn direction(self) -> Option<Direction> {
        match self.0 & MARK_MAGIC {
            MARK_REQUEST => Some(Direction::Request),
            MARK_REPLY => Some(Direction::Reply),
            _ => None,
        }
    }

    /// Index of the address in `SOURCES`: a request's source is on the external side, a reply's on the cluster side.
    #[inline(always)]
    pub const fn source_index(self) -> u32 {
        let side = if self.0 & MARK_MAGIC == MARK_REQUEST { Side::External } else { Side::Cluster };
        source_index(side, ((self.0 >> 16) & 0xff) as u8)
    }

    /// The port.
    #[inline(always)]
    pub const fn port(self) -> Port {
        Port::new((self.0 & 0xffff) as u16)
    }
}

/// Index in `SOURCES` of an interface's address.
#[inline(always)]
pub const fn source_index(side: Side, index: u8) -> u32 {
    side as u32 * SOURCES_PER_SIDE + index as u32
}

const _: () = assert!(size_of::<Config>() == 408);
const _: () = assert!(size_of::<AddressKey>() == 20);
const _: () = assert!(size_of::<RuleKey>() == 8);
const _: () = assert!(size_of::<RuleValue>() == 24);
const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Flow>() == 88);
const _: () = assert!(size_of::<Place>() == 128);
const _: () = assert!(size_of::<Shape>() == 48);
const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<FragmentPorts>() == 8);
const _: () = assert!(size_of::<Counter>() == 16);

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_mark_says_what_was_put_in() {
        let mark = Mark::new(Direction::Request, 7, Port::new(40001));
        assert_eq!(mark.direction(), Some(Direction::Request));
        assert_eq!(mark.source_index(), source_index(Side::External, 7));
        assert_eq!(mark.port().get(), 40001);
        let mark = Mark::new(Direction::Reply, 255, Port::new(80));
        assert_eq!(mark.direction(), Some(Direction::Reply));
        assert_eq!(mark.source_index(), 255);
        assert_eq!(Mark(0).direction(), None);
        assert_eq!(Mark(0x1234_5678).direction(), None);
    }

    #[test]
    fn a_key_of_parts_is_the_same() {
        let (src, dst) = (addr("fd00:10::1"), addr("10.128.0.2"));
        let (src_port, dst_port) = (Port::new(40_000), Port::new(80));
        let key =
            FlowKey { src, dst, src_port, dst_port, protocol: 17, direction: Direction::Reply as u8, pad: [0; 2] };
        assert_eq!(FlowKey::new(&src, &dst, [src_port, dst_port], 17, Direction::Reply), key);
    }

    #[test]
    fn the_twin_of_the_twin_is_the_entry_itself() {
        let key = FlowKey {
            src: addr("10.128.0.1"),
            dst: addr("10.128.0.2"),
            src_port: Port::new(40000),
            dst_port: Port::new(80),
            protocol: 6,
            direction: Direction::Request as u8,
            pad: [0; 2],
        };
        let flow = Flow {
            to_src: addr("192.168.12.99"),
            to_dst: addr("203.0.113.26"),
            to_src_port: Port::new(40001),
            to_dst_port: Port::new(8080),
            ..Flow::zeroed()
        };
        let twin_key = key.twin(&flow);
        assert_eq!(twin_key.src, addr("203.0.113.26"));
        assert_eq!(twin_key.dst_port.get(), 40001);
        assert!(!twin_key.is_request());
        let twin = flow.reversed(&key, 0);
        assert_eq!(twin_key.twin(&twin), key);
    }
}
