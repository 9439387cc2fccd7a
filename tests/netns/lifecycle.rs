//! Apply, apply again, drift, delete, delete again, and whatever fails in between: the system is as it should be, or as it was.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use egress_lab::address::{ROUTER, SERVER_1, SNAT, client, external};
use egress_lab::detector::Detector;
use egress_lab::endpoint::any_port;
use egress_lab::router::Router;
use egress_lab::udp::{self, PacedStream, UdpClient, UdpServer};
use egress_lab::{Family, Lab, Options, bpf, wait_until};
use serde_json::Value;

use crate::specs::{Text, WITHIN, assert_works, one_datagram};
use crate::system::{System, apply, assert_same, command, delete, plan, record, run, wrapped};

const NOTHING: &str = "nothing to change";

/// Texts of the changes of the link that `plan` shows.
fn planned(router: &Router, what: &str) -> Vec<String> {
    let said = run(command(router, "plan").args(router.arguments()).args(["-o", "json"]));
    let rows: Value = serde_json::from_str(&said.assert_done().stdout).unwrap();
    let rows = rows.as_array().unwrap().iter().filter(|row| row["what"] == what);
    rows.map(|row| row["change"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_second_apply_and_the_second_delete_find_nothing_to_do() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let detector = Detector::start(&lab, SNAT.both()).unwrap();
    let before = System::of(&lab, &router);
    assert_eq!(delete(&router).assert_done().stdout, "nothing to delete\n");
    assert_same(&before, &System::of(&lab, &router), "after a delete of nothing");

    let (link, programs, rules) = (planned(&router, "link"), planned(&router, "program"), planned(&router, "rule"));
    assert_same(&before, &System::of(&lab, &router), "after plan");
    assert_eq!((programs.len(), rules.len()), (4, 4), "{programs:?} {rules:?}");
    let said = apply(&router);
    let done: Vec<&str> = said.assert_done().stdout.lines().take(link.len()).collect();
    assert_eq!(done, link, "apply does what plan says");
    assert_works(&lab, SNAT);

    let applied = System::of(&lab, &router);
    assert!(plan(&router).assert_done().stdout.contains(NOTHING));
    assert!(apply(&router).assert_done().stdout.contains(NOTHING));
    assert_same(&applied, &System::of(&lab, &router), "after the second apply");

    for (way, drift) in DRIFTS {
        lab.router.ip(drift.split(' ')).unwrap();
        let shown = plan(&router);
        assert!(!shown.assert_done().stdout.contains(NOTHING), "{way} is not in the plan");
    }
    lab.router.sysctl(["net.ipv4.conf.net1.rp_filter=1", "net.ipv4.conf.eth0.forwarding=0"]).unwrap();
    let shown = planned(&router, "link").join("\n");
    assert!(shown.contains("rp_filter") && shown.contains("eth0/forwarding"), "{shown}");
    apply(&router).assert_done();
    assert_same(&applied, &System::of(&lab, &router), "after repair by apply");
    assert_works(&lab, SNAT);

    assert_eq!(delete(&router).assert_done().stdout, "deleted\n");
    assert_same(&before, &System::of(&lab, &router), "after delete");
    assert_eq!(delete(&router).assert_done().stdout, "nothing to delete\n");
    assert_same(&before, &System::of(&lab, &router), "after the second delete");
    assert!(!router.bpffs().exists() && !record(&lab.router).exists());
    detector.assert_clean().unwrap();
}

/// What somebody may do to the router's link, each by one `ip` command.
const DRIFTS: [(&str, &str); 5] = [
    ("a deleted address", "address delete 192.168.12.99/24 dev net1"),
    ("a deleted IPv6 address", "address delete fd00:12::99/64 dev net1"),
    ("a deleted rule", "rule delete iif eth0"),
    ("a deleted route", "-6 route delete unreachable default table 25959"),
    ("the link down", "link set net1 down"),
];

#[test]
fn the_agent_repairs_drift() {
    let lab = Lab::build(&Options::default()).unwrap();
    let mut router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    router.start().unwrap();
    assert_works(&lab, SNAT);
    let pins = |line: &str| line.starts_with("file ") || line.contains(" programs [");
    let running = System::of(&lab, &router).without(pins);
    for (_, drift) in DRIFTS {
        lab.router.ip(drift.split(' ')).unwrap();
    }
    lab.router.sysctl(["net.ipv4.conf.net1.rp_filter=1", "net.ipv4.conf.eth0.forwarding=0"]).unwrap();
    bpf::detach(&router.pin("link_cluster_ingress").unwrap()).unwrap();
    let repaired = || running.differences(&System::of(&lab, &router).without(pins)).is_empty();
    wait_until("the agent to repair what drifted", Duration::from_secs(15), || {
        repaired() && router.stderr().contains("put right")
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:#?}", running.differences(&System::of(&lab, &router).without(pins))));
    assert_works(&lab, SNAT);

    // All pins at once, which other commands find it by.
    fs::remove_dir_all(router.bpffs()).unwrap();
    wait_until("the agent to pin the datapath again", Duration::from_secs(15), || router.report("rules").is_ok())
        .unwrap();
    wait_until("the programs to be attached", WITHIN, || plan(&router).stdout.contains(NOTHING)).unwrap();
    assert_works(&lab, SNAT);
}

#[test]
fn clsact_filters_are_one_a_hook_and_go_without_trace() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap().with_arguments(["--hook", "clsact"]);
    let before = System::of(&lab, &router);
    apply(&router).assert_done();
    assert_works(&lab, SNAT);
    let applied = System::of(&lab, &router);
    for _ in 0..9 {
        assert!(apply(&router).assert_done().stdout.contains(NOTHING));
    }
    assert_same(&applied, &System::of(&lab, &router), "after ten applies");
    assert_eq!(filters(&lab), 4);
    assert!(plan(&router).assert_done().stdout.contains(NOTHING));
    delete(&router).assert_done();
    assert_same(&before, &System::of(&lab, &router), "after delete");

    // Somebody else's filter stays, and so does what it hangs on.
    tc(&lab, "qdisc add dev eth0 clsact");
    tc(&lab, "filter add dev eth0 egress pref 7 protocol all bpf bytecode '1,6 0 0 0,'");
    let before = System::of(&lab, &router);
    apply(&router).assert_done();
    assert_works(&lab, SNAT);
    delete(&router).assert_done();
    assert_same(&before, &System::of(&lab, &router), "after delete beside another's filter");
}

fn tc(lab: &Lab, line: &str) {
    let script = format!("exec tc {line}");
    run(lab.router.command("sh").args(["-c", &script])).assert_done();
}

/// How many clsact filters run a program, on both interfaces.
fn filters(lab: &Lab) -> usize {
    let sides = ["eth0 ingress", "eth0 egress", "net1 ingress", "net1 egress"];
    let shown = sides.map(|side| {
        let said = run(lab.router.command("tc").args(["filter", "show", "dev"]).args(side.split(' ')));
        said.stdout.lines().filter(|line| line.contains(" direct-action ")).count()
    });
    shown.iter().sum()
}

#[test]
fn another_hook_takes_the_old_ones_place() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let tcx = |router: &Router| {
        let system = System::of(&lab, router);
        let programs = system.differences(&system.without(|line| line.contains(" programs [")));
        programs.iter().map(|line| line.matches(", revision").count()).sum::<usize>()
    };
    let detector = Detector::start(&lab, SNAT.both()).unwrap();
    let before = System::of(&lab, &router);
    for (hook, by_tcx, by_filter) in [("tcx", 4, 0), ("clsact", 0, 4), ("tcx", 4, 0), ("auto", 4, 0)] {
        run(command(&router, "apply").args(["--hook", hook])).assert_done();
        assert_eq!((tcx(&router), filters(&lab)), (by_tcx, by_filter), "--hook {hook}");
        assert_works(&lab, SNAT);
    }
    delete(&router).assert_done();
    assert_same(&before, &System::of(&lab, &router), "after delete");
    detector.assert_clean().unwrap();
}

/// The address of the outside's interface, which the lab's extra addresses are on.
fn outside_mac(lab: &Lab) -> String {
    let mac = lab.outside.mac("s0").unwrap();
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[test]
fn an_address_that_somebody_has_is_refused_with_the_holder() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let before = System::of(&lab, &router);
    for (address, name) in [("192.168.12.99/24", "192.168.12.99"), ("fd00:12::99/64", "fd00:12::99")] {
        lab.outside.ip(["address", "add", address, "dev", "s0"]).unwrap();
        wait_until("the outside to be sure of its address", WITHIN, || {
            lab.outside.ip(["address", "show", "tentative"]).is_ok_and(|text| text.is_empty())
        })
        .unwrap();
        apply(&router).assert_refused(3, &[name, &outside_mac(&lab)]);
        assert_same(&before, &System::of(&lab, &router), "after a conflict");
        lab.outside.ip(["address", "delete", address, "dev", "s0"]).unwrap();
    }
    apply(&router).assert_done();
    assert_works(&lab, SNAT);
}

#[test]
fn a_program_that_cannot_be_attached_is_named_and_the_rest_undone() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap().with_arguments(["--hook", "clsact"]);
    // It has the place of clsact, and no egress side.
    tc(&lab, "qdisc add dev eth0 ingress");
    let before = System::of(&lab, &router);
    apply(&router).assert_refused(3, &["attach cluster_egress to eth0", "ingress qdisc"]);
    assert_same(&before, &System::of(&lab, &router), "after a failed attach");
}

#[test]
fn pins_that_cannot_be_written_are_named_and_the_rest_undone() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let before = System::of(&lab, &router);
    let script = "mount -t bpf -o ro bpf /sys/fs/bpf && exec \"$@\"";
    let read_only = ["unshare", "--mount", "sh", "-c", script, "sh"];
    run(&mut wrapped(&read_only, &command(&router, "apply")))
        .assert_refused(3, &[&router.bpffs().display().to_string(), "Read-only file system"]);
    assert_same(&before, &System::of(&lab, &router), "after a failed pin");
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let script = "umount --all-targets --lazy /sys/fs/bpf; mountpoint -q /sys/fs/bpf && exit 99; \"$@\" && mountpoint /sys/fs/bpf && \
                  exec \"$1\" delete \"$4\" \"$5\" \"$6\" \"$7\"";
    // In a namespace of mounts that is its own, and ends with it. `command` has VERB, --netns N, --bpffs D, then the rest.
    let apply = command(&router, "apply");
    let args: Vec<String> = apply.get_args().map(|arg| arg.to_str().unwrap().to_owned()).collect();
    assert_eq!((args[1].as_str(), args[3].as_str()), ("--netns", "--bpffs"), "{args:?}");
    let script = script.replace("\"$4\" \"$5\" \"$6\" \"$7\"", "\"$3\" \"$4\" \"$5\" \"$6\"");
    let said = run(&mut wrapped(&["unshare", "--mount", "sh", "-c", &script, "sh"], &apply));
    assert!(said.assert_done().stdout.contains("is a mountpoint"), "{said:?}");
    assert!(said.stdout.contains("deleted"), "{said:?}");
}

