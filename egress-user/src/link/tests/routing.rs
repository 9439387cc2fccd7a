//! Who takes which way, asked with packets. No datapath is attached: the kernel forwards what it is given.

use std::time::{Duration, Instant};

use super::lab::*;
use crate::link::{Mark, Place, plan};

/// Off every subnet: the client's address that the router has no route to but its default, a service of the cluster,
/// and an external host behind the gateway. IPv4 and IPv6.
const FAR_CLIENT: [&str; 2] = ["172.30.0.5", "fd00:172::5"];
const FAR_OUTSIDE: [&str; 2] = ["203.0.113.27", "2001:db8:203::27"];
const EXTERNAL: [&str; 2] = ["192.168.12.99", "2001:db8:12::99"];
const CLUSTER: [&str; 2] = ["10.128.0.2", "fd00:128::2"];

/// A lab with those, and reverse path filters as strict as they get.
fn far_lab() -> Lab {
    let lab = Lab::new();
    for interface in ["all", "default", "eth0"] {
        lab.router.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1");
    }
    for family in 0..2 {
        lab.client.ip(&format!("address add {} dev lo", FAR_CLIENT[family]));
        lab.client.ip(&format!("route add {} via {}", FAR_OUTSIDE[family], CLUSTER[family]));
        lab.outside.ip(&format!("address add {} dev lo", FAR_OUTSIDE[family]));
        for client in [FAR_CLIENT[family], ["10.128.0.1", "fd00:128::1"][family]] {
            lab.outside.ip(&format!("route add {client} via {}", EXTERNAL[family]));
        }
    }
    lab.apply(&dual_stack()).unwrap();
    lab
}

#[test]
fn requests_leave_by_the_external_interface_and_replies_find_clients_on_no_route() {
    let lab = far_lab();
    for family in 0..2 {
        for client in [None, Some(FAR_CLIENT[family])] {
            for target in [OUTSIDE[family], FAR_OUTSIDE[family]] {
                lab.client.ip(&format!("route replace {target} via {}", CLUSTER[family]));
                assert!(lab.client.reaches(&lab.outside, client, target), "{client:?} to {target}");
            }
        }
    }
}

#[test]
fn the_pods_own_traffic_keeps_its_way() {
    let lab = far_lab();
    for family in 0..2 {
        assert!(lab.router.reaches(&lab.client, None, FAR_CLIENT[family]), "a service of the cluster");
        assert!(lab.router.reaches(&lab.outside, None, OUTSIDE[family]), "a neighbour outside");
        let bound = Some(EXTERNAL[family]);
        assert!(lab.router.reaches(&lab.outside, bound, FAR_OUTSIDE[family]), "outside from the external address");
    }
}

#[test]
fn listeners_in_the_pod_answer_on_either_side() {
    let lab = far_lab();
    for family in 0..2 {
        assert!(
            lab.client.reaches(&lab.router, Some(FAR_CLIENT[family]), CLUSTER[family]),
            "family {family}: far client"
        );
        assert!(
            lab.outside.reaches(&lab.router, Some(FAR_OUTSIDE[family]), EXTERNAL[family]),
            "family {family}: far host"
        );
    }
}

#[test]
fn without_a_cluster_default_route_the_pods_own_traffic_goes_outside() {
    let lab = far_lab();
    lab.router.ip("route delete default");
    lab.router.ip("-6 route delete default");
    for target in FAR_OUTSIDE {
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
    }
}

#[test]
fn requests_never_take_the_clusters_way_out() {
    let lab = far_lab();
    lab.router.ip("link set net1 down");
    let ways = [
        format!("route get {} from 10.128.0.1 iif eth0", FAR_OUTSIDE[0]),
        format!("-6 route get {} from fd00:128::1 iif eth0", FAR_OUTSIDE[1]),
    ];
    for way in ways {
        let error = lab.router.ip_fails(&way);
        assert!(error.contains("unreachable") || error.contains("No route to host"), "{way}: {error}");
    }
}

#[test]
fn the_sender_of_a_reply_too_big_for_the_cluster_learns_the_mtu() {
    let lab = far_lab();
    lab.router.ip("link set eth0 mtu 1300");
    let from: std::net::IpAddr = FAR_OUTSIDE[0].parse().unwrap();
    let server = lab.outside.netns.run(|| std::net::UdpSocket::bind((from, 0))).unwrap().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let route = || lab.outside.ip(&format!("route get {} from {}", FAR_CLIENT[0], FAR_OUTSIDE[0]));
    while !route().contains("mtu 1300") {
        assert!(Instant::now() < deadline, "{}", route());
        // Fails with EMSGSIZE once the MTU is known.
        let _known = server.send_to(&[0; 1400], (FAR_CLIENT[0], 9));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_datapaths_reply_mark_has_a_rule() {
    let lab = Lab::new();
    let place = Place { reply_mark: Some(Mark { value: 0x4500_0000, mask: 0xff00_0000 }), ..lab.place() };
    let plan_it = || plan(&place, &router_name(), &dual_stack(), &[]).unwrap();
    let mut applied = crate::link::prepare(&place, plan_it(), &lab.record()).unwrap();
    applied.claim().unwrap();
    assert!(plan_it().is_empty());
    let rules = lab.router.ip("-6 rule show");
    assert!(rules.contains("fwmark 0x45000000/0xff000000 iif lo lookup 25959"), "{rules}");
}
