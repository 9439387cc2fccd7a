//! Plans as pure data: what is inferred from what.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::lab::{address, router_name};
use crate::compile::{Address, LinkPlan, MacvlanMode};
use crate::link::plan::{Inputs, compute};
use crate::link::{Change, Family, Hop, Interface, InterfaceAddress, LinkError, Mac, Plan, Route, Snapshot, Sysctl};

/// An interface that is up and has these addresses.
fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
    let address = |net: &&str| InterfaceAddress { net: net.parse().unwrap(), duplicate: false, tentative: false };
    Interface {
        index,
        name: name.to_owned(),
        mac: Some(Mac([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])),
        mtu: 1500,
        up: true,
        lower_up: true,
        addresses: addresses.iter().map(address).collect(),
        ..Interface::default()
    }
}

fn default_route(interface: u32, gateway: &str, metric: u32) -> Route {
    let gateway = gateway.parse().unwrap();
    Route {
        destination: Family::of(gateway).everything(),
        gateway: Some(gateway),
        interface: Some(interface),
        metric,
        table: 254,
        unreachable: false,
        onlink: false,
    }
}

fn router() -> Snapshot {
    let sysctls = BTreeMap::from([(Sysctl::ipv6("lo", "disable_ipv6"), Some("0".to_owned()))]);
    Snapshot { interfaces: vec![interface(2, "eth0", &["10.128.0.2/24"])], sysctls, ..Snapshot::default() }
}

fn host(interfaces: Vec<Interface>, routes: Vec<Route>) -> Snapshot {
    Snapshot { interfaces, routes, ..Snapshot::default() }
}

fn link(master: Option<&str>, addresses: &[Address]) -> LinkPlan {
    LinkPlan { master: master.map(str::to_owned), mode: MacvlanMode::Bridge, addresses: addresses.to_vec() }
}

fn plan(here: &Snapshot, there: &Snapshot, link: &LinkPlan) -> Result<Plan, LinkError> {
    plan_to(&[], here, there, link)
}

fn plan_to(hosts: &[IpAddr], here: &Snapshot, there: &Snapshot, link: &LinkPlan) -> Result<Plan, LinkError> {
    compute(Inputs {
        cluster_interface: "eth0",
        external_interface: "net1",
        router: &router_name(),
        link,
        hosts,
        adopt: false,
        reply_mark: None,
        here,
        here_label: "router",
        there: Some(there),
        there_label: "host",
    })
}

/// A plan for an external interface that is there.
fn adopt(here: &Snapshot, link: &LinkPlan) -> Result<Plan, LinkError> {
    compute(Inputs {
        cluster_interface: "eth0",
        external_interface: "net1",
        adopt: true,
        router: &router_name(),
        link,
        hosts: &[],
        reply_mark: None,
        here,
        here_label: "router",
        there: None,
        there_label: "router",
    })
}

#[test]
fn an_interface_that_is_given_is_set_up_and_neither_made_nor_changed() {
    let link = link(Some("not-there"), &[address("192.168.12.99/24", Some("192.168.12.1"))]);
    let mut here = router();
    let mut given = interface(3, "net1", &[]);
    (given.up, given.lower_up, given.kind) = (false, false, Some("veth".to_owned()));
    here.interfaces.push(given.clone());
    let plan = adopt(&here, &link).unwrap();
    assert!(plan.adopted);
    assert_eq!((plan.master.as_str(), plan.mac), ("net1", given.mac.unwrap()));
    let touches_link = |change: &Change| {
        matches!(change, Change::CreateLink(_) | Change::DeleteLink(_) | Change::SetMac { .. } | Change::SetMtu { .. })
    };
    assert!(!plan.changes().any(touches_link), "{plan:?}");
    assert!(plan.changes().any(|change| matches!(change, Change::SetUp { up: true, .. })));
    assert_eq!(gateways(&plan), [("192.168.12.1".to_owned(), false)]);
}

#[test]
fn an_interface_that_cannot_be_adopted_is_named() {
    let link = link(None, &[address("192.168.12.99/24", None)]);
    let error = adopt(&router(), &link).unwrap_err();
    assert!(matches!(&error, LinkError::NoInterface { interface, .. } if interface == "net1"), "{error}");
    let with = |change: fn(&mut Interface)| {
        let mut here = router();
        here.interfaces.push(interface(3, "net1", &[]));
        here.interfaces.push(Interface { kind: Some("bridge".to_owned()), ..interface(9, "br0", &[]) });
        change(here.interfaces.iter_mut().find(|interface| interface.name == "net1").unwrap());
        adopt(&here, &link).unwrap_err().to_string()
    };
    let not_ethernet = with(|net1| net1.mac = None);
    assert!(not_ethernet.contains("net1"), "{not_ethernet}");
    let port = with(|net1| net1.controller = Some(9));
    assert!(port.contains("br0"), "{port}");
    let no_carrier = with(|net1| net1.lower_up = false);
    assert!(no_carrier.contains("net1"), "{no_carrier}");
}

