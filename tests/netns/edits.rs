//! Edits of the specification under traffic.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use egress_lab::address::{Host, SERVER_1, SERVER_2, client};
use egress_lab::tcp::TcpServer;
use egress_lab::udp::UdpServer;
use egress_lab::{Family, Options, tcp, wait_until};

use crate::live::{Live, LiveTcp, LiveUdp};
use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};

/// How many lines of the agent's log say this.
fn logged(rig: &Rig, message: &str) -> usize {
    let said = rig.router.stderr();
    let lines = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message))).count()
}

/// Makes an edit and waits until the log says so.
fn edit(rig: &Rig, message: &str, edit: impl FnOnce()) {
    let before = logged(rig, message);
    edit();
    wait_until("the edit to be logged", TIMEOUT, || logged(rig, message) > before).unwrap();
}

/// Servers on both hosts and in both families.
fn servers(rig: &Rig) -> (Vec<TcpServer>, Vec<UdpServer>) {
    let hosts = || [SERVER_1, SERVER_2].into_iter().flat_map(|host| Family::ALL.map(|family| (host, family)));
    let tcp = hosts().map(|(host, family)| rig.tcp_server(at(host, family, 8080))).collect();
    let udp = hosts().flat_map(|(host, family)| [7000, 7001].map(|port| rig.udp_server(at(host, family, port))));
    (tcp, udp.collect())
}

/// Two rules that lead to `to`, one that stays, and one that is there or not.
fn spec(to: Host, extra: bool) -> Spec {
    let spec = Spec::new().tcp(80, to, 8080).udp(7000, to, None).udp(7001, SERVER_1, None);
    if extra { spec.tcp(81, SERVER_2, 8080) } else { spec }
}

#[test]
fn a_hundred_edits_lose_no_packet_of_a_live_flow_or_an_unchanged_rule() {
    let rig = Rig::start(&spec(SERVER_1, false));
    let _servers = servers(&rig);
    let tcp = Family::ALL.map(|family| LiveTcp::start(&rig, family, 80));
    let changed = Family::ALL.map(|family| LiveUdp::start(&rig, family, 7000));
    let unchanged = Family::ALL.map(|family| LiveUdp::start(&rig, family, 7001));
    for number in 1..=100 {
        let (to, extra) = (if number % 2 == 0 { SERVER_1 } else { SERVER_2 }, number % 3 == 1);
        edit(&rig, "applied", || rig.router.edit(&spec(to, extra).yaml()).unwrap());
        // New flows follow the new rules, from the moment that the agent says so. From a port that had no flow yet: it
        // would go on to where that one went.
        let family = if number % 4 < 2 { Family::V4 } else { Family::V6 };
        let from = at(client(1), family, 20_000 + number);
        assert_eq!(rig.udp(from, 7000).1.server, at(to, family, 7000), "edit {number}");
        assert_eq!(rig.udp(from, 7001).1.server, at(SERVER_1, family, 7001), "edit {number}");
        assert_eq!(rig.tcp(from, 80).1.server, at(to, family, 8080), "edit {number}");
        if extra {
            assert_eq!(rig.tcp(from, 81).1.server, at(SERVER_2, family, 8080), "edit {number}");
        } else {
            let refused = rig.connect(from, 81).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "edit {number}");
        }
    }
    for (family, live) in Family::ALL.into_iter().zip(tcp) {
        assert_eq!(live.finish().server, at(SERVER_1, family, 8080));
    }
    for (family, live) in Family::ALL.into_iter().zip(changed) {
        assert_eq!(live.finish().server, at(SERVER_1, family, 7000));
    }
    for (family, live) in Family::ALL.into_iter().zip(unchanged) {
        assert_eq!(live.finish().server, at(SERVER_1, family, 7001));
    }
}

