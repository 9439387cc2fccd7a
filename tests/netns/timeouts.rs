//! How long flows live: with `--timeout`, in seconds instead of minutes and days. An entry notes a packet at most once a
//! second, so all that is looked at here is more than a second apart.

use std::thread::sleep;
use std::time::{Duration, Instant};

use egress_lab::address::{SERVER_1, client};
use egress_lab::frame::{Body, Frame};
use egress_lab::udp::UdpClient;
use egress_lab::{Family, Options, wait_until};
use serde_json::Value;

use crate::rig::{Rig, Spec, TIMEOUT, at, router};
use crate::wire::{End, GHOST_SERVER, Wire, request_ends, translated_ends};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const SYN_ACK: u8 = 0x12;

fn spec() -> Spec {
    Spec::new().tcp(80, GHOST_SERVER, 8080).udp(7000, GHOST_SERVER, 7001)
}

/// A conversation of ghosts, by one of the two rules.
#[derive(Clone, Copy)]
struct Talk {
    family: Family,
    port: u16,
    tcp: bool,
}

impl Talk {
    /// A packet from one of the ends, which must arrive at the other one; `number` tells it from all others.
    #[track_caller]
    fn passes(self, wire: &Wire, from: End, flags: u8, number: u32) {
        let (sent, wanted) = self.packet(from, flags, number);
        wire.passes(from, &sent, &wanted);
    }

    fn packet(self, from: End, flags: u8, number: u32) -> (Frame, Frame) {
        let (to_router, to_server) = if self.tcp { (80, 8080) } else { (7000, 7001) };
        let (client, router) = request_ends(self.family, self.port, to_router);
        let (snat, server) = translated_ends(self.family, self.port, to_server);
        let body = if self.tcp { Body::Tcp(flags) } else { Body::Udp };
        let request = Frame { payload: number.to_be_bytes().to_vec(), ..Frame::new(client, router, body) };
        match from {
            End::Client => (request.clone(), request.between(snat, server).forwarded()),
            End::Outside => (request.between(server, snat), request.between(router, client).forwarded()),
        }
    }

    fn open(self, wire: &Wire) {
        self.passes(wire, End::Client, SYN, 1);
        self.passes(wire, End::Outside, SYN_ACK, 2);
        self.passes(wire, End::Client, ACK, 3);
    }
}

/// As many conversations as are asked for, of both families.
fn talks(of_each: u16, tcp: bool) -> Vec<Talk> {
    let first = if tcp { 30_000 } else { 31_000 };
    let of = |family| (0..of_each).map(move |number| Talk { family, port: first + number, tcp });
    Family::ALL.into_iter().flat_map(of).collect()
}

#[test]
fn traffic_one_way_keeps_a_flow_however_short_its_timeout() {
    let arguments = ["tcp-established=3", "tcp-fin-wait=3", "tcp-close-wait=3", "udp=3", "udp-stream=3"];
    let arguments = arguments.map(|timeout| ["--timeout", timeout]).concat();
    let wire = Wire::with_arguments(&spec(), &arguments);
    // Who goes on sending: client, server; of datagrams too; and either one when the other has closed.
    let mut ways = Vec::new();
    for (number, talk) in talks(4, true).into_iter().chain(talks(2, false)).enumerate() {
        talk.open(&wire);
        let from = if number % 2 == 0 { End::Client } else { End::Outside };
        if talk.tcp && number % 4 >= 2 {
            talk.passes(&wire, from.other(), FIN_ACK, 4);
        }
        ways.push((talk, from));
    }
    let started = Instant::now();
    let mut number = 100;
    while started.elapsed() < Duration::from_secs(8) {
        for (talk, from) in &ways {
            talk.passes(&wire, *from, ACK, number);
        }
        number += 1;
        sleep(Duration::from_millis(500));
    }
    for (talk, from) in &ways {
        talk.passes(&wire, from.other(), ACK, 99);
    }
    // None of them is another flow than it was at the start: each has had every packet.
    let flows = wire.rig.flows();
    assert_eq!(flows.len(), ways.len());
    let packets =
        |flow: &Value| ["requestPackets", "replyPackets"].map(|name| flow.get(name).and_then(Value::as_u64).unwrap());
    assert!(flows.iter().all(|flow| packets(flow).iter().sum::<u64>() >= u64::from(number - 100) + 4), "{flows:?}");
}

