//! From the wanted and the present state to the steps between them. Pure: reads and changes nothing.
//!
//! # The way out has a table of its own
//!
//! The default routes that the primary CNI gave the pod are never touched. The way by the external interface is in
//! routing table [`EGRESS_TABLE`], and policy rules say who takes it:
//!
//! | rule | who |
//! |---|---|
//! | `oif net1` | what a program or a socket has bound to the external interface |
//! | `iif eth0` | requests: whatever is forwarded for clients. The table ends in `unreachable`, so that none of it can fall through to the cluster's own way out, even while net1 is down |
//! | `from ADDRESS` | what the router's own stack answers from an external address |
//! | `fwmark MARK iif lo` | ICMPv6 errors about replies, which have no source address yet when they are routed |
//! | `iif lo`, after all others | the pod's own connections, when the cluster gave it no default route |
//!
//! Moving the pod's default route instead, as others do, breaks what needs the cluster's: replies to clients that are
//! not on the pod's routes (other nodes, NodePorts), the pod's own DNS and service traffic, the answers of its own
//! listeners; and a crash half-way leaves the pod without any. Here nothing is replaced, so there is nothing to
//! restore.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::change::{Change, EgressRoute, Hop, Macvlan, mode_name};
use super::error::{Difference, LinkError};
use super::mac::Mac;
use super::master::{self, Ground};
use super::observe::{Family, Interface, Mark, ObservedMode, PolicyRule, Route, Snapshot, Sysctl};
use crate::compile::{LinkPlan, MacvlanMode, RouterName};

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

/// What it takes to get from the present state to the wanted one. Empty when they are the same.
///
/// Two stages, because the datapath's programs attach to the external interface, so it has to exist, and nothing may
/// be claimed or forwarded before they are attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The interface that carries the macvlan, given or inferred.
    pub master: String,
    /// The external interface's Ethernet address.
    pub mac: Mac,
    /// Whether the external interface is another's, found to be just what is wanted. Deleting leaves it in place.
    pub adopted: bool,
    /// Makes the external interface: down, without addresses, silent.
    pub link_stage: Vec<Change>,
    /// Sets it up, claims the addresses, and switches forwarding on.
    pub claim_stage: Vec<Change>,
}

impl Plan {
    /// Whether everything is as wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none()
    }

    /// All steps in order.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.link_stage.iter().chain(&self.claim_stage)
    }
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) cluster_interface: &'a str,
    pub(super) external_interface: &'a str,
    pub(super) router: &'a RouterName,
    pub(super) link: &'a LinkPlan,
    pub(super) reply_mark: Option<Mark>,
    /// The router's namespace, with [`settings_read`].
    pub(super) here: &'a Snapshot,
    pub(super) here_label: &'a str,
    /// The master's namespace; `None` when it is the router's.
    pub(super) there: Option<&'a Snapshot>,
    pub(super) there_label: &'a str,
}

/// Text by which this program knows an interface that it made, for one router.
#[must_use]
pub(super) fn alias(router: &RouterName) -> String {
    format!("{ALIAS_PREFIX}{}/{}", router.namespace, router.name)
}

/// What every [`alias`] begins with.
pub(super) const ALIAS_PREFIX: &str = "egress-router ";

/// The steps from what is to what is wanted.
pub(super) fn compute(inputs: Inputs<'_>) -> Result<Plan, LinkError> {
    let Inputs { external_interface, link, here, .. } = inputs;
    let first = link.addresses.first().ok_or(LinkError::NoAddress)?.net.addr();
    check_interfaces(inputs)?;
    check_addresses(inputs)?;

    let reserved: &[&str] = if inputs.there.is_none() { &[inputs.cluster_interface, external_interface] } else { &[] };
    let ground = Ground { state: inputs.there.unwrap_or(here), label: inputs.there_label, reserved };
    let master = master::choose(ground, link)?;

    let derived = match link.mode {
        MacvlanMode::Passthru => None,
        _ => Some(Mac::of_router(inputs.router, first)),
    };
    let wanted = Macvlan {
        name: external_interface.to_owned(),
        master: master.name.clone(),
        mode: link.mode,
        mac: derived,
        mtu: master.mtu,
        alias: alias(inputs.router),
    };
    let existing = here.interface(external_interface);
    let same_link = existing.filter(|found| differences(inputs, &wanted, master, found).is_empty());
    if same_link.is_none() {
        master::check(ground, master, link)?;
    }
    let LinkStage { changes: mut link_stage, present, adopted } = link_stage(inputs, &wanted, master)?;
    link_stage.extend(settings(here, external_settings(inputs), present.is_none()));
    let claim_stage = claim_stage(inputs, master, present);

    let touches_the_wire = link_stage.iter().any(|change| matches!(change, Change::CreateLink(_)))
        || claim_stage.iter().any(|change| matches!(change, Change::Probe { .. }));
    if touches_the_wire {
        master::check_usable(ground, master)?;
    }
    let mac = derived.or(master.mac).unwrap_or(Mac([0; 6]));
    Ok(Plan { master: master.name.clone(), mac, adopted, link_stage, claim_stage })
}

