//! What cannot work is refused before anything is changed, and the error names it.

use super::lab::*;
use crate::compile::{LinkPlan, MacvlanMode};
use crate::link::{LinkError, MasterFault, Place, plan};

/// Plans, expects an error, and that nothing was changed.
#[track_caller]
fn refused(lab: &Lab, link: &LinkPlan) -> LinkError {
    let before = lab.state();
    let error = lab.apply(link).expect_err("refused");
    assert_same(&lab.state(), &before, "after the refusal");
    error
}

#[track_caller]
fn unfit(error: &LinkError) -> &MasterFault {
    match error {
        LinkError::MasterUnfit { master, fault, .. } if master == "up0" => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_master_is_named_beside_those_that_exist() {
    let lab = Lab::new();
    let error = refused(&lab, &LinkPlan { master: Some("nope0".to_owned()), ..dual_stack() });
    let text = error.to_string();
    assert!(text.contains("nope0") && text.contains("up0") && text.contains(&lab.host.name), "{text}");
}

#[test]
fn a_master_that_is_down_or_has_no_carrier() {
    let lab = Lab::new();
    lab.outside.ip("link set s0 down");
    assert_eq!(unfit(&refused(&lab, &dual_stack())), &MasterFault::NoCarrier);
    lab.host.ip("link set up0 down");
    assert_eq!(unfit(&refused(&lab, &dual_stack())), &MasterFault::Down);
}

#[test]
fn a_working_router_outlives_a_loss_of_carrier() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    lab.outside.ip("link set s0 down");
    assert!(lab.plan(&dual_stack()).unwrap().is_empty());
}

#[test]
fn a_port_of_a_bridge_is_refused_and_the_bridge_offered() {
    let lab = Lab::new();
    lab.host.ip("link add br0 type bridge");
    lab.host.ip("link set up0 master br0");
    let error = refused(&lab, &dual_stack());
    let wanted = MasterFault::Enslaved { controller: "br0".to_owned(), kind: "bridge".to_owned() };
    assert_eq!(unfit(&error), &wanted);
    assert!(error.to_string().contains("use br0"), "{error}");
    lab.host.ip("link set br0 up");
    lab.apply(&LinkPlan { master: Some("br0".to_owned()), ..dual_stack() }).unwrap();
    for target in OUTSIDE {
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
    }
}

#[test]
fn the_loopback_interface_is_no_master() {
    let lab = Lab::new();
    let error = refused(&lab, &LinkPlan { master: Some("lo".to_owned()), ..dual_stack() });
    assert!(matches!(error, LinkError::MasterUnfit { fault: MasterFault::Loopback, .. }), "{error:?}");
}

#[test]
fn a_master_that_a_passthru_macvlan_has_taken() {
    let lab = Lab::new();
    lab.host.ip("link add link up0 name mv0 type macvlan mode passthru");
    let wanted = MasterFault::PassthruTaken { by: "mv0".to_owned() };
    assert_eq!(unfit(&refused(&lab, &dual_stack())), &wanted);
    let error = refused(&lab, &LinkPlan { master: Some("mv0".to_owned()), ..dual_stack() });
    assert!(matches!(&error, LinkError::MasterUnfit { fault, .. } if *fault == wanted), "{error:?}");
}

#[test]
fn a_macvlan_in_another_mode_is_a_master_and_stands_for_its_own() {
    let lab = Lab::new();
    lab.host.ip("link add link up0 name mv0 type macvlan mode bridge");
    lab.host.ip("link set mv0 up");
    let link = LinkPlan { master: Some("mv0".to_owned()), ..dual_stack() };
    lab.apply(&link).unwrap();
    assert!(lab.plan(&link).unwrap().is_empty());
}

#[test]
fn an_mtu_too_small_for_ipv6() {
    let lab = Lab::new();
    lab.host.ip("link set up0 mtu 1200");
    assert_eq!(unfit(&refused(&lab, &dual_stack())), &MasterFault::MtuTooSmall(1200));
}

#[test]
fn another_interface_of_that_name_is_refused_with_its_differences() {
    let lab = Lab::new();
    lab.host.ip("link add up1 type veth peer name up1p");
    let anothers = [
        (format!("link add link up1 name net1 netns {} type macvlan mode private", lab.router.name), 3),
        (format!("link add net1 netns {} type veth peer name x0", lab.router.name), 1),
    ];
    for (another, differing) in anothers {
        lab.host.ip(&another);
        let error = refused(&lab, &dual_stack());
        let LinkError::Mismatch { interface, differences, .. } = &error else { panic!("{error:?}") };
        assert_eq!(interface, "net1");
        assert_eq!(differences.len(), differing, "{error}");
        lab.router.ip("link delete net1");
    }
}

#[test]
fn an_interface_of_another_router_is_refused() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    let other = crate::compile::RouterName { namespace: "egress".to_owned(), name: "test".to_owned() };
    let error = plan(&lab.place(), &other, &dual_stack(), &[]).unwrap_err();
    assert!(matches!(&error, LinkError::Mismatch { .. }), "{error:?}");
}

