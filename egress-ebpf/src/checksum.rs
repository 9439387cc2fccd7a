//! How an Internet checksum follows a change of the bytes it covers (RFC 1624).
//!
//! A one's complement sum has no byte order: summing the words as they lie in memory and storing the result as it lies
//! in memory gives the right bytes on any machine (RFC 1071 section 2). So nothing here swaps bytes.
//!
//! The tc programs never write a transport checksum themselves. They hand a [`Delta`] to the kernel's own
//! `bpf_l4_csum_replace`, which knows whether the field holds a whole checksum or, for a packet whose checksum a device still
//! has to fill in, only the pseudo-header's part. An XDP program has no such help: it tells the two apart by
//! [`pseudo_header`].

use crate::addr::{Addr, Port};

/// New bytes minus old bytes, as the kernel's `__wsum`: a 32-bit one's complement sum, not folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Delta(u32);

impl Delta {
    /// Nothing changed.
    pub const ZERO: Self = Self(0);

    /// One 32-bit word, as it lies in memory, replaced by another.
    #[inline(always)]
    pub const fn word(self, old: u32, new: u32) -> Self {
        self.add(new).add(!old)
    }

    /// An address replaced by another of the same family.
    #[inline(always)]
    pub const fn addr(self, old: &Addr, new: &Addr) -> Self {
        if old.is_v4() {
            return self.word(old.v4_word(), new.v4_word());
        }
        let (old, new) = (old.words(), new.words());
        self.word(old[0], new[0]).word(old[1], new[1]).word(old[2], new[2]).word(old[3], new[3])
    }

    /// A port replaced by another. The same one again is [`ZERO`](Self::ZERO), which a sum of the two would not be: a one's
    /// complement has two zeros.
    #[inline(always)]
    pub const fn port(self, old: Port, new: Port) -> Self {
        if old.wire() == new.wire() {
            return self;
        }
        self.word(old.wire() as u32, new.wire() as u32)
    }

    /// One byte at an even offset replaced by another, as a TTL is, with the byte after it unchanged.
    #[inline(always)]
    pub const fn even_byte(self, old: u8, new: u8) -> Self {
        self.word(u32::from_ne_bytes([old, 0, 0, 0]), u32::from_ne_bytes([new, 0, 0, 0]))
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        self.add(other.0)
    }

    /// The bytes that a checksum field itself held before and holds now, where an outer checksum covers it.
    #[inline(always)]
    pub const fn field(self, old: u16, new: u16) -> Self {
        self.word(old as u32, new as u32)
    }

    /// The sum, for the kernel's `to` argument.
    #[inline(always)]
    pub const fn wsum(self) -> u32 {
        self.0
    }

    /// What a whole checksum field that held `check` has to hold now (RFC 1624 equation 3).
    #[inline(always)]
    pub const fn apply(self, check: u16) -> u16 {
        !fold(Self(!check as u32).add(self.0).0)
    }

    #[inline(always)]
    const fn add(self, word: u32) -> Self {
        let (sum, carry) = self.0.overflowing_add(word);
        Self(sum + carry as u32)
    }
}

/// Whether an IPv4 header without options, as it lies in memory, agrees with the checksum in it (RFC 791 section 3.1).
#[inline(always)]
pub const fn is_right(header: &[u32; 5]) -> bool {
    let sum = Delta(header[0]).add(header[1]).add(header[2]).add(header[3]).add(header[4]);
    fold(sum.0) == 0xffff
}

/// What a checksum field holds, as it lies in memory, until a device puts the packet's own sum to it: the sum of the
/// pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1). `length` is that of the transport header and all behind it.
#[inline(always)]
pub const fn pseudo_header(src: &Addr, dst: &Addr, protocol: u8, length: u32) -> u16 {
    let sum = Delta::ZERO.add(u32::from_ne_bytes([0, 0, 0, protocol])).add(length.to_be());
    let ([a, b, c, d], [e, f, g, h]) = (src.words(), dst.words());
    let sum = if src.is_v4() { sum.add(d).add(h) } else { sum.add(a).add(b).add(c).add(d).add(e).add(f).add(g).add(h) };
    fold(sum.0)
}

