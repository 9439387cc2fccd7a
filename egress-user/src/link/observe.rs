//! The present state of a network namespace, as far as the external interface is concerned.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::mac::Mac;
use crate::compile::MacvlanMode;

/// What a namespace holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// By kernel index.
    pub interfaces: Vec<Interface>,
    /// Unicast and unreachable routes of every table but `local`.
    pub routes: Vec<Route>,
    /// Policy rules, in the order in which the kernel tries them, IPv4's first.
    pub rules: Vec<PolicyRule>,
    /// The kernel settings that were asked for; `None` where the kernel has no such setting.
    pub sysctls: BTreeMap<Sysctl, Option<String>>,
    /// The number by which this namespace calls the other one that was asked about, when it has one.
    pub peer_id: Option<i32>,
}

impl Snapshot {
    /// The interface of that name.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface of that kernel index.
    #[must_use]
    pub fn by_index(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == index)
    }

    /// The setting's value; `None` where the kernel has no such setting or it was not asked for.
    #[must_use]
    pub fn sysctl(&self, key: &Sysctl) -> Option<&str> {
        self.sysctls.get(key).and_then(Option::as_deref)
    }

    /// The names of all interfaces but `lo`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.interfaces.iter().filter(|interface| !interface.loopback).map(|interface| interface.name.clone()).collect()
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Kernel index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address; none on interfaces of another kind.
    pub mac: Option<Mac>,
    /// In bytes, without the Ethernet header.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Has a carrier.
    pub lower_up: bool,
    /// Is `lo`.
    pub loopback: bool,
    /// The kernel's name of the kind, as `macvlan`; none on plain hardware.
    pub kind: Option<String>,
    /// On a macvlan.
    pub macvlan: Option<ObservedMode>,
    /// The interface that this one sits on, by index in its own namespace.
    pub parent: Option<u32>,
    /// The number of the parent's namespace; none when it is the same one.
    pub parent_netns: Option<i32>,
    /// The bridge, bond, switch or VRF that this interface is a port of.
    pub controller: Option<u32>,
    /// Free text for people, which this program uses to know its own interfaces.
    pub alias: Option<String>,
    /// In the kernel's order: the first IPv4 address of a subnet is its primary one.
    pub addresses: Vec<InterfaceAddress>,
}

impl Interface {
    /// The state of this address, if the interface has it.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> Option<&InterfaceAddress> {
        self.addresses.iter().find(|held| held.net.addr() == address)
    }
}

/// Mode of an existing macvlan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ObservedMode {
    /// One that the specification can ask for.
    Known(MacvlanMode),
    /// Another one, as `source`.
    Other,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceAddress {
    /// The address with its subnet's prefix length.
    pub net: IpNet,
    /// Not usable: another host has it (IPv6 duplicate address detection).
    pub duplicate: bool,
    /// Not usable yet: duplicate address detection is going on.
    pub tentative: bool,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface by index; none for an unreachable route or one with several next hops.
    pub interface: Option<u32>,
    /// Lower is preferred.
    pub metric: u32,
    /// Routing table.
    pub table: u32,
    /// Answers with an ICMP error instead of forwarding.
    pub unreachable: bool,
    /// The gateway is taken to be on the link though no subnet says so.
    pub onlink: bool,
}

/// A policy rule that looks a table up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRule {
    /// Which rule list it is in.
    pub family: Family,
    /// Lower is tried first.
    pub priority: u32,
    /// Packets from there.
    pub from: Option<IpNet>,
    /// Packets that came in by this interface; `lo` means packets of the host's own.
    pub iif: Option<String>,
    /// Packets that were told to leave by this interface.
    pub oif: Option<String>,
    /// Packets with this mark.
    pub mark: Option<Mark>,
    /// Routing table to look up.
    pub table: u32,
}

/// A packet mark as a policy rule sees it: `packet.mark & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The bits.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// 0.0.0.0/0 or ::/0.
    #[must_use]
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            Self::V6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        }
    }
}

/// A kernel setting below `/proc/sys`, as `net/ipv4/ip_forward`: with slashes, because interface names have dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sysctl(String);

impl Sysctl {
    /// The setting of that path below `/proc/sys`.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// An interface's IPv4 setting. `all` stands for all interfaces.
    #[must_use]
    pub fn ipv4(interface: &str, name: &str) -> Self {
        Self(format!("net/ipv4/conf/{interface}/{name}"))
    }

    /// An interface's IPv6 setting. `all` stands for all interfaces.
    #[must_use]
    pub fn ipv6(interface: &str, name: &str) -> Self {
        Self(format!("net/ipv6/conf/{interface}/{name}"))
    }

    /// Whether it belongs to that interface.
    #[must_use]
    pub fn is_of(&self, interface: &str) -> bool {
        let rest = self.0.strip_prefix("net/ipv4/conf/").or_else(|| self.0.strip_prefix("net/ipv6/conf/"));
        rest.and_then(|rest| rest.strip_prefix(interface)).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Whether it exists only on kernels with IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.0.starts_with("net/ipv6/")
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(&self.0)
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
