//! Who has which address in the lab.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for tests that hold for each.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One host's address in each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Host {
    /// A host of the lab's networks: `last` is the last octet, and, read as hexadecimal digits, the last group.
    const fn new(v4: [u8; 3], v6: [u16; 3], last: u8) -> Self {
        // 203.0.113.26 and 2001:db8:113::26: the same digits in both, as a reader expects.
        let digits = ((last / 100) as u16) << 8 | ((last / 10 % 10) as u16) << 4 | (last % 10) as u16;
        let [a, b, c] = v4;
        let [x, y, z] = v6;
        Self { v4: Ipv4Addr::new(a, b, c, last), v6: Ipv6Addr::new(x, y, z, 0, 0, 0, 0, digits) }
    }

    /// Its address in one family.
    pub const fn ip(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    /// Both its addresses.
    pub const fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }
}

/// A host of the pod network, 10.128.0.0/24 and fd00:10::/64.
pub const fn pod(last: u8) -> Host {
    Host::new([10, 128, 0], [0xfd00, 0x10, 0], last)
}

/// A host of the second node's pod network, 10.129.0.0/24 and fd00:11::/64.
pub const fn second_pod(last: u8) -> Host {
    Host::new([10, 129, 0], [0xfd00, 0x11, 0], last)
}

/// A host of the external network, 192.168.12.0/24 and fd00:12::/64.
pub const fn external(last: u8) -> Host {
    Host::new([192, 168, 12], [0xfd00, 0x12, 0], last)
}

/// A host of the second uplink's network, 192.168.13.0/24 and fd00:13::/64.
pub const fn second_external(last: u8) -> Host {
    Host::new([192, 168, 13], [0xfd00, 0x13, 0], last)
}

/// A host of the far network behind the gateway, 203.0.113.0/24 and 2001:db8:113::/64.
pub const fn far(last: u8) -> Host {
    Host::new([203, 0, 113], [0x2001, 0xdb8, 0x113], last)
}

/// The client's `number`th address: .1, which is also the pod network's gateway, then .11, .12 and so on.
pub const fn client(number: u8) -> Host {
    pod(if number == 0 { 1 } else { 10 + number })
}

/// The router's address on the cluster interface.
pub const ROUTER: Host = pod(2);
/// The address that the example spec gives the router outside, and the only source that the outside may see.
pub const SNAT: Host = external(99);
/// The gateway of the external network, which is the outside namespace.
pub const GATEWAY: Host = external(1);
/// The node's own address on the macvlan's master.
pub const NODE: Host = external(2);
/// The second node's own address on its master.
pub const SECOND_NODE: Host = external(3);
/// The address of the second node's router on the cluster interface; the client has `second_pod(1)`.
pub const SECOND_ROUTER: Host = second_pod(2);
/// A host on the external network itself, reached without the gateway.
pub const ON_LINK: Host = external(50);
/// The first server.
pub const SERVER_1: Host = far(26);
/// The second server, which the example spec makes the fallback.
pub const SERVER_2: Host = far(27);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_of_a_host_have_the_same_digits() {
        assert_eq!(SERVER_1.v4.to_string(), "203.0.113.26");
        assert_eq!(SERVER_1.v6.to_string(), "2001:db8:113::26");
        assert_eq!(SNAT.v6.to_string(), "fd00:12::99");
        assert_eq!(client(0).v6.to_string(), "fd00:10::1");
        assert_eq!(client(1).v4.to_string(), "10.128.0.11");
        assert_eq!(external(200).v6.to_string(), "fd00:12::200");
    }
}
