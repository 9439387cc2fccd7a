//! One step from the present state to the wanted one, as data: to show, to do, and to undo.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::mac::Mac;
use super::observe::{Family, PolicyRule, Sysctl};
use crate::compile::MacvlanMode;

/// A step. Interfaces go by name: some do not exist yet when the plan is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// Make the interface in the router's namespace, down, on a master that may be in another one.
    CreateLink(Macvlan),
    /// Remove the interface.
    DeleteLink(Macvlan),
    /// Give the interface another Ethernet address.
    SetMac {
        /// The interface.
        interface: String,
        /// The address it has.
        from: Mac,
        /// The address it gets.
        to: Mac,
    },
    /// Give the interface another MTU.
    SetMtu {
        /// The interface.
        interface: String,
        /// The MTU it has, in bytes.
        from: u32,
        /// The MTU it gets, in bytes.
        to: u32,
    },
    /// Set the interface up or down.
    SetUp {
        /// The interface.
        interface: String,
        /// Up, or else down.
        up: bool,
    },
    /// Write a kernel setting.
    SetSysctl {
        /// The setting.
        key: Sysctl,
        /// The value it has; `None` when not known, as that of an interface that does not exist yet.
        from: Option<String>,
        /// The value it gets.
        to: String,
    },
    /// Ask the external network whether somebody has these addresses; fail if so. Changes nothing.
    Probe {
        /// The interface.
        interface: String,
        /// Not on the interface yet.
        addresses: Vec<IpAddr>,
    },
    /// Add an address.
    AddAddress {
        /// The interface.
        interface: String,
        /// The address with its subnet's prefix length.
        address: IpNet,
    },
    /// Remove an address.
    RemoveAddress {
        /// The interface.
        interface: String,
        /// The address with its subnet's prefix length.
        address: IpNet,
    },
    /// Add a route to the egress table.
    AddRoute(EgressRoute),
    /// Remove a route from the egress table.
    RemoveRoute(EgressRoute),
    /// Exchange a route of the egress table for one with the same destination and metric.
    ReplaceRoute {
        /// The route that is there.
        from: EgressRoute,
        /// The route that takes its place.
        to: EgressRoute,
    },
    /// Add a policy rule.
    AddRule(PolicyRule),
    /// Remove a policy rule.
    RemoveRule(PolicyRule),
}

/// The external interface as it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Macvlan {
    /// Name in the router's namespace.
    pub name: String,
    /// Name of the master in its own namespace.
    pub master: String,
    /// Mode.
    pub mode: MacvlanMode,
    /// Ethernet address; `None` takes the master's, in passthru mode.
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// By which this program knows it again.
    pub alias: String,
    /// Its kernel settings, written before it is ever up.
    pub settings: BTreeMap<Sysctl, String>,
}

/// A route of the table that holds the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EgressRoute {
    /// Where to.
    pub destination: IpNet,
    /// What happens to a packet for it.
    pub hop: Hop,
    /// Lower is preferred.
    pub metric: u32,
}

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Hop {
    /// Straight to its destination.
    Link {
        /// Outgoing interface.
        interface: String,
    },
    /// To a router.
    Gateway {
        /// Its address.
        gateway: IpAddr,
        /// Outgoing interface.
        interface: String,
        /// No subnet of the interface holds the gateway.
        onlink: bool,
    },
    /// Nowhere: the sender gets an ICMP error.
    Unreachable,
}

impl EgressRoute {
    /// The family of the route.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.destination.addr())
    }
}

impl Change {
    /// Whether this lets packets through that are for nobody here.
    pub(super) fn switches_forwarding_on(&self) -> bool {
        matches!(self, Self::SetSysctl { key, to, .. } if key.path().ends_with("forwarding") && to == "1")
    }

    /// Whether all it wants is that something is not there.
    pub(super) fn removes(&self) -> bool {
        match self {
            Self::DeleteLink(_) | Self::RemoveAddress { .. } | Self::RemoveRoute(_) | Self::RemoveRule(_) => true,
            Self::CreateLink(_)
            | Self::SetMac { .. }
            | Self::SetMtu { .. }
            | Self::SetUp { .. }
            | Self::SetSysctl { .. }
            | Self::Probe { .. }
            | Self::AddAddress { .. }
            | Self::AddRoute(_)
            | Self::ReplaceRoute { .. }
            | Self::AddRule(_) => false,
        }
    }

