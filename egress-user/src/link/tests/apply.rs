//! Plans applied to a real macvlan.

use super::lab::*;
use crate::compile::{LinkPlan, MacvlanMode};
use crate::link::{Change, Interface, LinkError, Mac, apply, delete, observe};

const MODES: [(MacvlanMode, &str); 4] = [
    (MacvlanMode::Bridge, "bridge"),
    (MacvlanMode::Private, "private"),
    (MacvlanMode::Vepa, "vepa"),
    (MacvlanMode::Passthru, "passthru"),
];

fn external(lab: &Lab) -> Interface {
    observe(&lab.place()).unwrap().external.expect("net1")
}

/// Names and plain words of what is on net1, for comparing with what was asked.
fn addresses(lab: &Lab) -> Vec<String> {
    let link_local = |text: &String| text.starts_with("fe80:");
    external(lab).addresses.iter().map(|held| held.net.to_string()).filter(|text| !link_local(text)).collect()
}

#[test]
fn every_mode_lands_on_the_link_and_carries_both_families() {
    for (mode, name) in MODES {
        let lab = Lab::new();
        lab.apply(&LinkPlan { mode, ..dual_stack() }).unwrap();
        let link = lab.router.ip("-d link show net1");
        assert!(link.contains(&format!("macvlan mode {name}")), "{link}");
        for target in OUTSIDE {
            assert!(lab.router.reaches(&lab.outside, None, target), "mode {name}: no way to {target}");
        }
        let again = lab.plan(&LinkPlan { mode, ..dual_stack() }).unwrap();
        assert!(again.is_empty(), "mode {name}: second apply: {again:#?}");
    }
}

#[test]
fn passthru_has_the_masters_mac_and_any_other_mode_one_of_its_own() {
    let lab = Lab::new();
    let master = lab.host.mac("up0");
    lab.apply(&LinkPlan { mode: MacvlanMode::Passthru, ..dual_stack() }).unwrap();
    assert_eq!(external(&lab).mac, Some(master));
    let plan = lab.apply(&dual_stack()).unwrap();
    assert_eq!(external(&lab).mac, Some(plan.mac));
    assert_ne!(plan.mac, master);
}

#[test]
fn mtu_is_the_masters_and_follows_it() {
    let lab = Lab::new();
    lab.host.ip("link set up0 mtu 1400");
    lab.apply(&dual_stack()).unwrap();
    assert_eq!(external(&lab).mtu, 1400);
    lab.host.ip("link set up0 mtu 1450");
    let plan = lab.apply(&dual_stack()).unwrap();
    assert_eq!(plan.changes().count(), 1, "{plan:#?}");
    assert_eq!(external(&lab).mtu, 1450);
}

#[test]
fn one_family_alone_in_a_router_without_the_other() {
    for (net, target) in [("192.168.12.99/24", OUTSIDE[0]), ("2001:db8:12::99/64", OUTSIDE[1])] {
        let lab = Lab::new();
        let link = LinkPlan { addresses: vec![address(net, None)], ..dual_stack() };
        lab.apply(&link).unwrap();
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
        let v6 = net.contains(':');
        assert_eq!(external(&lab).addresses.iter().any(|held| held.net.addr().is_ipv6()), v6, "presence in IPv6");
        assert_eq!(lab.router.sysctl("net/ipv6/conf/all/forwarding"), if v6 { "1" } else { "0" });
        assert_eq!(lab.router.sysctl("net/ipv4/conf/eth0/forwarding"), if v6 { "0" } else { "1" });
        assert!(lab.plan(&link).unwrap().is_empty());
    }
}

#[test]
fn the_link_stage_is_silent_and_claims_nothing() {
    let lab = Lab::new();
    let applied = apply::prepare(&lab.place(), lab.plan(&dual_stack()).unwrap(), &lab.record()).unwrap();
    let external = external(&lab);
    assert!(!external.up);
    assert!(external.addresses.is_empty());
    assert_eq!(lab.router.sysctl("net/ipv4/conf/eth0/forwarding"), "0");
    assert_eq!(lab.router.sysctl("net/ipv6/conf/all/forwarding"), "0");
    applied.undo().unwrap();
}

