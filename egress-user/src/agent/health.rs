//! What can be the matter with a router that is applied: read off its interfaces, neighbours and tables. Pure.

use std::net::IpAddr;

use crate::compile::RuleTable;
use crate::datapath::Use;
use crate::link::{Answer, Hop, Neighbour, Observed};
use crate::status::{Fault, Reason};

/// Of a hundred: from here on a table or a range of ports counts as nearly used up.
const NEARLY: usize = 90;
/// How many destinations, addresses or rules a message names.
const NAMED: usize = 3;

/// The gateways of the way out.
pub(super) fn gateways(observed: &Observed) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = observed
        .routes
        .iter()
        .filter_map(|route| match route.hop {
            Hop::Gateway { gateway, .. } => Some(gateway),
            Hop::Link { .. } | Hop::Unreachable => None,
        })
        .collect();
    gateways.sort();
    gateways.dedup();
    gateways
}

/// Where the rules and the fallback lead to.
pub(super) fn destinations(rules: &RuleTable) -> Vec<IpAddr> {
    rules.rules.iter().map(|rule| rule.destination).chain(rules.fallback).collect()
}

/// Programs of others that may take packets before ours see them, or change what ours have sent.
pub(super) fn strangers(found: &[(String, String)]) -> Vec<Fault> {
    let tell = |(program, interface): &(String, String)| {
        let message = format!(
            "program {program} of somebody else stands outside ours on {interface}: it may take packets before they are translated \
             or change them afterwards"
        );
        Fault::new(Reason::ForeignProgram, message)
    };
    found.iter().map(tell).collect()
}

/// Everything that is the matter.
pub(super) fn faults(
    external: &str,
    observed: &Observed,
    neighbours: &[Neighbour],
    destinations: &[IpAddr],
    used: &Use,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    match &observed.external {
        None => faults.push(Fault::blocking(Reason::InterfaceMissing, format!("interface {external} does not exist"))),
        Some(interface) if !interface.up => {
            faults.push(Fault::blocking(Reason::MasterDown, format!("interface {external} is down")));
        }
        Some(interface) if !interface.lower_up => {
            let message = format!("interface {external} has no carrier: its master is down, or the other end of that");
            faults.push(Fault::blocking(Reason::MasterDown, message));
        }
        Some(interface) => {
            faults.extend(interface.addresses.iter().filter(|held| held.duplicate).map(|held| {
                let message = format!("address {} is in use by another host on the external network", held.net.addr());
                Fault::new(Reason::AddressConflict, message)
            }));
            faults.extend(silent(external, neighbours));
        }
    }
    if observed.external.is_some() {
        faults.extend(no_route(observed, destinations));
    }
    faults.extend(nearly_full(used));
    faults.extend(nearly_exhausted(used));
    faults
}

/// Everything is lost when no gateway answers; with one of two families, half of it.
fn silent(external: &str, neighbours: &[Neighbour]) -> Vec<Fault> {
    let is_silent = |one: &&Neighbour| one.answer == Answer::Silent;
    let all = neighbours.iter().all(|one| is_silent(&one));
    let tell = |one: &Neighbour| {
        let (asked, ip) = (if one.address.is_ipv4() { "ARP" } else { "neighbour discovery" }, one.address);
        let message = format!(
            "gateway {ip} does not answer {asked} on {external}: is it there, and does the network let frames of {external}'s \
             own MAC address pass (hypervisors want promiscuous mode, MAC changes and forged transmits allowed)?"
        );
        Fault { blocks: all, ..Fault::new(Reason::GatewayUnreachable, message) }
    };
    neighbours.iter().filter(is_silent).map(tell).collect()
}

/// Destinations that the routes of the way out do not reach.
fn no_route(observed: &Observed, destinations: &[IpAddr]) -> Option<Fault> {
    let reached = |destination: &IpAddr| {
        let fitting = observed.routes.iter().filter(|route| route.destination.contains(destination));
        let best = fitting.max_by_key(|route| (route.destination.prefix_len(), u32::MAX - route.metric));
        best.is_some_and(|route| route.hop != Hop::Unreachable)
    };
    let mut lost: Vec<IpAddr> = destinations.iter().copied().filter(|ip| !reached(ip)).collect();
    lost.sort();
    lost.dedup();
    let way_out = "give the address of its family a gateway";
    (!lost.is_empty()).then(|| {
        Fault::new(Reason::NoRoute, format!("no route to {}: {way_out}", named(lost.iter().map(IpAddr::to_string))))
    })
}

fn nearly_full(used: &Use) -> Option<Fault> {
    let full = used.capacity > 0 && used.flows * 100 >= used.capacity * NEARLY;
    full.then(|| {
        let message = format!(
            "the flow table is more than {NEARLY} % full: new flows are refused when it is full; raise --flows (now {}), which \
             takes a new table: `egress-router delete`, then start again",
            used.capacity
        );
        Fault::new(Reason::FlowTableNearlyFull, message)
    })
}

fn nearly_exhausted(used: &Use) -> Option<Fault> {
    let mut tight: Vec<String> = used
        .ports
        .iter()
        .filter(|ports| ports.available > 0 && ports.used * 100 >= ports.available * NEARLY)
        .map(|ports| format!("{} from {}", ports.destination, ports.source))
        .collect();
    tight.sort();
    (!tight.is_empty()).then(|| {
        let message = format!(
            "more than {NEARLY} % of the source ports to {} are taken: add addresses, or widen --snat-ports",
            named(tight.into_iter())
        );
        Fault::new(Reason::PortsNearlyExhausted, message)
    })
}

