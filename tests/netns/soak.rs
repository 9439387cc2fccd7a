//! Months in minutes: traffic, edits, restarts and faults all at once. Nothing is lost but what a fault takes, and nothing grows.
//!
//! A short form by default; `EGRESS_SOAK=600` for ten minutes of all of it at once.

mod fault;
mod load;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use egress_lab::address::{Host, SERVER_1, SERVER_2};
use egress_lab::random::Random;
use egress_lab::{Family, Options, bpf, wait_until};

use self::fault::{Fault, Target};
use self::load::{Connections, Ended, Streams, Windows};
use crate::rig::{Rig, Spec, TIMEOUT, at};

/// How long all of it goes on at once.
fn length() -> Duration {
    Duration::from_secs(std::env::var("EGRESS_SOAK").ok().map_or(10, |seconds| seconds.parse().unwrap()))
}

const SECOND: Duration = Duration::from_secs(1);
const RESTART_EVERY: u32 = 10;
/// Room in the flow table: a few minutes' connections.
const FLOWS: &str = "16384";

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

/// The router, what is done to it, and how often it was.
struct Soak {
    rig: Rig,
    /// The status file, on a small disk that only the agent sees.
    status: PathBuf,
    windows: Windows,
    edits: u32,
    restarts: u32,
}

impl Soak {
    fn start(status: PathBuf, log: &Path) -> Self {
        fs::create_dir(status.parent().unwrap()).unwrap();
        let arguments =
            ["--status-file", status.to_str().unwrap(), "--flows", FLOWS, "--flow-log", log.to_str().unwrap()];
        let mut rig = Rig::prepare(&Options::default(), &spec(0), &arguments);
        // One heap: what it comes to does not depend on which threads asked for it.
        rig.router.set_environment("MALLOC_ARENA_MAX", "1");
        let mut soak = Self { rig, status, windows: Windows::default(), edits: 0, restarts: 0 };
        soak.launch();
        soak
    }

    /// Starts the agent with a status file on a small disk of its own, at another hour than the one before.
    fn launch(&mut self) {
        self.rig.router.run_through(&format!(
            "exec unshare --mount --propagation private sh -c 'mount -t tmpfs -o size=64k status {} && \
             exec unshare --time --monotonic {} \"$@\"' sh \"$@\"",
            self.status.parent().unwrap().display(),
            u64::from(self.restarts) * 3600
        ));
        self.rig.router.start().unwrap();
    }

    fn restart(&mut self) {
        self.rig.router.kill().unwrap();
        self.restarts += 1;
        self.launch();
    }