#[test]
fn whatever_somebody_changed_is_put_right() {
    let drifts = [
        "address delete 192.168.12.99/24 dev net1",
        "address delete 2001:db8:12::99/64 dev net1",
        "address add 192.168.12.50/24 dev net1",
        "link set net1 down",
        "link set net1 mtu 1300",
        "link set net1 address 02:00:00:00:00:77",
        "route delete default via 192.168.12.1 table 25959",
        "route replace default via 192.168.12.254 dev net1 table 25959",
        "-6 route flush table 25959",
        "rule delete iif eth0 lookup 25959",
        "rule add from 9.9.9.9 lookup 25959 priority 7",
        "-6 rule flush",
    ];
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    let right = lab.state();
    for drift in drifts {
        lab.router.ip(drift);
        assert_ne!(lab.state(), right, "{drift} changed nothing");
        let plan = lab.apply(&dual_stack()).unwrap();
        assert!(plan.changes().count() > 0);
        let again = lab.plan(&dual_stack()).unwrap();
        assert!(again.is_empty(), "after {drift}: {again:#?}");
    }
    lab.router.set_sysctl("net/ipv4/conf/net1/proxy_arp", "1");
    lab.router.set_sysctl("net/ipv6/conf/all/forwarding", "0");
    lab.apply(&dual_stack()).unwrap();
    assert_eq!(lab.router.sysctl("net/ipv4/conf/net1/proxy_arp"), "0");
    assert_eq!(lab.router.sysctl("net/ipv6/conf/all/forwarding"), "1");
    for target in OUTSIDE {
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
    }
}

#[test]
fn an_edit_of_the_addresses_changes_just_them() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    let index = external(&lab).index;
    let v6 = address("2001:db8:12::99/64", Some("2001:db8:12::1"));
    let gateway = Some("192.168.12.1");
    let edits = [
        vec![address("192.168.12.99/24", gateway), address("192.168.12.98/24", None), v6],
        vec![address("192.168.12.98/24", gateway), address("192.168.12.99/24", None), v6],
        vec![address("192.168.12.97/24", gateway), address("192.168.12.99/24", None)],
        vec![address("192.168.12.97/25", gateway), address("2001:db8:12::97/60", None)],
        vec![address("2001:db8:12::97/64", None)],
        vec![address("192.168.12.99/24", gateway), v6],
    ];
    for addresses_wanted in edits {
        let link = LinkPlan { addresses: addresses_wanted.clone(), ..dual_stack() };
        lab.apply(&link).unwrap();
        let again = lab.plan(&link).unwrap();
        assert!(again.is_empty(), "{again:#?}");
        let mut wanted: Vec<String> = addresses_wanted.iter().map(|address| address.net.to_string()).collect();
        let mut held = addresses(&lab);
        assert_eq!(
            held.iter().find(|net| net.contains('.')),
            wanted.iter().find(|net| net.contains('.')),
            "first IPv4 address"
        );
        wanted.sort();
        held.sort();
        assert_eq!(held, wanted);
        assert_eq!(external(&lab).index, index, "the interface, and what is attached to it, stayed");
    }
    for target in OUTSIDE {
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
    }
}

#[test]
fn a_new_gateway_replaces_the_old_one_in_one_step() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    let mut link = dual_stack();
    link.addresses[0].gateway = Some("192.168.12.2".parse().unwrap());
    let plan = lab.apply(&link).unwrap();
    let changes: Vec<&Change> = plan.changes().collect();
    assert!(matches!(changes.as_slice(), [Change::ReplaceRoute { .. }]), "{changes:#?}");
    let route = lab.router.ip("route show table 25959 default");
    assert!(route.contains("192.168.12.2") && !route.contains("192.168.12.1 "), "{route}");
}