/// Whether two sums are the same: a one's complement has two zeros.
#[inline(always)]
pub const fn is_same(a: u16, b: u16) -> bool {
    a == b || ((a == 0 || a == 0xffff) && (b == 0 || b == 0xffff))
}

/// A 32-bit one's complement sum as 16 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "after two folds the upper half is zero")]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_port_again_changes_nothing() {
        let port = Port::new(40_001);
        assert_eq!(Delta::ZERO.port(port, port), Delta::ZERO);
        assert_ne!(Delta::ZERO.port(port, Port::new(40_002)), Delta::ZERO);
    }

    /// The checksum computed from scratch, big-endian words, as RFC 1071 writes it.
    fn whole(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn a_pseudo_header_is_summed_as_its_bytes() {
        use core::net::IpAddr;
        let v4 = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let bytes = [10, 128, 0, 1, 203, 0, 113, 26, 0, 17, 0x12, 0x34];
        assert_eq!(pseudo_header(&v4("10.128.0.1"), &v4("203.0.113.26"), 17, 0x1234), !whole(&bytes).to_be());
        let (src, dst) = ("fd00:10::1", "2001:db8::1a");
        let octets = |text: &str| text.parse::<core::net::Ipv6Addr>().unwrap().octets();
        let bytes = [&octets(src)[..], &octets(dst), &[0, 1, 2, 3, 0, 0, 0, 6]].concat();
        assert_eq!(pseudo_header(&v4(src), &v4(dst), 6, 0x0001_0203), !whole(&bytes).to_be());
    }

    use super::is_same as same;

    proptest! {
        #[test]
        fn a_header_agrees_with_its_own_checksum_and_with_no_other(
            mut header in any::<[u8; 20]>(),
            other in any::<u16>(),
        ) {
            let words = |header: &[u8; 20]| {
                let mut words = [0; 5];
                for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
                    *word = u32::from_ne_bytes(bytes.try_into().unwrap());
                }
                words
            };
            // A version makes every real header's sum other than zero.
            header[0] = 0x45;
            header[10..12].fill(0);
            let right = whole(&header);
            header[10..12].copy_from_slice(&right.to_be_bytes());
            prop_assert!(is_right(&words(&header)));
            header[10..12].copy_from_slice(&other.to_be_bytes());
            prop_assert_eq!(is_right(&words(&header)), same(other, right));
        }

        #[test]
        fn following_a_change_equals_summing_anew(
            mut bytes in proptest::collection::vec(any::<u8>(), 8..200),
            new in any::<[u8; 4]>(),
            at in any::<proptest::sample::Index>(),
        ) {
            let at = at.index(bytes.len() / 4) * 4;
            prop_assume!(at + 4 <= bytes.len());
            let before = whole(&bytes);
            let old: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            bytes[at..at + 4].copy_from_slice(&new);
            let delta = Delta::ZERO.word(u32::from_ne_bytes(old), u32::from_ne_bytes(new));
            let after = u16::from_be(delta.apply(before.to_be()));
            prop_assert!(same(after, whole(&bytes)), "{after:#x} {:#x}", whole(&bytes));
        }

        #[test]
        fn undoing_a_change_undoes_its_delta(old in any::<[u32; 4]>(), new in any::<[u32; 4]>(), check in any::<u16>()) {
            let (old, new) = (Addr::from_v6_words(old), Addr::from_v6_words(new));
            let there = Delta::ZERO.addr(&old, &new);
            let back = there.addr(&new, &old);
            prop_assert!(same(back.apply(check), check));
        }

        #[test]
        fn ports_count_as_sixteen_bits(old in any::<u16>(), new in any::<u16>(), tail in any::<u16>()) {
            let bytes = |port: u16| [port.to_be_bytes(), tail.to_be_bytes()].concat();
            let delta = Delta::ZERO.port(Port::new(old), Port::new(new));
            let before: Vec<u8> = bytes(old);
            prop_assert!(same(u16::from_be(delta.apply(whole(&before).to_be())), whole(&bytes(new))));
        }
    }
}
