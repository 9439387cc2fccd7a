//! From a specification to the state that the system should be in.
//!
//! Everything here is pure data: the link room turns a [`LinkPlan`] into netlink requests, the datapath room a
//! [`RuleTable`] into map entries. Neither looks at the specification again. A [`Desired`] comes from a [`ValidRouter`]
//! and from nothing else, so that whoever holds one need not check anything a second time.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::spec::{DEFAULT_NAMESPACE, ValidRouter};

mod diff;
mod file;

pub use diff::{FallbackChange, RuleChange, RuleChanges, diff};
pub use file::{SpecError, desired_from_file};

pub use crate::spec::{MacvlanMode, Protocol};

/// All that one `EgressRouter` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Desired {
    /// Which router this is; its MAC address is derived from it.
    pub router: RouterName,
    /// The external interface.
    pub link: LinkPlan,
    /// What to translate.
    pub rules: RuleTable,
}

/// Namespace and name of an `EgressRouter` object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RouterName {
    /// `metadata.namespace`, `default` when absent.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// The external interface as the specification wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkPlan {
    /// `spec.networkInterface.macvlan.master`; inferred from the addresses when absent.
    pub master: Option<String>,
    /// `spec.networkInterface.macvlan.mode`.
    pub mode: MacvlanMode,
    /// `spec.addresses`, in order. The first of each family is the one that the interface speaks with by itself.
    pub addresses: Vec<Address>,
}

/// One entry of `spec.addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Address {
    /// The host address with the length of its subnet's prefix.
    pub net: IpNet,
    /// Next hop for destinations outside the subnet.
    pub gateway: Option<IpAddr>,
}

/// Rules and fallback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuleTable {
    /// In the order of the specification.
    pub rules: Vec<Rule>,
    /// Where everything goes that no rule names; serves the address family it belongs to.
    pub fallback: Option<IpAddr>,
}

impl RuleTable {
    /// Whom packets are sent to.
    pub fn destinations(&self) -> Vec<IpAddr> {
        self.rules.iter().map(|rule| rule.destination).chain(self.fallback).collect()
    }
}

/// One redirect rule: `(family of destination, protocol, port)` is unique in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Rule {
    /// Position in `spec.redirect.redirectRules`, from 0.
    pub index: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the router that clients connect to.
    pub port: NonZeroU16,
    /// Host that the connection is sent to.
    pub destination: IpAddr,
    /// Port on that host; `None` keeps [`port`](Self::port).
    pub target_port: Option<NonZeroU16>,
}

impl Rule {
    /// Port on the destination.
    pub fn destination_port(&self) -> NonZeroU16 {
        self.target_port.unwrap_or(self.port)
    }
}

impl fmt::Display for RouterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = SocketAddr::new(self.destination, self.destination_port().get());
        write!(f, "{}/{} -> {to}", self.port, self.protocol)
    }
}

/// The state that a router asks for.
pub fn compile(valid: &ValidRouter) -> Desired {
    let router = valid.router();
    let spec = &router.spec;
    let macvlan = &spec.network_interface.macvlan;
    let rules = (0..).zip(&spec.redirect.redirect_rules).map(|(index, rule)| Rule {
        index,
        protocol: rule.protocol,
        port: rule.port,
        destination: rule.destination_ip,
        target_port: rule.target_port,
    });
    Desired {
        router: RouterName {
            namespace: router.metadata.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            name: router.metadata.name.clone(),
        },
        link: LinkPlan {
            master: macvlan.master.clone(),
            mode: macvlan.mode,
            addresses: valid.addresses().map(|(net, gateway)| Address { net, gateway }).collect(),
        },
        rules: RuleTable { rules: rules.collect(), fallback: spec.redirect.fallback_ip },
    }
}
