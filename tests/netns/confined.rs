//! What the running agent has given up, and that it can still do its work; what systemd is told; how much it logs.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use egress_lab::address::SERVER_1;
use egress_lab::{Family, Options, bpf, wait_until};
use nix::sys::signal::Signal;

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at};
use crate::system::{command, run};

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF.
const KEPT: u64 = 1 << 12 | 1 << 13 | 1 << 21 | 1 << 38 | 1 << 39;

fn spec() -> Spec {
    Spec::new().udp(7000, SERVER_1, None)
}

/// The value of a line of /proc/PID/task/TID/status, of every thread.
fn of_every_thread(pid: u32, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    // A thread may end before it is read.
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let value = |status: String| {
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t")).unwrap().to_owned()
    };
    statuses.map(value).collect()
}

#[test]
fn the_agent_gives_up_what_it_does_not_need_and_works_on() {
    let files = tempfile::tempdir().unwrap();
    let status = files.path().join("status.json");
    let rig = Rig::with(&Options::default(), &spec(), &["--status-file", status.to_str().unwrap()]);
    let pid = rig.router.pid().unwrap();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        for value in of_every_thread(pid, set) {
            assert_eq!(u64::from_str_radix(&value, 16).unwrap(), KEPT, "{set} is {value}");
        }
    }
    assert!(of_every_thread(pid, "NoNewPrivs").iter().all(|value| value == "1"));
    assert!(of_every_thread(pid, "Seccomp").iter().all(|value| value == "2"), "{:?}", of_every_thread(pid, "Seccomp"));
    let warnings = rig.router.stderr().lines().filter(|line| line.contains("\"WARN\"")).count();
    assert_eq!(warnings, 0, "{}", rig.router.stderr());
    // It makes the interface again, in the node's namespace, writes settings, loads and pins programs, writes its status.
    fs::remove_file(&status).unwrap();
    rig.router_netns().ip(["link", "delete", "net1"]).unwrap();
    fs::remove_dir_all(rig.router.bpffs()).unwrap();
    let planned = || run(&mut command(&rig.router, "plan")).stdout;
    wait_until("all to be put back", TIMEOUT, || planned().contains("nothing to change"))
        .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", planned(), rig.router.stderr()));
    wait_until("the status to be written", TIMEOUT, || status.exists()).unwrap();
    let _server = rig.udp_server(at(SERVER_1, Family::V6, 7000));
    rig.udp(anyone(Family::V6), 7000);
}

/// As the pod's manifest would have it without root: a user of no privilege but these capabilities.
#[test]
fn the_agent_needs_no_root() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/router.yaml"));
    let manifest = manifest.unwrap();
    let named = manifest
        .lines()
        .find_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix("add: [")?.strip_suffix(']'))
        .unwrap();
    let capabilities = named.split(", ").map(|name| format!(",+{}", name.to_lowercase())).collect::<String>();
    let files = tempfile::tempdir().unwrap();
    let status = files.path().join("status.json");
    let mut rig = Rig::prepare(&Options::default(), &spec(), &["--status-file", status.to_str().unwrap()]);
    let user = Some(nix::unistd::Uid::from_raw(USER));
    // What a pod's volumes give to their user.
    fs::create_dir(rig.router.bpffs()).unwrap();
    for folder in [files.path(), rig.router.bpffs(), rig.router.spec().parent().unwrap()] {
        nix::unistd::chown(folder, user, None).unwrap();
    }
    fs::create_dir_all("/run/egress-router").unwrap();
    rig.router.run_through(&format!(
        "exec unshare --mount --propagation private sh -c '\
         mount -t tmpfs -o uid={USER} state /run/egress-router && \
         exec setpriv --reuid={USER} --regid={USER} --clear-groups --inh-caps=-all{capabilities} \
         --ambient-caps=-all{capabilities} --bounding-set=-all{capabilities} \"$@\"' sh \"$@\""
    ));
    rig.router.start().unwrap();
    let pid = rig.router.pid().unwrap();
    assert!(of_every_thread(pid, "Uid").iter().all(|uids| uids.split('\t').all(|uid| uid == USER.to_string())));
    for value in of_every_thread(pid, "CapEff") {
        assert_eq!(u64::from_str_radix(&value, 16).unwrap(), KEPT, "as without root");
    }
    let _servers = Family::ALL.map(|family| rig.udp_server(at(SERVER_1, family, 7000)));
    for family in Family::ALL {
        rig.udp(anyone(family), 7000);
    }
    // Links, addresses, settings, programs, status: all of it again.
    fs::remove_file(&status).unwrap();
    rig.router_netns().ip(["link", "delete", "net1"]).unwrap();
    rig.router_netns().sysctl(["net.ipv4.conf.eth0.forwarding=0"]).unwrap();
    bpf::detach(&rig.router.pin("link_cluster_ingress").unwrap()).unwrap();
    fs::remove_file(rig.router.pin("link_external_ingress").unwrap()).unwrap();
    let planned = || run(&mut command(&rig.router, "plan")).stdout;
    wait_until("all to be put back", TIMEOUT, || planned().contains("nothing to change"))
        .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", planned(), rig.router.stderr()));
    wait_until("the status to be written", TIMEOUT, || status.exists()).unwrap();
    rig.udp(anyone(Family::V6), 7000);
    let warnings: Vec<_> =
        rig.router.stderr().lines().filter(|line| line.contains("not permitted")).map(str::to_owned).collect();
    assert_eq!(warnings, [] as [String; 0]);
}

