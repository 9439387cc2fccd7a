//! All that a router may leave on a system, as lines that can be compared, and commands whose failure is the point.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use aya::programs::{SchedClassifier, TcAttachType};
use egress_lab::router::Router;
use egress_lab::{Lab, Netns, wait_until};
use egress_user::link::NetnsRef;
use serde_json::Value;

use crate::rig::TIMEOUT;

/// What there is: links, addresses, routes, rules, kernel settings, qdiscs, filters, programs, pins and records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct System(BTreeSet<String>);

/// Whether the kernel has done with every IPv6 address of an interface with carrier: it is no longer tentative, and has its route.
fn is_settled(netns: &Netns) -> bool {
    let interfaces = netns.ip(["-6", "-j", "address", "show"]).unwrap();
    let routes = netns.ip(["-6", "route", "show", "table", "local"]).unwrap();
    let interfaces: Vec<Value> = serde_json::from_str(&interfaces).unwrap();
    let lit = interfaces.iter().filter(|interface| {
        interface["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "LOWER_UP"))
    });
    let mut addresses = lit.filter_map(|interface| interface["addr_info"].as_array()).flatten();
    addresses.all(|address| {
        let route = format!("local {} ", address["local"].as_str().unwrap_or_default());
        address["dadfailed"] == true || (address["tentative"] != true && routes.contains(&route))
    })
}

impl System {
    /// The lab's router and node, and what this router keeps outside of them.
    pub(crate) fn of(lab: &Lab, router: &Router) -> Self {
        Self::around(&lab.router, &lab.node, router)
    }

    /// As [`of`](Self::of), for a router in another namespace.
    pub(crate) fn around(netns: &Netns, node: &Netns, router: &Router) -> Self {
        let mut lines = BTreeSet::new();
        for (name, netns) in [("router", netns), ("node", node)] {
            wait_until("the addresses to be settled", TIMEOUT, || is_settled(netns)).unwrap();
            for what in [
                "-d -j link show",
                "-j address show",
                "-4 -j -d route show table all",
                "-6 -j -d route show table all",
                "-4 -j -d rule show",
                "-6 -j -d rule show",
            ] {
                objects(&mut lines, &format!("{name}: ip {what}"), &netns.ip(what.split(' ')).unwrap());
            }
            netns.run(|| settings(&mut lines, name, Path::new("/proc/sys/net")));
            objects(&mut lines, &format!("{name}: qdisc"), &in_netns(netns, "tc -j qdisc show"));
        }
        for interface in interfaces(netns) {
            for side in ["ingress", "egress"] {
                let filters = in_netns(netns, &format!("tc -j filter show dev {interface} {side}"));
                objects(&mut lines, &format!("router: {interface} {side} filter"), &filters);
            }
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                // No tcx on this kernel means no program by tcx.
                let Ok((revision, programs)) = netns.run(|| SchedClassifier::query_tcx(interface.as_str(), side))
                else {
                    continue;
                };
                if !programs.is_empty() {
                    let ids: Vec<u32> = programs.iter().map(aya::programs::ProgramInfo::id).collect();
                    lines.insert(format!("router: {interface} {side:?} programs {ids:?}, revision {revision}"));
                }
            }
        }
        files(&mut lines, router.bpffs());
        let record = record(netns);
        if let Ok(text) = fs::read_to_string(&record) {
            lines.insert(format!("record: {text}"));
        }
        if let Ok(rules) = router.report("rules") {
            objects(&mut lines, "rule", &rules.to_string());
        }
        Self(lines)
    }

    /// What is in one and not in the other, a line each.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let gone = self.0.difference(&other.0).map(|line| format!("- {line}"));
        gone.chain(other.0.difference(&self.0).map(|line| format!("+ {line}"))).collect()
    }

    /// Without the lines that `drop` picks.
    pub(crate) fn without(&self, drop: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|line| !drop(line)).cloned().collect())
    }
}