fn gateways(plan: &Plan) -> Vec<(String, bool)> {
    let gateway = |change: &Change| match change {
        Change::AddRoute(route) => match &route.hop {
            Hop::Gateway { gateway, onlink, .. } => Some((gateway.to_string(), *onlink)),
            _ => None,
        },
        _ => None,
    };
    plan.changes().filter_map(gateway).collect()
}

#[test]
fn a_host_that_the_macvlan_never_reaches_is_refused() {
    let there = host(
        vec![
            interface(2, "eth0", &["10.0.0.5/24", "192.168.12.3/24"]),
            interface(3, "eth1", &["192.168.12.2/24", "172.16.0.2/16"]),
        ],
        vec![default_route(2, "10.0.0.1", 0)],
    );
    let mut link = link(Some("eth1"), &[address("192.168.12.99/24", Some("192.168.12.1"))]);
    let to = |link: &LinkPlan, host: &str| {
        plan_to(&["203.0.113.26".parse().unwrap(), host.parse().unwrap()], &router(), &there, link)
    };
    for mode in [MacvlanMode::Bridge, MacvlanMode::Private, MacvlanMode::Passthru] {
        link.mode = mode;
        match to(&link, "192.168.12.2") {
            Err(LinkError::HostOutOfReach { host, interface, .. }) => {
                assert_eq!((host.to_string(), interface), ("192.168.12.2".to_owned(), "eth1".to_owned()));
            }
            other => panic!("{mode:?}: {other:?}"),
        }
        // By the gateway, by another interface of the host's, and another host.
        for reached in ["172.16.0.2", "192.168.12.3", "192.168.12.4"] {
            to(&link, reached).unwrap();
        }
    }
    // A switch may send it back.
    link.mode = MacvlanMode::Vepa;
    to(&link, "192.168.12.2").unwrap();
}

#[test]
fn the_master_is_the_one_whose_subnet_holds_the_address() {
    let there = host(
        vec![interface(2, "eth0", &["10.0.0.5/24"]), interface(3, "eth1", &["192.168.12.2/24"])],
        vec![default_route(2, "10.0.0.1", 0)],
    );
    let plan = plan(&router(), &there, &link(None, &[address("192.168.12.99/24", None)])).unwrap();
    assert_eq!(plan.master, "eth1");
}

#[test]
fn else_it_is_the_best_default_routes() {
    let there = host(
        vec![interface(2, "eth0", &[]), interface(3, "eth1", &[]), interface(4, "eth2", &[])],
        vec![default_route(2, "10.0.0.1", 200), default_route(3, "10.0.1.1", 100), default_route(4, "fe80::1", 1)],
    );
    let v4 = link(None, &[address("192.168.12.99/24", None)]);
    assert_eq!(plan(&router(), &there, &v4).unwrap().master, "eth1");
    let v6 = link(None, &[address("2001:db8:12::99/64", None)]);
    assert_eq!(plan(&router(), &there, &v6).unwrap().master, "eth2");
}

#[test]
fn several_that_fit_are_listed() {
    let v4 = link(None, &[address("192.168.12.99/24", None)]);
    let interfaces = || vec![interface(2, "eth0", &["192.168.12.2/24"]), interface(3, "eth1", &["192.168.12.3/24"])];
    let by_subnet = host(interfaces(), Vec::new());
    let by_route = host(
        vec![interface(2, "eth0", &[]), interface(3, "eth1", &[])],
        vec![default_route(2, "10.0.0.1", 0), default_route(3, "10.0.1.1", 0)],
    );
    for there in [by_subnet, by_route] {
        let error = plan(&router(), &there, &v4).unwrap_err();
        assert!(
            matches!(&error, LinkError::MasterAmbiguous { candidates, .. } if *candidates == ["eth0", "eth1"]),
            "{error:?}"
        );
    }
    assert_eq!(
        plan(&router(), &host(interfaces(), vec![]), &link(Some("eth1"), &v4.addresses)).unwrap().master,
        "eth1"
    );
}

#[test]
fn none_that_fits_lists_what_there_is() {
    let there = host(vec![interface(2, "eth0", &["10.0.0.5/24"])], Vec::new());
    let error = plan(&router(), &there, &link(None, &[address("192.168.12.99/24", None)])).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, LinkError::MasterUnknown { .. }), "{text}");
    assert!(text.contains("192.168.12.99") && text.contains("eth0") && text.contains("host"), "{text}");
}

