//! The pod itself: what its own processes open, and the ports that it keeps for itself, with a fallback in force.

use std::net::{SocketAddr, UdpSocket};

use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::endpoint::any_port;
use egress_lab::icmp::Echo;
use egress_lab::tcp::{TcpConnection, TcpServer};
use egress_lab::udp::{UdpClient, UdpServer};
use egress_lab::{Family, Options};

use crate::rig::{Rig, Spec, TIMEOUT, at};

// A specification has one fallback, which serves its own family: hence a rig for each.
fn with_fallback(family: Family) -> Rig {
    let spec = Spec::new().tcp(80, SERVER_1, 8080).fallback(SERVER_2.ip(family));
    Rig::with(&Options::default(), &spec, &["--local-port", "tcp/9100", "--local-port", "udp/9100"])
}

#[test]
fn the_pods_own_connections_work_by_either_interface() {
    for family in Family::ALL {
        let rig = with_fallback(family);
        let pod = rig.router_netns();
        let ways = [
            (SNAT, SERVER_1, rig.server(SERVER_1).unwrap()),
            // The fallback's own host is no exception.
            (SNAT, SERVER_2, rig.server(SERVER_2).unwrap()),
            (ROUTER, client(0), &rig.client),
        ];
        for (own, host, netns) in ways {
            let to = at(host, family, 8080);
            let _tcp = TcpServer::start(netns, to).unwrap();
            let _udp = UdpServer::start(netns, to).unwrap();
            // A port of the kernel's choice, one above and one below those that it chooses from.
            for port in [0, 61_000, 9_500] {
                let from = at(own, family, port);
                let mut connection = TcpConnection::open(pod, from, to, TIMEOUT).unwrap();
                let seen = connection.exchange(b"from the pod").unwrap();
                assert_eq!(seen.source, connection.local().unwrap(), "TCP {from} to {to}");
                let socket = UdpClient::open(pod, from, to).unwrap();
                let seen = socket.exchange(b"from the pod", TIMEOUT).result.unwrap();
                assert_eq!(seen.source, socket.local().unwrap(), "UDP {from} to {to}");
            }
            let seen = exchange_unconnected(&rig, any_port(own.ip(family)), to);
            assert_eq!(seen.ip(), own.ip(family), "unconnected UDP to {to}");
            let echo = Echo { from: own.ip(family), to: to.ip(), id: 99, sequence: 1, payload: b"from the pod" };
            assert_eq!(echo.exchange(pod, TIMEOUT).result.unwrap(), to.ip());
        }
    }
}

/// One datagram and its answer by a socket that is not connected, as a resolver's may be; returns its own address.
fn exchange_unconnected(rig: &Rig, from: SocketAddr, to: SocketAddr) -> SocketAddr {
    let socket = rig.router_netns().run(|| UdpSocket::bind(from)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.send_to(b"not connected", to).unwrap();
    let mut buffer = [0; 512];
    let (length, source) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(source, to);
    assert!(buffer.get(..length).unwrap().ends_with(b"not connected"));
    socket.local_addr().unwrap()
}

#[test]
fn a_port_that_is_declared_local_is_the_pods_and_any_other_the_fallbacks() {
    for family in Family::ALL {
        let rig = with_fallback(family);
        let mut servers = Vec::new();
        for port in [9100, 9101] {
            for (netns, host) in [(rig.router_netns(), ROUTER), (rig.server(SERVER_2).unwrap(), SERVER_2)] {
                let address = at(host, family, port);
                servers.push((TcpServer::start(netns, address).unwrap(), UdpServer::start(netns, address).unwrap()));
            }
        }
        for (port, server, source) in [(9100, ROUTER, client(1)), (9101, SERVER_2, SNAT)] {
            let from = at(client(1), family, 30_000);
            let expected = (at(server, family, port), at(source, family, 30_000));
            let (_, seen) = rig.tcp(from, port);
            assert_eq!((seen.server, seen.source), expected, "TCP {port}");
            let (_, seen) = rig.udp(from, port);
            assert_eq!((seen.server, seen.source), expected, "UDP {port}");
        }
    }
}
