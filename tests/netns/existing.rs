//! `--existing-flows`: what becomes of live flows when the rule that opened them changes or goes. And edits that somebody
//! else holds up.

use std::io::{ErrorKind, Read as _};
use std::time::{Duration, Instant};

use egress_lab::address::{SERVER_1, SERVER_2, SNAT, client, external};
use egress_lab::detector::Detector;
use egress_lab::{Family, Options, wait_until};

use crate::rig::{Rig, Spec, TIMEOUT, at};
use crate::system::{command, run};

/// A hundred times longer than the two ends need to tell each other, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

fn spec(to: Option<egress_lab::address::Host>) -> Spec {
    // A rule that stays, for flows that must.
    let spec = Spec::new().tcp(81, SERVER_1, 8080).udp(7001, SERVER_1, 7000);
    match to {
        Some(to) => spec.tcp(80, to, 8080).udp(7000, to, None),
        None => spec,
    }
}

/// What an idle connection's end is told within a time: nothing, or its error.
fn told(stream: &std::net::TcpStream, within: Duration) -> Option<ErrorKind> {
    stream.set_read_timeout(Some(within)).unwrap();
    match (&mut &*stream).read(&mut [0; 16]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => Some(error.kind()),
        Ok(read) => panic!("{read} bytes from nowhere"),
    }
}

/// Cuts by an edit to another host, or by taking the rule away.
fn cut(to: Option<egress_lab::address::Host>) {
    let rig = Rig::with(&Options::default(), &spec(Some(SERVER_1)), &["--existing-flows", "cut"]);
    let hosts = || [SERVER_1, SERVER_2].into_iter().flat_map(|host| Family::ALL.map(|family| (host, family)));
    let _tcp: Vec<_> = hosts().map(|(host, family)| rig.tcp_server(at(host, family, 8080))).collect();
    let _udp: Vec<_> = hosts().map(|(host, family)| rig.udp_server(at(host, family, 7000))).collect();
    let ends = Family::ALL.map(|family| {
        let from = |port| at(client(0), family, port);
        (
            rig.tcp(from(20_000), 80).0,
            rig.udp(from(20_000), 7000).0,
            rig.tcp(from(20_001), 81).0,
            rig.udp(from(20_001), 7001).0,
        )
    });
    rig.router.edit(&spec(to).yaml()).unwrap();
    for (family, (tcp, udp, mut other_tcp, other_udp)) in Family::ALL.into_iter().zip(ends) {
        // Idle: nobody sends anything by itself.
        assert_eq!(told(tcp.stream(), SOON), Some(ErrorKind::ConnectionReset), "{family}");
        udp.socket().set_read_timeout(Some(SOON)).unwrap();
        let error = udp.socket().recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family}");
        // What the edit did not touch goes on.
        other_tcp.exchange(b"still here").unwrap();
        other_udp.exchange(b"still here", TIMEOUT).result.unwrap();
        let Some(to) = to else { continue };
        // The same ports, and so the same flow to whoever would have kept it.
        assert_eq!(rig.udp(at(client(0), family, 20_000), 7000).1.server, at(to, family, 7000));
    }
    let live = rig.flows();
    let is_old = |flow: &serde_json::Value| flow["destination"].as_str().is_some_and(|to| to.ends_with(":8080"));
    let old_ports = live.iter().filter(|flow| is_old(flow) && flow["client"].as_str().unwrap().ends_with(":20000"));
    let to_old = old_ports.filter(|flow| flow["destination"].as_str().unwrap().contains(&SERVER_1.v4.to_string()));
    assert_eq!(to_old.count(), 0, "{live:#?}");
}

#[test]
fn flows_of_a_rule_that_goes_elsewhere_are_cut() {
    cut(Some(SERVER_2));
}

#[test]
fn flows_of_a_rule_that_is_gone_are_cut() {
    cut(None);
}

#[test]
fn flows_drain_until_their_time_is_up() {
    let rig = Rig::with(&Options::default(), &spec(Some(SERVER_1)), &["--existing-flows", "drain=4"]);
    let _server = rig.tcp_server(at(SERVER_1, Family::V4, 8080));
    let (mut connection, _) = rig.tcp(at(client(0), Family::V4, 20_000), 80);
    let edited = Instant::now();
    rig.router.edit(&spec(None).yaml()).unwrap();
    let draining = || {
        let status = rig.router.report("status").unwrap();
        let conditions = status["conditions"].as_array().unwrap().clone();
        conditions.iter().any(|one| one["reason"] == "Draining" && one["status"] == "True")
    };
    wait_until("the status to tell of it", SOON, draining).unwrap();
    connection.exchange(b"draining").unwrap();
    assert!(edited.elapsed() < Duration::from_secs(4), "the machine was too slow to tell");
    // Swept every five seconds.
    assert_eq!(told(connection.stream(), Duration::from_secs(15)), Some(ErrorKind::ConnectionReset));
    assert!(edited.elapsed() > Duration::from_secs(4), "cut after {:?}", edited.elapsed());
    wait_until("the status to be at rest", SOON * 2, || !draining()).unwrap();
}

#[test]
fn apply_cuts_and_does_not_drain() {
    let rig = Rig::prepare(&Options::default(), &spec(Some(SERVER_1)), &[]);
    run(&mut command(&rig.router, "apply")).assert_done();
    let _server = rig.tcp_server(at(SERVER_1, Family::V6, 8080));
    let (connection, _) = rig.tcp(at(client(0), Family::V6, 20_000), 80);
    rig.router.edit(&spec(None).yaml()).unwrap();
    run(command(&rig.router, "apply").args(["--existing-flows", "drain=4"])).assert_refused(3, &["cannot drain"]);
    run(command(&rig.router, "apply").args(["--existing-flows", "cut"])).assert_done();
    assert_eq!(told(connection.stream(), SOON), Some(ErrorKind::ConnectionReset));
}

#[test]
fn an_edit_that_somebody_holds_up_is_made_when_he_is_gone() {
    let mut rig = Rig::start(&spec(Some(SERVER_1)));
    let taken = external(98);
    rig.detector = Detector::start(&rig, SNAT.both().into_iter().chain(taken.both())).unwrap();
    rig.outside.ip(["address", "add", &format!("{}/24", taken.v4), "dev", "s0"]).unwrap();
    rig.router.edit(&spec(Some(SERVER_2)).addresses([SNAT, taken]).yaml()).unwrap();
    let condition = |kind: &str| {
        let status = rig.router.report("status").unwrap();
        let conditions = status["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|one| one["type"] == kind).unwrap()
    };
    wait_until("the conflict to be told", TIMEOUT, || condition("Degraded")["reason"] == "AddressConflict").unwrap();
    assert_eq!(condition("Progressing")["reason"], "Retrying");
    assert_eq!(condition("Available")["status"], "True");
    rig.outside.ip(["address", "delete", &format!("{}/24", taken.v4), "dev", "s0"]).unwrap();
    // Nobody touches the file again.
    wait_until("the edit to be made by itself", TIMEOUT, || condition("Degraded")["status"] == "False")
        .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", condition("Degraded"), rig.router.stderr()));
    let rules = rig.router.show("rules").unwrap();
    assert!(rules.contains(&SERVER_2.v4.to_string()), "{rules}");
}
