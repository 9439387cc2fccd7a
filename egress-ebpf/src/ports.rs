//! Which source port a flow gets: as Linux's NAT chooses it (`nf_nat_core.c`, `nf_nat_l4proto_unique_tuple`).
//!
//! The client's own port if it is free. Else a port of the same class, so that a privileged port stays privileged: from a
//! random start, one after the other, 128 of them; then 64 from another random start, then 32, then 16. A range of at most
//! 128 ports is thus tried whole, so that none is called exhausted while a port is free.

/// Ports a flow may take: `first` and how many. An echo identifier may be any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u32,
    count: u32,
}

impl Range {
    /// Every port that a flow with this client port may get: the configured range, or the port's own class.
    ///
    /// `configured` is the first and last port of `--snat-ports`; `None` for the classes.
    #[inline(always)]
    pub const fn of(client_port: u16, configured: Option<(u16, u16)>) -> Self {
        let (first, last) = match configured {
            Some(range) => range,
            None if client_port < 512 => (1, 511),
            None if client_port < 1024 => (600, 1023),
            None => (1024, 65535),
        };
        Self { first: first as u32, count: last as u32 + 1 - first as u32 }
    }

    /// Every 16-bit number: echo identifiers have no classes.
    pub const IDENTIFIERS: Self = Self { first: 0, count: 65536 };

    /// Whether `port` may be kept.
    #[inline(always)]
    pub const fn contains(&self, port: u16) -> bool {
        port as u32 >= self.first && (port as u32) < self.first + self.count
    }
}

/// Most ports that one search tries: the four windows.
pub const MAX_TRIES: u32 = 128 + 64 + 32 + 16;

const FIRST_WINDOW: u32 = 128;
const LAST_WINDOW: u32 = 16;

/// A search for a free port.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    range: Range,
    offset: u32,
    window: u32,
    left: u32,
}

impl Search {
    /// Starts at a random port of the range.
    #[inline(always)]
    pub const fn new(range: Range, random: u32) -> Self {
        let window = if range.count < FIRST_WINDOW { range.count } else { FIRST_WINDOW };
        Self { range, offset: below(random, range.count), window, left: window }
    }

    /// Whether the next port needs a new random start.
    #[inline(always)]
    pub const fn wants_random(&self) -> bool {
        self.left == 0
    }

    /// The next port to try; `None` when the search has given up. `random` matters only where
    /// [`wants_random`](Self::wants_random).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a range ends at 65535")]
    pub const fn next(&mut self, random: u32) -> Option<u16> {
        if self.left == 0 {
            if self.window >= self.range.count || self.window <= LAST_WINDOW {
                return None;
            }
            self.window /= 2;
            self.left = self.window;
            self.offset = below(random, self.range.count);
        }
        self.left -= 1;
        let port = self.range.first + self.offset;
        self.offset += 1;
        if self.offset >= self.range.count {
            self.offset = 0;
        }
        Some(port as u16)
    }
}

/// A random number below `count`, with a multiplication in place of a division, which the kernel would have to guard.
#[inline(always)]
const fn below(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::HashSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn all(range: Range, mut random: impl FnMut() -> u32) -> Vec<u16> {
        let mut search = Search::new(range, random());
        let mut ports = Vec::new();
        while let Some(port) = search.next(random()) {
            ports.push(port);
            assert!(ports.len() <= MAX_TRIES as usize);
        }
        ports
    }

    #[test]
    fn classes_keep_privilege() {
        assert!(Range::of(22, None).contains(22) && !Range::of(22, None).contains(512));
        assert!(Range::of(700, None).contains(700) && !Range::of(700, None).contains(599));
        assert!(
            Range::of(512, None).contains(600) && !Range::of(512, None).contains(512),
            "nf_nat never hands out 512-599"
        );
        assert!(Range::of(1024, None).contains(65535) && !Range::of(1024, None).contains(1023));
    }

    #[test]
    fn four_windows() {
        let mut seed = 0;
        let ports = all(Range::of(40000, None), || {
            seed += 7919;
            seed
        });
        assert_eq!(ports.len(), MAX_TRIES as usize);
    }

    proptest! {
        #[test]
        fn a_small_range_is_tried_whole(first in 1_u16..65000, count in 1_u16..=128, random in any::<u32>()) {
            let last = first + count - 1;
            let ports = all(Range::of(1, Some((first, last))), || random);
            let distinct: HashSet<_> = ports.iter().copied().collect();
            prop_assert_eq!(distinct.len(), usize::from(count));
            prop_assert!(ports.iter().all(|p| (first..=last).contains(p)));
        }

        #[test]
        fn every_try_is_in_the_range(client in any::<u16>(), random in any::<u32>()) {
            let range = Range::of(client, None);
            prop_assert!(all(range, || random).into_iter().all(|p| range.contains(p)));
        }
    }
}
