//! What the router finds around it: forwarding off, strict reverse path filters, clients that are not on its link, services of
//! the cluster, and an interface as Calico makes it.

use std::net::IpAddr;

use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::endpoint::any_port;
use egress_lab::icmp::Echo;
use egress_lab::tcp::{TcpConnection, TcpServer};
use egress_lab::udp::{UdpClient, UdpServer};
use egress_lab::{Family, Options};

use crate::rig::{Rig, Spec, TIMEOUT, at, router};

fn spec() -> Spec {
    Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None)
}

/// TCP and UDP by a rule, from this address of the client.
fn assert_rules_work(rig: &Rig, from: IpAddr) {
    let family = Family::of(from);
    let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
    let _udp = rig.udp_server(at(SERVER_1, family, 7000));
    let (_, seen) = rig.tcp(any_port(from), 80);
    assert_eq!((seen.server, seen.source.ip()), (at(SERVER_1, family, 8080), SNAT.ip(family)), "TCP from {from}");
    let (_, seen) = rig.udp(any_port(from), 7000);
    assert_eq!((seen.server, seen.source.ip()), (at(SERVER_1, family, 7000), SNAT.ip(family)), "UDP from {from}");
}

/// An address of the pod network's far side: another node's pod.
fn far_client(family: Family) -> IpAddr {
    let address = match family {
        Family::V4 => "172.30.0.5",
        Family::V6 => "fd00:30::5",
    };
    address.parse().unwrap()
}

/// Gives the client a further address, of which the router has no route but its default.
fn add_far_client(rig: &Rig, family: Family) -> IpAddr {
    let ip = far_client(family);
    let length = if ip.is_ipv4() { 32 } else { 128 };
    let nodad = if ip.is_ipv4() { "" } else { " nodad" };
    rig.client.ip_lines(&format!("address add {ip}/{length} dev lo{nodad}\n")).unwrap();
    ip
}

#[test]
fn forwarding_that_is_off_is_switched_on() {
    let mut rig = Rig::prepare(&Options::default(), &spec(), &[]);
    let off = ["net.ipv4.ip_forward=0", "net.ipv4.conf.default.forwarding=0", "net.ipv6.conf.all.forwarding=0"];
    rig.router_netns().sysctl(off).unwrap();
    rig.router.start().unwrap();
    for family in Family::ALL {
        assert_rules_work(&rig, client(0).ip(family));
    }
}

#[test]
fn strict_reverse_path_filters_do_not_matter() {
    // IPv4 has such a filter, IPv6 has not: it runs along for the rest.
    let mut rig = Rig::prepare(&Options::default(), &spec(), &[]);
    let strict =
        ["net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=1"];
    rig.router_netns().sysctl(strict).unwrap();
    rig.router.start().unwrap();
    rig.router_netns().sysctl(["net.ipv4.conf.net1.rp_filter=1"]).unwrap();
    for family in Family::ALL {
        assert_rules_work(&rig, client(0).ip(family));
        let far = add_far_client(&rig, family);
        assert_rules_work(&rig, far);
    }
}

#[test]
fn clients_beyond_the_pods_routes_are_served() {
    let rig = Rig::start(&spec());
    for family in Family::ALL {
        let far = add_far_client(&rig, family);
        assert_rules_work(&rig, far);
    }
}

#[test]
fn the_pods_own_way_to_the_cluster_stays() {
    let rig = Rig::start(&spec().fallback(SERVER_2.ip(Family::V4)));
    for family in Family::ALL {
        // A service, which nothing but the cluster's default route leads to.
        let service = add_far_client(&rig, family);
        let to = std::net::SocketAddr::new(service, 53);
        let _tcp = TcpServer::start(&rig.client, to).unwrap();
        let _udp = UdpServer::start(&rig.client, to).unwrap();
        // Bound to nothing, as a resolver is: the kernel chooses the way and the source.
        let from = any_port(match family {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        });
        let mut connection = TcpConnection::open(rig.router_netns(), from, to, TIMEOUT).unwrap();
        assert_eq!(connection.exchange(b"a question").unwrap().source.ip(), ROUTER.ip(family));
        let socket = UdpClient::open(rig.router_netns(), from, to).unwrap();
        assert_eq!(socket.exchange(b"a question", TIMEOUT).result.unwrap().source.ip(), ROUTER.ip(family));
    }
}

#[test]
fn an_interface_without_a_subnet_serves() {
    for fallback in Family::ALL {
        let mut rig = Rig::prepare(&Options::default(), &spec().fallback(SERVER_2.ip(fallback)), &[]);
        // As Calico wires a pod: single addresses, and a gateway that only proxy ARP or its link-local address stands for.
        rig.client.sysctl(["net.ipv4.conf.c0.proxy_arp=1", "net.ipv4.conf.c0.forwarding=1"]).unwrap();
        rig.client.sysctl(["net.ipv6.conf.c0.forwarding=1", "net.ipv4.neigh.c0.proxy_delay=0"]).unwrap();
        let mut lines = String::from("address flush dev c0 scope global\n");
        lines += "address add fe80::1/64 dev c0 nodad\n";
        // Proxy ARP answers for what is routed elsewhere.
        lines += "route add 169.254.1.1 dev lo\n";
        lines += &format!("route add {} dev c0\nroute add {} dev c0\n", ROUTER.v4, ROUTER.v6);
        for number in 0..2 {
            lines += &format!("address add {}/32 dev lo\n", client(number).v4);
            lines += &format!("address add {}/128 dev lo nodad\n", client(number).v6);
        }
        rig.client.ip_lines(&lines).unwrap();
        let mut lines = String::from("address flush dev eth0 scope global\n");
        lines += &format!("address add {}/32 dev eth0\n", ROUTER.v4);
        lines += &format!("address add {}/128 dev eth0 nodad\n", ROUTER.v6);
        lines += "route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n";
        lines += "route add default via fe80::1 dev eth0\n";
        // The lab's own default route of IPv6 may have outlived the address that it went by.
        rig.router_netns().ip(["-6", "route", "flush", "default"]).unwrap();
        rig.router_netns().ip_lines(&lines).unwrap();
        rig.router.start().unwrap();
        for family in Family::ALL {
            for number in 0..2 {
                assert_rules_work(&rig, client(number).ip(family));
            }
        }
        let _server = rig.udp_server(at(SERVER_2, fallback, 9000));
        let (_, seen) = rig.udp(at(client(0), fallback, 0), 9000);
        assert_eq!(seen.source.ip(), SNAT.ip(fallback));
        let (from, to) = (client(0).ip(fallback), router(fallback, 0).ip());
        let echo = Echo { from, to, id: 7, sequence: 1, payload: b"by Calico" };
        assert_eq!(echo.exchange(&rig.client, TIMEOUT).result.unwrap(), to);
    }
}

#[test]
fn no_program_of_the_host_is_needed() {
    let rig = Rig::prepare(&Options::default(), &spec(), &[]);
    let mut apply = rig.router.command("apply");
    apply.arg("--spec").arg(rig.router.spec()).env("PATH", "/nonexistent");
    let output = apply.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for family in Family::ALL {
        assert_rules_work(&rig, client(0).ip(family));
    }
}