/// A user of no name.
const USER: u32 = 65532;

#[test]
fn unconfined_keeps_all() {
    let rig = Rig::with(&Options::default(), &spec(), &["--confine", "off"]);
    let pid = rig.router.pid().unwrap();
    assert!(of_every_thread(pid, "Seccomp").iter().all(|value| value == "0"));
    let own = of_every_thread(std::process::id(), "CapEff");
    assert_eq!(of_every_thread(pid, "CapEff")[0], own[0]);
}

#[test]
fn a_signal_changes_how_much_is_logged() {
    let rig = Rig::start(&spec());
    let said = |text: &str| rig.router.stderr().lines().filter(|line| line.contains(text)).count();
    assert_eq!(said("\"DEBUG\""), 0);
    rig.router.signal(Signal::SIGUSR1).unwrap();
    wait_until("the level to change", TIMEOUT, || said("log level") == 1).unwrap();
    rig.router_netns().ip(["address", "delete", "192.168.12.99/24", "dev", "net1"]).unwrap();
    wait_until("details of the repair", TIMEOUT, || said("\"DEBUG\"") > 0).unwrap();
    rig.router.signal(Signal::SIGUSR2).unwrap();
    wait_until("the level to change back", TIMEOUT, || said("log level") == 2).unwrap();
}

#[test]
fn a_service_manager_is_told() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut rig = Rig::prepare(&Options::default(), &spec(), &[]);
    let mut told = String::new();
    let mut hear = |until: &str| {
        while !told.lines().any(|line| line.starts_with(until)) {
            let mut message = [0; 4096];
            let length = manager.recv(&mut message).unwrap_or_else(|error| panic!("{error}, before {until}: {told}"));
            told.push_str(std::str::from_utf8(&message[..length]).unwrap());
            told.push('\n');
        }
    };
    rig.router.set_environment("NOTIFY_SOCKET", path.to_str().unwrap());
    rig.router.set_environment("WATCHDOG_USEC", "1000000");
    rig.router.start().unwrap();
    hear("READY=1");
    hear("STATUS=Translating: 2 rules and no fallback in force");
    hear("WATCHDOG=1");
    assert_eq!(rig.router.terminate().unwrap().code(), Some(0));
    hear("STOPPING=1");
}

/// A process that ends with the test, and takes along those that it started.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_nodes_namespace_is_opened_while_process_1_is_in_sight() {
    let rig = Rig::prepare(&Options::default(), &spec(), &[]);
    // A process 1 with every capability, in the node's namespace, as it is for a pod that sees the host's processes.
    let mut node = Command::new("nsenter");
    node.arg(format!("--net=/run/netns/{}", rig.node.name())).args([
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        "\"$@\" & wait",
        "sh",
    ]);
    let agent = rig.router.reader("run");
    node.arg(agent.get_program()).args(agent.get_args()).arg("--spec").arg(rig.router.spec());
    let mut node = Ending(node.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    BufReader::new(node.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    rig.router_netns().ip(["link", "delete", "net1"]).unwrap();
    let planned = || run(&mut command(&rig.router, "plan")).stdout;
    wait_until("the interface to be made again on the node's master", TIMEOUT, || {
        planned().contains("nothing to change")
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", planned()));
}
