//! Which interface carries the macvlan, and whether it can.

use std::net::IpAddr;

use super::error::{LinkError, MasterFault};
use super::observe::{Family, Interface, ObservedMode, Snapshot};
use super::routing::MAIN_TABLE;
use crate::compile::{Address, LinkPlan, MacvlanMode};

/// The namespace to look in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground<'a> {
    pub(super) state: &'a Snapshot,
    pub(super) label: &'a str,
    /// Names of interfaces that are never inferred: in the router's own namespace, its two interfaces.
    pub(super) reserved: [&'a str; 2],
}

impl<'a> Ground<'a> {
    fn candidates(self) -> impl Iterator<Item = &'a Interface> {
        self.state.interfaces.iter().filter(move |interface| {
            !interface.loopback && interface.mac.is_some() && !self.reserved.contains(&interface.name.as_str())
        })
    }

    fn candidate_names(self) -> Vec<String> {
        self.candidates().map(|interface| interface.name.clone()).collect()
    }
}

/// The specification's master; else the one interface whose subnet holds an address; else that of the default route.
pub(super) fn choose<'a>(ground: Ground<'a>, link: &LinkPlan) -> Result<&'a Interface, LinkError> {
    match &link.master {
        Some(name) => ground.state.interface(name).ok_or_else(|| LinkError::MasterMissing {
            master: name.clone(),
            netns: ground.label.to_owned(),
            candidates: ground.candidate_names(),
        }),
        None => infer(ground, &link.addresses),
    }
}

fn infer<'a>(ground: Ground<'a>, addresses: &[Address]) -> Result<&'a Interface, LinkError> {
    let first = addresses.first().ok_or(LinkError::NoAddress)?.net.addr();
    let one_of = |address: IpAddr, mut fitting: Vec<&'a Interface>| match fitting.len() {
        0 | 1 => Ok(fitting.pop()),
        _ => Err(LinkError::MasterAmbiguous {
            address,
            netns: ground.label.to_owned(),
            candidates: fitting.iter().map(|interface| interface.name.clone()).collect(),
        }),
    };
    for address in addresses {
        let address = address.net.addr();
        let holds = |interface: &&Interface| interface.addresses.iter().any(|held| held.net.contains(&address));
        if let Some(master) = one_of(address, ground.candidates().filter(holds).collect())? {
            return Ok(master);
        }
    }
    let by_default_route = default_route_interfaces(ground, Family::of(first));
    one_of(first, by_default_route)?.ok_or_else(|| LinkError::MasterUnknown {
        address: first,
        netns: ground.label.to_owned(),
        candidates: ground.candidate_names(),
    })
}

/// Those of the most preferred default routes.
fn default_route_interfaces(ground: Ground<'_>, family: Family) -> Vec<&Interface> {
    let defaults = || {
        ground.state.routes.iter().filter(move |route| {
            route.table == MAIN_TABLE && !route.unreachable && route.destination == family.everything()
        })
    };
    let best = defaults().map(|route| route.metric).min();
    ground
        .candidates()
        .filter(|interface| {
            defaults().any(|route| Some(route.metric) == best && route.interface == Some(interface.index))
        })
        .collect()
}

/// Whether a macvlan of the wanted mode, and of the wanted families, can sit on it at all.
pub(super) fn check(ground: Ground<'_>, master: &Interface, link: &LinkPlan) -> Result<(), LinkError> {
    match fault(ground, master, link) {
        Some(fault) => Err(unfit(ground, master, fault)),
        None => Ok(()),
    }
}

/// Whether the wire behind it can be used now.
pub(super) fn check_usable(ground: Ground<'_>, master: &Interface) -> Result<(), LinkError> {
    match (master.up, master.lower_up) {
        (false, _) => Err(unfit(ground, master, MasterFault::Down)),
        (true, false) => Err(unfit(ground, master, MasterFault::NoCarrier)),
        (true, true) => Ok(()),
    }
}

fn unfit(ground: Ground<'_>, master: &Interface, fault: MasterFault) -> LinkError {
    LinkError::MasterUnfit { master: master.name.clone(), netns: ground.label.to_owned(), fault }
}

fn fault(ground: Ground<'_>, master: &Interface, link: &LinkPlan) -> Option<MasterFault> {
    if master.loopback {
        return Some(MasterFault::Loopback);
    }
    if master.mac.is_none() {
        return Some(MasterFault::NotEthernet);
    }
    if let Some(controller) = master.controller.and_then(|index| ground.state.by_index(index)) {
        let kind = controller.kind.as_deref().unwrap_or("unknown kind");
        // A VRF redirects after the macvlan has had its turn; all others install a receive handler, of which an
        // interface has one, and a macvlan is another.
        if kind != "vrf" {
            return Some(MasterFault::Enslaved { controller: controller.name.clone(), kind: kind.to_owned() });
        }
    }
    let passthru = Some(ObservedMode::Known(MacvlanMode::Passthru));
    if master.macvlan == passthru {
        return Some(MasterFault::PassthruTaken { by: master.name.clone() });
    }
    // Only those that have stayed in this namespace can be seen; the kernel refuses the others.
    let on_it = |other: &&Interface| {
        other.parent == Some(master.index)
            && other.parent_netns.is_none()
            && !ground.reserved.contains(&other.name.as_str())
    };
    if let Some(other) = ground.state.interfaces.iter().filter(on_it).find(|other| other.macvlan == passthru) {
        return Some(MasterFault::PassthruTaken { by: other.name.clone() });
    }
    let v6 = link.addresses.iter().any(|address| address.net.addr().is_ipv6());
    (v6 && master.mtu < 1280).then_some(MasterFault::MtuTooSmall(master.mtu))
}
