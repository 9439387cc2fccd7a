//! Replies go back to where the request came from, whatever the routes say; and a neighbour that becomes another one is
//! followed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use egress_ebpf::contract::map;
use egress_lab::address::{ON_LINK, SERVER_1, SERVER_2};
use egress_lab::endpoint::any_port;
use egress_lab::icmp::Echo;
use egress_lab::topology::{CLUSTER_INTERFACE, EXTERNAL_INTERFACE, OUTSIDE_INTERFACE};
use egress_lab::udp::UdpClient;
use egress_lab::{Family, Options, bpf, wait_until};

use crate::rig::{Rig, SILENCE, Spec, TIMEOUT, anyone, at, router};

/// Where the router's default route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Default {
    /// To the client, as the primary CNI has it.
    Client,
    /// Nowhere.
    Absent,
    /// By an interface of the pod's that has nothing to do with it.
    Elsewhere,
}

/// A rig with a client behind the client: nothing but its own requests tells where it is.
fn rig(default: Default, family: Family) -> Rig {
    let spec = Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, 7001).fallback(SERVER_2.ip(family));
    let mut rig = Rig::prepare(&Options::default(), &spec, &[]);
    let netns = rig.router_netns();
    if default != Default::Client {
        for version in ["-4", "-6"] {
            netns.ip([version, "route", "flush", "default"]).unwrap();
        }
    }
    if default == Default::Elsewhere {
        let lines = "link add x0 type veth peer name x1\nlink set x1 up\nlink set x0 up\n\
                     address add 192.0.2.1/24 dev x0\naddress add 2001:db8:2::1/64 dev x0 nodad\n\
                     route add default via 192.0.2.2 dev x0\nroute add default via 2001:db8:2::2 dev x0\n";
        netns.ip_lines(lines).unwrap();
    }
    for ip in Family::ALL.map(far_client) {
        let (length, nodad) = if ip.is_ipv4() { (32, "") } else { (128, " nodad") };
        rig.client.ip_lines(&format!("address add {ip}/{length} dev lo{nodad}\n")).unwrap();
    }
    rig.router.start().unwrap();
    rig
}

/// An address that only the client knows the way to.
fn far_client(family: Family) -> IpAddr {
    let address = match family {
        Family::V4 => "172.30.0.5",
        Family::V6 => "fd00:30::5",
    };
    address.parse().unwrap()
}

#[test]
fn clients_that_no_route_leads_to_are_served() {
    for default in [Default::Client, Default::Absent, Default::Elsewhere] {
        for family in Family::ALL {
            let rig = rig(default, family);
            let from = far_client(family);
            let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
            let _udp = rig.udp_server(at(SERVER_1, family, 7001));
            for number in 0..3_u8 {
                let (mut connection, seen) = rig.tcp(any_port(from), 80);
                assert_eq!(seen.server, at(SERVER_1, family, 8080), "{default:?}");
                connection.exchange(&[number; 100_000]).unwrap();
                let (socket, seen) = rig.udp(any_port(from), 7000);
                assert_eq!(seen.server, at(SERVER_1, family, 7001), "{default:?}");
                // In fragments, both ways.
                for size in [1000, 4000] {
                    let answer = socket.exchange(&vec![number; size], TIMEOUT).result;
                    assert_eq!(answer.unwrap(), seen, "{size} bytes, {default:?}");
                }
                let to = router(family, 0).ip();
                let echo = Echo { from, to, id: 77, sequence: number.into(), payload: b"from afar" };
                assert_eq!(echo.exchange(&rig.client, TIMEOUT).result.unwrap(), to, "{default:?}");
            }
            if default == Default::Elsewhere {
                let left = rig.router_netns().ip(["-s", "-j", "link", "show", "dev", "x1"]).unwrap();
                let left = serde_json::from_str::<serde_json::Value>(&left).unwrap();
                // Neighbour discovery for the gateway that is not there, and router solicitations, may be.
                let packets = left[0]["stats64"]["rx"]["packets"].as_u64().unwrap();
                assert!(packets < 30, "{packets} packets went by the wrong way");
            }
        }
    }
}

/// Changes an interface's link address, as when another host takes an address over and tells nobody.
fn change_mac(netns: &egress_lab::Netns, device: &str) {
    let [_, rest @ ..] = netns.mac(device).unwrap();
    let mac = [&[0x06][..], &rest].concat().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    netns.ip(["link", "set", device, "address", &mac]).unwrap();
}

