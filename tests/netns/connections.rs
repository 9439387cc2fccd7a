//! The life of TCP connections: half closed, refused, reset, and ports that are used again at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use egress_lab::address::{SERVER_1, SNAT, client};
use egress_lab::udp::UdpClient;
use egress_lab::wait::wait_for;
use egress_lab::{Family, tcp, wait_until};

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};

fn rig() -> Rig {
    Rig::start(&Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None))
}

/// How much is streamed at a time, how often and at what pace: about two seconds.
const PIECE: [u8; 10_000] = [7; 10_000];
const PIECES: usize = 40;
const PACE: Duration = Duration::from_millis(50);

fn send_all(mut stream: &TcpStream) {
    for _ in 0..PIECES {
        stream.write_all(&PIECE).unwrap();
        // The stream shall outlast the moment of the half close; nobody waits for this.
        std::thread::sleep(PACE);
    }
}

/// Starts a server that serves one connection in its own way.
fn serve_once(rig: &Rig, family: Family, serve: impl FnOnce(&TcpStream) + Send + 'static) -> JoinHandle<()> {
    let address = at(SERVER_1, family, 8080);
    let listener = rig.server(SERVER_1).unwrap().run(|| TcpListener::bind(address)).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        serve(&stream);
    })
}

#[test]
fn a_half_closed_connection_goes_on_in_the_other_direction() {
    let rig = rig();
    for family in Family::ALL {
        // The client has said all, and listens.
        let server = serve_once(&rig, family, |mut stream| {
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            assert_eq!(said, b"that is all from me");
            send_all(stream);
        });
        let connection = rig.connect(anyone(family), 80).unwrap();
        let mut stream = connection.stream();
        stream.write_all(b"that is all from me").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert_eq!(heard.len(), PIECES * PIECE.len(), "{family}: the client's half closed");
        server.join().unwrap();

        // The server has said all, and listens.
        let server = serve_once(&rig, family, |mut stream| {
            stream.write_all(b"that is all from me").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            assert_eq!(heard.len(), PIECES * PIECE.len());
        });
        let connection = rig.connect(anyone(family), 80).unwrap();
        let mut stream = connection.stream();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        assert_eq!(said, b"that is all from me");
        send_all(stream);
        drop(connection);
        server.join().unwrap();
    }
}

#[test]
fn a_source_port_can_be_used_again_at_once() {
    let rig = rig();
    for family in Family::ALL {
        let server = rig.tcp_server(at(SERVER_1, family, 8080));
        let from = at(client(0), family, 30_000);
        for number in 0..200 {
            // The last connection's last acknowledgment may still be on its way to this host's own socket.
            let connection = wait_for("the port to be free at the client", TIMEOUT, || match rig.connect(from, 80) {
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => None,
                other => Some(other),
            });
            let mut connection = connection.unwrap().unwrap();
            if number % 2 == 0 {
                connection.exchange(b"then a reset").unwrap();
                connection.reset().unwrap();
            } else {
                // To a request of this form the server answers, and closes first: so the client's port is free at once.
                connection.stream().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                let mut page = String::new();
                connection.stream().read_to_string(&mut page).unwrap();
                assert!(page.contains("you come from"), "{page}");
            }
        }
        let accepted = server.accepted();
        assert_eq!(accepted.len(), 200);
        assert!(accepted.iter().all(|seen| seen.source == at(SNAT, family, 30_000)), "{family}: the mapping changed");
    }
}

#[test]
fn a_server_that_refuses_is_heard() {
    let rig = rig();
    for family in Family::ALL {
        for _ in 0..10 {
            let attempt = tcp::exchange(&rig.client, anyone(family), router(family, 80), b"anybody?", TIMEOUT);
            assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{family}");
        }
        let _server = rig.tcp_server(at(SERVER_1, family, 8080));
        rig.tcp(anyone(family), 80);
        // Of a datagram by an ICMP error, which quotes the packet as the server got it.
        let socket = UdpClient::open(&rig.client, anyone(family), router(family, 7000)).unwrap();
        let attempt = socket.exchange(b"anybody?", TIMEOUT);
        assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::ConnectionRefused, "UDP, {family}");
    }
}

#[test]
fn short_connections_leave_only_closed_flows() {
    let rig = rig();
    for family in Family::ALL {
        let _server = rig.tcp_server(at(SERVER_1, family, 8080));
        for _ in 0..500 {
            tcp::exchange(&rig.client, anyone(family), router(family, 80), b"hello", TIMEOUT).result.unwrap();
        }
    }
    let mut states = std::collections::BTreeMap::<String, usize>::new();
    let ended = wait_until("every connection to be closed", TIMEOUT, || {
        states.clear();
        for flow in rig.flows() {
            *states.entry(flow["state"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        states.keys().all(|state| matches!(state.as_str(), "tcp-time-wait" | "tcp-close"))
    });
    assert!(ended.is_ok(), "{states:?}");
    // The client's kernel may give one port twice, after the first connection's time is over.
    let flows = states.values().sum::<usize>();
    assert!((900..=1000).contains(&flows), "{states:?}");
}
