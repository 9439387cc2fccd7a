//! From the wanted and the present state to the steps between them. Pure: reads and changes nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::change::{Change, Hop, Macvlan, mode_name};
use super::error::{Difference, LinkError};
use super::mac::Mac;
use super::master::{self, Ground};
use super::observe::{Family, Interface, Mark, ObservedMode, Snapshot, Sysctl};
use super::{routing, settings};
use crate::compile::{LinkPlan, MacvlanMode, RouterName};

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

    /// Whether an interface is taken away to make another one in its place: what was attached to it goes along.
    #[must_use]
    pub fn replaces_link(&self) -> bool {
        self.link_stage.iter().any(|change| matches!(change, Change::DeleteLink(_)))
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
    /// See [`Place::adopt`](super::Place::adopt).
    pub(super) adopt: bool,
    pub(super) router: &'a RouterName,
    pub(super) link: &'a LinkPlan,
    /// Whom the router is to reach.
    pub(super) hosts: &'a [IpAddr],
    pub(super) reply_mark: Option<Mark>,
    /// The router's namespace, with [`settings::read_by_plans`](super::settings::read_by_plans).
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
    let first = inputs.link.addresses.first().ok_or(LinkError::NoAddress)?.net.addr();
    check_interfaces(inputs)?;
    check_addresses(inputs)?;
    let Link { ground, master, mac, stage } = if inputs.adopt { given(inputs)? } else { made(inputs, first)? };
    let LinkStage { changes: mut link_stage, present, adopted } = stage;
    if present.is_some() {
        link_stage.extend(settings::changes(settings::external(inputs), |key| inputs.here.sysctl(key)));
    }
    let claim_stage = claim_stage(inputs, master, present);

    let touches_the_wire = link_stage.iter().any(|change| matches!(change, Change::CreateLink(_)))
        || claim_stage.iter().any(|change| matches!(change, Change::Probe { .. }));
    // One that was given may be down until it is set up.
    if touches_the_wire && (master.up || !inputs.adopt) {
        master::check_usable(ground, master)?;
    }
    Ok(Plan { master: master.name.clone(), mac, adopted, link_stage, claim_stage })
}

/// The external interface and what it sits on.
struct Link<'a> {
    ground: Ground<'a>,
    /// What reaches the wire: the macvlan's master, or the interface itself.
    master: &'a Interface,
    mac: Mac,
    stage: LinkStage<'a>,
}

/// A macvlan of ours.
fn made(inputs: Inputs<'_>, first: IpAddr) -> Result<Link<'_>, LinkError> {
    let Inputs { external_interface, link, here, .. } = inputs;
    let own =
        Ground { state: here, label: inputs.there_label, reserved: [inputs.cluster_interface, external_interface] };
    let ground = inputs.there.map_or(own, |there| Ground { state: there, reserved: [""; 2], ..own });
    let master = master::choose(ground, link)?;
    check_hosts(inputs, master)?;

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
        settings: settings::external(inputs).into_iter().map(|(key, value)| (key, value.to_owned())).collect(),
    };
    let existing = here.interface(external_interface);
    let same_link = existing.filter(|found| differences(inputs, &wanted, master, found).is_empty());
    if same_link.is_none() {
        master::check(ground, master, link)?;
    }
    let mac = derived.or(master.mac).unwrap_or(Mac([0; 6]));
    Ok(Link { ground, master, mac, stage: link_stage(inputs, &wanted, master)? })
}

