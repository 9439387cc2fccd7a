//! The pinned maps, typed by the contract.
//!
//! aya wants its own marker trait on keys and values. Byte arrays have it, and `bytemuck` turns contract types into byte
//! arrays and back without unsafe code: so the maps are maps of byte arrays, and this module is the only one that knows.

use std::collections::HashMap as Indices;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, RingBuf};
use bytemuck::{Pod, bytes_of, pod_read_unaligned};
use egress_ebpf::addr::Addr;
use egress_ebpf::contract::{
    self, AddressKey, Config, Counter, FragmentKey, FragmentPorts, Place, RuleKey, RuleValue, Shape, Side, map,
    source_index,
};
use egress_ebpf::event::{Budget, Filter, Logging, STREAMS, Stream};
use egress_ebpf::table::LOCKS;
use egress_ebpf::verdict::{Hook, OUTCOMES_PER_HOOK};

use super::flows::monotonic_ns;
use super::table::FlowTable;
use super::tables::Tables;
use super::{DatapathError, PinDir};

pub(super) type Bytes<T> = <T as ByteArray>::Array;

/// Ties a contract type to the byte array of its size.
pub(super) trait ByteArray: Pod {
    /// `[u8; size_of::<Self>()]`.
    type Array: aya::Pod;
}

macro_rules! byte_arrays {
    ($($type:ty),+) => { $(impl ByteArray for $type { type Array = [u8; size_of::<$type>()]; })+ };
}
byte_arrays!(Addr, AddressKey, Budget, Config, Counter, Filter, Logging, RuleKey, RuleValue, Shape);

/// Every map that user space reads or writes.
pub(super) struct Maps {
    active: Array<MapData, u32>,
    config: Array<MapData, Bytes<Config>>,
    addresses: HashMap<MapData, Bytes<AddressKey>, u32>,
    pub(super) sources: Array<MapData, Bytes<Addr>>,
    rules: HashMap<MapData, Bytes<RuleKey>, Bytes<RuleValue>>,
    pub(super) flows: FlowTable,
    counters: PerCpuArray<MapData, Bytes<Counter>>,
    port_tries: PerCpuArray<MapData, u64>,
    log: Array<MapData, Bytes<Logging>>,
    pub(super) trace: Array<MapData, Bytes<Filter>>,
    budgets: PerCpuArray<MapData, Bytes<Budget>>,
}