/// Fails with the differences.
#[track_caller]
pub(crate) fn assert_same(before: &System, after: &System, when: &str) {
    let differences = before.differences(after);
    assert!(differences.is_empty(), "{when}, the system is another one:\n{}", differences.join("\n"));
}

/// Where the router of a namespace keeps earlier settings.
pub(crate) fn record(netns: &Netns) -> std::path::PathBuf {
    let file = NetnsRef::Name(netns.name().to_owned()).open().unwrap();
    Path::new("/run/egress-router").join(format!("{}.json", file.cookie().unwrap()))
}

/// Names of the interfaces of a namespace.
fn interfaces(netns: &Netns) -> Vec<String> {
    let links: Value = serde_json::from_str(&netns.ip(["-j", "link", "show"]).unwrap()).unwrap();
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

/// One line for each element of an array; `ip` prints nothing where it has none.
fn objects(lines: &mut BTreeSet<String>, what: &str, json: &str) {
    if json.trim().is_empty() {
        return;
    }
    let mut value: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{what}: {error}: {json}"));
    for object in value.as_array_mut().unwrap() {
        // The kernel's own subnet-router anycast comes and goes with its timers, not with what is configured.
        if object["type"] == "anycast" {
            continue;
        }
        // Up while somebody listens, as an announcement or a probe does.
        object.as_object_mut().unwrap().remove("allmulti");
        lines.insert(format!("{what} {object}"));
    }
}

/// Every setting that can be read, in the namespace of the calling thread.
fn settings(lines: &mut BTreeSet<String>, netns: &str, folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // An interface that goes meanwhile takes its folder along.
            if path.exists() {
                settings(lines, netns, &path);
            }
        } else if let Ok(value) = fs::read_to_string(&path) {
            lines.insert(format!("{netns}: {} = {}", path.display(), value.trim()));
        }
    }
}

fn files(lines: &mut BTreeSet<String>, path: &Path) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    lines.insert(format!("file {} {}", path.display(), metadata.ino()));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        files(lines, &entry.path());
    }
}

/// Output of a command line in a namespace; empty when it fails, as `tc` does where there is no qdisc.
fn in_netns(netns: &Netns, line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = netns.command(words.next().unwrap());
    let output = command.args(words).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// How a command ended and what it said.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command that may fail.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Said {
    said(&command.stdin(Stdio::null()).output().unwrap())
}

/// The same, of one that somebody else ran.
#[track_caller]
pub(crate) fn said(output: &std::process::Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let code = output.status.code().unwrap_or_else(|| panic!("{}: {}", output.status, text(&output.stderr)));
    Said { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Said {
    /// Checks the exit code and that the error names these.
    #[track_caller]
    pub(crate) fn assert_refused(&self, code: i32, names: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for name in names {
            assert!(self.stderr.contains(name), "the error does not name {name:?}: {}", self.stderr);
        }
    }

    /// Checks that it went well.
    #[track_caller]
    pub(crate) fn assert_done(&self) -> &Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// The same command, run by another one: `setpriv ... COMMAND ARGUMENTS`.
pub(crate) fn wrapped(by: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(by[0]);
    outer.args(&by[1..]).arg(command.get_program()).args(command.get_args());
    outer
}

/// `apply` of the router's own file.
pub(crate) fn apply(router: &Router) -> Said {
    run(command(router, "apply").args(router.arguments()))
}

/// `plan` of the router's own file.
pub(crate) fn plan(router: &Router) -> Said {
    run(command(router, "plan").args(router.arguments()))
}

/// `delete`.
pub(crate) fn delete(router: &Router) -> Said {
    run(&mut router.command("delete"))
}

/// A verb that takes a specification, with the router's own file.
pub(crate) fn command(router: &Router, verb: &str) -> Command {
    let mut command = router.command(verb);
    command.arg("--spec").arg(router.spec());
    command
}
