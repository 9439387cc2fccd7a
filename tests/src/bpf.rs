//! What the kernel says of programs and tables.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use egress_ebpf::contract::Config;

use crate::sys;

/// A flow table and its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Flows that it has room for.
    pub flows: u32,
    /// Memory that it is charged with.
    pub bytes: u64,
}

/// How often a program ran, and for how long in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runs {
    /// How often.
    pub count: u64,
    /// How long, in nanoseconds.
    pub ns: u64,
}

/// The pinned flow table.
///
/// # Errors
/// When nothing is pinned there.
pub fn table(pin: &Path) -> Result<Table> {
    let places = MapInfo::from_pin(pin).with_context(|| format!("read table {}", pin.display()))?.max_entries();
    let map = MapData::from_pin(pin).with_context(|| format!("open table {}", pin.display()))?;
    let of = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&of).with_context(|| format!("read {of}"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    let bytes = bytes.with_context(|| format!("no memory of {} in {text:?}", pin.display()))?;
    // Two entries a flow.
    Ok(Table { flows: egress_ebpf::table::entries(places) / 2, bytes })
}

/// The number that a pinned array of one number holds.
///
/// # Errors
/// When nothing is pinned there, or it is no such array.
pub fn number(pin: &Path) -> Result<u32> {
    element(pin, 0)
}

/// The settings in force: those of the generation that the other table names.
///
/// # Errors
/// When nothing is pinned there, or it is no such table.
pub fn settings(config: &Path, active: &Path) -> Result<Config> {
    let bytes: [u8; size_of::<Config>()] = element(config, number(active)?)?;
    Ok(bytemuck::pod_read_unaligned(&bytes))
}

fn element<T: Pod>(pin: &Path, index: u32) -> Result<T> {
    let map = MapData::from_pin(pin).with_context(|| format!("open table {}", pin.display()))?;
    let map = Map::from_map_data(map).with_context(|| format!("kind of table {}", pin.display()))?;
    let array = Array::<MapData, T>::try_from(map).with_context(|| format!("type of {}", pin.display()))?;
    array.get(&index, 0).with_context(|| format!("read table {}", pin.display()))
}

/// Size of an object of a slab, if there is one of that name.
pub fn slab_object_bytes(slab: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(slab))?;
    // Name, live objects, objects, bytes of one.
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Has the kernel count how long programs run, until the result is dropped.
///
/// # Errors
/// When it cannot: before Linux 5.8, or without the right to.
pub fn count_time() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("count the time of programs")
}

/// Takes the program of a pinned link off its interface, whoever else holds the link.
///
/// # Errors
/// When nothing is pinned there, or its kind cannot be detached.
pub fn detach(link: &Path) -> Result<()> {
    sys::detach_link(link).with_context(|| format!("detach link {}", link.display()))
}

/// How many programs are loaded, everybody's.
pub fn programs() -> usize {
    loaded_programs().flatten().count()
}

/// What the kernel has counted of the program of a pinned link.
///
/// # Errors
/// When nothing is pinned there.
pub fn runs(link: &Path) -> Result<Runs> {
    let pinned = PinnedLink::from_pin(link).with_context(|| format!("open link {}", link.display()))?;
    let link_info = FdLink::from(pinned).info().with_context(|| format!("read link {}", link.display()))?;
    let id = link_info.program_id();
    let program = loaded_programs().flatten().find(|program| program.id() == id);
    let program = program.with_context(|| format!("no program behind {}", link.display()))?;
    let time = program.run_time();
    Ok(Runs { count: program.run_count(), ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) })
}
