//! The flow table: where in an array a flow's entry is.
//!
//! A hash table with open addressing and linear probing. A key's hash says which place is its *home*; its entry is there, or in
//! one of the next few places, of which the home says how far they reach. So a packet of an established flow finds its entry
//! with one wait for memory, where the kernel's own hash maps take two, and without calling the kernel. There are
//! two places for each entry that may be in the table, so that most are at home.
//!
//! Who writes what:
//!
//! - An entry is *entered* by programs alone. They take the lock of its home first, so that a key is entered once; then they claim
//!   a free place, by its state, since other homes' entries may claim it too, and fill it; its state makes it valid last.
//! - How far a home *reaches* is written by who holds its lock, with each entry: to the farthest that is there by then, which
//!   each entry's *distance* tells. It stays with the place, whatever is entered there, and a removal leaves it as it is: so a
//!   free place on the way hides nothing.
//! - An entry is *removed* by its state alone, by programs and by user space: whoever changes that from the entry's to free has
//!   removed it. Its number in `USED` was taken before its place was, and is given back after.
//! - The rest of a flow is written by the programs that its packets run.
//!
//! So a reader may meet an entry that goes, or becomes another's, as it reads: who cannot bear that reads the state again after.

use crate::contract::{FlowKey, Shape};

/// The most places from an entry's home to it, and one. A table that has no room within so many is full there.
pub const WINDOW: u32 = 64;

/// Elements of `LOCKS`: a power of two.
pub const LOCKS: u32 = 1024;

/// Words of a key, and of what it is hashed with.
pub const WORDS: usize = size_of::<FlowKey>() / 8;

/// States of a place, beside [`Found::state`] of the entry in it.
pub mod state {
    /// Nothing is there.
    pub const FREE: u32 = 0;
    /// Something is being entered.
    pub const CLAIMED: u32 = 1;
    /// A bit of every entry's state.
    pub const ENTRY: u32 = 1 << 31;
}

/// Elements of `FLOWS` for so many entries.
pub const fn places(entries: u32) -> u32 {
    entries.saturating_mul(2).saturating_add(WINDOW)
}

/// Entries that `FLOWS` takes with so many elements.
pub const fn entries(places: u32) -> u32 {
    places.saturating_sub(WINDOW) / 2
}

/// Where to look for a key's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The first place.
    pub home: u32,
    /// State of the place that it is in.
    pub state: u32,
}

impl Found {
    /// Of a key, in a table of this shape.
    #[inline(always)]
    pub fn of(key: &FlowKey, shape: &Shape) -> Self {
        let hash = hash(key, &shape.secret);
        let homes = shape.places.wrapping_sub(WINDOW - 1);
        // The upper half, as a fraction of them.
        let home = ((hash >> 32) * homes as u64) >> 32;
        #[expect(clippy::cast_possible_truncation, reason = "below the number of places; half of the hash")]
        let (home, low) = (home as u32, hash as u32);
        Self { home, state: low | state::ENTRY }
    }

    /// The lock to take before something is entered.
    #[inline(always)]
    pub const fn lock(&self) -> u32 {
        self.home & (LOCKS - 1)
    }
}

/// NH, the hash of UMAC (RFC 4418): two keys that differ meet with a probability of 2^-32 for whoever does not know the secret
/// numbers, so nobody can choose where an entry goes. The products do not wait for each other. What follows spreads the sum over
/// all bits.
#[expect(clippy::indexing_slicing, reason = "below the length of both")]
#[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
#[inline(always)]
fn hash(key: &FlowKey, secret: &[u64; WORDS]) -> u64 {
    let words: [u64; WORDS] = bytemuck::cast(*key);
    let mut sum = 0_u64;
    let mut index = 0;
    while index < WORDS {
        let (word, secret) = (words[index], secret[index]);
        let low = (word as u32).wrapping_add(secret as u32);
        let high = ((word >> 32) as u32).wrapping_add((secret >> 32) as u32);
        sum = sum.wrapping_add(low as u64 * high as u64);
        index += 1;
    }
    stir(stir(sum))
}