fn check_interfaces(inputs: Inputs<'_>) -> Result<(), LinkError> {
    let Inputs { cluster_interface, external_interface: name, here, .. } = inputs;
    let valid = (1..16).contains(&name.len()) && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if !valid || name == cluster_interface || matches!(name, "." | ".." | "all" | "default" | "lo") {
        return Err(LinkError::InterfaceName(name.to_owned()));
    }
    if here.interface(cluster_interface).is_none() {
        return Err(LinkError::NoClusterInterface {
            interface: cluster_interface.to_owned(),
            netns: inputs.here_label.to_owned(),
            candidates: here.names(),
        });
    }
    let v6_missing = here.sysctl(&Sysctl::ipv6("lo", "disable_ipv6")).is_none();
    if v6_missing && families(inputs.link).contains(&Family::V6) {
        return Err(LinkError::NoIpv6 { netns: inputs.here_label.to_owned() });
    }
    Ok(())
}

/// No other interface that this program can see may have one of the addresses. The master's namespace matters because
/// a macvlan cannot ask its own host on the wire: they never hear each other.
fn check_addresses(inputs: Inputs<'_>) -> Result<(), LinkError> {
    for address in inputs.link.addresses.iter().map(|address| address.net.addr()) {
        let holder = |state: &Snapshot| {
            let mut others = state.interfaces.iter().filter(|other| other.address(address).is_some());
            others.find(|other| !std::ptr::eq(state, inputs.here) || other.name != inputs.external_interface).cloned()
        };
        if let Some(other) = holder(inputs.here) {
            let interface = other.name;
            return Err(if interface == inputs.cluster_interface {
                LinkError::AddressOnCluster { address, interface }
            } else {
                LinkError::AddressOnHost { address, interface, netns: inputs.here_label.to_owned() }
            });
        }
        if let Some(other) = inputs.there.and_then(holder) {
            let netns = inputs.there_label.to_owned();
            return Err(LinkError::AddressOnHost { address, interface: other.name, netns });
        }
    }
    Ok(())
}

struct LinkStage<'a> {
    changes: Vec<Change>,
    /// The external interface that the claim stage starts from; none when it is made anew.
    present: Option<&'a Interface>,
    adopted: bool,
}

fn link_stage<'a>(inputs: Inputs<'a>, wanted: &Macvlan, master: &Interface) -> Result<LinkStage<'a>, LinkError> {
    let create = || Change::CreateLink(wanted.clone());
    let Some(found) = inputs.here.interface(&wanted.name) else {
        return Ok(LinkStage { changes: vec![create()], present: None, adopted: false });
    };
    let differences = differences(inputs, wanted, master, found);
    let ours = found.alias.as_deref() == Some(&wanted.alias);
    if !ours {
        return if differences.is_empty() {
            Ok(LinkStage { changes: mtu_change(wanted, found), present: Some(found), adopted: true })
        } else {
            Err(LinkError::Mismatch {
                interface: wanted.name.clone(),
                netns: inputs.here_label.to_owned(),
                differences,
            })
        };
    }
    // What can be changed in place is: the programs attached to the interface stay.
    if differences.iter().any(|difference| difference.field != MAC_FIELD) {
        let mut changes = dismantle(inputs.here, found, wanted);
        changes.push(create());
        return Ok(LinkStage { changes, present: None, adopted: false });
    }
    let mut changes = mtu_change(wanted, found);
    if let (Some(from), Some(to)) = (found.mac, wanted.mac)
        && from != to
    {
        changes.push(Change::SetMac { interface: wanted.name.clone(), from, to });
    }
    Ok(LinkStage { changes, present: Some(found), adopted: false })
}

fn mtu_change(wanted: &Macvlan, found: &Interface) -> Vec<Change> {
    let differs = found.mtu != wanted.mtu;
    let change = || Change::SetMtu { interface: wanted.name.clone(), from: found.mtu, to: wanted.mtu };
    differs.then(change).into_iter().collect()
}