/// How long it takes until datagrams are answered again.
fn recovery(socket: &UdpClient) -> Duration {
    let started = Instant::now();
    wait_until("an answer", Duration::from_secs(90), || {
        socket.exchange(b"still there?", Duration::from_millis(100)).result.is_ok()
    })
    .unwrap();
    started.elapsed()
}

#[test]
fn the_clients_gateway_may_become_another_one() {
    for default in [Default::Client, Default::Absent] {
        for family in Family::ALL {
            let rig = rig(default, family);
            impatient(&rig, CLUSTER_INTERFACE);
            let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
            let _udp = rig.udp_server(at(SERVER_1, family, 7001));
            let (mut connection, _) = rig.tcp(any_port(far_client(family)), 80);
            let (socket, _) = rig.udp(any_port(far_client(family)), 7000);
            change_mac(&rig.client, "c0");
            let exchanged = connection.exchange(b"after the change");
            exchanged.unwrap_or_else(|error| panic!("{default:?}, {family}: {error}"));
            let took = recovery(&socket);
            // Without a route, the next request a second after the last tells the new one; with one, the kernel asks.
            assert!(took < Duration::from_secs(15), "{default:?}, {family}: {took:?}");
        }
    }
}

/// Has a neighbour's silence noticed within seconds instead of a minute.
fn impatient(rig: &Rig, device: &str) {
    for family in ["ipv4", "ipv6"] {
        let settings = ["base_reachable_time_ms=1000", "delay_first_probe_time=1", "retrans_time_ms=300"];
        let settings = settings.map(|setting| format!("net.{family}.neigh.{device}.{setting}"));
        rig.router_netns().sysctl(settings.iter().map(String::as_str)).unwrap();
    }
    // What is known already, since the agent has asked, was given the old patience.
    rig.router_netns().ip(["neigh", "flush", "dev", device]).unwrap();
}

#[test]
fn a_gateway_or_client_that_changes_unannounced_is_found_again() {
    for family in Family::ALL {
        let rig = rig(Default::Client, family);
        impatient(&rig, "net1");
        impatient(&rig, CLUSTER_INTERFACE);
        let _udp = rig.udp_server(at(SERVER_1, family, 7001));
        let (socket, _) = rig.udp(anyone(family), 7000);
        for (netns, device) in [(&rig.outside, "s0"), (&rig.client, "c0")] {
            change_mac(netns, device);
            let took = recovery(&socket);
            // Plain forwarding with these timers takes 3.4 s and 6.6 s.
            assert!(took < Duration::from_secs(15), "{device}, {family}: {took:?}");
        }
    }
}

/// When flows were last told to look their next hops up again.
fn told(rig: &Rig) -> u64 {
    let pin = |name| rig.router.pin(name).unwrap();
    bpf::settings(&pin(map::CONFIG), &pin(map::ACTIVE)).unwrap().changed_ns
}

/// For what is told when it happens: sooner than a flow looks by itself.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Whether flows are told of what is done.
fn is_told(rig: &Rig, within: Duration, what: impl FnOnce()) -> bool {
    let before = told(rig);
    what();
    wait_until("flows to be told", within, || told(rig) != before).is_ok()
}

/// Waits until flows have been told of all that has happened.
fn settle(rig: &Rig) {
    wait_until("all to be told", TIMEOUT, || !is_told(rig, SILENCE, || {})).unwrap();
}

/// Has the kernel know that somebody on the external network is there.
fn find(rig: &Rig, address: &str, mac: &str) {
    let entry = ["neighbour", "replace", address, "lladdr", mac, "dev", EXTERNAL_INTERFACE, "nud", "stale"];
    rig.router_netns().ip(entry).unwrap();
}