    /// The step that takes this one back; `None` when it changed nothing or the state before is not known.
    #[must_use]
    pub fn inverse(&self) -> Option<Self> {
        Some(match self.clone() {
            Self::CreateLink(link) => Self::DeleteLink(link),
            Self::DeleteLink(link) => Self::CreateLink(link),
            Self::SetMac { interface, from, to } => Self::SetMac { interface, from: to, to: from },
            Self::SetMtu { interface, from, to } => Self::SetMtu { interface, from: to, to: from },
            Self::SetUp { interface, up } => Self::SetUp { interface, up: !up },
            Self::SetSysctl { key, from: Some(from), to } => Self::SetSysctl { key, from: Some(to), to: from },
            Self::SetSysctl { from: None, .. } | Self::Probe { .. } => return None,
            Self::AddAddress { interface, address } => Self::RemoveAddress { interface, address },
            Self::RemoveAddress { interface, address } => Self::AddAddress { interface, address },
            Self::AddRoute(route) => Self::RemoveRoute(route),
            Self::RemoveRoute(route) => Self::AddRoute(route),
            Self::ReplaceRoute { from, to } => Self::ReplaceRoute { from: to, to: from },
            Self::AddRule(rule) => Self::RemoveRule(rule),
            Self::RemoveRule(rule) => Self::AddRule(rule),
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateLink(link) => write!(f, "create {link}"),
            Self::DeleteLink(link) => write!(f, "delete interface {}", link.name),
            Self::SetMac { interface, from, to } => write!(f, "set MAC of {interface} to {to} (was {from})"),
            Self::SetMtu { interface, from, to } => write!(f, "set MTU of {interface} to {to} (was {from})"),
            Self::SetUp { interface, up } => write!(f, "set {interface} {}", if *up { "up" } else { "down" }),
            Self::SetSysctl { key, from: Some(from), to } => write!(f, "set {key} to {to} (was {from})"),
            Self::SetSysctl { key, from: None, to } => write!(f, "set {key} to {to}"),
            Self::Probe { interface, addresses } => {
                write!(f, "ask on {interface} whether anybody has")?;
                addresses.iter().try_for_each(|address| write!(f, " {address}"))
            }
            Self::AddAddress { interface, address } => write!(f, "add {address} to {interface}"),
            Self::RemoveAddress { interface, address } => write!(f, "remove {address} from {interface}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::ReplaceRoute { from, to } => write!(f, "replace route {from} by {to}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
        }
    }
}

impl fmt::Display for Macvlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, master, mode, mtu, .. } = self;
        write!(f, "macvlan {name} on {master}, mode {}, mtu {mtu}", mode_name(*mode))?;
        if let Some(mac) = self.mac { write!(f, ", MAC {mac}") } else { Ok(()) }
    }
}

impl fmt::Display for EgressRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.destination;
        match &self.hop {
            Hop::Link { interface } => write!(f, "{to} dev {interface}"),
            Hop::Gateway { gateway, interface, onlink } => {
                write!(f, "{to} via {gateway} dev {interface}{}", if *onlink { " onlink" } else { "" })
            }
            Hop::Unreachable => write!(f, "unreachable {to}"),
        }
    }
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, priority, from, iif, oif, mark, table } = self;
        write!(f, "{priority}:")?;
        match from {
            Some(from) => write!(f, " from {from}")?,
            None => write!(f, " from {}", family.everything())?,
        }
        if let Some(iif) = iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(oif) = oif {
            write!(f, " oif {oif}")?;
        }
        if let Some(mark) = mark {
            write!(f, " fwmark {:#x}/{:#x}", mark.value, mark.mask)?;
        }
        write!(f, " lookup {table}")
    }
}

/// The mode as `ip link` and the macvlan documentation spell it.
pub(super) fn mode_name(mode: MacvlanMode) -> &'static str {
    match mode {
        MacvlanMode::Bridge => "bridge",
        MacvlanMode::Private => "private",
        MacvlanMode::Vepa => "vepa",
        MacvlanMode::Passthru => "passthru",
    }
}
