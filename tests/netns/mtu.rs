//! Path MTU: who sends a packet that is too large learns it, both ways, and nothing too large is ever sent on.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};

use egress_lab::address::{ROUTER, SERVER_1, SNAT};
use egress_lab::capture::Capture;
use egress_lab::endpoint::Seen;
use egress_lab::topology::{MASTER, OUTSIDE_INTERFACE, switch_offloads_off};
use egress_lab::udp::{Oversize, UdpClient};
use egress_lab::{Family, Netns, Options, tcp, wait_until};
use nix::libc::EMSGSIZE;

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};
use crate::wire::unlimited_errors;

/// The smaller of two links' MTUs.
const SMALL: u32 = 1400;
/// Of a link behind the gateway, and of one on the client's side. IPv6 must be able to use 1280.
const SMALLER: u32 = 1300;

fn spec() -> Spec {
    Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, 7001)
}

fn rig(options: Options) -> Rig {
    let rig = Rig::with(&options, &spec(), &[]);
    unlimited_errors(&rig);
    rig
}

/// Bytes of IP and UDP header.
fn headers(family: Family) -> u32 {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// What fills a packet of this size.
fn filling(family: Family, mtu: u32) -> Vec<u8> {
    (0..mtu - headers(family)).map(|at| at.to_le_bytes()[0]).collect()
}

/// The MTU that a host has learned of the way to a destination.
fn learned(netns: &Netns, to: IpAddr) -> Option<u32> {
    let route = netns.ip(["route", "get", &to.to_string()]).unwrap();
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().map(|mtu| mtu.parse().unwrap())
}

/// Sends full-size datagrams from a connected socket until it is told the MTU, then one that just fits.
fn learns(socket: &UdpSocket, netns: &Netns, to: IpAddr, mtu: u32) {
    let family = Family::of(to);
    wait_until("EMSGSIZE", TIMEOUT, || match socket.send(&filling(family, 1500)) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(EMSGSIZE), "{error}");
            true
        }
    })
    .unwrap();
    assert_eq!(learned(netns, to), Some(mtu), "{family}");
    assert_eq!(socket.send(&filling(family, mtu + 1)).unwrap_err().raw_os_error(), Some(EMSGSIZE));
    // An error about one of the datagrams before may be waiting to be told.
    wait_until("the datagram that fits to be sent", TIMEOUT, || socket.send(&filling(family, mtu)).is_ok()).unwrap();
}

/// A client's socket that never fragments, with its flow open.
fn unfragmented(rig: &Rig, family: Family) -> (UdpClient, Seen) {
    let (client, seen) = rig.udp(anyone(family), 7000);
    client.oversize(Oversize::Refuse).unwrap();
    (client, seen)
}

/// The client learns `mtu` from its own datagrams; the largest that fits arrives.
fn client_learns(rig: &Rig, family: Family, mtu: u32) {
    let server = rig.udp_server(at(SERVER_1, family, 7001));
    let (client, seen) = unfragmented(rig, family);
    let before = server.seen()[&seen.source];
    learns(client.socket(), &rig.client, ROUTER.ip(family), mtu);
    wait_until("the datagram that fits", TIMEOUT, || server.seen()[&seen.source] == before + 1).unwrap();
}

/// The server learns `mtu` from its own datagrams; the largest that fits arrives.
fn server_learns(rig: &Rig, family: Family, mtu: u32) {
    let server = rig.udp_server(at(SERVER_1, family, 7001));
    let (client, seen) = unfragmented(rig, family);
    drop(server);
    let [first, _] = &rig.servers;
    let server = UdpClient::open(first, seen.server, seen.source).unwrap();
    server.oversize(Oversize::Refuse).unwrap();
    learns(server.socket(), first, SNAT.ip(family), mtu);
    client.socket().set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut buffer = [0; 2000];
    let length = client.socket().recv(&mut buffer).unwrap();
    assert_eq!(buffer[..length], filling(family, mtu), "{family}");
}

#[test]
fn the_client_learns_the_mtu_of_the_external_interface() {
    let rig = rig(Options { uplink_mtu: SMALL, ..Options::default() });
    let sent = Capture::start(&rig.outside, OUTSIDE_INTERFACE).unwrap();
    for family in Family::ALL {
        client_learns(&rig, family, SMALL);
    }
    largest(&sent, SMALL);
}

#[test]
fn the_client_learns_the_mtu_of_a_link_behind_the_gateway() {
    let rig = rig(Options::default());
    narrow(&rig.outside, SERVER_1.both(), "o1", SMALLER);
    for family in Family::ALL {
        client_learns(&rig, family, SMALLER);
    }
}