/// The first few, and how many more.
fn named(items: impl ExactSizeIterator<Item = String>) -> String {
    let count = items.len();
    let text = items.take(NAMED).collect::<Vec<_>>().join(", ");
    if count > NAMED { format!("{text} and {} more", count - NAMED) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::PortUse;
    use crate::link::{EgressRoute, Interface, InterfaceAddress};

    fn observed() -> Observed {
        let net = |text: &str| text.parse().unwrap();
        let route = |to: &str, hop, metric| EgressRoute { destination: net(to), hop, metric };
        let gateway =
            Hop::Gateway { gateway: "192.168.12.1".parse().unwrap(), interface: "net1".into(), onlink: false };
        let held = |text: &str| InterfaceAddress { net: net(text), duplicate: false, tentative: false };
        Observed {
            cluster: Interface::default(),
            external: Some(Interface {
                up: true,
                lower_up: true,
                addresses: vec![held("192.168.12.99/24"), held("fd00:12::99/64")],
                ..Interface::default()
            }),
            routes: vec![
                route("192.168.12.0/24", Hop::Link { interface: "net1".into() }, 0),
                route("0.0.0.0/0", gateway, 0),
                route("0.0.0.0/0", Hop::Unreachable, u32::MAX),
                route("fd00:12::/64", Hop::Link { interface: "net1".into() }, 1024),
                route("::/0", Hop::Unreachable, u32::MAX),
            ],
            local_ports: (32768, 60999),
        }
    }

    fn neighbour(ip: &str, answer: Answer) -> Neighbour {
        Neighbour { address: ip.parse().unwrap(), mac: None, answer }
    }

    fn judged(observed: &Observed, neighbours: &[Neighbour], to: &[&str], used: &Use) -> Vec<(Reason, bool, String)> {
        let to: Vec<IpAddr> = to.iter().map(|ip| ip.parse().unwrap()).collect();
        let found = faults("net1", observed, neighbours, &to, used);
        found.into_iter().map(|fault| (fault.reason, fault.blocks, fault.message)).collect()
    }

    #[test]
    fn nothing_is_the_matter() {
        let answers = [neighbour("192.168.12.1", Answer::Answers), neighbour("fe80::1", Answer::Asked)];
        let used = Use { flows: 89, capacity: 100, ports: Vec::new() };
        assert_eq!(judged(&observed(), &answers, &["203.0.113.26", "fd00:12::7"], &used), []);
        assert_eq!(gateways(&observed()), ["192.168.12.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_silent_gateway_blocks_when_it_is_the_only_one() {
        let one = [neighbour("192.168.12.1", Answer::Silent), neighbour("fd00:12::1", Answer::Answers)];
        let found = judged(&observed(), &one, &[], &Use::default());
        assert!(matches!(&found[..], [(Reason::GatewayUnreachable, false, text)] if text.contains("192.168.12.1")));
        let found = judged(&observed(), &one[..1], &[], &Use::default());
        assert!(matches!(&found[..], [(Reason::GatewayUnreachable, true, _)]), "{found:?}");
    }

    #[test]
    fn a_destination_without_a_route_is_named() {
        let found = judged(&observed(), &[], &["203.0.113.26", "2001:db8::1", "2001:db8::1"], &Use::default());
        assert!(
            matches!(&found[..], [(Reason::NoRoute, false, text)] if text.starts_with("no route to 2001:db8::1: ")),
            "{found:?}"
        );
    }

    #[test]
    fn a_link_that_does_not_work_hides_what_follows_from_it() {
        let silent = [neighbour("192.168.12.1", Answer::Silent)];
        let mut down = observed();
        down.external.as_mut().unwrap().lower_up = false;
        assert!(matches!(judged(&down, &silent, &[], &Use::default())[..], [(Reason::MasterDown, true, _)]));
        down.external = None;
        down.routes.clear();
        let found = judged(&down, &silent, &["203.0.113.26"], &Use::default());
        assert!(matches!(found[..], [(Reason::InterfaceMissing, true, _)]), "{found:?}");
        let mut taken = observed();
        taken.external.as_mut().unwrap().addresses[1].duplicate = true;
        let found = judged(&taken, &[], &[], &Use::default());
        assert!(matches!(&found[..], [(Reason::AddressConflict, false, text)] if text.contains("fd00:12::99")));
    }

    #[test]
    fn tables_and_ports_are_told_before_they_are_full() {
        let ports = |used, number: u16| PortUse {
            protocol: 6,
            source: "192.168.12.99".parse().unwrap(),
            destination: format!("203.0.113.26:{number}").parse().unwrap(),
            used,
            available: 10,
        };
        let used = Use { flows: 90, capacity: 100, ports: vec![ports(8, 1), ports(9, 2), ports(10, 3)] };
        let found = judged(&observed(), &[], &[], &used);
        let reasons: Vec<_> = found.iter().map(|(reason, blocks, _)| (*reason, *blocks)).collect();
        assert_eq!(reasons, [(Reason::FlowTableNearlyFull, false), (Reason::PortsNearlyExhausted, false)]);
        assert!(found[1].2.contains("203.0.113.26:2 from 192.168.12.99, 203.0.113.26:3"), "{}", found[1].2);
        assert_eq!(named(["a", "b", "c", "d", "e"].map(str::to_owned).into_iter()), "a, b, c and 2 more");
    }
}
