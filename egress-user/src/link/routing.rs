//! The routes and policy rules of the way out, which has a table of its own.
//!
//! The default routes that the primary CNI gave the pod are never touched. The way by the external interface is in
//! routing table [`EGRESS_TABLE`], and policy rules say who takes it:
//!
//! | rule | who |
//! |---|---|
//! | `oif net1` | what a program or a socket has bound to the external interface |
//! | `iif eth0` | requests: whatever is forwarded for clients. The table ends in `unreachable`, so that none of it can fall through to the cluster's own way out, even while net1 is down |
//! | `from ADDRESS` | what the router's own stack answers from an external address |
//! | `fwmark MARK iif lo` | ICMPv6 errors about replies, where the kernel routes them before they have a source address |
//! | `iif lo`, after all others | the pod's own connections, when the cluster gave it no default route |
//!
//! Moving the pod's default route instead, as others do, breaks what needs the cluster's: replies to clients that are
//! not on the pod's routes (other nodes, NodePorts), the pod's own DNS and service traffic, the answers of its own
//! listeners; and a crash half-way leaves the pod without any. Here nothing is replaced, so there is nothing to
//! restore.
//!
//! The price: the pod's own connections that are bound to no address go by the cluster's default route even to hosts
//! outside, unless they are on the external subnet. There is no telling a service of the cluster from an external host
//! by its address, and only the datapath's clients need the external way.

use std::net::IpAddr;

use ipnet::IpNet;

use super::change::{Change, EgressRoute, Hop};
use super::observe::{Family, Interface, PolicyRule, Route, Snapshot};
use super::plan::{Inputs, families};

/// Routing table of the way out: "eg" in ASCII. Tables above 255 are free for anybody; no CNI uses this one.
pub const EGRESS_TABLE: u32 = 0x6567;
/// Routing table of the pod's own routes.
pub(super) const MAIN_TABLE: u32 = 254;
/// First of four priorities of the rules that come before the main table's, which has 32766.
const RULE_PRIORITY: u32 = 0x6567;
/// Priority of the rule that comes after all routes of the pod (the last built-in rule has 32767).
const LAST_RULE_PRIORITY: u32 = 0x8567;
/// The kernel's default for IPv6; for IPv4 it is 0.
const IPV6_METRIC: u32 = 1024;

pub(super) fn route_changes(inputs: Inputs<'_>, master: &Interface, alive: Option<&Interface>) -> Vec<Change> {
    let wanted: Vec<EgressRoute> =
        families(inputs.link).into_iter().flat_map(|family| wanted_routes(inputs, master, family)).collect();
    let present: Vec<EgressRoute> =
        present_routes(inputs.here).filter(|route| alive.is_some() || matches!(route.hop, Hop::Unreachable)).collect();
    // The kernel tells routes of a table apart by destination and metric, and replaces one in a single step: there is
    // no moment without a way.
    let same_place = |a: &EgressRoute, b: &EgressRoute| (a.destination, a.metric) == (b.destination, b.metric);
    let removed = present.iter().filter(|old| !wanted.iter().any(|new| same_place(old, new)));
    let added = wanted.iter().filter(|new| !present.contains(new)).map(|new| {
        match present.iter().find(|old| same_place(old, new)) {
            Some(old) => Change::ReplaceRoute { from: old.clone(), to: new.clone() },
            None => Change::AddRoute(new.clone()),
        }
    });
    removed.cloned().map(Change::RemoveRoute).chain(added).collect()
}

fn wanted_routes(inputs: Inputs<'_>, master: &Interface, family: Family) -> Vec<EgressRoute> {
    let interface = inputs.external_interface.to_owned();
    let metric = if family == Family::V6 { IPV6_METRIC } else { 0 };
    let addresses = || inputs.link.addresses.iter().filter(move |address| Family::of(address.net.addr()) == family);
    let mut routes: Vec<EgressRoute> = Vec::new();
    for address in addresses() {
        let subnet = address.net.trunc();
        let known = routes.iter().any(|route| route.destination == subnet);
        if !known && subnet.prefix_len() < subnet.max_prefix_len() {
            let hop = Hop::Link { interface: interface.clone() };
            routes.push(EgressRoute { destination: subnet, hop, metric });
        }
    }
    let given = addresses().find_map(|address| address.gateway);
    if let Some(gateway) = given.or_else(|| inferred_gateway(inputs, master, family)) {
        let on_subnet = addresses().any(|address| address.net.contains(&gateway));
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let hop = Hop::Gateway { gateway, interface, onlink: !on_subnet && !link_local };
        routes.push(EgressRoute { destination: family.everything(), hop, metric });
    }
    routes.push(EgressRoute { destination: family.everything(), hop: Hop::Unreachable, metric: u32::MAX });
    routes
}