    /// The status file, seen from outside.
    fn status(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.rig.router.pid().unwrap());
        Path::new(&root).join(self.status.strip_prefix("/").unwrap())
    }

    /// An edit a second beside these faults, and until this time at least.
    fn edit_beside(&mut self, faults: &[&Fault], until: Instant) {
        let status = self.status();
        let target = &Target::new(&self.rig, &status);
        let windows = &self.windows;
        let inflict = move || faults.iter().for_each(|fault| fault.pass(target, windows));
        std::thread::scope(|scope| {
            let faults = scope.spawn(inflict);
            while Instant::now() < until || !faults.is_finished() {
                let second = Instant::now() + SECOND;
                self.edits += 1;
                target.edit(&spec(self.edits).yaml());
                std::thread::sleep(second.saturating_duration_since(Instant::now()));
            }
            faults.join().unwrap();
        });
    }

    /// Edits, and a restart every ten seconds, with a fault in between from these.
    fn go_on(&mut self, length: Duration, mut faults: impl FnMut() -> Option<&'static Fault>) {
        let started = Instant::now();
        let mut restart = started;
        while started.elapsed() < length {
            restart += SECOND * RESTART_EVERY;
            let chosen = faults();
            self.edit_beside(chosen.as_slice(), restart);
            self.restart();
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_grows() {
    let files = tempfile::tempdir().unwrap();
    let log = files.path().join("flows.jsonl");
    let mut soak = Soak::start(files.path().join("status/status.json"), &log);
    let hosts = || [SERVER_1, SERVER_2].into_iter().flat_map(|host| Family::ALL.map(|family| (host, family)));
    let _tcp: Vec<_> = hosts().map(|(host, family)| soak.rig.tcp_server(at(host, family, 8080))).collect();
    let _udp: Vec<_> = hosts().map(|(host, family)| soak.rig.udp_server(at(host, family, 7000))).collect();
    let (streams, pinned, programs) = (Streams::start(&soak.rig), pins(&soak.rig), bpf::programs());

    // Without faults first: nothing at all is lost, and each flow is logged once.
    let connections = Connections::start(&soak.rig);
    soak.go_on(length() / 10, || None);
    let (made, failed) = connections.finish(&soak.windows);
    let opened = usize::try_from(made + Streams::COUNT).unwrap();
    let written = wait_until("every flow to be logged", TIMEOUT, || Logged::of(&log).opened >= opened);
    let logged = Logged::of(&log);
    let Logged { opened: told, closed, dropped, lost } = logged;
    eprintln!(
        "soak: without faults {made} connections, {failed} failed; logged {told} opened, {closed} closed, {dropped} dropped, \
         {lost} lost"
    );
    written.unwrap();
    assert_eq!((told, dropped, lost), (opened, 0, 0), "each flow once, restarts or not");

    let seed = Random::seed();
    eprintln!("soak: faults by EGRESS_SEED={seed}");
    let mut random = Random::new(seed);
    let (connections, began) = (Connections::start(&soak.rig), Instant::now());
    let (edits, restarts) = (soak.edits, soak.restarts);
    soak.go_on(length(), || Some(&fault::ALL[random.below(fault::ALL.len())]));
    let (seconds, faults) = (began.elapsed().as_secs_f64(), soak.windows.len());
    let (edits, restarts) = (soak.edits - edits, soak.restarts - restarts);
    eprintln!("soak: {seconds:.0} s with {edits} edits, {restarts} restarts and {faults} faults");
    streams.wait();

    // One process from here on. What is made once only has been made after two rounds, and buffers are as large as a full table
    // wants them.
    let all: Vec<&Fault> = fault::ALL.iter().collect();
    for _ in 0..2 {
        soak.edit_beside(&all, Instant::now());
    }
    let pid = soak.rig.router.pid().unwrap();
    let (before, steady) = (Held::by(pid), Instant::now());
    for round in 0.. {
        if round >= 1 && steady.elapsed() > length() / 5 {
            break;
        }
        soak.edit_beside(&all, Instant::now());
    }
    let seconds = steady.elapsed().as_secs();
    let (made, failed) = connections.finish(&soak.windows);
    let Ended { exchanged, broken, sent, lost } = streams.finish(&soak.windows);
    eprintln!(
        "soak: {} s with {made} connections and {} faults, which took {failed} connections, {broken} live ones in {exchanged} \
         messages, and {lost} of {sent} datagrams; {programs} programs loaded, then {}",
        began.elapsed().as_secs(),
        soak.windows.len(),
        bpf::programs()
    );
    let after = Held::by(pid);
    eprintln!("soak: one process for {seconds} s: {before:?} then {after:?}");
    assert!(after.descriptors <= before.descriptors + 1, "{before:?} then {after:?}");
    // The runtime has as many threads as blocked at once on a busy machine, and keeps them. One for each event would be many more.
    assert!(after.threads <= before.threads + 8, "{before:?} then {after:?}");
    assert!(after.resident_kib <= before.resident_kib + 8192, "{before:?} then {after:?}");
    assert_eq!(pins(&soak.rig), pinned);
}

/// How many lines of each kind the flow log has.
struct Logged {
    opened: usize,
    closed: usize,
    dropped: usize,
    lost: usize,
}

impl Logged {
    fn of(log: &Path) -> Self {
        let lines = fs::read_to_string(log).unwrap();
        let count = |event: &str| lines.lines().filter(|line| line.contains(&format!("\"event\":\"{event}\""))).count();
        Self { opened: count("opened"), closed: count("closed"), dropped: count("dropped"), lost: count("lost") }
    }
}
