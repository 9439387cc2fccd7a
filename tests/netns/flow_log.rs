//! `--flow-log`: every flow that began and every one that ended, with both sides of its translation.

use std::fs;

use egress_lab::address::{SERVER_1, SNAT};
use egress_lab::udp::UdpClient;
use egress_lab::{Family, Options, wait_until};
use serde_json::Value;

use crate::metrics::{free_address, get};
use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};
use crate::system::{command, run};

#[test]
fn flows_are_logged_from_both_sides() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("flows.jsonl");
    let arguments = ["--flow-log", file.to_str().unwrap(), "--timeout", "udp=3", "--timeout", "udp-stream=3"];
    let mut rig = Rig::with(&Options::default(), &Spec::new().udp(7000, SERVER_1, 7001), &arguments);
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mut expected = Vec::new();
    for family in Family::ALL {
        let server = at(SERVER_1, family, 7001);
        let _server = rig.udp_server(server);
        let (udp, seen) = rig.udp(anyone(family), 7000);
        udp.exchange(b"once more", TIMEOUT).result.unwrap();
        assert_eq!(seen.source.ip(), SNAT.ip(family));
        expected.push((udp.local().unwrap(), router(family, 7000), seen.source, server));
    }
    for (client, to, source, server) in expected {
        let of = |line: &&Value| line["client"] == client.to_string();
        wait_until("both events", TIMEOUT, || lines().iter().filter(of).count() == 2)
            .unwrap_or_else(|error| panic!("{error:#}: {:#?}", lines()));
        let lines = lines();
        let events: Vec<&Value> = lines.iter().filter(of).collect();
        assert_eq!((&events[0]["event"], &events[1]["event"]), (&"opened".into(), &"closed".into()));
        for event in &events {
            assert_eq!(event["protocol"], "UDP");
            assert_eq!(event["router"], to.to_string());
            assert_eq!(event["source"], source.to_string());
            assert_eq!(event["destination"], server.to_string());
            assert!(event["rule"].is_u64(), "{event}");
        }
        assert_eq!((&events[1]["requestPackets"], &events[1]["replyPackets"]), (&2.into(), &2.into()), "{events:?}");
    }
    // What is under way when the agent ends is logged too.
    let _server = rig.udp_server(at(SERVER_1, Family::V4, 7001));
    let (udp, _) = rig.udp(anyone(Family::V4), 7000);
    assert_eq!(rig.router.terminate().unwrap().code(), Some(0));
    let last = udp.local().unwrap().to_string();
    assert!(lines().iter().any(|line| line["client"] == last && line["event"] == "opened"), "{:#?}", lines());
}

/// A flow log, and the router that writes it.
struct Logged {
    rig: Rig,
    file: std::path::PathBuf,
    _files: tempfile::TempDir,
}

impl Logged {
    fn start(arguments: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let file = files.path().join("flows.jsonl");
        let arguments = [&["--flow-log", file.to_str().unwrap()], arguments].concat();
        let rig = Rig::with(&Options::default(), &Spec::new().udp(7000, SERVER_1, 7001), &arguments);
        Self { rig, file, _files: files }
    }

    fn lines(&self, event: &str) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["event"] == event).collect()
    }

    /// Datagrams from the outside that nobody waits for.
    fn storm(&self, family: Family, count: usize) -> (String, String) {
        let (from, to) = (at(SERVER_1, family, 9), at(SNAT, family, 9));
        let stray = UdpClient::open(self.rig.server(SERVER_1).unwrap(), from, to).unwrap();
        for _ in 0..count {
            stray.socket().send(b"anybody there?").unwrap();
        }
        (from.to_string(), to.to_string())
    }
}

#[test]
fn drops_are_logged_with_their_reason() {
    let logged = Logged::start(&[]);
    for family in Family::ALL {
        let (from, to) = logged.storm(family, 3);
        let of = |line: &&Value| line["from"] == from;
        wait_until("three drops", TIMEOUT, || logged.lines("dropped").iter().filter(of).count() == 3).unwrap();
        for line in logged.lines("dropped").iter().filter(of) {
            assert_eq!((&line["reason"], &line["program"]), (&"unsolicited".into(), &"external_ingress".into()));
            assert_eq!((&line["to"], &line["protocol"]), (&to.clone().into(), &"UDP".into()));
            assert!(line["bytes"].as_u64().unwrap() > 14, "{line}");
        }
    }
    assert_eq!(logged.lines("lost"), [] as [Value; 0]);
}