/// The gateway of the master's own default route, if it is in the subnet of an address: then it is the same network's.
fn inferred_gateway(inputs: Inputs<'_>, master: &Interface, family: Family) -> Option<IpAddr> {
    let state = inputs.there.unwrap_or(inputs.here);
    let mut defaults: Vec<&Route> = state
        .routes
        .iter()
        .filter(|route| route.table == MAIN_TABLE && route.destination == family.everything())
        .filter(|route| route.interface == Some(master.index))
        .collect();
    defaults.sort_by_key(|route| route.metric);
    let own = |gateway: &IpAddr| inputs.link.addresses.iter().any(|address| address.net.addr() == *gateway);
    let in_subnet = |gateway: &IpAddr| inputs.link.addresses.iter().any(|address| address.net.contains(gateway));
    defaults.into_iter().find_map(|route| route.gateway).filter(|gateway| in_subnet(gateway) && !own(gateway))
}

/// The routes of the egress table.
pub(super) fn present_routes(here: &Snapshot) -> impl Iterator<Item = EgressRoute> {
    here.routes.iter().filter(|route| route.table == EGRESS_TABLE).filter_map(|route| {
        let name = || route.interface.and_then(|index| here.by_index(index)).map(|interface| interface.name.clone());
        let hop = match route.gateway {
            _ if route.unreachable => Hop::Unreachable,
            Some(gateway) => Hop::Gateway { gateway, interface: name()?, onlink: route.onlink },
            None => Hop::Link { interface: name()? },
        };
        Some(EgressRoute { destination: route.destination, hop, metric: route.metric })
    })
}

pub(super) fn rule_changes(inputs: Inputs<'_>) -> Vec<Change> {
    let wanted: Vec<PolicyRule> =
        families(inputs.link).into_iter().flat_map(|family| wanted_rules(inputs, family)).collect();
    let present: Vec<&PolicyRule> = present_rules(inputs.here).collect();
    let missing = wanted.iter().filter(|rule| !present.contains(rule)).cloned().map(Change::AddRule);
    let stale = present.iter().filter(|rule| !wanted.contains(rule)).map(|rule| Change::RemoveRule((*rule).clone()));
    missing.chain(stale).collect()
}

/// The rules that look the egress table up.
pub(super) fn present_rules(here: &Snapshot) -> impl Iterator<Item = &PolicyRule> {
    here.rules.iter().filter(|rule| rule.table == EGRESS_TABLE)
}

/// See the module's table.
fn wanted_rules(inputs: Inputs<'_>, family: Family) -> Vec<PolicyRule> {
    let rule =
        |priority| PolicyRule { family, priority, from: None, iif: None, oif: None, mark: None, table: EGRESS_TABLE };
    let own = || Some("lo".to_owned());
    let mut rules = vec![
        PolicyRule { oif: Some(inputs.external_interface.to_owned()), ..rule(RULE_PRIORITY) },
        PolicyRule { iif: Some(inputs.cluster_interface.to_owned()), ..rule(RULE_PRIORITY + 1) },
    ];
    for address in inputs.link.addresses.iter().map(|address| address.net.addr()) {
        if Family::of(address) == family {
            rules.push(PolicyRule { from: Some(IpNet::from(address)), ..rule(RULE_PRIORITY + 2) });
        }
    }
    if let (Family::V6, Some(mark)) = (family, inputs.reply_mark) {
        rules.push(PolicyRule { mark: Some(mark), iif: own(), ..rule(RULE_PRIORITY + 3) });
    }
    rules.push(PolicyRule { iif: own(), ..rule(LAST_RULE_PRIORITY) });
    rules
}