impl Maps {
    /// Opens the pins.
    ///
    /// # Errors
    ///
    /// [`DatapathError::NotInstalled`] when there are none; [`DatapathError::Map`] when one is not what the contract says.
    pub(super) fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        if !pins.map(map::ACTIVE).exists() {
            return Err(DatapathError::NotInstalled { path: pins.path().to_path_buf() });
        }
        Ok(Self {
            active: array(pins, map::ACTIVE)?,
            config: array(pins, map::CONFIG)?,
            addresses: hash(pins, map::ADDRESSES)?,
            sources: array(pins, map::SOURCES)?,
            rules: hash(pins, map::RULES)?,
            flows: FlowTable::open(pins)?,
            counters: per_cpu(pins, map::COUNTERS)?,
            port_tries: per_cpu(pins, map::PORT_TRIES)?,
            log: array(pins, map::LOG)?,
            trace: array(pins, map::TRACE)?,
            budgets: per_cpu(pins, map::BUDGETS)?,
        })
    }

    /// The generation in force.
    pub(super) fn generation(&self) -> Result<u8, DatapathError> {
        let active = self.active.get(&0, 0).map_err(failed("read", map::ACTIVE))?;
        Ok(u8::from(active & 1 != 0))
    }

    /// Settings in force.
    pub(super) fn config(&self) -> Result<Config, DatapathError> {
        let generation = self.generation()?;
        let bytes = self.config.get(&u32::from(generation), 0).map_err(failed("read", map::CONFIG))?;
        Ok(pod_read_unaligned(&bytes))
    }

    /// Rules in force.
    pub(super) fn rules(&self) -> Result<Vec<(RuleKey, RuleValue)>, DatapathError> {
        let generation = self.generation()?;
        let mut rules = Vec::new();
        for item in self.rules.iter() {
            let (key, value) = item.map_err(failed("read", map::RULES))?;
            let key: RuleKey = pod_read_unaligned(&key);
            if key.generation == generation {
                rules.push((key, pod_read_unaligned(&value)));
            }
        }
        Ok(rules)
    }

    /// Sums of all CPUs, by index.
    pub(super) fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        (0..outcomes())
            .map(|index| {
                let values = self.counters.get(&index, 0).map_err(failed("read", map::COUNTERS))?;
                Ok(values.iter().map(|bytes| pod_read_unaligned::<Counter>(bytes)).fold(
                    Counter::default(),
                    |sum, one| Counter { packets: sum.packets + one.packets, bytes: sum.bytes + one.bytes },
                ))
            })
            .collect()
    }

    /// Port searches by number of tries, as powers of two.
    pub(super) fn port_tries(&self) -> Result<Vec<u64>, DatapathError> {
        (0..contract::PORT_TRIES_BUCKETS)
            .map(|bucket| {
                let values = self.port_tries.get(&bucket, 0).map_err(failed("read", map::PORT_TRIES))?;
                Ok(values.iter().sum())
            })
            .collect()
    }

    /// What is told of flows and drops.
    pub(super) fn logging(&self) -> Result<Logging, DatapathError> {
        let bytes = self.log.get(&0, 0).map_err(failed("read", map::LOG))?;
        Ok(pod_read_unaligned(&bytes))
    }

    /// Says what is.
    pub(super) fn set_logging(&mut self, logging: Logging) -> Result<(), DatapathError> {
        if self.logging()? == logging {
            return Ok(());
        }
        self.log.set(0, array_of(&logging), 0).map_err(failed("write", map::LOG))
    }

    /// A stream's budget on each CPU.
    pub(super) fn budgets(&self, stream: Stream) -> Result<Vec<Budget>, DatapathError> {
        let budgets = self.budgets.get(&(stream as u32), 0).map_err(failed("read", map::BUDGETS))?;
        Ok(budgets.iter().map(|bytes| pod_read_unaligned(bytes)).collect())
    }

    /// Puts tables in force: fills the generation that is not, then switches. Returns the generation that was in force, or
    /// nothing if it says the same already. On an error the old tables stay in force.
    pub(super) fn install(&mut self, tables: &Tables) -> Result<Option<u8>, DatapathError> {
        let old = self.generation()?;
        let new = old ^ 1;
        let mut config = tables.config;
        let cluster = assign_indices(tables.addresses(Side::Cluster), &self.indices(Side::Cluster, old)?);
        let external = assign_indices(tables.addresses(Side::External), &self.indices(Side::External, old)?);
        fill_slots(&mut config, &tables.snat, &external);
        let sides = [(Side::Cluster, cluster), (Side::External, external)];
        if self.says(tables, &config, &sides)? {
            return Ok(None);
        }
        config.changed_ns = changed_ns();
        self.clear(new)?;
        for (side, indices) in &sides {
            self.write_addresses(*side, indices, new)?;
        }
        for (family, protocol, port, value) in &tables.rules {
            let key = RuleKey { generation: new, family: *family, protocol: *protocol, pad: 0, port: *port, pad2: 0 };
            self.rules.insert(array_of(&key), array_of(value), 0).map_err(failed("write", map::RULES))?;
        }
        self.set_config(new, &config)?;
        self.switch(new)?;
        Ok(Some(old))
    }

    /// Lets every flow look its next hops up again.
    pub(super) fn refresh_hops(&mut self) -> Result<(), DatapathError> {
        let config = Config { changed_ns: changed_ns(), ..self.config()? };
        self.set_config(self.generation()?, &config)
    }

    /// Gives a generation other settings.
    pub(super) fn set_config(&mut self, generation: u8, config: &Config) -> Result<(), DatapathError> {
        self.config.set(u32::from(generation), array_of(config), 0).map_err(failed("write", map::CONFIG))
    }

    /// Puts a generation in force.
    pub(super) fn switch(&mut self, generation: u8) -> Result<(), DatapathError> {
        self.active.set(0, u32::from(generation), 0).map_err(failed("write", map::ACTIVE))
    }

    /// Whether the generation in force is these tables already.
    fn says(&self, tables: &Tables, config: &Config, sides: &[(Side, Vec<(Addr, u8)>)]) -> Result<bool, DatapathError> {
        let now = Config { changed_ns: config.changed_ns, ..self.config()? };
        if bytes_of(&now) != bytes_of(config) {
            return Ok(false);
        }
        let generation = self.generation()?;
        for (side, indices) in sides {
            if self.indices(*side, generation)? != indices.iter().copied().collect() {
                return Ok(false);
            }
        }
        let id = |key: &RuleKey| (key.family, key.protocol, key.port);
        let present: Indices<_, RuleValue> = self.rules()?.into_iter().map(|(key, value)| (id(&key), value)).collect();
        let wanted = tables.rules.iter().map(|(family, protocol, port, value)| ((*family, *protocol, *port), *value));
        Ok(present == wanted.collect())
    }

    fn write_addresses(&mut self, side: Side, indices: &[(Addr, u8)], generation: u8) -> Result<(), DatapathError> {
        for (addr, index) in indices {
            let key = AddressKey { addr: *addr, side: side as u8, generation, pad: [0; 2] };
            let source = source_index(side, *index);
            self.sources.set(source, array_of(addr), 0).map_err(failed("write", map::SOURCES))?;
            self.addresses.insert(array_of(&key), u32::from(*index), 0).map_err(failed("write", map::ADDRESSES))?;
        }
        Ok(())
    }

    fn indices(&self, side: Side, generation: u8) -> Result<Indices<Addr, u8>, DatapathError> {
        let mut indices = Indices::new();
        for item in self.addresses.iter() {
            let (key, index) = item.map_err(failed("read", map::ADDRESSES))?;
            let key: AddressKey = pod_read_unaligned(&key);
            if key.side == side as u8 && key.generation == generation {
                indices.insert(key.addr, u8::try_from(index).unwrap_or(u8::MAX));
            }
        }
        Ok(indices)
    }

    /// Removes what an earlier generation of this number left.
    fn clear(&mut self, generation: u8) -> Result<(), DatapathError> {
        let stale: Vec<_> = self.rules.keys().collect::<Result<_, _>>().map_err(failed("read", map::RULES))?;
        for key in stale {
            if pod_read_unaligned::<RuleKey>(&key).generation == generation {
                self.rules.remove(&key).map_err(failed("write", map::RULES))?;
            }
        }
        let stale: Vec<_> = self.addresses.keys().collect::<Result<_, _>>().map_err(failed("read", map::ADDRESSES))?;
        for key in stale {
            if pod_read_unaligned::<AddressKey>(&key).generation == generation {
                self.addresses.remove(&key).map_err(failed("write", map::ADDRESSES))?;
            }
        }
        Ok(())
    }
}

