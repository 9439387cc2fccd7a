//! `--flow-log`: every flow that began and every one that ended, with both sides of its translation.

use std::fs;

use egress_lab::address::{SERVER_1, SNAT};
use egress_lab::{Family, Options, wait_until};
use serde_json::Value;

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};

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
