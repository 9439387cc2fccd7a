//! Reading a hash map some thousand entries a call (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya has no function for. One by
//! one, a table of a million flows takes two million calls and seconds of a processor.
#![expect(unsafe_code, reason = "the bpf system call has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use bytemuck::{Pod, Zeroable};

/// Entries of a call. The kernel hands out whole hash buckets, so the room must not be small.
const ROOM: u32 = 4096;
const BPF_MAP_LOOKUP_BATCH: i64 = 24;

/// `union bpf_attr` of the batch commands.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Hands each entry of the map to `take`. Entries that come or go meanwhile are seen or not.
///
/// # Errors
///
/// What the kernel says; `ENOSPC` if a bucket holds more than there is room for.
pub(super) fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut take: impl FnMut(K, V)) -> io::Result<()> {
    let room = ROOM as usize;
    let (mut keys, mut values) = (vec![K::zeroed(); room], vec![V::zeroed(); room]);
    let mut position = 0_u32;
    let mut started = false;
    loop {
        let at = &raw mut position as u64;
        let mut attributes = Attributes {
            in_batch: if started { at } else { 0 },
            out_batch: at,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: ROOM,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes are as long as said; the kernel writes at most `count` keys and values, of the map's own
        // sizes, which are those of `K` and `V` as the map was checked when it was opened, and one position.
        let answer = unsafe {
            nix::libc::syscall(nix::libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>())
        };
        let error = (answer < 0).then(io::Error::last_os_error);
        let is_last = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(nix::libc::ENOENT));
        if let Some(error) = error
            && !is_last
        {
            return Err(error);
        }
        let count = attributes.count as usize;
        for (key, value) in keys.iter().zip(&values).take(count) {
            take(*key, *value);
        }
        if is_last {
            return Ok(());
        }
        started = true;
    }
}