#[test]
fn a_neighbour_that_is_only_found_has_no_flow_look_its_next_hop_up_again() {
    let rig = Rig::start(&Spec::new().udp(7000, SERVER_1, 7001).udp(7002, ON_LINK, None));
    for family in Family::ALL {
        let _far = rig.udp_server(at(SERVER_1, family, 7001));
        let _near = rig.udp_server(at(ON_LINK, family, 7002));
        let (settled, _) = rig.udp(anyone(family), 7000);
        settle(&rig);
        let neighbour = || {
            let of = ["neighbour", "show", "to", &ON_LINK.ip(family).to_string(), "dev", EXTERNAL_INTERFACE];
            rig.router_netns().ip(of).unwrap()
        };
        assert!(!neighbour().contains("lladdr"), "it is known already: {}", neighbour());
        let mut fresh = None;
        let is_told = is_told(&rig, SILENCE, || fresh = Some(rig.udp(anyone(family), 7002)));
        let (fresh, seen) = fresh.unwrap();
        assert_eq!(seen.server, at(ON_LINK, family, 7002));
        assert!(neighbour().contains("lladdr"), "{}", neighbour());
        assert!(!is_told, "{family}: flows were told of a neighbour that none went to");
        // The flow that asked for it finds it by itself, and packets of both go the fast way.
        let redirected = || rig.count("cluster_ingress", "request_redirected");
        for socket in [&fresh, &settled] {
            let before = redirected();
            wait_until("packets to be redirected", TIMEOUT, || {
                socket.exchange(b"again", TIMEOUT).result.unwrap();
                redirected() > before
            })
            .unwrap();
        }
    }
}

#[test]
fn a_neighbour_that_moves_is_followed_at_once_though_it_was_there_before_the_agent() {
    let mut rig = Rig::start(&Spec::new().udp(7000, SERVER_1, 7001));
    for [address, other] in [["192.168.12.77", "192.168.12.78"], ["fd00:12::77", "fd00:12::78"]] {
        find(&rig, address, "02:00:00:00:00:77");
        rig.router.kill().unwrap();
        rig.router.start().unwrap();
        settle(&rig);
        let is_new = || find(&rig, other, "02:00:00:00:00:78");
        assert!(!is_told(&rig, SILENCE, is_new), "flows were told of {other}, which is new");
        let moves = || find(&rig, address, "02:00:00:00:00:79");
        assert!(is_told(&rig, AT_ONCE, moves), "flows were not told that {address} has moved");
        settle(&rig);
        let goes = || drop(rig.router_netns().ip(["neighbour", "delete", address, "dev", EXTERNAL_INTERFACE]).unwrap());
        assert!(is_told(&rig, AT_ONCE, goes), "flows were not told that {address} has gone");
    }
}

#[test]
fn neighbours_that_the_kernel_forgets_have_no_flow_look_its_next_hop_up_again() {
    let rig = Rig::start(&Spec::new().udp(7000, SERVER_1, 7001));
    settle(&rig);
    // Once there are so many on the machine it forgets those that nothing goes to: it looks four times a minute.
    let many =
        fs::read_to_string("/proc/sys/net/ipv4/neigh/default/gc_thresh1").unwrap().trim().parse::<u32>().unwrap();
    for family in ["ipv4", "ipv6"] {
        let soon = format!("net.{family}.neigh.{EXTERNAL_INTERFACE}.gc_stale_time=1");
        rig.router_netns().sysctl([soon.as_str()]).unwrap();
    }
    let known = || {
        let shown = rig.router_netns().ip(["neighbour", "show", "dev", EXTERNAL_INTERFACE]).unwrap();
        shown.matches("02:00:00:00:00:77").count()
    };
    let all = 2 * usize::try_from(many).unwrap();
    let forgets = || {
        for number in 1..=many {
            find(&rig, &Ipv4Addr::from(0x0a4d_0000 | number).to_string(), "02:00:00:00:00:77");
            find(&rig, &format!("fd77::{number:x}"), "02:00:00:00:00:77");
        }
        wait_until("the kernel to forget", Duration::from_secs(60), || known() < all).unwrap();
    };
    assert!(!is_told(&rig, SILENCE, forgets), "flows were told of neighbours that nothing went to");
}

#[test]
fn a_gateway_that_announces_its_new_address_is_followed_at_once() {
    for family in Family::ALL {
        let rig = rig(Default::Client, family);
        let notify = ["net.ipv4.conf.s0.arp_notify=1", "net.ipv6.conf.s0.ndisc_notify=1"];
        rig.outside.sysctl(notify).unwrap();
        let _udp = rig.udp_server(at(SERVER_1, family, 7001));
        let (socket, _) = rig.udp(anyone(family), 7000);
        settle(&rig);
        socket.exchange(b"settled", TIMEOUT).result.unwrap();
        let moves = || change_mac(&rig.outside, OUTSIDE_INTERFACE);
        assert!(is_told(&rig, AT_ONCE, moves), "{family}: flows were not told of the gateway");
        let took = recovery(&socket);
        assert!(took < AT_ONCE, "{family}: {took:?}");
    }
}