#[test]
fn a_gateway_is_inferred_from_the_master_only_within_the_subnet() {
    let there = |gateway| host(vec![interface(3, "eth1", &["192.168.12.2/24"])], vec![default_route(3, gateway, 0)]);
    let without = link(Some("eth1"), &[address("192.168.12.99/24", None)]);
    let with = link(Some("eth1"), &[address("192.168.12.99/24", Some("192.168.12.7"))]);
    let inferred = |gateway, link| gateways(&plan(&router(), &there(gateway), link).unwrap());
    assert_eq!(inferred("192.168.12.1", &without), [("192.168.12.1".to_owned(), false)]);
    assert_eq!(inferred("192.168.12.1", &with), [("192.168.12.7".to_owned(), false)]);
    assert_eq!(inferred("192.168.13.1", &without), []);
    assert_eq!(inferred("192.168.12.99", &without), [], "the router is not its own gateway");
}

#[test]
fn a_gateway_outside_the_subnet_is_taken_to_be_on_the_link() {
    let there = host(vec![interface(3, "eth1", &[])], Vec::new());
    let outside = link(
        Some("eth1"),
        &[address("192.168.12.99/32", Some("192.168.13.1")), address("2001:db8::9/128", Some("fe80::1"))],
    );
    let plan = plan(&router(), &there, &outside).unwrap();
    assert_eq!(gateways(&plan), [("192.168.13.1".to_owned(), true), ("fe80::1".to_owned(), false)]);
}

#[test]
fn strict_reverse_path_filters_become_loose_and_others_stay() {
    let there = host(vec![interface(3, "eth1", &[])], Vec::new());
    let wanted = link(Some("eth1"), &[address("192.168.12.99/24", None)]);
    for (all, cluster, changed) in
        [("0", "0", false), ("0", "1", true), ("1", "0", true), ("2", "1", false), ("1", "2", false)]
    {
        let mut here = router();
        for (name, value) in [("all", all), ("eth0", cluster)] {
            here.sysctls.insert(Sysctl::ipv4(name, "rp_filter"), Some(value.to_owned()));
        }
        let plan = plan(&here, &there, &wanted).unwrap();
        let key = Sysctl::ipv4("eth0", "rp_filter");
        let loose = |change: &Change| matches!(change, Change::SetSysctl { key: k, to, .. } if *k == key && to == "2");
        assert_eq!(plan.changes().any(loose), changed, "all {all}, eth0 {cluster}");
    }
}

#[test]
fn nothing_is_claimed_or_forwarded_in_the_link_stage_and_forwarding_is_last() {
    let there = host(vec![interface(3, "eth1", &[])], Vec::new());
    let both = [address("192.168.12.99/24", None), address("2001:db8:12::99/64", None)];
    let plan = plan(&router(), &there, &link(Some("eth1"), &both)).unwrap();
    assert!(matches!(plan.link_stage.as_slice(), [Change::CreateLink(_)]), "{:#?}", plan.link_stage);
    let first = plan.claim_stage.iter().position(Change::switches_forwarding_on).unwrap();
    assert!(plan.claim_stage[first..].iter().all(Change::switches_forwarding_on), "{:#?}", plan.claim_stage);
    let place = |wanted: fn(&Change) -> bool| plan.claim_stage.iter().position(wanted).unwrap();
    let probe = place(|change| matches!(change, Change::Probe { .. }));
    let claim = place(|change| matches!(change, Change::AddAddress { .. }));
    assert!(place(|change| matches!(change, Change::SetUp { .. })) < probe && probe < claim);
}

#[test]
fn a_kernel_without_ipv6_serves_ipv4_only() {
    let there = host(vec![interface(3, "eth1", &[])], Vec::new());
    let mut here = router();
    here.sysctls.clear();
    let v4 = plan(&here, &there, &link(Some("eth1"), &[address("192.168.12.99/24", None)])).unwrap();
    assert!(!serde_json::to_string(&v4).unwrap().contains("ipv6"));
    let error = plan(&here, &there, &link(Some("eth1"), &[address("2001:db8:12::99/64", None)])).unwrap_err();
    assert!(matches!(error, LinkError::NoIpv6 { .. }), "{error:?}");
}

#[test]
fn every_change_reads_well_and_undoing_twice_is_doing() {
    let there = host(vec![interface(3, "eth1", &["192.168.12.2/24"])], vec![default_route(3, "192.168.12.1", 0)]);
    let plan = plan(&router(), &there, &link(None, &[address("192.168.12.99/24", None)])).unwrap();
    for change in plan.changes() {
        assert!(!change.to_string().contains('{'), "{change}");
        if let Some(inverse) = change.inverse() {
            assert_eq!(inverse.inverse().as_ref(), Some(change));
        }
    }
}