/// An index for each address: its old one, else the lowest that none of the old or new addresses has.
fn assign_indices(addresses: &[Addr], known: &Indices<Addr, u8>) -> Vec<(Addr, u8)> {
    let mut taken: Vec<u8> = known.values().copied().collect();
    let mut indices: Vec<(Addr, u8)> = Vec::with_capacity(addresses.len());
    for addr in addresses {
        if indices.iter().any(|(done, _)| done == addr) {
            continue;
        }
        let index = known.get(addr).copied().or_else(|| (0..=u8::MAX).find(|free| !taken.contains(free)));
        // With every number taken, one of an address that is going away is used again.
        let index =
            index.unwrap_or_else(|| (0..=u8::MAX).find(|i| indices.iter().all(|(_, used)| used != i)).unwrap_or(0));
        taken.push(index);
        indices.push((*addr, index));
    }
    indices
}

/// [`Config::changed_ns`] for a change that is about to be in force: a little ahead of the clock, so that no packet that the
/// change has not reached yet makes its flow look settled.
fn changed_ns() -> u64 {
    const AHEAD_NS: u64 = 20_000_000;
    monotonic_ns() + AHEAD_NS
}

/// IPv4's slots first, then IPv6's.
fn fill_slots(config: &mut Config, snat: &[Addr], indices: &[(Addr, u8)]) {
    let slots = |v4: bool| {
        snat.iter()
            .filter(move |addr| addr.is_v4() == v4)
            .filter_map(|addr| indices.iter().find(|(known, _)| known == addr).map(|(_, index)| *index))
            .collect::<Vec<u8>>()
    };
    let (v4, v6) = (slots(true), slots(false));
    let count = |slots: &[u8]| u16::try_from(slots.len()).unwrap_or(u16::MAX);
    config.snat_v4 = contract::Slice { first: 0, count: count(&v4) };
    config.snat_v6 = contract::Slice { first: count(&v4), count: count(&v6) };
    for (slot, index) in config.snat_slots.iter_mut().zip(v4.into_iter().chain(v6)) {
        *slot = index;
    }
}

