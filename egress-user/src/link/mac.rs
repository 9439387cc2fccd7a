//! Hardware addresses, and the one that a router keeps for life.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize, Serializer};

use crate::compile::RouterName;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address of a router's external interface: a function of who the router is and of the first address it
    /// speaks with, so that it is the same after every restart, redeploy or move, and different for every router.
    ///
    /// Locally administered, unicast; 46 bits are a hash, so that among 100,000 routers on one network two collide
    /// with a probability of 1 in 14,000.
    #[must_use]
    pub fn of_router(router: &RouterName, first_address: IpAddr) -> Self {
        let address = match first_address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        // NUL occurs in no Kubernetes name: "a" + "bc" and "ab" + "c" differ.
        let [a, b, c, d, e, f, ..] =
            hash(&[router.namespace.as_bytes(), b"\0", router.name.as_bytes(), b"\0", &address]).to_be_bytes();
        Self([(a & 0b1111_1100) | 0b0000_0010, b, c, d, e, f])
    }
}

/// FNV-1a, 64 bits, with the finaliser of MurmurHash3: FNV alone leaves the high bits of short inputs nearly equal.
/// Never change it: the MAC addresses in use would change.
fn hash(parts: &[&[u8]]) -> u64 {
    let fnv = parts
        .iter()
        .flat_map(|part| part.iter())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, thiserror::Error)]
#[error("not an Ethernet address: {0}")]
pub struct NotAMac(String);

impl TryFrom<String> for Mac {
    type Error = NotAMac;

    fn try_from(text: String) -> Result<Self, NotAMac> {
        let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        match bytes.ok().and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(NotAMac(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use super::*;

    fn router(namespace: &str, name: &str) -> RouterName {
        RouterName { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_hundred_thousand_routers_have_as_many_addresses() {
        let mut seen = HashSet::new();
        for n in 0..100_000u32 {
            let mac = Mac::of_router(
                &router(&format!("team-{}", n % 100), &format!("egress-{}", n / 100)),
                Ipv4Addr::from_bits(0xc0a8_0c00 + n % 7).into(),
            );
            assert!(seen.insert(mac), "router {n} has the address of another one: {mac}");
        }
    }

    #[test]
    fn locally_administered_and_unicast() {
        for n in 0..1000u32 {
            let Mac([first, ..]) = Mac::of_router(&router("default", &n.to_string()), Ipv4Addr::LOCALHOST.into());
            assert_eq!(first & 0b11, 0b10);
        }
    }

    #[test]
    fn part_of_the_interface_to_the_outside_world_so_never_changes() {
        let mac = Mac::of_router(&router("default", "egress"), Ipv4Addr::new(192, 168, 12, 99).into());
        assert_eq!(mac.to_string(), PINNED);
        assert_eq!(Mac::try_from(mac.to_string()).unwrap(), mac);
    }

    const PINNED: &str = "f2:0d:74:e0:8b:ff";

    #[test]
    fn the_border_between_namespace_and_name_counts() {
        let address = Ipv4Addr::new(192, 168, 12, 99).into();
        assert_ne!(Mac::of_router(&router("a", "bc"), address), Mac::of_router(&router("ab", "c"), address));
    }
}
