//! The flow table, mapped into this process's memory: entries are read, and removed, where the programs have them.
//!
//! How entries are found, and who writes what, says [`egress_ebpf::table`]. User space finds, reads and removes; it enters
//! nothing. Whatever is here may change at any time, by the programs on other processors and by other processes. So no
//! reference to an entry is ever made: its memory is atomic integers, an entry is a copy of them, and a copy counts only if the
//! place is still the same entry's after it was made.
#![expect(unsafe_code, reason = "shared memory has no safe wrapper")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use aya::maps::{Array, MapData, MapInfo};
use bytemuck::pod_read_unaligned;
use egress_ebpf::contract::{Flow, FlowKey, Place, Shape, map};
use egress_ebpf::table::{self, Found, state};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::maps::{Bytes, array, array_of, failed, open};
use super::{DatapathError, PinDir};

/// The pinned flow table. It is mapped into memory when it is first looked at.
pub struct FlowTable {
    flows: MapData,
    used: MapData,
    shape: Shape,
    mapped: OnceLock<Mapped>,
}

struct Mapped {
    places: Mapping<Cell>,
    used: Mapping<AtomicU32>,
}

impl FlowTable {
    /// Opens the pins.
    ///
    /// # Errors
    ///
    /// When there are none, or they are not of one table.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        let info = MapInfo::from_pin(pins.map(map::FLOWS)).map_err(failed("open", map::FLOWS))?;
        let shape = read_shape(&shape_map(pins)?)?;
        if shape.places != info.max_entries() {
            let (found, wanted) = (shape.places, info.max_entries());
            return Err(DatapathError::Incompatible { path: pins.map(map::SHAPE), field: "places", found, wanted });
        }
        Ok(Self { flows: open(pins, map::FLOWS)?, used: open(pins, map::USED)?, shape, mapped: OnceLock::new() })
    }

    /// What is in it.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped into memory.
    pub fn table(&self) -> Result<Table<'_>, DatapathError> {
        let mapped = match self.mapped.get() {
            Some(mapped) => mapped,
            None => {
                let mapped = self.map().map_err(|errno| DatapathError::MapFlows { source: errno.into() })?;
                self.mapped.get_or_init(|| mapped)
            }
        };
        let used = mapped.used.all().first().ok_or(DatapathError::MapFlows { source: nix::Error::EINVAL.into() })?;
        Ok(Table { places: mapped.places.all(), used, shape: self.shape })
    }

    /// How many flows it takes.
    pub fn capacity(&self) -> usize {
        self.shape.limit as usize / 2
    }

    fn map(&self) -> nix::Result<Mapped> {
        Ok(Mapped { places: Mapping::new(&self.flows, self.shape.places)?, used: Mapping::new(&self.used, 1)? })
    }
}

/// Says how entries are found, in a table that was just made. To be called before any program runs.
pub(super) fn give_shape(pins: &PinDir) -> Result<(), DatapathError> {
    let mut map = shape_map(pins)?;
    if read_shape(&map)?.places != 0 {
        return Ok(());
    }
    let info = MapInfo::from_pin(pins.map(map::FLOWS)).map_err(failed("open", map::FLOWS))?;
    let places = info.max_entries();
    let shape = Shape { places, limit: table::entries(places), secret: std::array::from_fn(|_| random()) };
    map.set(0, array_of(&shape), 0).map_err(failed("write", map::SHAPE))
}

fn random() -> u64 {
    // Some bits of each half are not random; none of them meets another.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

/// Unpins what is left of a table of which some pins are gone: none is of use without the others.
pub(super) fn unpin_remains(pins: &PinDir) -> Result<(), DatapathError> {
    let parts = [map::FLOWS, map::SHAPE, map::USED].map(|name| pins.map(name));
    if parts.iter().all(|pin| pin.exists()) {
        return Ok(());
    }
    for path in parts.into_iter().filter(|pin| pin.exists()) {
        std::fs::remove_file(&path).map_err(|source| DatapathError::Pin {
            action: "unpin",
            path,
            source: source.into(),
        })?;
    }
    Ok(())
}

fn shape_map(pins: &PinDir) -> Result<Array<MapData, Bytes<Shape>>, DatapathError> {
    array(pins, map::SHAPE)
}

fn read_shape(map: &Array<MapData, Bytes<Shape>>) -> Result<Shape, DatapathError> {
    Ok(pod_read_unaligned(&map.get(&0, 0).map_err(failed("read", map::SHAPE))?))
}

/// The flow table as it is now, and now.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    places: &'a [Cell],
    used: &'a AtomicU32,
    shape: Shape,
}