fn outcomes() -> u32 {
    u32::try_from(Hook::ALL.len()).unwrap_or(0) * OUTCOMES_PER_HOOK
}

/// Checks that the pins that are there are what the contract says, since aya takes over any map of that name.
///
/// Returns the number of places of the pinned flow table, if there is one: its size is kept.
///
/// # Errors
///
/// [`DatapathError::Incompatible`] names the first difference.
pub(super) fn check_pins(pins: &PinDir, places: u32) -> Result<Option<u32>, DatapathError> {
    let mut flows = None;
    for (name, wanted) in expected(places) {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(failed("open", name))?;
        let map_type = info.map_type().map_err(failed("open", name))?;
        differs(&path, "type", map_type as u32, wanted.map_type as u32)?;
        differs(&path, "key size", info.key_size(), wanted.key)?;
        differs(&path, "value size", info.value_size(), wanted.value)?;
        differs(&path, "flags", info.map_flags(), wanted.flags)?;
        if name == map::FLOWS {
            flows = Some(info.max_entries());
        } else {
            differs(&path, "size", info.max_entries(), wanted.entries)?;
        }
    }
    Ok(flows)
}

fn differs(path: &Path, field: &'static str, found: u32, wanted: u32) -> Result<(), DatapathError> {
    if found == wanted {
        return Ok(());
    }
    Err(DatapathError::Incompatible { path: path.to_path_buf(), field, found, wanted })
}

/// Of tables that are small as a rule; the flow table takes its memory at once.
const BPF_F_NO_PREALLOC: u32 = 1;
/// Of what can be mapped into memory.
const BPF_F_MMAPABLE: u32 = 1 << 10;