#[test]
fn sixty_four_addresses_with_one_mac_come_and_go() {
    let lab = Lab::new();
    let before = lab.state();
    let many =
        |n: u8| vec![address(&format!("192.168.12.{n}/24"), None), address(&format!("2001:db8:12::{n}/64"), None)];
    let link = LinkPlan { addresses: (100..132).flat_map(many).collect(), ..dual_stack() };
    lab.apply(&link).unwrap();
    assert!(lab.plan(&link).unwrap().is_empty());
    assert_eq!(addresses(&lab).len(), 64);
    for source in ["192.168.12.100", "192.168.12.131"] {
        assert!(lab.router.reaches(&lab.outside, Some(source), OUTSIDE[0]), "from {source}");
    }
    for source in ["2001:db8:12::100", "2001:db8:12::131"] {
        assert!(lab.router.reaches(&lab.outside, Some(source), OUTSIDE[1]), "from {source}");
    }
    delete(&lab.place(), &lab.record()).unwrap();
    assert_same(&lab.state(), &before, "after delete");
}

#[test]
fn delete_restores_everything_and_the_second_time_finds_nothing() {
    let lab = Lab::new();
    lab.router.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
    lab.router.set_sysctl("net/ipv4/conf/eth0/rp_filter", "1");
    lab.router.set_sysctl("net/ipv4/conf/all/proxy_arp", "1");
    let before = lab.state();
    lab.apply(&dual_stack()).unwrap();
    // A second apply must not take the first one's settings for those from before.
    lab.router.set_sysctl("net/ipv4/fwmark_reflect", "0");
    lab.apply(&dual_stack()).unwrap();
    assert!(!delete(&lab.place(), &lab.record()).unwrap().is_empty());
    assert_same(&lab.state(), &before, "after delete");
    assert!(!lab.record().exists());
    assert_eq!(delete(&lab.place(), &lab.record()).unwrap(), []);
    assert_same(&lab.state(), &before, "after delete");
}

#[test]
fn delete_leaves_a_setting_that_somebody_changed_since() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    lab.router.set_sysctl("net/ipv6/conf/eth0/accept_ra", "0");
    delete(&lab.place(), &lab.record()).unwrap();
    assert_eq!(lab.router.sysctl("net/ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(lab.router.sysctl("net/ipv6/conf/all/forwarding"), "0");
}

#[test]
fn delete_needs_no_record_to_remove_link_rules_and_routes() {
    let lab = Lab::new();
    let before = lab.state();
    lab.apply(&dual_stack()).unwrap();
    std::fs::remove_file(lab.record()).unwrap();
    delete(&lab.place(), &lab.record()).unwrap();
    let after = lab.state();
    assert_eq!(lab.router.sysctl("net/ipv4/conf/eth0/forwarding"), "0", "no open router");
    assert_eq!(lab.router.sysctl("net/ipv6/conf/all/forwarding"), "0", "no open router");
    assert_eq!((after.interfaces, after.routes, after.rules), (before.interfaces, before.routes, before.rules));
}

#[test]
fn the_same_mac_after_delete_and_create() {
    let lab = Lab::new();
    let mut seen: Vec<Option<Mac>> = Vec::new();
    for _ in 0..2 {
        lab.apply(&dual_stack()).unwrap();
        seen.push(external(&lab).mac);
        delete(&lab.place(), &lab.record()).unwrap();
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].is_some());
}

