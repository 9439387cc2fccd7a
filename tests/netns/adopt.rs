//! Taking over from another process, another version, and whoever else has been at the programs.

use std::fs;
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::maps::{HashMap, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, loaded_programs};
use egress_lab::address::{SERVER_1, client};
use egress_lab::{Family, Options, wait_until};

use crate::live::{Live, LiveTcp};
use crate::rig::{Rig, Spec, TIMEOUT, anyone, at};
use crate::system::{command, delete, run};

fn spec() -> Spec {
    Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None)
}

/// How many restarts: a few, or as many as `EGRESS_RESTARTS` says.
fn restarts() -> u32 {
    std::env::var("EGRESS_RESTARTS").ok().map_or(8, |count| count.parse().unwrap())
}

#[test]
fn restarts_lose_no_packet_and_leave_nothing_behind() {
    let mut rig = Rig::start(&spec());
    let _servers = Family::ALL
        .map(|family| (rig.tcp_server(at(SERVER_1, family, 8080)), rig.udp_server(at(SERVER_1, family, 7000))));
    let live = Live::start(&rig);
    let pins = |rig: &Rig| {
        let mut names: Vec<_> = walk(rig.router.bpffs());
        names.sort();
        names
    };
    let before = pins(&rig);
    for number in 0..restarts() {
        // As a crash, as an upgrade (the new one is told to take over), and as a rolling restart.
        match number % 3 {
            0 => drop(rig.router.kill().unwrap()),
            1 => assert_eq!(rig.router.terminate().unwrap().code(), Some(0)),
            _ => {
                rig.router.kill().unwrap();
                run(&mut command(&rig.router, "apply")).assert_done();
            }
        }
        // Nobody is at work now.
        rig.udp(at(client(1), Family::V4, 0), 7000);
        rig.router.start().unwrap();
        live.wait();
        assert_eq!(pins(&rig), before, "restart {number}");
    }
    live.finish();
}

/// The router's programs as this build and another has them.
fn objects() -> [PathBuf; 2] {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
    ["egress-datapath.o", "egress-datapath-other.o"].map(|name| built.join(name))
}

/// The kernel's digests of the attached programs' instructions.
fn tags(rig: &Rig) -> Vec<u64> {
    let attached = ["cluster_ingress", "cluster_egress", "external_ingress", "external_egress"];
    let tag = |name: &str| {
        let link = PinnedLink::from_pin(rig.router.pin(&format!("link_{name}")).unwrap()).unwrap();
        let id = FdLink::from(link).info().unwrap().program_id();
        loaded_programs().flatten().find(|program| program.id() == id).unwrap().tag()
    };
    attached.iter().map(|name| tag(name)).collect()
}

#[test]
fn another_build_takes_over_and_gives_back_and_nothing_is_lost() {
    let [ours, other] = objects();
    let mut rig = Rig::start(&spec());
    let _servers = Family::ALL
        .map(|family| (rig.tcp_server(at(SERVER_1, family, 8080)), rig.udp_server(at(SERVER_1, family, 7000))));
    let live = Live::start(&rig);
    let (before, flows) = (tags(&rig), rig.flows().len());
    for number in 0..restarts() {
        let upgrade = number % 2 == 0;
        // As a rolling update does, and as a crash.
        if number % 4 < 2 {
            assert_eq!(rig.router.terminate().unwrap().code(), Some(0));
        } else {
            rig.router.kill().unwrap();
        }
        rig.router.set_environment("EGRESS_DATAPATH_OBJECT", if upgrade { &other } else { &ours }.to_str().unwrap());
        rig.router.start().unwrap();
        let now = tags(&rig);
        let replaced = before.iter().zip(&now).all(|(before, now)| (before != now) == upgrade);
        assert!(replaced, "take-over {number}: {before:x?}, {now:x?}");
        live.wait();
        assert_eq!(rig.flows().len(), flows, "take-over {number}");
    }
    // Nothing lost, nothing doubled, and every flow comes from where it came from.
    live.finish();
    for program in ["cluster_ingress", "external_ingress"] {
        let status = rig.router.report("status").unwrap();
        let counters = status["counters"].as_array().unwrap();
        let dropped = |row: &&serde_json::Value| row["hook"] == program && row["dropped"] == true;
        assert_eq!(counters.iter().filter(dropped).count(), 0, "{counters:?}");
    }
}

