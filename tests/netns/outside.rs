//! What must not get through: from the outside into the pod or its network, and from the pod network to anywhere that no
//! rule names.

use std::io::ErrorKind;
use std::net::SocketAddr;

use egress_lab::address::{GATEWAY, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::endpoint::any_port;
use egress_lab::tcp::{TcpConnection, TcpServer};
use egress_lab::udp::{self, UdpClient, UdpServer};
use egress_lab::{Family, Netns};

use crate::rig::{Rig, SILENCE, Spec, TIMEOUT, anyone, at};

/// A place that must not be reached: in which namespace it is, and its address.
struct Target<'a> {
    netns: &'a Netns,
    address: SocketAddr,
}

/// Tries TCP and UDP to every target at once, and expects silence on both sides. Returns how many packets at least were sent.
fn assert_silence(from: &Netns, source: impl Fn(Family) -> SocketAddr + Sync, targets: &[Target<'_>]) -> u64 {
    let listen = |target: &Target<'_>| {
        let tcp = TcpServer::start(target.netns, target.address).unwrap();
        (tcp, UdpServer::start(target.netns, target.address).unwrap())
    };
    let listeners = targets.iter().map(listen).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for Target { address: to, .. } in targets {
            let source = source(Family::of(to.ip()));
            scope.spawn(move || {
                let tcp = TcpConnection::open(from, source, *to, SILENCE);
                assert_eq!(tcp.unwrap_err().kind(), ErrorKind::TimedOut, "TCP from {source} to {to}");
            });
            scope.spawn(move || {
                let udp = udp::exchange(from, source, *to, b"let me in", SILENCE);
                assert_eq!(udp.result.unwrap_err().kind(), ErrorKind::TimedOut, "UDP from {source} to {to}");
            });
        }
    });
    for (tcp, udp) in &listeners {
        assert_eq!(tcp.accepted(), [], "{}", tcp.address());
        assert!(udp.seen().is_empty(), "{}: {:?}", udp.address(), udp.seen());
    }
    2 * u64::try_from(targets.len()).unwrap()
}

#[test]
fn nothing_is_opened_from_the_outside() {
    // With a fallback and without one, which differ on the cluster's side only.
    for fallback in [None, Some(Family::V4), Some(Family::V6)] {
        let mut spec = Spec::new().tcp(80, SERVER_1, 8080);
        if let Some(family) = fallback {
            spec = spec.fallback(SERVER_2.ip(family));
        }
        let rig = Rig::start(&spec);
        let mut targets = Vec::new();
        for family in Family::ALL {
            let prefix = match family {
                Family::V4 => "10.128.0.0/24",
                Family::V6 => "fd00:10::/64",
            };
            rig.outside.ip(["route", "add", prefix, "via", &SNAT.ip(family).to_string()]).unwrap();
            // A client, by way of the router; the pod by its external address, on a rule's port and on another; the pod by
            // its address on the cluster's side.
            targets.push(Target { netns: &rig.client, address: at(client(0), family, 9000) });
            for address in [at(SNAT, family, 9000), at(SNAT, family, 80), at(ROUTER, family, 9000)] {
                targets.push(Target { netns: rig.router_netns(), address });
            }
        }
        let before = rig.count("external_ingress", "unsolicited");
        let sent = assert_silence(&rig.outside, |family| any_port(GATEWAY.ip(family)), &targets);
        assert!(rig.count("external_ingress", "unsolicited") >= before + sent, "not all were counted");
    }
}

#[test]
fn what_the_pod_opened_is_answered_and_nobody_else_gets_in_by_it() {
    let rig = Rig::start(&Spec::new().tcp(80, SERVER_1, 8080));
    for family in Family::ALL {
        let _server = UdpServer::start(&rig.outside, at(GATEWAY, family, 7000)).unwrap();
        let own = at(SNAT, family, 9000);
        let pod = UdpClient::open(rig.router_netns(), own, at(GATEWAY, family, 7000)).unwrap();
        pod.exchange(b"hello from the pod", TIMEOUT).result.unwrap();
        // The same host from another port, to the socket that the pod has open.
        let stranger = udp::exchange(&rig.outside, at(GATEWAY, family, 7001), own, b"me too", SILENCE);
        assert_eq!(stranger.result.unwrap_err().kind(), ErrorKind::TimedOut);
        pod.exchange(b"and once more", TIMEOUT).result.unwrap();
    }
}

#[test]
fn a_client_reaches_nothing_through_the_router_but_by_a_rule() {
    for fallback in Family::ALL {
        let rig =
            Rig::start(&Spec::new().tcp(80, SERVER_1, 8080).udp(80, SERVER_1, 8080).fallback(SERVER_2.ip(fallback)));
        let mut targets = Vec::new();
        for family in Family::ALL {
            let gateway = ROUTER.ip(family).to_string();
            // A rule's own destination, the fallback's, a host that nothing names.
            for host in [SERVER_1, SERVER_2, GATEWAY] {
                rig.client.ip(["route", "add", &host.ip(family).to_string(), "via", &gateway]).unwrap();
                targets.push(Target { netns: rig.server(host).unwrap(), address: at(host, family, 8080) });
            }
            // The router's external address, on a rule's port and on another.
            rig.client.ip(["route", "add", &SNAT.ip(family).to_string(), "via", &gateway]).unwrap();
            for port in [80, 9000] {
                targets.push(Target { netns: rig.router_netns(), address: at(SNAT, family, port) });
            }
        }
        let before = rig.count("cluster_ingress", "foreign_destination");
        let sent = assert_silence(&rig.client, anyone, &targets);
        assert!(rig.count("cluster_ingress", "foreign_destination") >= before + sent, "not all were counted");
    }
}
