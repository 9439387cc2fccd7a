//! The flow table as the programs use it: find, enter, remove. [`egress_ebpf::table`] says how it is made.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg, atomic_xsub};

use egress_ebpf::contract::{Flow, FlowKey, Place, Shape};
use egress_ebpf::table::{Found, WINDOW, state};

use super::maps::{FLOWS, LOCKS, SHAPE, USED, Work};
use super::work;

/// The entry under this key, whatever its age.
#[inline(always)]
pub(crate) fn find(key: &FlowKey) -> Option<&'static mut Flow> {
    work()?.sought = *key;
    // Out of range if there is none.
    Some(&mut place(locate())?.flow)
}

/// The same, for a packet that most likely has one: without a call, if the entry is at home.
#[inline(always)]
pub(crate) fn find_at_once(shape: &Shape, key: &FlowKey) -> Option<&'static mut Flow> {
    let found = Found::of(key, shape);
    let home = place(found.home)?;
    if home.flow.state == found.state && home.key.is(key) {
        return Some(&mut home.flow);
    }
    if home.flow.reach == 0 { None } else { find(key) }
}

/// Has the processor fetch the place where this key's entry would be, without waiting for it.
#[inline(always)]
pub(crate) fn fetch(shape: &Shape, key: &FlowKey) {
    if let Some(home) = place(Found::of(key, shape).home) {
        // One word of each of its cache lines, of which nothing is made.
        // SAFETY: the reference is valid, and a key begins with a word.
        let _key = unsafe { (&raw const home.key).cast::<u32>().read_volatile() };
        // SAFETY: as above.
        let _state = unsafe { (&raw const home.flow.state).read_volatile() };
    }
}

/// Removes the entry under this key. Returns whether it was there: others may have been faster.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey) -> bool {
    let (Some(flow), Some(work)) = (find(key), work()) else { return false };
    let was_there = exchange(&mut flow.state, work.found.state, state::FREE);
    if was_there {
        discount();
    }
    was_there
}

/// What came of an attempt to enter something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entered {
    /// It is in.
    Now,
    /// Something is there under this key.
    Before,
    /// No room.
    NoRoom,
    /// The lock was not to be had.
    Failed,
}

/// Enters `WORK`'s flow under a key under which nothing is.
#[inline(always)]
pub(crate) fn enter(key: &FlowKey) -> Entered {
    let Some(work) = work() else { return Entered::Failed };
    work.sought = *key;
    let mut locked = if find_home() == NOW { AGAIN } else { FAILED };
    for _ in 0..LOCK_ROUNDS {
        if locked == AGAIN {
            locked = try_lock();
        }
    }
    if locked != NOW {
        return Entered::Failed;
    }
    let mut entered = AGAIN;
    for _ in 0..PLACE_TRIES {
        if entered == AGAIN {
            entered = claim();
        }
    }
    if let Some(lock) = LOCKS.get_ptr_mut(work.found.lock()) {
        // SAFETY: the element stays mapped, and all programs change it atomically.
        replace(unsafe { &mut *lock }, 0);
    }
    match entered {
        NOW => Entered::Now,
        BEFORE => Entered::Before,
        NO_ROOM => Entered::NoRoom,
        _ => Entered::Failed,
    }
}

/// How the table is made.
#[inline(always)]
pub(crate) fn shape() -> Option<&'static Shape> {
    SHAPE.get(0)
}

/// A place of the table.
#[inline(always)]
fn place(index: u32) -> Option<&'static mut Place> {
    let place = FLOWS.get_ptr_mut(index)?;
    // SAFETY: the element stays mapped while the program runs. It may be changed or reused by another CPU meanwhile; its
    // fields are plain integers, of which each is read or written whole, and a live flow's entry is never removed.
    Some(unsafe { &mut *place })
}

// Global BPF functions, with their arguments in a map, so that the verifier walks their loops once. What they return:
const NOW: u32 = 0;
const BEFORE: u32 = 1;
const NO_ROOM: u32 = 2;
const FAILED: u32 = 3;
const AGAIN: u32 = 4;
/// As an index: of no place.
const NOWHERE: u32 = u32::MAX;

/// How often the lock is tried, in rounds of so many tries. Whoever holds it is a program on another CPU, for less than a
/// microsecond, unless an interrupt, or the host of a virtual machine, takes that CPU away meanwhile.
const LOCK_ROUNDS: u32 = 128;
const LOCK_TRIES: u32 = 750;
/// How often a free place is looked for, of which another home's entry then is faster.
const PLACE_TRIES: u32 = 4;

/// The place of the entry under the key in `WORK`, and leaves there where it belongs.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn locate() -> u32 {
    let Some((work, found)) = sought() else { return NOWHERE };
    let Some(home) = place(found.home) else { return NOWHERE };
    let reach = u32::from(home.flow.reach);
    for step in 0..WINDOW {
        if step > reach {
            break;
        }
        let Some(place) = place(found.home + step) else { return NOWHERE };
        if place.flow.state == found.state && place.key.is(&work.sought) {
            return found.home + step;
        }
    }
    NOWHERE
}