/// The clock that a process of another time namespace reads is not the programs'.
#[test]
fn flows_live_on_under_an_agent_of_another_time() {
    let mut rig = Rig::start(&spec());
    let _servers = Family::ALL.map(|family| rig.tcp_server(at(SERVER_1, family, 8080)));
    let tcp = Family::ALL.map(|family| LiveTcp::start(&rig, family, 80));
    let flows = rig.flows().len();
    for ahead in ["8000000", "1000000"] {
        rig.router.kill().unwrap();
        rig.router.run_through(&format!("exec unshare --time --monotonic {ahead} \"$@\""));
        rig.router.start().unwrap();
        // The first sweep.
        let started = std::time::Instant::now();
        wait_until("two sweeps", TIMEOUT, || started.elapsed() > std::time::Duration::from_secs(6)).unwrap();
        assert_eq!(rig.flows().len(), flows);
        tcp.iter().for_each(LiveTcp::wait);
    }
    for live in tcp {
        live.finish();
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_pinned_table_that_is_not_what_it_should_be_is_refused_by_name() {
    let rig = Rig::prepare(&Options::default(), &spec(), &[]);
    run(&mut command(&rig.router, "apply")).assert_done();
    let pin = rig.router.pin("RULES").unwrap();
    let entries = aya::maps::MapInfo::from_pin(&pin).unwrap().max_entries();
    const GROWN: u32 = 1;
    for field in ["key size", "value size", "size", "flags"] {
        fs::remove_file(&pin).unwrap();
        match field {
            "key size" => make::<12, 24>(&pin, entries, GROWN),
            "value size" => make::<8, 32>(&pin, entries, GROWN),
            "size" => make::<8, 24>(&pin, entries / 2, GROWN),
            _ => make::<8, 24>(&pin, entries, 0),
        }
        run(&mut command(&rig.router, "apply"))
            .assert_refused(3, &["RULES", &format!(" has {field} "), "egress-router delete"]);
    }
    fs::remove_file(&pin).unwrap();
    make::<8, 24>(&pin, entries, GROWN);
    run(&mut command(&rig.router, "apply")).assert_done();
    let _server = rig.udp_server(at(SERVER_1, Family::V4, 7000));
    rig.udp(anyone(Family::V4), 7000);
}

/// Pins a hash table.
fn make<const KEY: usize, const VALUE: usize>(at: &Path, entries: u32, flags: u32) {
    HashMap::<MapData, [u8; KEY], [u8; VALUE]>::create(entries, flags).unwrap().pin(at).unwrap();
}

#[test]
fn another_versions_layout_is_taken_over_from() {
    let rig = Rig::prepare(&Options::default(), &spec(), &[]);
    run(&mut command(&rig.router, "apply")).assert_done();
    let _servers = Family::ALL.map(|family| rig.tcp_server(at(SERVER_1, family, 8080)));
    let live = Family::ALL.map(|family| LiveTcp::start(&rig, family, 80));
    // As if these pins, and the programs that they hold, were of another version.
    let layout = rig.router.pin("RULES").unwrap().parent().unwrap().to_owned();
    let other = layout.with_file_name("v0");
    fs::rename(&layout, &other).unwrap();
    let said = run(&mut command(&rig.router, "apply"));
    assert!(said.assert_done().stderr.contains("another version"), "{said:?}");
    assert!(!other.exists(), "the other version's pins are left");
    // Connections are picked up with their port kept, and lose what was under way for a moment at most.
    for live in live {
        live.finish();
    }
    let planned = run(&mut command(&rig.router, "plan"));
    assert!(planned.assert_done().stdout.contains("nothing to change"), "{planned:?}");
    delete(&rig.router).assert_done();
    assert!(!rig.router.bpffs().exists());
}

#[test]
fn a_program_of_somebody_else_outside_ours_is_named() {
    let rig = Rig::start(&spec());
    let degraded = || {
        let status = rig.router.report("status").unwrap();
        let conditions = status["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|one| one["type"] == "Degraded").unwrap()
    };
    // Any program will do; this one looks at a packet of its own making and lets all others pass.
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/egress-datapath.o");
    let mut stranger = EbpfLoader::new().load_file(&object).unwrap();
    let program: &mut SchedClassifier = stranger.program_mut("probe_csum_ipv6").unwrap().try_into().unwrap();
    program.load().unwrap();
    let link = rig.router_netns().run(|| {
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options("eth0", TcAttachType::Ingress, first).unwrap()
    });
    wait_until("the stranger to be told", TIMEOUT, || degraded()["reason"] == "ForeignProgram")
        .unwrap_or_else(|error| panic!("{error:#}: {}", degraded()));
    let message = degraded()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("program probe_csum_ipv6 of somebody else stands outside ours on eth0"), "{message}");
    program.detach(link).unwrap();
    wait_until("the stranger to be forgotten", TIMEOUT, || degraded()["status"] == "False").unwrap();
    // Inside ours it is no matter.
    let _link = rig.router_netns().run(|| {
        let last = TcAttachOptions::TcxOrder(LinkOrder::last());
        program.attach_with_options("eth0", TcAttachType::Ingress, last).unwrap()
    });
    let started = std::time::Instant::now();
    wait_until("two looks", TIMEOUT, || started.elapsed() > std::time::Duration::from_secs(7)).unwrap();
    assert_eq!(degraded()["status"], "False", "{}", degraded());
}
