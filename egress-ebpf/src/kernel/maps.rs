//! The maps, by the names in [`egress_ebpf::contract::map`].

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{
    AddressKey, Config, Counter, EVENTS_BYTES, Flow, FlowKey, FragmentKey, FragmentPorts, MAX_ADDRESSES, MAX_FRAGMENTS,
    MAX_RULES, PORT_TRIES_BUCKETS, Place, RuleKey, RuleValue, SOURCES_PER_SIDE, Shape, TRACED_BYTES,
};
use egress_ebpf::event::{Budget, Filter, Logging, STREAMS, Why};
use egress_ebpf::ports::Search;
use egress_ebpf::table::{self, Found};
use egress_ebpf::verdict::{HOOKS, OUTCOMES_PER_HOOK};

use super::packet::Ends;
use super::parsed::Parsed;

#[map]
pub(crate) static ACTIVE: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(2, 0);

#[map]
pub(crate) static ADDRESSES: HashMap<AddressKey, u32> = HashMap::with_max_entries(MAX_ADDRESSES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static SOURCES: Array<Addr> = Array::with_max_entries(2 * SOURCES_PER_SIDE, 0);

#[map]
pub(crate) static RULES: HashMap<RuleKey, RuleValue> = HashMap::with_max_entries(MAX_RULES, BPF_F_NO_PREALLOC);

/// A full table refuses new flows, it never ends old ones. The loader sets the size.
#[map]
pub(crate) static FLOWS: Array<Place> = Array::with_max_entries(table::places(2 * 65536), BPF_F_MMAPABLE);

#[map]
pub(crate) static SHAPE: Array<Shape> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static USED: Array<u32> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static LOCKS: Array<u32> = Array::with_max_entries(table::LOCKS, 0);

/// LRU: losing a record costs the rest of one datagram.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(HOOKS * OUTCOMES_PER_HOOK, 0);

/// Room for keys and values that would not fit the 512 bytes of stack. Private to the kernel side.
#[map]
pub(crate) static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Element of `WORK`. A program uses it without being interrupted: the hooks run with bottom halves off, one at a time on a
/// CPU.
#[repr(C)]
pub(crate) struct Work {
    /// The tick at which the clock was read last ...
    pub(crate) tick: u64,
    /// ... and what it said.
    pub(crate) now_ns: u64,
    /// The packet.
    pub(crate) parsed: Parsed,
    /// The packet that it quotes, if it is an ICMP error.
    pub(crate) quoted: Parsed,
    /// The ends that it gets.
    pub(crate) ends: Ends,
    /// Whether the kernel wants to be told that an IPv6 address changes.
    pub(crate) csum_ipv6: bool,
    /// Key of the packet's own flow entry.
    pub(crate) key: FlowKey,
    /// Key of the entry opposite to the one at hand.
    pub(crate) twin_key: FlowKey,
    /// Key of an entry that is looked for, or entered.
    pub(crate) sought: FlowKey,
    /// Where that belongs.
    pub(crate) found: Found,
    /// How far from its home entries were said to be ...
    pub(crate) reach: u32,
    /// ... and are.
    pub(crate) farthest: u32,
    /// How far from it a free place is.
    pub(crate) distance: u32,
    /// Key of an address that is looked up.
    pub(crate) address_key: AddressKey,
    /// Key of a datagram in fragments.
    pub(crate) fragment_key: FragmentKey,
    /// Of a flow that is being opened, or may be: key of its reply entry, as far as it is known.
    pub(crate) reply_key: FlowKey,
    /// The entry that is being made.
    pub(crate) flow: Flow,
    /// Of a packet that an ICMP error of the kernel's quotes: the destination that its sender gave it.
    pub(crate) old_destination: Addr,
    /// The neighbour that the packet goes to by the kernel's knowledge of it, if that was just looked up; else unspecified.
    pub(crate) neighbour: Addr,
    /// The rule that claims it.
    pub(crate) rule: RuleValue,
    /// Index in `SOURCES` of the router's address that the client speaks to.
    pub(crate) router_index: u8,
    /// Index there of the address that the flow gets, external side.
    pub(crate) slot: u8,
    /// What the packet that opens it has sent, [`tcp::seen`](egress_ebpf::tcp::seen) bits.
    pub(crate) seen: u8,
    /// Whether its source port may be another than the client's.
    pub(crate) ports: Ports,
    /// The search for one. Kept here and not in registers, so that the verifier meets the same state in each of its rounds.
    pub(crate) search: Search,
    /// Key of an entry of a flow that is over and is to be removed.
    pub(crate) over: FlowKey,
    /// Its entries, once they are removed: its requests' and its replies'.
    pub(crate) gone: [Flow; 2],
    /// Key that the packet would have as a flow's, for whoever is told of it.
    pub(crate) told: FlowKey,
    /// Which way the packet was decided about.
    pub(crate) why: Why,
}

/// What is known of a new flow's source port.
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Ports {
    /// There is none, or it cannot be changed.
    Fixed = 0,
    /// Any of its class, or of the configured range.
    Transport = 1,
    /// An echo identifier: any number.
    Identifier = 2,
}

/// Next hops that were looked up lately, in the place that [`KnownHop::place`] says. Private to the kernel side.
#[map]
pub(crate) static HOPS: PerCpuArray<KnownHop> = PerCpuArray::with_max_entries(KnownHop::PLACES, 0);

/// Element of `HOPS`. One that is another's is simply written over.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct KnownHop {
    /// Source of the packets.
    pub(crate) src: Addr,
    /// Destination of the packets.
    pub(crate) dst: Addr,
    /// When it was looked up, monotonic clock.
    pub(crate) looked_up_ns: u64,
    /// The interface that they leave by.
    pub(crate) ifindex: u32,
    /// The link address that they go to there.
    pub(crate) hop: [u8; 6],
    /// The neighbour that this is, until a packet has gone to it by the kernel, which then asks whether it is still there.
    pub(crate) untold: Addr,
}

impl KnownHop {
    /// How many are kept on each CPU: a power of two.
    pub(crate) const PLACES: u32 = 1024;

    /// Where the hop of such packets is.
    #[inline(always)]
    pub(crate) const fn place(src: &Addr, dst: &Addr, ifindex: u32) -> u32 {
        (dst.spread() ^ src.spread().rotate_left(7) ^ ifindex) & (Self::PLACES - 1)
    }
}

#[map]
pub(crate) static PORT_TRIES: PerCpuArray<u64> = PerCpuArray::with_max_entries(PORT_TRIES_BUCKETS, 0);

#[map]
pub(crate) static LOG: Array<Logging> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static TRACE: Array<Filter> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

#[map]
pub(crate) static TRACED: RingBuf = RingBuf::with_byte_size(TRACED_BYTES, 0);

#[map]
pub(crate) static BUDGETS: PerCpuArray<Budget> = PerCpuArray::with_max_entries(STREAMS, 0);
