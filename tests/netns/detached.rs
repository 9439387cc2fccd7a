//! The datapath without its agent.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::icmp::Echo;
use egress_lab::tcp::TcpConnection;
use egress_lab::{Family, Options};

use crate::live::Live;
use crate::rig::{Rig, Spec, TIMEOUT, at, router};

#[test]
fn what_apply_set_up_works_with_nothing_running() {
    // A specification has one fallback, which serves its own family: hence a rig for each.
    for fallback in Family::ALL {
        let spec = Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None).fallback(SERVER_2.ip(fallback));
        let rig = Rig::prepare(&Options::default(), &spec, &[]);
        rig.router.apply().unwrap();
        for family in Family::ALL {
            let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
            let _udp = rig.udp_server(at(SERVER_1, family, 7000));
            for (source_port, number) in [(30_000, 0), (30_000, 1)] {
                let from = at(client(number), family, source_port);
                assert_eq!(rig.tcp(from, 80).1.source.ip(), SNAT.ip(family));
                assert_eq!(rig.udp(from, 7000).1.source.ip(), SNAT.ip(family));
            }
        }
        let _fallback = rig.tcp_server(at(SERVER_2, fallback, 443));
        assert_eq!(rig.tcp(at(client(0), fallback, 0), 443).1.server, at(SERVER_2, fallback, 443));
        let (from, to) = (client(0).ip(fallback), ROUTER.ip(fallback));
        let echo = Echo { from, to, id: 7, sequence: 1, payload: b"nobody runs" };
        assert_eq!(echo.exchange(&rig.client, TIMEOUT).result.unwrap(), to);
    }
}

#[test]
fn an_agent_that_is_killed_and_restarted_loses_no_packet() {
    let spec = Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None);
    let mut rig = Rig::start(&spec);
    let mut servers = Vec::new();
    for family in Family::ALL {
        servers.push((rig.tcp_server(at(SERVER_1, family, 8080)), rig.udp_server(at(SERVER_1, family, 7000))));
    }
    let live = Live::start(&rig);
    for _ in 0..5 {
        rig.router.kill().unwrap();
        for family in Family::ALL {
            // While nobody runs, new flows are opened too.
            rig.tcp(at(client(1), family, 0), 80);
            rig.udp(at(client(1), family, 0), 7000);
        }
        live.wait();
        rig.router.start().unwrap();
        live.wait();
    }
    live.finish();
}

/// A connection through the router, and the server's end of it.
fn connected(rig: &Rig, family: Family) -> (TcpConnection, TcpStream) {
    let server = at(SERVER_1, family, 8080);
    let listener = rig.server(SERVER_1).unwrap().run(|| TcpListener::bind(server)).unwrap();
    let from = at(client(0), family, 30_000);
    let client = TcpConnection::open(&rig.client, from, router(family, 80), TIMEOUT).unwrap();
    let (stream, source) = listener.accept().unwrap();
    assert_eq!(source, at(SNAT, family, 30_000));
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    (client, stream)
}

#[test]
fn a_server_may_speak_first_after_a_restart() {
    let mut rig = Rig::start(&Spec::new().tcp(80, SERVER_1, 8080));
    let connections = Family::ALL.map(|family| connected(&rig, family));
    for _ in 0..3 {
        rig.router.kill().unwrap();
        rig.router.start().unwrap();
        for (client, server) in &connections {
            let (mut client, mut server) = (client.stream(), server);
            server.write_all(b"you were away").unwrap();
            let mut heard = [0; 13];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"you were away");
        }
    }
}

// With its flows gone, as after a move to another node (docs/operations.md): the server is told, and does not wait in vain.
#[test]
fn a_server_that_speaks_first_after_a_move_is_reset_at_once() {
    let mut rig = Rig::start(&Spec::new().tcp(80, SERVER_1, 8080));
    let connections = Family::ALL.map(|family| connected(&rig, family));
    rig.router.terminate().unwrap();
    rig.router.delete().unwrap();
    rig.router.start().unwrap();
    for (_client, server) in connections {
        let mut server = &server;
        server.write_all(b"you were away").unwrap();
        let error = server.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
