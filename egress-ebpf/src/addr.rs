//! Addresses and ports as the maps hold them: network byte order, one form for both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

/// An IPv4 or IPv6 address: 16 bytes in network order, IPv4 in its v4-mapped form (RFC 4291 section 2.5.5.2).
///
/// The words are the address's bytes as they lie in memory, so that comparing, hashing and checksum arithmetic need no
/// byte swap.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Addr {
    words: [u32; 4],
}

const V4_MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    /// `::`, in either family's sense of "no address".
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// From an IPv4 header's word, network order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, V4_MAPPED, word] }
    }

    /// From an IPv6 header's words, network order.
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The IPv4 address as a word in network order; meaningless for an IPv6 address.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// All four words, network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == V4_MAPPED
    }

    /// IPv4 224.0.0.0/4 and the limited broadcast; IPv6 ff00::/8.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            let first = self.words[3].to_ne_bytes()[0];
            (first >= 224 && first < 240) || self.words[3] == u32::MAX
        } else {
            self.words[0].to_ne_bytes()[0] == 0xff
        }
    }

    /// IPv6 fe80::/10. IPv4's 169.254/16 is an ordinary address to a router.
    #[inline(always)]
    pub const fn is_v6_link_local(&self) -> bool {
        let bytes = self.words[0].to_ne_bytes();
        bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80
    }

    /// A number that spreads addresses over slots; the same for the same address, in any process.
    #[inline(always)]
    pub const fn spread(&self) -> u32 {
        let [a, b, c, d] = self.words;
        let hash = stir(stir(stir(stir(0x811c_9dc5, a), b), c), d);
        // The last octet lies in the last word's upper bits: stir once more, so that it reaches the lower ones.
        let hash = hash.wrapping_mul(0x85eb_ca6b);
        hash ^ (hash >> 13)
    }
}

#[inline(always)]
const fn stir(hash: u32, word: u32) -> u32 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b1);
    hash ^ (hash >> 16)
}

impl From<IpAddr> for Addr {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        bytemuck::cast(octets)
    }
}

impl From<Addr> for IpAddr {
    fn from(address: Addr) -> Self {
        let v6 = Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(address.words));
        v6.to_ipv4_mapped().map_or(Self::V6(v6), |v4: Ipv4Addr| Self::V4(v4))
    }
}

/// A transport port (or an ICMP echo identifier) in network order; 0 where a protocol has none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Port(u16);

impl Port {
    /// No port.
    pub const NONE: Self = Self(0);

    /// From a number in host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From a header's field, network order.
    #[inline(always)]
    pub const fn from_wire(wire: u16) -> Self {
        Self(wire)
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The header's field, network order.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["10.128.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "fe80::1", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(address)), address);
            assert_eq!(Addr::from(address).is_v4(), address.is_ipv4(), "{text}");
        }
    }

    #[test]
    fn multicast_and_link_local_by_family() {
        let is = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert!(is("224.0.0.1").is_multicast());
        assert!(is("239.255.255.255").is_multicast());
        assert!(is("255.255.255.255").is_multicast());
        assert!(!is("223.255.255.255").is_multicast());
        assert!(!is("240.0.0.1").is_multicast());
        assert!(is("ff02::1").is_multicast());
        assert!(!is("fe80::1").is_multicast());
        assert!(is("febf::1").is_v6_link_local());
        assert!(!is("fec0::1").is_v6_link_local());
        assert!(!is("169.254.0.1").is_v6_link_local());
    }

    #[test]
    fn ports_are_network_order_in_memory() {
        assert_eq!(bytemuck::cast::<_, [u8; 2]>(Port::new(0x1234)), [0x12, 0x34]);
        assert_eq!(Port::new(8080).get(), 8080);
    }

    #[test]
    fn clients_spread_over_addresses() {
        let mut slots = [0_u32; 4];
        for host in 0..=255_u8 {
            let client = Addr::from(IpAddr::V4(Ipv4Addr::new(10, 128, 0, host)));
            slots[usize::try_from(client.spread() % 4).unwrap()] += 1;
        }
        assert!(slots.iter().all(|&n| n > 32), "{slots:?}");
    }
}