#[test]
fn the_server_learns_the_mtu_of_the_cluster_interface() {
    let rig = rig(Options { cluster_mtu: SMALL, ..Options::default() });
    let sent = Capture::start(&rig.client, "c0").unwrap();
    for family in Family::ALL {
        server_learns(&rig, family, SMALL);
    }
    largest(&sent, SMALL);
}

/// Makes the way to some hosts narrower than its interface.
fn narrow(netns: &Netns, hosts: [IpAddr; 2], device: &str, mtu: u32) {
    for host in hosts {
        netns.ip_lines(&format!("route replace {host} dev {device} mtu lock {mtu}\n")).unwrap();
    }
}

/// Checks that no IP packet is larger than this.
fn largest(capture: &Capture, mtu: u32) {
    let frames = capture.frames().unwrap();
    assert!(!frames.is_empty());
    let largest = frames.iter().map(|frame| frame.length).max().unwrap();
    assert!(largest <= usize::try_from(mtu).unwrap() + 14, "a frame of {largest} bytes");
}

/// 20 MB each way at once, with segments of 1460 bytes, whichever MTU the links have.
fn transfer(rig: &Rig, family: Family) {
    let _server = rig.tcp_server(at(SERVER_1, family, 8080));
    // As a host says whose own link is no narrower.
    let (network, mss) = match family {
        Family::V4 => ("10.128.0.0/24", "1460"),
        Family::V6 => ("fd00:10::/64", "1440"),
    };
    let version = if family == Family::V4 { "-4" } else { "-6" };
    rig.client.ip([version, "route", "replace", network, "dev", "c0", "advmss", mss]).unwrap();
    let bulk = tcp::bulk(&rig.client, anyone(family), router(family, 80), 20_000_000, TIMEOUT).result.unwrap();
    assert!(bulk.is_intact(), "{bulk:?}");
}

#[test]
fn large_transfers_find_their_way_through_a_narrow_uplink() {
    for offloads in [true, false] {
        let rig = rig(Options { uplink_mtu: SMALL, offloads, ..Options::default() });
        // Segments are cut before the outside sees them, and the router still gets large ones.
        switch_offloads_off(&rig.node, MASTER).unwrap();
        let sent = Capture::start(&rig.outside, OUTSIDE_INTERFACE).unwrap();
        for family in Family::ALL {
            transfer(&rig, family);
        }
        largest(&sent, SMALL);
    }
}

#[test]
fn large_transfers_find_their_way_through_a_narrow_cluster_interface() {
    for offloads in [true, false] {
        let rig = rig(Options { cluster_mtu: SMALL, offloads, ..Options::default() });
        switch_offloads_off(rig.router_netns(), "eth0").unwrap();
        let sent = Capture::start(&rig.client, "c0").unwrap();
        for family in Family::ALL {
            transfer(&rig, family);
        }
        largest(&sent, SMALL);
    }
}

#[test]
fn large_transfers_find_their_way_through_a_narrow_link_behind_the_gateway() {
    let rig = rig(Options::default());
    narrow(&rig.outside, SERVER_1.both(), "o1", SMALLER);
    for family in Family::ALL {
        transfer(&rig, family);
        // The server's side too: what it sends passes the wide way, so only the client had to learn.
        assert_eq!(learned(&rig.client, ROUTER.ip(family)), Some(SMALLER), "{family}");
    }
}

#[test]
fn what_may_be_fragmented_is_and_arrives() {
    for options in [
        Options { uplink_mtu: SMALL, ..Options::default() },
        Options { cluster_mtu: SMALL, ..Options::default() },
        Options { uplink_mtu: SMALL, offloads: false, ..Options::default() },
    ] {
        let rig = rig(options);
        for family in Family::ALL {
            let server = rig.udp_server(at(SERVER_1, family, 7001));
            let (client, seen) = rig.udp(anyone(family), 7000);
            client.oversize(Oversize::Fragment).unwrap();
            // One that becomes two on the way, two that become three or four, and many.
            for size in [1472, 3000, 8000] {
                let payload = filling(family, size + headers(family));
                // With IPv6 only the sender fragments, and has to learn the MTU at the cost of a datagram: each its own way.
                wait_until("an answer", TIMEOUT, || {
                    match client.exchange(&payload, std::time::Duration::from_secs(2)).result {
                        Ok(again) => again == seen,
                        Err(error) => {
                            assert!(family == Family::V6, "{size} bytes: {error}");
                            assert_eq!(error.kind(), ErrorKind::TimedOut, "{size} bytes");
                            false
                        }
                    }
                })
                .unwrap();
            }
            drop(server);
        }
    }
}
