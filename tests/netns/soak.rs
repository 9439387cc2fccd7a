//! Months in seconds: traffic, edits, restarts and faults all at once, and nothing that grows.
//!
//! A short form by default; `EGRESS_SOAK=600` for ten minutes.

use std::fs;
use std::time::{Duration, Instant};

use egress_lab::address::{Host, SERVER_1, SERVER_2, client};
use egress_lab::{Family, Options, wait_until};

use crate::live::{LiveTcp, LiveUdp};
use crate::rig::{Rig, Spec, TIMEOUT, at};
use crate::system::{command, run};

/// Each phase takes half of it.
fn length() -> Duration {
    Duration::from_secs(std::env::var("EGRESS_SOAK").ok().map_or(24, |seconds| seconds.parse().unwrap()))
}

const CONNECTIONS_A_SECOND: u32 = 50;
const RESTART_EVERY: u32 = 10;

fn spec(edit: u32) -> Spec {
    // Port 90 goes to and fro; what lives through 80 and 7000 is never touched.
    let to: Host = if edit.is_multiple_of(2) { SERVER_1 } else { SERVER_2 };
    let spec = Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None).tcp(90, to, 8080);
    if edit.is_multiple_of(3) { spec } else { spec.udp(9000, SERVER_2, 7000) }
}

/// What must not grow: descriptors, threads and resident memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    resident_kib: u64,
}

impl Held {
    fn by(pid: u32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kib = resident.trim().trim_end_matches(" kB").parse().unwrap();
        Self { descriptors: count("fd"), threads: count("task"), resident_kib }
    }
}

fn pins(rig: &Rig) -> usize {
    let rules = rig.router.pin("RULES").unwrap();
    fs::read_dir(rules.parent().unwrap()).unwrap().count()
}

#[test]
fn nothing_is_lost_and_nothing_grows() {
    let files = tempfile::tempdir().unwrap();
    let status = files.path().join("status/status.json");
    let mut rig = Rig::with(&Options::default(), &spec(0), &["--status-file", status.to_str().unwrap()]);
    let hosts = || [SERVER_1, SERVER_2].into_iter().flat_map(|host| Family::ALL.map(|family| (host, family)));
    let _tcp: Vec<_> = hosts().map(|(host, family)| rig.tcp_server(at(host, family, 8080))).collect();
    let _udp: Vec<_> = hosts().map(|(host, family)| rig.udp_server(at(host, family, 7000))).collect();
    let live_tcp = Family::ALL.map(|family| LiveTcp::start(&rig, family, 80));
    let live_udp = Family::ALL.map(|family| LiveUdp::start(&rig, family, 7000));
    let (pinned, started) = (pins(&rig), Instant::now());
    let (mut edits, mut connections, mut restarts) = (0, 0_u32, 0);
    while started.elapsed() < length() / 2 {
        edits += 1;
        rig.router.edit(&spec(edits).yaml()).unwrap();
        let second = Instant::now();
        for number in 0..CONNECTIONS_A_SECOND {
            let family = Family::ALL[usize::from(number % 2 == 0)];
            let (mut connection, _) = rig.tcp(at(client(1), family, 0), 80);
            connection.exchange(b"once more").unwrap();
            connections += 1;
        }
        if edits % RESTART_EVERY == 0 {
            rig.router.kill().unwrap();
            rig.router.start().unwrap();
            restarts += 1;
        }
        wait_until("the second to be over", TIMEOUT, || second.elapsed() >= Duration::from_secs(1)).unwrap();
    }
    let lost = [live_tcp.map(LiveTcp::finish), live_udp.map(LiveUdp::finish)];
    eprintln!(
        "soak: {edits} edits, {connections} connections, {restarts} restarts; live flows to {lost:?} lost nothing"
    );
    assert_eq!(pins(&rig), pinned);
    faults(&rig, files.path(), started + length());
    assert_eq!(pins(&rig), pinned);
}

/// Whatever somebody may do to a running router; it comes back by itself from each, and holds no more afterwards.
fn faults(rig: &Rig, files: &std::path::Path, until: Instant) {
    let pid = rig.router.pid().unwrap();
    let ip = |line: &str| drop(rig.router_netns().ip(line.split(' ')).unwrap());
    let well = |after: &str| {
        let planned = || run(&mut command(&rig.router, "plan")).stdout;
        wait_until(&format!("the router to be whole after: {after}"), TIMEOUT, || {
            planned().contains("nothing to change")
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", planned(), rig.router.stderr()));
        for family in Family::ALL {
            rig.udp(at(client(0), family, 0), 7000);
        }
    };
    let all: [(&str, &dyn Fn()); 7] = [
        ("address removed", &|| ip("address delete 192.168.12.99/24 dev net1")),
        ("link down", &|| ip("link set net1 down")),
        ("routes flushed", &|| ip("-6 route flush table 25959")),
        ("program detached", &|| fs::remove_file(rig.router.pin("link_external_ingress").unwrap()).unwrap()),
        ("wrong edit", &|| rig.router.edit("kind: nonsense\n").unwrap()),
        ("right edit", &|| rig.router.edit(&spec(0).yaml()).unwrap()),
        ("status folder removed", &|| drop(fs::remove_dir_all(files.join("status")))),
    ];
    // Once round before it counts: what is made once only has been made.
    for (name, fault) in all {
        fault();
        well(name);
    }
    let before = Held::by(pid);
    let mut rounds = 0;
    while Instant::now() < until || rounds < 2 {
        for (name, fault) in all {
            fault();
            well(name);
        }
        rounds += 1;
    }
    let after = Held::by(pid);
    eprintln!("soak: {rounds} rounds of {} faults: {before:?} then {after:?}", all.len());
    assert!(after.descriptors <= before.descriptors + 1, "{before:?} then {after:?}");
    assert!(after.threads <= before.threads + 1, "{before:?} then {after:?}");
    assert!(after.resident_kib <= before.resident_kib + 8192, "{before:?} then {after:?}");
}