/// Takes down one of our interfaces piece by piece, so that an undo puts each piece back.
fn dismantle(here: &Snapshot, found: &Interface, wanted: &Macvlan) -> Vec<Change> {
    let name = &found.name;
    let mut changes: Vec<Change> = present_routes(here)
        .filter(|route| !matches!(route.hop, Hop::Unreachable))
        .map(Change::RemoveRoute)
        .chain(own_addresses(found).map(|address| Change::RemoveAddress { interface: name.clone(), address }))
        .collect();
    if found.up {
        changes.push(Change::SetUp { interface: name.clone(), up: false });
    }
    let mode = match found.macvlan {
        Some(ObservedMode::Known(mode)) => mode,
        _ => wanted.mode,
    };
    changes.push(Change::DeleteLink(Macvlan {
        mode,
        mac: if mode == MacvlanMode::Passthru { None } else { found.mac },
        mtu: found.mtu,
        ..wanted.clone()
    }));
    changes
}

const MAC_FIELD: &str = "MAC";

/// In what an existing interface differs from the wanted one, the MTU aside: that follows the master's.
fn differences(inputs: Inputs<'_>, wanted: &Macvlan, master: &Interface, found: &Interface) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |field, wanted: String, found: String| {
        if wanted != found {
            differences.push(Difference { field, wanted, found });
        }
    };
    compare("kind", "macvlan".to_owned(), found.kind.clone().unwrap_or_else(|| "hardware".to_owned()));
    if found.kind.as_deref() != Some("macvlan") {
        return differences;
    }
    compare("master", wanted.master.clone(), parent_name(inputs, master, found));
    let mode = match found.macvlan {
        Some(ObservedMode::Known(mode)) => mode_name(mode),
        Some(ObservedMode::Other) | None => "another one",
    };
    compare("mode", mode_name(wanted.mode).to_owned(), mode.to_owned());
    let mac = wanted.mac.or(master.mac);
    compare(MAC_FIELD, text(mac), text(found.mac));
    differences
}

fn text(mac: Option<Mac>) -> String {
    mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string())
}

/// What the interface sits on, by the name it has where the master is; the master's name when it is the master.
fn parent_name(inputs: Inputs<'_>, master: &Interface, found: &Interface) -> String {
    let Some(index) = found.parent else { return "none".to_owned() };
    // A macvlan on a macvlan ends up beside it, on the same interface, which may be in a third namespace.
    if master.macvlan.is_some() && master.parent == Some(index) {
        return master.name.clone();
    }
    let (expected_netns, there) = match inputs.there {
        Some(there) => (inputs.here.peer_id, there),
        None => (None, inputs.here),
    };
    let known = if found.parent_netns == expected_netns { there.by_index(index) } else { None };
    known.map_or_else(|| format!("interface {index} of another namespace"), |parent| parent.name.clone())
}

/// Kernel settings of the external interface. Nothing has relied on them before: they go away with it.
fn external_settings(inputs: Inputs<'_>) -> Vec<(Sysctl, &'static str)> {
    let v6 = families(inputs.link).contains(&Family::V6);
    let name = inputs.external_interface;
    let mut wanted: Vec<(Sysctl, &'static str)> = vec![
        // Never answer for, or speak as, an address of another interface.
        (Sysctl::ipv4(name, "proxy_arp"), "0"),
        (Sysctl::ipv4(name, "arp_ignore"), "1"),
        (Sysctl::ipv4(name, "arp_announce"), "2"),
        // The pod's routes name another interface for most sources that come in here: strict would drop every reply.
        // The effective value is the greater of this and `all`'s, and 2 (loose) is the greatest.
        (Sysctl::ipv4(name, "rp_filter"), "2"),
        (Sysctl::ipv4(name, "accept_redirects"), "0"),
        (Sysctl::ipv4(name, "accept_source_route"), "0"),
        // Removing the first address of a subnet must not take the others along.
        (Sysctl::ipv4(name, "promote_secondaries"), "1"),
    ];
    if v6 {
        wanted.extend([
            (Sysctl::ipv6(name, "accept_ra"), "0"),
            (Sysctl::ipv6(name, "autoconf"), "0"),
            (Sysctl::ipv6(name, "accept_redirects"), "0"),
            (Sysctl::ipv6(name, "proxy_ndp"), "0"),
            // Our own probe asks for the addresses. The link-local one, made from a MAC that only this router has, must be
            // usable at once: while it is tentative, no neighbour is solicited and the first requests are lost.
            (Sysctl::ipv6(name, "accept_dad"), "0"),
            (Sysctl::ipv6(name, "disable_ipv6"), "0"),
        ]);
    } else {
        // No address, so no presence either: a link-local one would be reachable from the outside.
        wanted.push((Sysctl::ipv6(name, "disable_ipv6"), "1"));
    }
    wanted
}