struct Form {
    map_type: MapType,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

fn expected(places: u32) -> [(&'static str, Form); 17] {
    let form = |map_type, key: usize, value: usize, entries| Form {
        map_type,
        key: u32::try_from(key).unwrap_or(u32::MAX),
        value: u32::try_from(value).unwrap_or(u32::MAX),
        entries,
        flags: 0,
    };
    let grown = |form| Form { flags: BPF_F_NO_PREALLOC, ..form };
    let mapped = |form| Form { flags: BPF_F_MMAPABLE, ..form };
    let (array, hash, per_cpu) = (MapType::Array, MapType::Hash, MapType::PerCpuArray);
    [
        (map::ACTIVE, form(array, 4, 4, 1)),
        (map::CONFIG, form(array, 4, size_of::<Config>(), 2)),
        (map::ADDRESSES, grown(form(hash, size_of::<AddressKey>(), 4, contract::MAX_ADDRESSES))),
        (map::SOURCES, form(array, 4, size_of::<Addr>(), 2 * contract::SOURCES_PER_SIDE)),
        (map::RULES, grown(form(hash, size_of::<RuleKey>(), size_of::<RuleValue>(), contract::MAX_RULES))),
        (map::FLOWS, mapped(form(array, 4, size_of::<Place>(), places))),
        (map::SHAPE, form(array, 4, size_of::<Shape>(), 1)),
        (map::USED, mapped(form(array, 4, 4, 1))),
        (map::LOCKS, form(array, 4, 4, LOCKS)),
        (
            map::FRAGMENTS,
            form(MapType::LruHash, size_of::<FragmentKey>(), size_of::<FragmentPorts>(), contract::MAX_FRAGMENTS),
        ),
        (map::COUNTERS, form(per_cpu, 4, size_of::<Counter>(), outcomes())),
        (map::PORT_TRIES, form(per_cpu, 4, 8, contract::PORT_TRIES_BUCKETS)),
        (map::LOG, form(array, 4, size_of::<Logging>(), 1)),
        (map::TRACE, form(array, 4, size_of::<Filter>(), 1)),
        (map::EVENTS, form(MapType::RingBuf, 0, 0, contract::EVENTS_BYTES)),
        (map::TRACED, form(MapType::RingBuf, 0, 0, contract::TRACED_BYTES)),
        (map::BUDGETS, form(per_cpu, 4, size_of::<Budget>(), STREAMS)),
    ]
}

/// A contract value as its byte array.
pub(super) fn array_of<T: ByteArray>(value: &T) -> T::Array
where
    T::Array: Pod,
{
    pod_read_unaligned(bytes_of(value))
}

/// Turns aya's error into ours.
pub(super) fn failed(action: &'static str, map: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { action, map, source }
}

pub(super) fn open(pins: &PinDir, name: &'static str) -> Result<MapData, DatapathError> {
    MapData::from_pin(pins.map(name)).map_err(failed("open", name))
}

pub(super) fn array<V: aya::Pod>(pins: &PinDir, name: &'static str) -> Result<Array<MapData, V>, DatapathError> {
    Array::try_from(Map::Array(open(pins, name)?)).map_err(failed("open", name))
}

fn hash<K: aya::Pod, V: aya::Pod>(pins: &PinDir, name: &'static str) -> Result<HashMap<MapData, K, V>, DatapathError> {
    HashMap::try_from(Map::HashMap(open(pins, name)?)).map_err(failed("open", name))
}

fn per_cpu<V: aya::Pod>(pins: &PinDir, name: &'static str) -> Result<PerCpuArray<MapData, V>, DatapathError> {
    PerCpuArray::try_from(Map::PerCpuArray(open(pins, name)?)).map_err(failed("open", name))
}

/// A ring buffer, mapped into this process.
pub(super) fn ring_buffer(pins: &PinDir, name: &'static str) -> Result<RingBuf<MapData>, DatapathError> {
    RingBuf::try_from(Map::RingBuf(open(pins, name)?)).map_err(failed("open", name))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_address_keeps_its_index() {
        let first = assign_indices(&[addr("10.0.0.1"), addr("10.0.0.2"), addr("10.0.0.3")], &Indices::new());
        assert_eq!(first.iter().map(|(_, i)| *i).collect::<Vec<_>>(), [0, 1, 2]);
        let known = first.into_iter().collect();
        let second = assign_indices(&[addr("10.0.0.4"), addr("10.0.0.3"), addr("10.0.0.1")], &known);
        assert_eq!(second, [(addr("10.0.0.4"), 3), (addr("10.0.0.3"), 2), (addr("10.0.0.1"), 0)]);
    }

    #[test]
    fn slots_are_grouped_by_family() {
        let indices = [(addr("fd00::1"), 0), (addr("10.0.0.1"), 1), (addr("10.0.0.2"), 2), (addr("fe80::1"), 3)];
        let mut config: Config = bytemuck::Zeroable::zeroed();
        fill_slots(&mut config, &[addr("fd00::1"), addr("10.0.0.1"), addr("10.0.0.2")], &indices);
        assert_eq!((config.snat_v4.first, config.snat_v4.count), (0, 2));
        assert_eq!((config.snat_v6.first, config.snat_v6.count), (2, 1));
        assert_eq!(config.snat_slots[..3], [1, 2, 0]);
    }
}