/// Leaves in `WORK` where its key's entry belongs.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_home() -> u32 {
    if sought().is_some() { NOW } else { FAILED }
}

/// This CPU's work space, and where the key in it belongs, which is there too then.
#[inline(always)]
fn sought() -> Option<(&'static mut Work, Found)> {
    let (work, shape) = (work()?, shape()?);
    let found = Found::of(&work.sought, shape);
    work.found = found;
    Some((work, found))
}

/// A round of tries to take the lock of the home in `WORK`: apart, so that the verifier walks one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn try_lock() -> u32 {
    let Some(work) = work() else { return FAILED };
    let Some(lock) = LOCKS.get_ptr_mut(work.found.lock()) else { return FAILED };
    // SAFETY: the element stays mapped, and all programs change it atomically.
    let lock = unsafe { &mut *lock };
    for _ in 0..LOCK_TRIES {
        // Looked at first: whoever only looks does not take the cache line from its holder.
        if Untold(lock).get() == 0 && exchange(lock, 0, 1) {
            return NOW;
        }
    }
    AGAIN
}

/// Claims the free place nearest to the home that is locked and fills it with what is in `WORK`, unless there is an entry under
/// the key already. The home's reach is then as far as its entries are, however far they once were.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim() -> u32 {
    let Some(work) = work() else { return FAILED };
    let Found { home, state } = work.found;
    let Some(first) = place(home) else { return FAILED };
    let (reach, farthest) = (Untold(&raw mut work.reach), Untold(&raw mut work.farthest));
    let distance = Untold(&raw mut work.distance);
    reach.set(first.flow.reach.into());
    farthest.set(0);
    distance.set(NOWHERE);
    for step in 0..WINDOW {
        if step > reach.get() && distance.get() != NOWHERE {
            break;
        }
        let Some(place) = place(home + step) else { return FAILED };
        if place.flow.state == state::FREE {
            if distance.get() == NOWHERE {
                distance.set(step);
            }
        } else if u32::from(place.flow.distance) == step {
            if place.flow.state == state && place.key.is(&work.sought) {
                return BEFORE;
            }
            farthest.set(step);
        }
    }
    let distance = distance.get();
    let (Some(shape), Some(place)) = (shape(), place(home.wrapping_add(distance))) else { return NO_ROOM };
    if distance >= WINDOW || !count(shape.limit) {
        return NO_ROOM;
    }
    if !exchange(&mut place.flow.state, state::FREE, state::CLAIMED) {
        discount();
        return AGAIN;
    }
    place.key = work.sought;
    fill(&mut place.flow, &work.flow);
    place.flow.distance = (distance & 0xff) as u8;
    let farthest = farthest.get();
    let reach = if farthest > distance { farthest } else { distance };
    first.flow.reach = (reach & 0xff) as u8;
    replace(&mut place.flow.state, state);
    NOW
}

/// Writes all of a flow but what is the table's: another CPU may be writing the place's reach.
#[inline(always)]
fn fill(place: &mut Flow, flow: &Flow) {
    let Flow { to_src, to_dst, to_src_port, to_dst_port, created_ns, last_seen_ns, packets, bytes, rule, .. } = *flow;
    let Flow { seen, hop_kind, return_kind, source, hop, .. } = *flow;
    place.to_src = to_src;
    place.to_dst = to_dst;
    place.to_src_port = to_src_port;
    place.to_dst_port = to_dst_port;
    place.created_ns = created_ns;
    place.last_seen_ns = last_seen_ns;
    place.packets = packets;
    place.bytes = bytes;
    place.rule = rule;
    place.seen = seen;
    place.hop_kind = hop_kind;
    place.return_kind = return_kind;
    place.source = source;
    place.hop = hop;
}

/// A number in memory that the verifier does not follow: it would walk the rest of a loop once for each value.
struct Untold(*mut u32);

impl Untold {
    #[inline(always)]
    fn get(&self) -> u32 {
        // SAFETY: it was made from a reference that is valid while the program runs.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn set(&self, number: u32) {
        // SAFETY: as in `get`.
        unsafe { self.0.write_volatile(number) }
    }
}

/// Counts one more entry, if there may be one more.
#[inline(always)]
fn count(limit: u32) -> bool {
    let Some(used) = USED.get_ptr_mut(0) else { return false };
    // SAFETY: the element stays mapped, and everybody changes it atomically.
    let before = unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(used, 1) };
    if before >= limit {
        discount();
    }
    before < limit
}

#[inline(always)]
fn discount() {
    if let Some(used) = USED.get_ptr_mut(0) {
        // SAFETY: as in `count`.
        unsafe { atomic_xsub::<u32, u32, { AtomicOrdering::SeqCst }>(used, 1) };
    }
}

/// Writes `new` over `old`, if that is what is there.
#[inline(always)]
fn exchange(word: &mut u32, old: u32, new: u32) -> bool {
    // SAFETY: the reference is valid, in a map's element.
    let (_, exchanged) =
        unsafe { atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new) };
    exchanged
}

/// Writes after everything that was written before.
#[inline(always)]
fn replace(word: &mut u32, new: u32) {
    // SAFETY: as in `exchange`.
    unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(word, new) };
}
