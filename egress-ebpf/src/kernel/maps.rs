//! The maps, by the names in [`egress_ebpf::contract::map`].

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{
    AddressKey, Config, Counter, Flow, FlowKey, FragmentKey, FragmentPorts, MAX_ADDRESSES, MAX_FRAGMENTS, MAX_RULES,
    PORT_TRIES_BUCKETS, RuleKey, RuleValue, SOURCES_PER_SIDE,
};
use egress_ebpf::verdict::{Hook, OUTCOMES_PER_HOOK};

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

/// Preallocated, and not LRU: a full table refuses new flows, it never ends old ones. The loader sets the size.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(2 * 65536, 0);

/// LRU: losing a record costs the rest of one datagram.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<Counter> =
    PerCpuArray::with_max_entries(Hook::ALL.len() as u32 * OUTCOMES_PER_HOOK, 0);

#[map]
pub(crate) static PORT_TRIES: PerCpuArray<u64> = PerCpuArray::with_max_entries(PORT_TRIES_BUCKETS, 0);