#[test]
fn no_cluster_interface() {
    let lab = Lab::new();
    lab.router.ip("link set eth0 name eth7");
    let error = refused(&lab, &dual_stack());
    let text = error.to_string();
    assert!(matches!(error, LinkError::NoClusterInterface { .. }), "{text}");
    assert!(text.contains("eth0") && text.contains("eth7"), "{text}");
}

#[test]
fn an_address_that_the_router_or_its_host_has_already() {
    let lab = Lab::new();
    lab.host.ip("address add 192.168.12.50/24 dev up0");
    for (taken, holder) in [("10.128.0.2/24", "eth0"), ("192.168.12.50/24", "up0"), ("fd00:128::2/64", "eth0")] {
        let error = refused(&lab, &LinkPlan { addresses: vec![address(taken, None)], ..dual_stack() });
        let text = error.to_string();
        assert!(matches!(error, LinkError::AddressOnCluster { .. } | LinkError::AddressOnHost { .. }), "{text}");
        assert!(text.contains(taken.split('/').next().unwrap()) && text.contains(holder), "{text}");
    }
}

#[test]
fn names_that_an_interface_cannot_have() {
    let lab = Lab::new();
    for name in ["", "eth0", "lo", "all", "a/b", "a b", "sixteen-bytes-xx"] {
        let place = Place { external_interface: name.to_owned(), ..lab.place() };
        let error = plan(&place, &router_name(), &dual_stack(), &[]).unwrap_err();
        assert!(matches!(&error, LinkError::InterfaceName(bad) if bad == name), "{error:?}");
    }
}

#[test]
fn a_router_without_addresses() {
    let lab = Lab::new();
    let error = refused(&lab, &LinkPlan { addresses: Vec::new(), ..dual_stack() });
    assert!(matches!(error, LinkError::NoAddress));
}

#[test]
fn a_second_passthru_router_on_one_master_leaves_no_trace() {
    let lab = Lab::new();
    lab.apply(&LinkPlan { mode: MacvlanMode::Passthru, ..dual_stack() }).unwrap();
    let second = Lab::new();
    // The first one's interface is in another namespace, out of sight: the kernel has to refuse.
    let place = Place { master: lab.host.netns.clone(), ..second.place() };
    let link = LinkPlan { addresses: vec![address("192.168.12.98/24", None)], ..dual_stack() };
    let before = second.state();
    let plan = plan(&place, &router_name(), &link, &[]).unwrap();
    let error = crate::link::prepare(&place, plan, &second.record()).unwrap_err();
    assert!(error.to_string().contains("macvlan net1 on up0"), "{error}");
    assert_same(&second.state(), &before, "after the refusal");
}
