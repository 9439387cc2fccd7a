//! From a specification to the state that the system should be in.
//!
//! Everything here is pure data: the link room turns a [`LinkPlan`] into netlink requests, the datapath room a
//! [`RuleTable`] into map entries. Neither looks at the specification again.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::Serialize;

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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
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

/// Mode of a macvlan interface, named as in the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum MacvlanMode {
    /// Macvlans of one master talk to each other directly.
    #[default]
    Bridge,
    /// Macvlans of one master never talk to each other.
    Private,
    /// Everything goes through the switch, which has to reflect it.
    Vepa,
    /// The one macvlan takes the master's own MAC address.
    Passthru,
}

/// Rules and fallback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuleTable {
    /// In the order of the specification.
    pub rules: Vec<Rule>,
    /// Where everything goes that no rule names; serves the address family it belongs to.
    pub fallback: Option<IpAddr>,
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

/// Transport protocol of a rule, named as in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}