/// An entry as it was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index of its place.
    pub place: u32,
    /// Its key.
    pub key: FlowKey,
    /// The entry itself, without the place's `reach`.
    pub flow: Flow,
}

impl<'a> Table<'a> {
    /// How many entries there are.
    pub fn used(self) -> usize {
        self.used.load(Ordering::Relaxed) as usize
    }

    /// All entries, in the order of their places. Those that come or go meanwhile are seen or not.
    pub fn iter(self) -> impl Iterator<Item = Entry> + 'a {
        (0..).zip(self.places).filter_map(|(place, cell)| cell.entry(place))
    }

    /// The entry at a place, if one is there.
    pub fn at(self, place: u32) -> Option<Entry> {
        self.places.get(place as usize)?.entry(place)
    }

    /// How far from a place the entries are that belong there, at most.
    pub fn reach(self, place: u32) -> Option<u32> {
        self.places.get(place as usize).map(Cell::reach)
    }

    /// A key's entry.
    pub fn find(self, key: &FlowKey) -> Option<Entry> {
        let Found { home, state } = Found::of(key, &self.shape);
        (home..=home.saturating_add(self.reach(home)?)).find_map(|place| {
            let cell = self.places.get(place as usize)?;
            // Hardly another entry has it as well, and none in which nothing was.
            if cell.state.load(Ordering::Relaxed) != state {
                return None;
            }
            cell.entry(place).filter(|entry| entry.key == *key)
        })
    }

    /// What a key's entry says.
    pub fn get(self, key: &FlowKey) -> Option<Flow> {
        self.find(key).map(|entry| entry.flow)
    }

    /// Removes an entry that was read. Returns whether it was there: the programs remove entries too.
    pub fn remove(self, entry: &Entry) -> bool {
        let Some(cell) = self.places.get(entry.place as usize) else { return false };
        let (entry, free) = (entry.flow.state, state::FREE);
        let removed = cell.state.compare_exchange(entry, free, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if removed {
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }
}

/// A [`Place`] that others write to.
#[repr(C, align(128))]
#[derive(Default)]
struct Cell {
    /// The key, the new addresses.
    ends: [AtomicU64; 9],
    /// The new ports.
    ports: AtomicU32,
    state: AtomicU32,
    /// Everything else.
    rest: [AtomicU64; 6],
}

const FLOW: usize = std::mem::offset_of!(Place, flow);
const _: () = assert!(size_of::<Cell>() == size_of::<Place>() && align_of::<Cell>() == align_of::<Place>());
const _: () = assert!(std::mem::offset_of!(Cell, state) == FLOW + std::mem::offset_of!(Flow, state));
// No counter and no time is read in halves.
const _: () = assert!(std::mem::offset_of!(Cell, rest) == FLOW + std::mem::offset_of!(Flow, created_ns));

impl Cell {
    /// The entry that is here, if one is.
    #[inline]
    fn entry(&self, place: u32) -> Option<Entry> {
        let state = self.state.load(Ordering::Acquire);
        if state & state::ENTRY == 0 {
            return None;
        }
        let Place { key, flow } = self.copy(state);
        // What was read above is read before this.
        fence(Ordering::Acquire);
        (self.state.load(Ordering::Relaxed) == state).then_some(Entry { place, key, flow: Flow { reach: 0, ..flow } })
    }

    /// As [`Table::reach`].
    #[inline]
    fn reach(&self) -> u32 {
        const AT: usize = FLOW + std::mem::offset_of!(Flow, reach) - std::mem::offset_of!(Cell, rest);
        let [.., last] = &self.rest;
        let [.., reach, _pad] = last.load(Ordering::Relaxed).to_ne_bytes();
        const { assert!(AT + 2 == 6 * size_of::<u64>()) };
        reach.into()
    }

    fn copy(&self, state: u32) -> Place {
        let now = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let [a, b, c, d, e, f, g, h, i] = self.ends.each_ref().map(now);
        let ports: u64 = bytemuck::cast([self.ports.load(Ordering::Relaxed), state]);
        let [j, k, l, m, n, o] = self.rest.each_ref().map(now);
        bytemuck::cast([a, b, c, d, e, f, g, h, i, ports, j, k, l, m, n, o])
    }
}

/// Memory in which any bits are a value, and that is only changed atomically.
///
/// # Safety
///
/// The type must be made of atomic integers, without padding.
unsafe trait Shared {}
// SAFETY: atomic integers, as many bytes as they have together.
unsafe impl Shared for Cell {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU32 {}

/// The elements of a map, shared with the kernel.
struct Mapping<T: Shared> {
    first: NonNull<T>,
    count: usize,
}

impl<T: Shared> Mapping<T> {
    /// Maps the first elements of an array that has so many, of the size of `T`.
    fn new(map: &MapData, count: u32) -> nix::Result<Self> {
        let count = count as usize;
        let bytes = NonZeroUsize::new(count * size_of::<T>()).ok_or(nix::Error::EINVAL)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses where, so that nothing else is there.
        let first = unsafe { mmap(None, bytes, both, MapFlags::MAP_SHARED, map.fd(), 0) }?;
        Ok(Self { first: first.cast(), count })
    }

    fn all(&self) -> &[T] {
        // SAFETY: the kernel has mapped so many bytes there, from a page's beginning, and they stay until this is dropped: a
        // map's memory is never made smaller. It is atomic integers, for which any bits are a value and that others may change.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl<T: Shared> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nobody can refer to it any more, since `all` borrows from this.
        let unmapped = unsafe { munmap(self.first.cast(), self.count * size_of::<T>()) };
        debug_assert!(unmapped.is_ok());
    }
}

// SAFETY: the memory belongs to the process, not to a thread, and is only touched atomically.
unsafe impl<T: Shared> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapping<T> {}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use bytemuck::Zeroable as _;
    use egress_ebpf::addr::Port;

    use super::*;

    /// A table in memory, in which the programs' part is done by hand.
    struct Memory {
        cells: Vec<Cell>,
        used: AtomicU32,
        shape: Shape,
    }

    impl Memory {
        fn new(entries: u32) -> Self {
            let places = table::places(entries);
            let cells = (0..places).map(|_| Cell::default()).collect();
            Self {
                cells,
                used: AtomicU32::new(0),
                shape: Shape { places, limit: entries, secret: [7, 1 << 40, 3, 0x9e37_79b9, 5] },
            }
        }

        fn table(&self) -> Table<'_> {
            Table { places: &self.cells, used: &self.used, shape: self.shape }
        }

        /// Enters a flow that began at `created_ns`, as programs do.
        fn enter(&self, key: &FlowKey, created_ns: u64) -> Entry {
            let Found { home, state } = Found::of(key, &self.shape);
            let cells = &self.cells[home as usize..];
            let distance = cells.iter().position(|cell| cell.state.load(Ordering::Relaxed) == state::FREE).unwrap();
            assert!(distance < table::WINDOW as usize);
            let flow = Flow { state, created_ns, ..Flow::zeroed() };
            let words: [u64; 16] = bytemuck::cast(Place { key: *key, flow });
            let cell = &cells[distance];
            for (to, word) in cell.ends.iter().zip(&words[..9]).chain(cell.rest.iter().zip(&words[10..15])) {
                to.store(*word, Ordering::Relaxed);
            }
            let [.., last] = &cells[0].rest;
            let reach = cells[0].reach().max(u32::try_from(distance).unwrap());
            last.store(u64::from_ne_bytes([0, 0, 0, 0, 0, 0, u8::try_from(reach).unwrap(), 0]), Ordering::Relaxed);
            cell.state.store(state, Ordering::Release);
            self.used.fetch_add(1, Ordering::Relaxed);
            self.table().find(key).unwrap()
        }

        /// So many keys with one home.
        fn neighbours(&self, count: usize) -> Vec<FlowKey> {
            let home = Found::of(&key("10.128.0.1", 0), &self.shape).home;
            let keys = (0..=u16::MAX).map(|port| key("10.128.0.1", port));
            keys.filter(|key| Found::of(key, &self.shape).home == home).take(count).collect()
        }
    }

    fn key(client: &str, port: u16) -> FlowKey {
        let src = client.parse::<IpAddr>().unwrap().into();
        FlowKey { src, src_port: Port::new(port), protocol: 6, ..FlowKey::zeroed() }
    }

    #[test]
    fn what_was_entered_is_found_until_it_is_removed() {
        let memory = Memory::new(1000);
        let table = memory.table();
        let keys: Vec<_> = ["10.128.0.1", "fd00::1"].iter().flat_map(|at| (0..500).map(|port| key(at, port))).collect();
        assert_eq!((table.iter().count(), table.get(&keys[0])), (0, None));
        let entries: Vec<_> = keys.iter().zip(1..).map(|(key, number)| memory.enter(key, number)).collect();
        for (entry, (key, number)) in entries.iter().zip(keys.iter().zip(1..)) {
            assert_eq!((entry.key, entry.flow.created_ns), (*key, number));
            assert_eq!((table.find(key), table.at(entry.place)), (Some(*entry), Some(*entry)));
        }
        assert_eq!(table.used(), 1000);
        let mut in_order = entries.clone();
        in_order.sort_by_key(|entry| entry.place);
        assert_eq!(table.iter().collect::<Vec<_>>(), in_order);
        for entry in &entries[..10] {
            assert!(table.remove(entry));
            assert!(!table.remove(entry), "once");
            assert_eq!((table.find(&entry.key), table.at(entry.place)), (None, None));
        }
        assert_eq!((table.used(), table.iter().count()), (990, 990));
    }

    #[test]
    fn entries_of_one_home_are_found_beside_it() {
        let memory = Memory::new(100);
        let table = memory.table();
        let keys = memory.neighbours(4);
        let entries: Vec<_> = keys[..3].iter().map(|key| memory.enter(key, 1)).collect();
        let places: Vec<_> = entries.iter().map(|entry| entry.place - entries[0].place).collect();
        assert_eq!(places, [0, 1, 2]);
        assert_eq!(table.get(&keys[3]), None);
        // What goes leaves room, and what is beyond is found as before.
        assert!(table.remove(&entries[1]));
        assert_eq!((table.find(&keys[0]), table.find(&keys[2])), (Some(entries[0]), Some(entries[2])));
        assert!(table.remove(&entries[0]));
        assert_eq!((table.find(&keys[1]), table.find(&keys[2])), (None, Some(entries[2])));
        // Another's now: who has read what was there does not remove it.
        assert_eq!(memory.enter(&keys[3], 1).place, entries[0].place);
        assert!(!table.remove(&entries[0]));
        assert_eq!(table.used(), 2);
    }

    #[test]
    fn what_is_being_entered_is_not_there() {
        let memory = Memory::new(100);
        let entry = memory.enter(&key("10.128.0.1", 1), 1);
        memory.cells[entry.place as usize].state.store(state::CLAIMED, Ordering::Relaxed);
        assert_eq!((memory.table().find(&entry.key), memory.table().iter().count()), (None, 0));
        assert!(!memory.table().remove(&entry));
    }

    #[test]
    fn an_entry_in_the_last_place_is_found() {
        let memory = Memory::new(100);
        let last = memory.shape.places - 1;
        let home = last - (table::WINDOW - 1);
        let keys = (0..=u16::MAX).map(|port| key("10.128.0.1", port));
        let key = keys.into_iter().find(|key| Found::of(key, &memory.shape).home == home).unwrap();
        for cell in &memory.cells[home as usize..last as usize] {
            cell.state.store(state::CLAIMED, Ordering::Relaxed);
        }
        assert_eq!(memory.enter(&key, 1).place, last);
    }
}