#[test]
fn live_flows_outlast_the_rule_that_opened_them() {
    let rig = Rig::start(&spec(SERVER_1, false));
    let _servers = servers(&rig);
    let live = Live::start(&rig);
    edit(&rig, "applied", || rig.router.edit(&Spec::new().udp(7001, SERVER_1, None).yaml()).unwrap());
    for family in Family::ALL {
        let attempt = tcp::exchange(&rig.client, anyone(family), router(family, 80), b"anybody?", TIMEOUT);
        assert_eq!(attempt.result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    live.finish();
}

#[test]
fn an_edit_that_is_wrong_changes_nothing_and_is_logged() {
    let rig = Rig::start(&spec(SERVER_1, false));
    let _servers = servers(&rig);
    let rules = rig.router.report("rules").unwrap();
    let live = Live::start(&rig);
    let good = spec(SERVER_2, true).yaml();
    let wrong = [
        "apiVersion: [".to_owned(),
        String::new(),
        good.replace("port: 7001", "port: 0"),
        // Two rules for one port, of which the first is right.
        good.replace("port: 7001", "port: 7000"),
        good.replace("kind: EgressRouter", "kind: EgressRoute"),
        // Another router than the one that this agent runs.
        good.replace("name: test", "name: other"),
        // Its destination's family has no address.
        good.lines().filter(|line| !line.contains("fd00:12::99")).collect::<Vec<_>>().join("\n"),
    ];
    for (port, text) in (20_000..).zip(wrong) {
        edit(&rig, "edit refused", || rig.router.edit(&text).unwrap());
        assert_eq!(rig.router.report("rules").unwrap(), rules, "{text}");
        for family in Family::ALL {
            let (_, seen) = rig.udp(at(client(1), family, port), 7000);
            assert_eq!(seen.server, at(SERVER_1, family, 7000), "{text}");
        }
    }
    edit(&rig, "applied", || rig.router.edit(&good).unwrap());
    for family in Family::ALL {
        assert_eq!(rig.udp(at(client(1), family, 30_000), 7000).1.server, at(SERVER_2, family, 7000));
    }
    live.finish();
}

#[test]
fn the_swap_of_a_mounted_config_map_is_an_edit() {
    let mut rig = Rig::prepare(&Options::default(), &spec(SERVER_1, false), &[]);
    let file = rig.router.spec();
    let mount = file.parent().unwrap();
    fs::remove_file(&file).unwrap();
    symlink(Path::new("..data").join(file.file_name().unwrap()), &file).unwrap();
    let publish = |revision: &str, spec: &Spec| {
        // As kubelet's atomic writer does: the file itself, which is a link, never changes.
        let directory = mount.join(revision);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(file.file_name().unwrap()), spec.yaml()).unwrap();
        let before = fs::read_link(mount.join("..data")).ok();
        symlink(revision, mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
        if let Some(before) = before {
            fs::remove_dir_all(mount.join(before)).unwrap();
        }
    };
    publish("..revision_0", &spec(SERVER_1, false));
    rig.router.start().unwrap();
    let _servers = servers(&rig);
    let tcp = Family::ALL.map(|family| LiveTcp::start(&rig, family, 80));
    let udp = Family::ALL.map(|family| LiveUdp::start(&rig, family, 7000));
    for number in 1..=10 {
        let to = if number % 2 == 0 { SERVER_1 } else { SERVER_2 };
        edit(&rig, "applied", || publish(&format!("..revision_{number}"), &spec(to, false)));
        for family in Family::ALL {
            let (_, seen) = rig.udp(at(client(1), family, 20_000 + number), 7000);
            assert_eq!(seen.server, at(to, family, 7000), "revision {number}");
        }
    }
    for (family, live) in Family::ALL.into_iter().zip(tcp) {
        assert_eq!(live.finish().server, at(SERVER_1, family, 8080));
    }
    for (family, live) in Family::ALL.into_iter().zip(udp) {
        assert_eq!(live.finish().server, at(SERVER_1, family, 7000));
    }
}