#[inline(always)]
const fn stir(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9fb2_1c65_1e98_df25);
    hash ^ (hash >> 28)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::addr::Port;

    const MILLION: u32 = 1_000_000;

    fn shape(seed: u64, limit: u32) -> Shape {
        // A generator of known quality (splitmix64), so that a seed gives the same numbers everywhere.
        let mut state = seed;
        let secret = core::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Shape { places: places(limit), limit, secret }
    }

    /// The lower bits of an address of this family.
    fn addr(v4: bool, low: u32) -> IpAddr {
        let ip = Ipv4Addr::from(0x0a80_0000 | low);
        if v4 { ip.into() } else { Ipv6Addr::from(0xfd00 << 112 | u128::from(low)).into() }
    }

    fn port(number: u32) -> Port {
        Port::new(u16::try_from(number % 0x1_0000).unwrap())
    }

    /// Both keys of the flow of this number: clients have 60,000 ports each, and a destination of their own.
    fn flow(v4: bool, number: u32) -> [FlowKey; 2] {
        let (client, from) = (number / 60_000, port(1024 + number % 60_000));
        [
            key([addr(v4, client + 2), addr(v4, 1)], [from, Port::new(80)], 0),
            key([addr(v4, client + 0x8_0000), addr(v4, 0x7_0000)], [Port::new(8080), from], 1),
        ]
    }

    fn key([src, dst]: [IpAddr; 2], [src_port, dst_port]: [Port; 2], direction: u8) -> FlowKey {
        FlowKey { src: src.into(), dst: dst.into(), src_port, dst_port, protocol: 6, direction, pad: [0; 2] }
    }

    /// Keys that differ in what really differs: clients' ports, their addresses, those of a cluster's nodes and pods with a few
    /// ports each or with many, the router's ports.
    fn families_of_keys(v4: bool, count: u32) -> [Vec<FlowKey>; 6] {
        let (here, web, from) = (addr(v4, 1), Port::new(80), Port::new(40_000));
        let pod = |number: u32| addr(v4, (number / 250) << 9 | (number % 250 + 2));
        [
            (0..count / 2).flat_map(|n| flow(v4, n)).collect(),
            (0..count).map(|n| key([addr(v4, n), here], [from, web], 0)).collect(),
            (0..count.min(0x1000)).map(|n| key([addr(v4, n << 8), here], [from, web], 0)).collect(),
            (0..count).map(|n| key([pod(n / 10), here], [port(0x8000 + n % 10 * 2), web], 0)).collect(),
            (0..count).map(|n| key([pod(n / 2000), here], [port(0x8000 + n % 2000 * 2), web], 0)).collect(),
            (0..count).map(|n| key([addr(v4, n >> 16), here], [from, port(n)], 0)).collect(),
        ]
    }

    /// How far numbers are from evenly spread over `buckets`, in standard deviations of Pearson's chi-square.
    fn unevenness(numbers: impl Iterator<Item = usize>, buckets: usize) -> f64 {
        let mut counts = vec![0_u32; buckets];
        numbers.for_each(|number| counts[number % buckets] += 1);
        let expected = f64::from(counts.iter().sum::<u32>()) / buckets as f64;
        let chi: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        let freedom = buckets as f64 - 1.0;
        (chi - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn a_table_takes_what_it_was_made_for() {
        for limit in [2, 128, 2 * 65_536, 2 * MILLION] {
            assert_eq!(entries(places(limit)), limit);
        }
        let all = shape(3, 4);
        let homes = (0..10_000).map(|number| Found::of(&flow(true, number)[0], &all).home);
        assert_eq!(homes.max(), Some(all.places - WINDOW), "what belongs to the last home has as much room");
    }

    #[test]
    fn keys_are_spread_evenly() {
        const BUCKETS: usize = 1 << 8;
        // Some like any, and some like none.
        let seeds = [0, 1, u64::MAX, 0x9e37_79b9_7f4a_7c15, 0x0123_4567_89ab_cdef, 0x5eed_5eed_5eed_5eed];
        for (seed, v4) in seeds.into_iter().flat_map(|seed| [(seed, true), (seed, false)]) {
            for (which, keys) in families_of_keys(v4, 1 << 17).iter().enumerate() {
                let shape = shape(seed, 1 << 17);
                let found: Vec<_> = keys.iter().map(|key| Found::of(key, &shape)).collect();
                let regions = shape.places as usize / BUCKETS;
                let far = unevenness(found.iter().map(|found| found.home as usize / regions), BUCKETS);
                let near = unevenness(found.iter().map(|found| found.home as usize), BUCKETS);
                let state = unevenness(found.iter().map(|found| found.state as usize), BUCKETS);
                for (what, by) in [("regions", far), ("homes", near), ("states", state)] {
                    // More even than chance, as counted ports may be, does no harm.
                    assert!(by < 6.0, "{what} of keys {which}, IPv4 {v4}, seed {seed:x}: {by}");
                }
            }
        }
    }

    #[test]
    fn who_does_not_know_the_seed_does_not_know_the_home() {
        for v4 in [true, false] {
            let of = |seed| {
                let shape = shape(seed, 2 * MILLION);
                (0..10_000).map(move |number| Found::of(&flow(v4, number)[0], &shape).home)
            };
            for bit in 0..64 {
                let same = of(7).zip(of(7 ^ (1 << bit))).filter(|(one, other)| one == other).count();
                assert!(same < 10, "{same} homes stay when bit {bit} of the seed changes");
            }
        }
    }

    #[test]
    fn a_table_of_a_million_flows_is_filled_to_the_last() {
        for v4 in [true, false] {
            let shape = shape(0x5eed, 2 * MILLION);
            let mut taken = vec![false; shape.places as usize];
            let mut by_distance = [0; WINDOW as usize];
            for key in (0..MILLION).flat_map(|number| flow(v4, number)) {
                let home = Found::of(&key, &shape).home as usize;
                let window = &mut taken[home..home + WINDOW as usize];
                let distance = window.iter().position(|taken| !taken).expect("a place within the window");
                window[distance] = true;
                by_distance[distance] += 1;
            }
            let [home, ..] = by_distance;
            assert!(home > 2 * MILLION / 100 * 74, "{home} at home");
            let far: u32 = by_distance[WINDOW as usize / 2..].iter().sum();
            assert!(far < 50, "{far} far away: {by_distance:?}");
        }
    }
}