#[test]
fn a_failure_in_any_step_leaves_no_trace() {
    let obstacles = [
        // Makes the first address, the first route, the last rule fail.
        ("address add 192.168.12.99/24 dev net1", None),
        (
            "route add unreachable default metric 4294967295 table 25959",
            Some("route del unreachable default table 25959"),
        ),
        ("-6 rule add iif lo lookup 25959 priority 34151", Some("-6 rule del priority 34151")),
    ];
    let lab = Lab::new();
    lab.router.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
    let before = lab.state();
    for (obstacle, removal) in obstacles {
        let plan = lab.plan(&dual_stack()).unwrap();
        let mut applied = apply::prepare(&lab.place(), plan, &lab.record()).unwrap();
        lab.router.ip(obstacle);
        let error = applied.claim().expect_err(obstacle);
        assert!(
            matches!(&error, LinkError::Apply { not_undone, .. } if not_undone.is_empty()),
            "{obstacle}: {error:?}"
        );
        applied.undo().unwrap();
        if let Some(removal) = removal {
            lab.router.ip(removal);
        }
        assert_same(&lab.state(), &before, obstacle);
        assert!(!lab.record().exists());
    }
}

#[test]
fn a_failed_edit_leaves_what_was_there() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    let before = lab.state();
    lab.outside.ip("address add 192.168.12.77/24 dev s0");
    // Another mode: the interface has to be made anew, and then the new address turns out to be taken.
    let link = LinkPlan {
        mode: MacvlanMode::Private,
        addresses: [&dual_stack().addresses[..], &[address("192.168.12.77/24", None)]].concat(),
        ..dual_stack()
    };
    lab.apply(&link).unwrap_err();
    let (mut after, mut before) = (lab.state(), before);
    for state in [&mut after, &mut before] {
        // A new interface has a new index, and its link-local address may still be tentative.
        let index = state.interface("net1").unwrap().index;
        state.routes.retain(|route| route.interface != Some(index) || route.table == crate::link::EGRESS_TABLE);
        state.routes.iter_mut().filter(|route| route.interface == Some(index)).for_each(|route| route.interface = None);
        let net1 = state.interfaces.iter_mut().find(|interface| interface.name == "net1").unwrap();
        net1.index = 0;
        net1.addresses.retain(|held| !held.net.to_string().starts_with("fe80"));
    }
    assert_same(&after, &before, "after the failed edit");
    for target in OUTSIDE {
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
    }
}

#[test]
fn an_interface_that_matches_is_adopted_and_survives_delete() {
    let lab = Lab::new();
    let mac = lab.plan(&dual_stack()).unwrap().mac;
    lab.host
        .ip(&format!("link add link up0 name net1 netns {} address {mac} type macvlan mode bridge", lab.router.name));
    let before = lab.state();
    let plan = lab.apply(&dual_stack()).unwrap();
    assert!(plan.adopted);
    assert!(!plan.changes().any(|change| matches!(change, Change::CreateLink(_))));
    assert!(lab.plan(&dual_stack()).unwrap().is_empty());
    delete(&lab.place(), &lab.record()).unwrap();
    lab.router.ip("link set net1 down");
    assert_same(&lab.state(), &before, "after delete");
}

#[test]
fn an_interface_of_our_own_is_made_anew_when_it_cannot_be_changed() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    for mode in [MacvlanMode::Private, MacvlanMode::Passthru, MacvlanMode::Bridge] {
        let link = LinkPlan { mode, ..dual_stack() };
        lab.apply(&link).unwrap();
        let again = lab.plan(&link).unwrap();
        assert!(again.is_empty(), "{again:#?}");
    }
}

#[test]
fn the_master_may_be_in_the_routers_own_namespace() {
    let lab = Lab::new();
    lab.host.ip(&format!("link set up0 netns {}", lab.router.name));
    lab.router.ip("link set up0 up");
    let place = crate::link::Place { master: lab.router.netns.clone(), ..lab.place() };
    let plan = || crate::link::plan(&place, &router_name(), &dual_stack(), &[]);
    let mut applied = apply::prepare(&place, plan().unwrap(), &lab.record()).unwrap();
    applied.claim().unwrap();
    assert!(plan().unwrap().is_empty());
    for target in OUTSIDE {
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
    }
}