#[test]
fn a_storm_is_cut_short_and_what_is_lost_is_counted_everywhere() {
    let metrics = free_address();
    let logged = Logged::start(&["--flow-log-rate", "5", "--metrics", &metrics.to_string()]);
    let rig = &logged.rig;
    logged.storm(Family::V4, 5000);
    let dropped = || rig.count("external_ingress", "unsolicited");
    wait_until("all to have come", TIMEOUT, || dropped() == 5000).unwrap();
    let lost = || logged.lines("lost").iter().map(|line| line["events"].as_u64().unwrap()).sum::<u64>();
    let sum = || logged.lines("dropped").len() as u64 + lost();
    wait_until("each drop to be told or counted", TIMEOUT, || sum() == 5000)
        .unwrap_or_else(|error| panic!("{error:#}: {} and {}", logged.lines("dropped").len(), lost()));
    assert!(lost() > 4000, "{}", lost());
    assert!(logged.lines("lost").iter().all(|line| line["reason"] == "rate"));
    let status = rig.router.report("status").unwrap();
    assert_eq!(status["flowLog"]["dropsUntold"]["overRate"], lost(), "{}", status["flowLog"]);
    assert_eq!((&status["flowLog"]["rate"], &status["flowLog"]["oneIn"]), (&5.into(), &1.into()));
    let (_, metrics) = get(metrics, "/metrics");
    let line = format!("egress_router_flow_log_lost_events_total{{reason=\"rate\"}} {}", lost());
    assert!(metrics.lines().any(|found| found == line), "no {line} in {metrics}");
    // And a flow is told of all the same.
    let _server = rig.udp_server(at(SERVER_1, Family::V4, 7001));
    rig.udp(anyone(Family::V4), 7000);
    wait_until("the flow", TIMEOUT, || logged.lines("opened").len() == 1).unwrap();
}

#[test]
fn a_sample_has_whole_flows() {
    let logged = Logged::start(&["--flow-log-sample", "4", "--timeout", "udp=2", "--timeout", "udp-stream=2"]);
    let rig = &logged.rig;
    let _server = rig.udp_server(at(SERVER_1, Family::V4, 7001));
    const FLOWS: usize = 200;
    for _ in 0..FLOWS {
        rig.udp(anyone(Family::V4), 7000);
    }
    let clients = |event| {
        let lines = logged.lines(event);
        lines.iter().map(|line| line["client"].as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    wait_until("all to be over", TIMEOUT, || rig.flows().is_empty()).unwrap();
    wait_until("whole flows", TIMEOUT, || !clients("opened").is_empty() && clients("opened") == clients("closed"))
        .unwrap_or_else(|error| panic!("{error:#}: {:?}, {:?}", clients("opened"), clients("closed")));
    let logged = clients("opened").len();
    assert!((FLOWS / 10..FLOWS / 2).contains(&logged), "{logged} of {FLOWS}");
}

#[test]
fn what_passes_while_no_agent_is_there_is_logged_by_the_next() {
    let mut logged = Logged::start(&[]);
    let _server = logged.rig.udp_server(at(SERVER_1, Family::V4, 7001));
    logged.rig.router.kill().unwrap();
    let (udp, _) = logged.rig.udp(anyone(Family::V4), 7000);
    assert_eq!(logged.lines("opened"), [] as [Value; 0]);
    logged.rig.router.start().unwrap();
    wait_until("the flow", TIMEOUT, || logged.lines("opened").len() == 1).unwrap();
    assert_eq!(logged.lines("opened")[0]["client"], udp.local().unwrap().to_string());
    // An agent without a log switches it off.
    let status = |logged: &Logged| logged.rig.router.report("status").unwrap()["flowLog"].clone();
    assert!(status(&logged).is_object());
    run(&mut command(&logged.rig.router, "apply")).assert_refused(3, &[]);
    logged.rig.router.kill().unwrap();
    run(&mut command(&logged.rig.router, "apply")).assert_done();
    assert!(status(&logged).is_null(), "{}", status(&logged));
}

#[test]
fn a_router_that_is_taken_away_closes_its_flows() {
    let mut logged = Logged::start(&["--on-exit", "remove"]);
    let _server = logged.rig.udp_server(at(SERVER_1, Family::V6, 7001));
    let (udp, _) = logged.rig.udp(anyone(Family::V6), 7000);
    assert_eq!(logged.rig.router.terminate().unwrap().code(), Some(0));
    let closed = logged.lines("closed");
    assert_eq!(closed.len(), 1, "{closed:?}");
    assert_eq!(
        (&closed[0]["client"], &closed[0]["requestPackets"]),
        (&udp.local().unwrap().to_string().into(), &1.into())
    );
}