#[test]
fn tables_that_do_not_fit_the_memory_are_refused_with_what_to_do() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap().with_arguments(["--flows", "4000000"]);
    let before = System::of(&lab, &router);
    let group = MemoryGroup::new(64 << 20);
    let script = format!("echo $$ > {} && exec \"$@\"", group.0.join("cgroup.procs").display());
    let mut confined = wrapped(&["sh", "-c", &script, "sh"], &command(&router, "apply"));
    run(confined.args(router.arguments())).assert_refused(3, &["--flows", "not enough memory"]);
    assert_same(&before, &System::of(&lab, &router), "after too little memory");
    let router = router.with_arguments(["--flows", "64"]);
    let mut confined = wrapped(&["sh", "-c", &script, "sh"], &command(&router, "apply"));
    run(confined.args(["--flows", "64"])).assert_done();
    assert_works(&lab, SNAT);
}

/// A control group with a limit of memory, of either version of the kernel's interface.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Self {
        let name = format!("egress-lab-{}", std::process::id());
        let (root, limit) = if Path::new("/sys/fs/cgroup/memory").is_dir() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").unwrap();
            ("/sys/fs/cgroup", "memory.max")
        };
        let group = Self(Path::new(root).join(name));
        fs::create_dir(&group.0).unwrap();
        fs::write(group.0.join(limit), bytes.to_string()).unwrap();
        group
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its last process may take a moment to be collected.
        let _ = wait_until("the group to be empty", WITHIN, || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn an_edit_that_fails_leaves_the_last_good_one_in_force() {
    let lab = Lab::build(&Options::default()).unwrap();
    let files = tempfile::tempdir().unwrap();
    let status = files.path().join("status.json");
    let good = Text::of(SNAT);
    let mut router =
        Router::new(&lab, &good.yaml()).unwrap().with_arguments(["--status-file", status.to_str().unwrap()]);
    let detector = Detector::start(&lab, SNAT.both()).unwrap();
    let before = System::of(&lab, &router);
    router.start().unwrap();
    assert_works(&lab, SNAT);
    let problem = || {
        let status: Value = serde_json::from_str(&fs::read_to_string(&status).unwrap()).unwrap();
        let degraded = status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Degraded").unwrap();
        (degraded["status"] == "True").then(|| degraded["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(problem(), None);

    let taken = external(98);
    lab.outside.ip(["address", "add", &format!("{}/24", taken.v4), "dev", "s0"]).unwrap();
    // A macvlan in another mode keeps passthru from the master.
    lab.node.ip("link add link up0 name other type macvlan mode bridge".split(' ')).unwrap();
    let running = System::of(&lab, &router);
    let mut both = good.clone();
    both.addresses.push((taken, None));
    let edits = [
        ("kind: nonsense\n".to_owned(), "kind"),
        (Text { name: "another", ..good.clone() }.yaml(), "default/another"),
        (Text { master: Some("nope0"), ..good.clone() }.yaml(), "nope0"),
        (both.yaml(), "192.168.12.98"),
        // These take the interface away first, and its programs with it.
        (Text { mode: "Passthru", ..good.clone() }.yaml(), "net1"),
        (Text { mode: "Private", ..both.clone() }.yaml(), "192.168.12.98"),
    ];
    for (number, (edit, names)) in edits.iter().enumerate() {
        router.edit(edit).unwrap();
        wait_until(&format!("the status to tell of {names}"), WITHIN * 3, || {
            // New flows all the while: none may come from an address that is not claimed. Whether they get through is not
            // asked, for some of the edits take the interface away.
            let to = SocketAddr::new(ROUTER.ip(Family::V4), 7000);
            for client in [client(0), client(1)] {
                let _ = udp::exchange(
                    &lab.client,
                    any_port(client.ip(Family::V4)),
                    to,
                    b"meanwhile",
                    Duration::from_millis(20),
                );
            }
            problem().is_some_and(|problem| problem.contains(names))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {:?}\n{}", problem(), router.stderr()));
        if number < 4 {
            assert_same(&running, &System::of(&lab, &router), &format!("after an edit with {names}"));
        }
        assert_works(&lab, SNAT);
        router.edit(&good.yaml()).unwrap();
        wait_until("the status to forget it", WITHIN, || problem().is_none()).unwrap();
        assert_works(&lab, SNAT);
    }
    lab.node.ip(["link", "delete", "other"]).unwrap();
    // Its interface was made again twice: all is as it was but for the numbers.
    assert!(run(&mut command(&router, "plan")).assert_done().stdout.contains(NOTHING));
    detector.assert_clean().unwrap();
    assert_eq!(router.terminate().unwrap().code(), Some(0));
    delete(&router).assert_done();
    assert_same(&before, &System::of(&lab, &router), "after delete");
}

#[test]
fn the_end_of_the_agent() {
    let lab = Lab::build(&Options::default()).unwrap();
    let mut router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let before = System::of(&lab, &router);
    router.start().unwrap();
    let pid = router.pid().unwrap().to_string();
    let running = System::of(&lab, &router);

    // Two at once would undo each other's work.
    delete(&router).assert_refused(3, &["another egress-router", &pid]);
    apply(&router).assert_refused(3, &["another egress-router", &pid]);
    assert_same(&running, &System::of(&lab, &router), "after a delete beside an agent");

    let server = SocketAddr::new(SERVER_1.ip(Family::V4), 7000);
    let _server = UdpServer::start(lab.server(SERVER_1).unwrap(), server).unwrap();
    let to = SocketAddr::new(ROUTER.ip(Family::V4), 7000);
    let udp = UdpClient::open(&lab.client, any_port(client(0).ip(Family::V4)), to).unwrap();
    udp.exchange(b"warm", WITHIN).result.unwrap();
    let stream = PacedStream::start(udp, Duration::from_millis(1)).unwrap();
    assert_eq!(router.terminate().unwrap().code(), Some(0));
    assert_same(&running, &System::of(&lab, &router), "after the agent's end, with --on-exit keep");
    router.start().unwrap();
    assert_same(&running, &System::of(&lab, &router), "after another agent took over");
    let answered = stream.answered();
    wait_until("the stream to go on", WITHIN, || stream.answered() > answered + 100).unwrap();
    let report = stream.finish().unwrap();
    assert!(report.is_perfect(), "{report:?}");
    assert_eq!(router.terminate().unwrap().code(), Some(0));

    let mut router = router.with_arguments(["--on-exit", "remove"]);
    router.start().unwrap();
    assert_eq!(router.terminate().unwrap().code(), Some(0));
    assert_same(&before, &System::of(&lab, &router), "after the agent's end, with --on-exit remove");
}

#[test]
fn a_hangup_reads_the_file_again() {
    let lab = Lab::build(&Options::default()).unwrap();
    let mut router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    // By way of a link into a folder that nobody watches.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("spec.yaml");
    fs::write(
        &file,
        Text { rules: Vec::new(), ..Text::of(SNAT) }.yaml().replace("redirectRules:\n", "redirectRules: []\n"),
    )
    .unwrap();
    fs::remove_file(router.spec()).unwrap();
    std::os::unix::fs::symlink(&file, router.spec()).unwrap();
    router.start().unwrap();
    let rules = |router: &Router| router.report("rules").unwrap().as_array().unwrap().len();
    assert_eq!(rules(&router), 0);
    fs::write(&file, Text::of(SNAT).yaml()).unwrap();
    router.signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    wait_until("the rules to be in force", WITHIN, || rules(&router) == 4).unwrap();
    assert_works(&lab, SNAT);
    let server = SocketAddr::new(SERVER_1.ip(Family::V6), 7000);
    let server = UdpServer::start(lab.server(SERVER_1).unwrap(), server).unwrap();
    one_datagram(&lab, &server, WITHIN);
}