/// Kernel settings that the router shares with the rest of its namespace, restored when it goes, and forwarding.
fn shared_settings(inputs: Inputs<'_>) -> Vec<(Sysctl, &'static str)> {
    let Inputs { cluster_interface: cluster, external_interface: external, here, .. } = inputs;
    let mut wanted: Vec<(Sysctl, &'static str)> = Vec::new();
    for family in families(inputs.link) {
        match family {
            Family::V4 => {
                // Effective when set for `all` or for the interface: `all` would undo net1's 0.
                wanted.push((Sysctl::ipv4("all", "proxy_arp"), "0"));
                wanted.push((Sysctl::new("net/ipv4/fwmark_reflect"), "1"));
                // ICMP errors about forwarded packets speak as the interface that the packet came in by: the rule
                // for that address then sends them back the way it came.
                wanted.push((Sysctl::new("net/ipv4/icmp_errors_use_inbound_ifaddr"), "1"));
                // Strict drops clients that the pod has no route to. Off stays off: loose would want a route too.
                let rp_filter = |name| here.sysctl(&Sysctl::ipv4(name, "rp_filter")).map_or("0", |value| value);
                if rp_filter(cluster).max(rp_filter("all")) == "1" {
                    wanted.push((Sysctl::ipv4(cluster, "rp_filter"), "2"));
                }
                // By interface, not net.ipv4.ip_forward: a third interface of the pod forwards nothing.
                wanted.push((Sysctl::ipv4(external, "forwarding"), "1"));
                wanted.push((Sysctl::ipv4(cluster, "forwarding"), "1"));
            }
            Family::V6 => {
                wanted.push((Sysctl::ipv6("lo", "disable_ipv6"), "0"));
                wanted.push((Sysctl::new("net/ipv6/fwmark_reflect"), "1"));
                // With 1, a forwarding host drops the routes that it learned from advertisements; with 2 it keeps them.
                let accept_ra = Sysctl::ipv6(cluster, "accept_ra");
                if here.sysctl(&accept_ra) == Some("1") {
                    wanted.push((accept_ra, "2"));
                }
                // IPv6 has no forwarding by interface before Linux 6.17.
                wanted.push((Sysctl::ipv6("all", "forwarding"), "1"));
            }
        }
    }
    wanted
}

/// Every setting that a plan looks at.
pub(super) fn settings_read(cluster: &str, external: &str) -> Vec<Sysctl> {
    const BOTH: [&str; 3] = ["forwarding", "rp_filter", "proxy_arp"];
    let external_v4 = ["arp_ignore", "arp_announce", "accept_redirects", "accept_source_route", "promote_secondaries"];
    let external_v6 = ["accept_ra", "autoconf", "accept_redirects", "proxy_ndp", "accept_dad", "disable_ipv6"];
    let global = [
        Sysctl::new("net/ipv4/fwmark_reflect"),
        Sysctl::new("net/ipv6/fwmark_reflect"),
        Sysctl::new("net/ipv4/icmp_errors_use_inbound_ifaddr"),
        Sysctl::new("net/ipv4/ip_local_port_range"),
        Sysctl::ipv6("all", "forwarding"),
        Sysctl::ipv6("lo", "disable_ipv6"),
        Sysctl::ipv6(cluster, "accept_ra"),
    ];
    [cluster, external, "all"]
        .into_iter()
        .flat_map(|interface| BOTH.map(|name| Sysctl::ipv4(interface, name)))
        .chain(external_v4.map(|name| Sysctl::ipv4(external, name)))
        .chain(external_v6.map(|name| Sysctl::ipv6(external, name)))
        .chain(global)
        .collect()
}

/// Writes for the settings that differ. A fresh interface gets them all: what its namespace's defaults make of it is
/// not known yet. Where the kernel lacks IPv6 altogether there is nothing to switch off.
fn settings(here: &Snapshot, wanted: Vec<(Sysctl, &'static str)>, fresh: bool) -> Vec<Change> {
    let no_v6 = here.sysctl(&Sysctl::ipv6("lo", "disable_ipv6")).is_none();
    wanted
        .into_iter()
        .filter(|(key, _)| !(no_v6 && key.is_ipv6()))
        .filter_map(|(key, to)| {
            let from = if fresh { None } else { here.sysctl(&key).map(str::to_owned) };
            (from.as_deref() != Some(to)).then(|| Change::SetSysctl { key, from, to: to.to_owned() })
        })
        .collect()
}

fn claim_stage(inputs: Inputs<'_>, master: &Interface, present: Option<&Interface>) -> Vec<Change> {
    let Inputs { external_interface: name, here, .. } = inputs;
    // Forwarding is the last thing to be switched on.
    let (forwarding, mut changes): (Vec<_>, Vec<_>) =
        settings(here, shared_settings(inputs), false).into_iter().partition(Change::switches_forwarding_on);
    if !present.is_some_and(|interface| interface.up) {
        changes.push(Change::SetUp { interface: name.to_owned(), up: true });
    }
    changes.extend(address_changes(inputs, present));
    // An interface that is down or gone has taken its routes along.
    let alive = present.filter(|interface| interface.up);
    changes.extend(route_changes(inputs, master, alive));
    changes.extend(rule_changes(inputs));
    changes.extend(forwarding);
    changes
}

fn address_changes(inputs: Inputs<'_>, present: Option<&Interface>) -> Vec<Change> {
    let interface = inputs.external_interface.to_owned();
    let wanted: Vec<IpNet> = inputs.link.addresses.iter().map(|address| address.net).collect();
    let held: Vec<IpNet> = present.into_iter().flat_map(own_addresses).collect();
    let first_v4 = |nets: &[IpNet]| nets.iter().find(|net| net.addr().is_ipv4()).copied();
    // The kernel speaks with the first IPv4 address of a subnet, and order is order of arrival.
    let reorder = first_v4(&held) != first_v4(&wanted);
    let stays = |net: &IpNet| {
        wanted.contains(net)
            && !(reorder && net.addr().is_ipv4())
            && present.and_then(|interface| interface.address(net.addr())).is_some_and(|held| !held.duplicate)
    };
    let (kept, removed): (Vec<IpNet>, Vec<IpNet>) = held.into_iter().partition(stays);
    let added: Vec<IpNet> = wanted.into_iter().filter(|net| !kept.contains(net)).collect();
    let unproven =
        |net: &IpNet| !present.and_then(|interface| interface.address(net.addr())).is_some_and(|held| !held.duplicate);
    let unproven: Vec<IpAddr> = added.iter().filter(|net| unproven(net)).map(IpNet::addr).collect();

    let mut changes = Vec::new();
    if !unproven.is_empty() {
        changes.push(Change::Probe { interface: interface.clone(), addresses: unproven });
    }
    changes.extend(removed.into_iter().map(|address| Change::RemoveAddress { interface: interface.clone(), address }));
    changes.extend(added.into_iter().map(|address| Change::AddAddress { interface: interface.clone(), address }));
    changes
}

/// The addresses that are the router's business: all but IPv6 link-local ones, which the kernel makes itself.
pub(super) fn own_addresses(interface: &Interface) -> impl Iterator<Item = IpNet> {
    interface.addresses.iter().map(|address| address.net).filter(|net| match net {
        IpNet::V4(_) => true,
        IpNet::V6(net) => !net.addr().is_unicast_link_local(),
    })
}

fn route_changes(inputs: Inputs<'_>, master: &Interface, alive: Option<&Interface>) -> Vec<Change> {
    let wanted: Vec<EgressRoute> =
        families(inputs.link).into_iter().flat_map(|family| wanted_routes(inputs, master, family)).collect();
    let present: Vec<EgressRoute> =
        present_routes(inputs.here).filter(|route| alive.is_some() || matches!(route.hop, Hop::Unreachable)).collect();
    let stale = present.iter().filter(|route| !wanted.contains(route)).cloned().map(Change::RemoveRoute);
    // Additions first where both are there at once: no moment without a way. The kernel tells routes apart by
    // destination and metric, so the old one has to go first.
    let missing = wanted.iter().filter(|route| !present.contains(route)).cloned().map(Change::AddRoute);
    stale.chain(missing).collect()
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

fn rule_changes(inputs: Inputs<'_>) -> Vec<Change> {
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

/// The families that the router has addresses of.
fn families(link: &LinkPlan) -> Vec<Family> {
    let has = |family: &Family| link.addresses.iter().any(|address| Family::of(address.net.addr()) == *family);
    Family::ALL.into_iter().filter(has).collect()
}
