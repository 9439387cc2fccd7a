//! The external interface: a macvlan that speaks to the outside world with the router's addresses.
//!
//! This room knows netlink, `/proc/sys` and ARP; it knows no specification file and no BPF. It turns a
//! [`LinkPlan`] into steps and does them:
//!
//! ```text
//!   plan ──► prepare ──► (attach the datapath) ──► claim ──► announce_rounds
//!              │                  │                  │
//!              └────────── undo, when the next one fails ──► delete, when the router goes
//! ```
//!
//! * [`plan()`] reads both namespaces and compares; it changes nothing. An empty plan means that all is as wanted:
//!   applying twice changes nothing the second time, and whatever somebody changed meanwhile is put right.
//! * [`prepare`] makes the interface: down, without addresses, silent. The datapath attaches to it now.
//! * [`Applied::claim`] sets it up, asks the network whether somebody has an address ([`probe()`]), and only then adds
//!   addresses, routes, rules and forwarding. So nothing is claimed or forwarded that no program looks at.
//! * [`announce_rounds`] tells the network, once rules are live.
//! * [`Inquiry`] asks who has the addresses, without a macvlan: for a router that stands by.
//! * [`Watch`] tells when any of it changes ([`News`]), and [`neighbours`] whether the gateways answer.
//! * [`delete`] takes everything away; the old holder of an address must be gone before a new one claims it.
//!
//! Invariants:
//! * The pod's own routes are never touched: the way out is in a table of its own (see [`EGRESS_TABLE`]).
//! * What the kernel can be asked is not written down. The record file holds earlier values of shared kernel settings
//!   and nothing else that would be missed.
//! * The thread that calls stays in its namespace: all work inside one is done on a thread of its own.
//! * Deliberately absent: any knowledge of rules, and any background task.

mod announce;
mod apply;
mod change;
mod decode;
mod error;
mod execute;
mod frame;
mod inquiry;
mod mac;
mod master;
mod neighbour;
mod netlink;
mod netns;
mod observe;
mod plan;
mod probe;
mod record;
mod rivals;
mod routing;
mod settings;
mod sever;
mod sys;
#[cfg(test)]
mod tests;
mod watch;

use std::net::IpAddr;

use serde::Serialize;

pub use announce::{announce, announce_rounds};
pub use apply::{Applied, delete, prepare};
pub use change::{Change, EgressRoute, Hop, Macvlan};
pub use decode::snapshot;
pub use error::{Conflict, Difference, Holder, LinkError, MasterFault};
pub use inquiry::{Heard, Inquiry};
pub use mac::{Mac, NotAMac};
pub use neighbour::{Answer, Neighbour, neighbours};
pub use netns::{Netns, NetnsLock, NetnsRef};
pub use observe::{Family, Interface, InterfaceAddress, Mark, ObservedMode, PolicyRule, Route, Snapshot, Sysctl};
pub use plan::Plan;
pub use probe::probe;
pub use rivals::Rivals;
pub use routing::EGRESS_TABLE;
pub use sever::{End, sever};
pub use watch::{News, Watch};

use crate::compile::{LinkPlan, RouterName};

/// Where the router lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// The router's network namespace.
    pub router: Netns,
    /// The namespace of the macvlan's master. May be the router's own.
    pub master: Netns,
    /// The interface that clients come in by, as `eth0`. Exists.
    pub cluster_interface: String,
    /// The interface to the outside, as `net1`. Made here, a macvlan, unless it is to be adopted.
    pub external_interface: String,
    /// Whether the external interface is there already, of whatever kind, and is used as it is: a virtual function, a host's
    /// device, a veth. Its `master` is then the router's namespace.
    pub adopt: bool,
    /// The mark that the datapath leaves on replies which the kernel forwards, if it does: with it, the kernel's
    /// ICMPv6 errors about them find the way back.
    pub reply_mark: Option<Mark>,
    /// Whether other routers of the same identity stand by for this one: they ask for its addresses all the time, which
    /// does not keep it from taking them.
    pub standby: bool,
}

/// What the datapath and `status` need to know about a router's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// The interface that clients come in by.
    pub cluster: Interface,
    /// The interface to the outside, when it exists.
    pub external: Option<Interface>,
    /// The routes of the way out.
    pub routes: Vec<EgressRoute>,
    /// The lowest and the highest port that the router's own sockets take by themselves.
    pub local_ports: (u16, u16),
}

/// The steps from the present state to the wanted one, by which the router is to reach these hosts.
///
/// # Errors
/// Whatever makes the wanted state impossible, found before anything is changed: see [`LinkError`].
pub fn plan(place: &Place, router: &RouterName, link: &LinkPlan, hosts: &[IpAddr]) -> Result<Plan, LinkError> {
    let settings = settings::read_by_plans(&place.cluster_interface, &place.external_interface);
    let same = place.router.is(&place.master)?;
    let here = snapshot(&place.router, &settings, (!same).then_some(&place.master))?;
    let there = if same { None } else { Some(snapshot(&place.master, &[], None)?) };
    plan::compute(plan::Inputs {
        cluster_interface: &place.cluster_interface,
        external_interface: &place.external_interface,
        adopt: place.adopt,
        router,
        link,
        hosts,
        reply_mark: place.reply_mark,
        here: &here,
        here_label: place.router.label(),
        there: there.as_ref(),
        there_label: place.master.label(),
    })
}

/// The present state of the router's interfaces.
///
/// # Errors
/// [`LinkError::NoClusterInterface`]; [`LinkError::Observe`] when the namespace cannot be read.
pub fn observe(place: &Place) -> Result<Observed, LinkError> {
    let ports = Sysctl::new("net/ipv4/ip_local_port_range");
    let state = snapshot(&place.router, std::slice::from_ref(&ports), None)?;
    let cluster = state.interface(&place.cluster_interface).cloned().ok_or_else(|| LinkError::NoClusterInterface {
        interface: place.cluster_interface.clone(),
        netns: place.router.label().to_owned(),
        candidates: state.names(),
    })?;
    let mut bounds = state.sysctl(&ports).unwrap_or_default().split_whitespace().map(str::parse);
    let local_ports = match (bounds.next(), bounds.next()) {
        (Some(Ok(low)), Some(Ok(high))) => (low, high),
        // The kernel's default.
        _ => (32768, 60999),
    };
    let external = state.interface(&place.external_interface).cloned();
    Ok(Observed { cluster, external, routes: routing::present_routes(&state).collect(), local_ports })
}