#[test]
fn an_idle_connection_lives_for_its_timeout_and_is_picked_up_after_it() {
    let wire = Wire::with_arguments(&spec(), &["--timeout", "tcp-established=5"]);
    let talks = talks(1, true);
    talks.iter().for_each(|talk| talk.open(&wire));
    // A second less, and one for the entry's own.
    sleep(Duration::from_secs(3));
    for talk in &talks {
        talk.passes(&wire, End::Outside, ACK, 10);
    }
    sleep(Duration::from_secs(7));
    for talk in &talks {
        let (late, wanted) = talk.packet(End::Outside, ACK, 11);
        wire.send(End::Outside, &late);
        // The client speaks again: the same connection, with the same port.
        talk.passes(&wire, End::Client, ACK, 12);
        talk.passes(&wire, End::Outside, ACK, 13);
        let seen = wire.at_client.frames().unwrap();
        assert!(
            !seen.iter().filter_map(crate::wire::ip_bytes).any(|bytes| bytes == wanted.packet()),
            "{}",
            talk.family
        );
    }
    assert_eq!(wire.rig.flows().len(), talks.len());
}

#[test]
fn a_server_may_take_its_time_to_answer_a_syn() {
    let wire = Wire::start(&spec());
    let talks = talks(1, true);
    talks.iter().for_each(|talk| talk.passes(&wire, End::Client, SYN, 1));
    sleep(Duration::from_secs(3));
    talks.iter().for_each(|talk| talk.passes(&wire, End::Outside, SYN_ACK, 2));
    sleep(Duration::from_secs(3));
    talks.iter().for_each(|talk| talk.passes(&wire, End::Client, ACK, 3));
}

/// As many ports as there are.
const PORTS: u16 = 100;

/// Datagrams that nobody answers, each from another of a client's ports.
fn silent_flows(rig: &Rig, number: u8, family: Family, first: u16) {
    for port in first..first + PORTS {
        let socket = UdpClient::open(&rig.client, at(client(number), family, port), router(family, 7000)).unwrap();
        let _ = socket.exchange(b"no answer, please", Duration::ZERO);
    }
}

#[test]
fn ports_of_dead_flows_are_free_once_their_timeout_is_over_though_the_agent_is_dead() {
    let spec = Spec::new().udp(7000, SERVER_1, None);
    let arguments = ["--snat-ports", "50000-50099", "--timeout", "udp=6"];
    let mut rig = Rig::with(&Options::default(), &spec, &arguments);
    let exhausted = |rig: &Rig| rig.count("cluster_ingress", "ports_exhausted");
    // The agent takes them out of the table.
    for family in Family::ALL {
        silent_flows(&rig, 0, family, 20_000);
    }
    assert_eq!(exhausted(&rig), 0);
    assert_eq!(rig.flows().len(), 2 * usize::from(PORTS));
    wait_until("the table to be empty again", TIMEOUT, || rig.flows().is_empty()).unwrap();
    // Nobody does, and they do not count.
    rig.router.kill().unwrap();
    for family in Family::ALL {
        silent_flows(&rig, 0, family, 22_000);
    }
    assert_eq!((rig.flows().len(), exhausted(&rig)), (2 * usize::from(PORTS), 0));
    silent_flows(&rig, 1, Family::V4, 24_000);
    assert_eq!(exhausted(&rig), u64::from(PORTS), "while they are alive");
    wait_until("the flows to end", TIMEOUT, || rig.flows().is_empty()).unwrap();
    for family in Family::ALL {
        silent_flows(&rig, 1, family, 26_000);
    }
    assert_eq!((rig.flows().len(), exhausted(&rig)), (2 * usize::from(PORTS), u64::from(PORTS)));
}