/// An interface that is there, and stays.
fn given(inputs: Inputs<'_>) -> Result<Link<'_>, LinkError> {
    let ground = Ground { state: inputs.here, label: inputs.here_label, reserved: [""; 2] };
    let interface = inputs.here.interface(inputs.external_interface).ok_or_else(|| LinkError::NoInterface {
        interface: inputs.external_interface.to_owned(),
        netns: inputs.here_label.to_owned(),
    })?;
    master::check(ground, interface, inputs.link)?;
    let mac = interface.mac.unwrap_or(Mac([0; 6]));
    let stage = LinkStage { changes: Vec::new(), present: Some(interface), adopted: true };
    Ok(Link { ground, master: interface, mac, stage })
}

fn check_interfaces(inputs: Inputs<'_>) -> Result<(), LinkError> {
    let Inputs { cluster_interface, external_interface: name, here, .. } = inputs;
    let valid = (1..16).contains(&name.len()) && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if !valid || name == cluster_interface || matches!(name, "." | ".." | "all" | "default" | "lo") {
        return Err(LinkError::InterfaceName(name.to_owned()));
    }
    let Some(cluster) = here.interface(cluster_interface) else {
        return Err(LinkError::NoClusterInterface {
            interface: cluster_interface.to_owned(),
            netns: inputs.here_label.to_owned(),
            candidates: here.names(),
        });
    };
    if cluster.mac.is_none() {
        let (interface, netns) = (cluster.name.clone(), inputs.here_label.to_owned());
        return Err(LinkError::ClusterNotEthernet { interface, netns });
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

/// The master's own host hears nothing of what a macvlan sends, and so does not answer when it is asked for by an address of
/// the same network. What a router sends on comes back by the wire; and in VEPA mode, what a reflecting switch does.
fn check_hosts(inputs: Inputs<'_>, master: &Interface) -> Result<(), LinkError> {
    let Inputs { link, hosts, .. } = inputs;
    let is_on_link = |host: &IpAddr| link.addresses.iter().any(|address| address.net.contains(host));
    let lost = |host: &&IpAddr| is_on_link(host) && master.address(**host).is_some();
    match hosts.iter().find(lost) {
        Some(host) if link.mode != MacvlanMode::Vepa => Err(LinkError::HostOutOfReach {
            host: *host,
            interface: master.name.clone(),
            netns: inputs.there_label.to_owned(),
        }),
        _ => Ok(()),
    }
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
    let mut changes: Vec<Change> = routing::present_routes(here)
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
    let settings = here.sysctls.iter().filter(|(key, _)| key.is_of(name));
    let settings = settings.filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
    changes.push(Change::DeleteLink(Macvlan {
        mode,
        mac: if mode == MacvlanMode::Passthru { None } else { found.mac },
        mtu: found.mtu,
        settings: settings.collect(),
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

fn claim_stage(inputs: Inputs<'_>, master: &Interface, present: Option<&Interface>) -> Vec<Change> {
    let Inputs { external_interface: name, here, .. } = inputs;
    // What is known about an interface that is not there any more is about its predecessor.
    let value = |key: &Sysctl| if present.is_none() && key.is_of(name) { None } else { here.sysctl(key) };
    let (forwarding, mut changes): (Vec<_>, Vec<_>) =
        settings::changes(settings::shared(inputs), value).into_iter().partition(Change::switches_forwarding_on);
    if !present.is_some_and(|interface| interface.up) {
        changes.push(Change::SetUp { interface: name.to_owned(), up: true });
    }
    changes.extend(address_changes(inputs, present));
    // An interface that is down or gone has taken its routes along.
    let alive = present.filter(|interface| interface.up);
    changes.extend(routing::route_changes(inputs, master, alive));
    changes.extend(routing::rule_changes(inputs));
    // The last thing to be switched on.
    changes.extend(forwarding);
    changes
}

/// New addresses come before old ones go: an interface that loses its last IPv4 address loses its IPv4 routes.
fn address_changes(inputs: Inputs<'_>, present: Option<&Interface>) -> Vec<Change> {
    let interface = || inputs.external_interface.to_owned();
    let add = |address: &IpNet| Change::AddAddress { interface: interface(), address: *address };
    let remove = |address: &IpNet| Change::RemoveAddress { interface: interface(), address: *address };
    let is_v4 = |net: &IpNet| net.addr().is_ipv4();
    let duplicate = |net: &IpNet| {
        present.and_then(|interface| interface.address(net.addr())).is_none_or(|address| address.duplicate)
    };
    let (wanted_v4, wanted_v6): (Vec<IpNet>, Vec<IpNet>) =
        inputs.link.addresses.iter().map(|address| address.net).partition(is_v4);
    let (held_v4, held_v6): (Vec<IpNet>, Vec<IpNet>) = present.into_iter().flat_map(own_addresses).partition(is_v4);
    let mut changes = Vec::new();

    let unproven: Vec<IpAddr> =
        wanted_v4.iter().chain(&wanted_v6).filter(|net| duplicate(net)).map(IpNet::addr).collect();
    if !unproven.is_empty() {
        changes.push(Change::Probe { interface: interface(), addresses: unproven });
    }

    if held_v4.first() == wanted_v4.first() {
        changes.extend(wanted_v4.iter().filter(|net| !held_v4.contains(net)).map(add));
        changes.extend(held_v4.iter().filter(|net| !wanted_v4.contains(net)).map(remove));
    } else {
        // The kernel speaks with the first address of a subnet, and first means first come.
        let first = wanted_v4.first();
        changes.extend(first.filter(|net| !held_v4.contains(net)).map(add));
        changes.extend(held_v4.iter().filter(|net| Some(*net) != first).map(remove));
        changes.extend(wanted_v4.iter().skip(1).map(add));
    }

    // In IPv6 the destination decides which address the kernel speaks with, and an address has one prefix length.
    let (kept, stale): (Vec<IpNet>, Vec<IpNet>) =
        held_v6.into_iter().partition(|net| wanted_v6.contains(net) && !duplicate(net));
    changes.extend(stale.iter().map(remove));
    changes.extend(wanted_v6.iter().filter(|net| !kept.contains(net)).map(add));
    changes
}

/// The addresses that are the router's business: all but IPv6 link-local ones, which the kernel makes itself.
pub(super) fn own_addresses(interface: &Interface) -> impl Iterator<Item = IpNet> {
    interface.addresses.iter().map(|address| address.net).filter(|net| match net {
        IpNet::V4(_) => true,
        IpNet::V6(net) => !net.addr().is_unicast_link_local(),
    })
}

/// The families that the router has addresses of.
pub(super) fn families(link: &LinkPlan) -> Vec<Family> {
    let has = |family: &Family| link.addresses.iter().any(|address| Family::of(address.net.addr()) == *family);
    Family::ALL.into_iter().filter(has).collect()
}
