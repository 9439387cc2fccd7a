//! Months in seconds: traffic, edits, restarts and faults all at once, and nothing that grows.
//!
//! A short form by default; `EGRESS_SOAK=600` for ten minutes.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use egress_lab::address::{Host, SERVER_1, SERVER_2, client};
use egress_lab::udp::UdpClient;
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
    fs::create_dir(status.parent().unwrap()).unwrap();
    let log = files.path().join("flows.jsonl");
    let arguments = ["--status-file", status.to_str().unwrap(), "--flows", FLOWS, "--flow-log", log.to_str().unwrap()];
    let mut rig = Rig::prepare(&Options::default(), &spec(0), &arguments);
    start(&mut rig, &status, 0);
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
            restarts += 1;
            start(&mut rig, &status, restarts);
        }
        wait_until("the second to be over", TIMEOUT, || second.elapsed() >= Duration::from_secs(1)).unwrap();
    }
    let lost = [live_tcp.map(LiveTcp::finish), live_udp.map(LiveUdp::finish)];
    eprintln!(
        "soak: {edits} edits, {connections} connections, {restarts} restarts; live flows to {lost:?} lost nothing"
    );
    assert_eq!(pins(&rig), pinned);
    let lines = fs::read_to_string(&log).unwrap();
    let count = |event: &str| lines.lines().filter(|line| line.contains(&format!("\"event\":\"{event}\""))).count();
    let opened = usize::try_from(connections).unwrap() + 4;
    eprintln!(
        "soak: {} flows opened, {} closed, {} drops in the log",
        count("opened"),
        count("closed"),
        count("dropped")
    );
    assert_eq!((count("opened"), count("dropped"), count("lost")), (opened, 0, 0), "each flow once, restarts or not");
    let status =
        Path::new(&format!("/proc/{}/root", rig.router.pid().unwrap())).join(status.strip_prefix("/").unwrap());
    faults(&rig, &status, started + length());
    assert_eq!(pins(&rig), pinned);
}

/// Room in the flow table: a few minutes' connections.
const FLOWS: &str = "16384";

/// Starts the agent with a status file on a small disk of its own, at another hour than the one before.
fn start(rig: &mut Rig, status: &Path, hours: u32) {
    rig.router.run_through(&format!(
        "exec unshare --mount --propagation private sh -c 'mount -t tmpfs -o size=64k status {} && \
         exec unshare --time --monotonic {} \"$@\"' sh \"$@\"",
        status.parent().unwrap().display(),
        u64::from(hours) * 3600
    ));
    rig.router.start().unwrap();
}

/// Flows that one client opens and never goes on with, until the table refuses one. The agent makes room meanwhile, so that may take
/// more than the table holds.
fn fill_the_table(rig: &Rig) {
    let full = || rig.count("cluster_ingress", "table_full");
    let before = full();
    for port in 10_000..60_000 {
        let to = crate::rig::router(Family::V4, 7000);
        let client = UdpClient::open(&rig.client, at(client(1), Family::V4, port), to).unwrap();
        client.socket().send(b"and that is all").unwrap();
        if port % 1000 == 0 && full() > before {
            return;
        }
    }
    panic!("the table was never full");
}

/// Whatever somebody may do to a running router; it comes back by itself from each, and holds no more afterwards.
fn faults(rig: &Rig, status: &Path, until: Instant) {
    let pid = rig.router.pid().unwrap();
    let ip = |line: &str| drop(rig.router_netns().ip(line.split(' ')).unwrap());
    let well = |after: &str| {
        let planned = || run(&mut command(&rig.router, "plan")).stdout;
        wait_until(&format!("the router to be whole after: {after}"), TIMEOUT, || {
            planned().contains("nothing to change")
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", planned(), rig.router.stderr()));
        wait_until("the status to be there", TIMEOUT, || status.exists()).unwrap();
        for family in Family::ALL {
            let one = UdpClient::open(&rig.client, at(client(0), family, 0), crate::rig::router(family, 7000)).unwrap();
            let answered = || one.exchange(b"still there?", Duration::from_secs(1)).result.is_ok();
            wait_until(&format!("an answer over {family} after: {after}"), TIMEOUT, answered).unwrap_or_else(|error| {
                panic!("{error:#}: {}\n{}", rig.router.show("status").unwrap(), rig.router.stderr())
            });
        }
    };
    let status_failures = || rig.router.stderr().matches("write status to").count();
    let all: [(&str, &dyn Fn()); 8] = [
        ("address removed", &|| ip("address delete 192.168.12.99/24 dev net1")),
        ("link down", &|| ip("link set net1 down")),
        ("routes flushed", &|| ip("-6 route flush table 25959")),
        ("program detached", &|| fs::remove_file(rig.router.pin("link_external_ingress").unwrap()).unwrap()),
        ("wrong and right edit", &|| {
            let refused = rig.router.stderr().matches("edit refused").count();
            rig.router.edit("kind: nonsense\n").unwrap();
            let said = || rig.router.stderr().matches("edit refused").count() > refused;
            wait_until("the edit to be refused", TIMEOUT, said).unwrap();
            rig.router.edit(&spec(0).yaml()).unwrap();
        }),
        ("status removed", &|| fs::remove_file(status).unwrap()),
        ("disk full at the status file", &|| {
            let filler = status.with_file_name("filler");
            let before = status_failures();
            let mut file = fs::File::create(&filler).unwrap();
            // What the status leaves free is taken, too; the agent may be faster once or twice.
            wait_until("the agent to say so", TIMEOUT, || {
                let _gone_already = fs::remove_file(status);
                file.write_all(&vec![0; 128 << 10]).unwrap_err();
                status_failures() > before
            })
            .unwrap();
            fs::remove_file(&filler).unwrap();
        }),
        ("table full", &|| fill_the_table(rig)),
    ];
    // Twice round before it counts: what is made once only has been made, and buffers are as large as a full table wants them.
    for (name, fault) in all.iter().chain(&all) {
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
