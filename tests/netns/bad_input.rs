//! What is wrong is refused with its name and place, by the right exit code, and nothing is changed.

use std::fs;
use std::process::Command;

use egress_lab::address::{NODE, SERVER_1, SNAT};
use egress_lab::router::Router;
use egress_lab::{Lab, Options, sandbox, wait_until};

use crate::specs::{Text, WITHIN, assert_works};
use crate::system::{System, apply, assert_same, command, delete, plan, run, said, wrapped};

/// What to make of a good specification, and what the refusal has to name beside the file.
const BAD: [(&str, &str, &str); 17] = [
    ("spec:\n", "spec: [\n", ""),
    ("kind: EgressRouter", "kind: EgressFirewall", "kind"),
    ("apiVersion: network.operator.openshift.io/v1", "apiVersion: v1", "apiVersion"),
    ("mode: Bridge", "mode: Trunk", "spec.networkInterface.macvlan.mode"),
    ("protocol: TCP", "protocol: GRE", "spec.redirect.redirectRules[0].protocol"),
    ("port: 80,", "port: 0,", "spec.redirect.redirectRules[0].port"),
    ("port: 80,", "port: 65536,", "spec.redirect.redirectRules[0].port"),
    ("port: 80,", "port: http,", "spec.redirect.redirectRules[0].port"),
    ("targetPort: 8080", "targetPort: 0", "spec.redirect.redirectRules[0].targetPort"),
    (
        "{port: 7000, protocol: UDP, destinationIP: \"203",
        "{port: 80, protocol: TCP, destinationIP: \"203",
        "spec.redirect.redirectRules[2]",
    ),
    (
        "destinationIP: \"203.0.113.26\"",
        "destinationIP: \"203.0.113.26/32\"",
        "spec.redirect.redirectRules[0].destinationIP",
    ),
    ("destinationIP: \"203.0.113.26\"", "destinationIP: \"999.1.1.1\"", "spec.redirect.redirectRules[0].destinationIP"),
    (
        "destinationIP: \"203.0.113.26\"",
        "destinationIP: \"example.com\"",
        "spec.redirect.redirectRules[0].destinationIP",
    ),
    ("ip: 192.168.12.99/24", "ip: 192.168.12.99", "spec.addresses[0].ip"),
    ("gateway: 192.168.12.1", "gateway: 192.168.12.1/24", "spec.addresses[0].gateway"),
    ("  - ip: fd00:12::99/64\n    gateway: fd00:12::1\n", "", "destinationIP"),
    ("redirectRules:\n", "fallbackIP: 10.0.0.0/8\n    redirectRules:\n", "spec.redirect.fallbackIP"),
];

#[test]
fn a_bad_specification_is_refused_in_its_place() {
    let lab = Lab::build(&Options::default()).unwrap();
    let good = Text::of(SNAT).yaml();
    let mut router = Router::new(&lab, &good).unwrap();
    let before = System::of(&lab, &router);
    for (from, to, field) in BAD {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from:?} is not in the specification");
        router.edit(&bad).unwrap();
        let refused = apply(&router);
        refused.assert_refused(1, &[field, "egress-router.yaml"]);
        // With file, line and column in front, for editors.
        let short = run(Command::new(router.command("validate").get_program())
            .args(["validate", "-o", "short"])
            .arg(router.spec()));
        assert_eq!(short.code, 1, "{short:?}");
        let place = short
            .stdout
            .lines()
            .find(|line| line.contains(": error: ") && line.contains(field))
            .unwrap_or_else(|| panic!("{to}: {short:?}"));
        let mut numbers = place.rsplit_once("egress-router.yaml:").unwrap().1.split(':');
        let line: usize = numbers.next().unwrap().parse().unwrap();
        let _column: usize = numbers.next().unwrap().parse().unwrap();
        let changed = bad.lines().zip(good.lines()).position(|(bad, good)| bad != good).unwrap() + 1;
        // A missing address shows where it is missed; broken YAML where the parser gives up.
        if !(to.is_empty() || to.contains('[')) {
            assert!(line.abs_diff(changed) <= 1, "{to}: at line {line}, not {changed}: {place}");
        }
    }
    assert_same(&before, &System::of(&lab, &router), "after bad specifications");
    assert_eq!(plan(&router).code, 1);
    router.launch().unwrap();
    assert_eq!(router.wait().unwrap().code(), Some(1));
    fs::remove_file(router.spec()).unwrap();
    apply(&router).assert_refused(3, &["egress-router.yaml", "No such file"]);
    assert_same(&before, &System::of(&lab, &router), "without a specification");
}

#[test]
fn a_bad_command_line_is_a_usage_error() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    for arguments in [["--flows", "63"], ["--snat-ports", "9-8"], ["--hook", "nfqueue"], ["--local-port", "http"]] {
        run(command(&router, "apply").args(arguments)).assert_refused(2, &[arguments[0], arguments[1]]);
    }
}

// The client would wait in vain: a macvlan and its own host never hear each other.
#[test]
fn a_rule_that_leads_to_the_nodes_own_address_is_refused() {
    let lab = Lab::build(&Options::default()).unwrap();
    let good = Text::of(SNAT);
    let router = Router::new(&lab, &good.yaml()).unwrap();
    let before = System::of(&lab, &router);
    let bad = Text { rules: vec![("TCP", 80, SERVER_1, None), ("UDP", 53, NODE, None)], ..good.clone() };
    router.edit(&bad.yaml()).unwrap();
    for refused in [apply(&router), plan(&router)] {
        refused.assert_refused(3, &[&NODE.v4.to_string(), "up0", "macvlan never reaches its own host"]);
    }
    // The fallback is a rule too.
    let fallback = format!("  redirect:\n    fallbackIP: \"{}\"\n", NODE.v6);
    router.edit(&good.yaml().replacen("  redirect:\n", &fallback, 1)).unwrap();
    apply(&router).assert_refused(3, &[&NODE.v6.to_string(), "up0"]);
    assert_same(&before, &System::of(&lab, &router), "after refusals");
    // It is by a reflecting switch that such a mode reaches it.
    router.edit(&Text { mode: "VEPA", ..bad }.yaml()).unwrap();
    apply(&router).assert_done();
    delete(&router).assert_done();
}

#[test]
fn an_interface_without_link_addresses_is_refused() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    lab.router.ip(["tuntap", "add", "dev", "tun0", "mode", "tun"]).unwrap();
    lab.router.ip(["tuntap", "add", "dev", "net1", "mode", "tun"]).unwrap();
    let before = System::of(&lab, &router);
    run(command(&router, "apply").args(["--cluster-interface", "tun0"])).assert_refused(3, &["tun0", "link addresses"]);
    apply(&router).assert_refused(3, &["net1", "kind is tun, wanted macvlan"]);
    assert_same(&before, &System::of(&lab, &router), "after refusals");
    lab.router.ip(["link", "delete", "net1"]).unwrap();
    apply(&router).assert_done();
    assert_works(&lab, SNAT);
}

#[test]
fn what_the_system_lacks_is_named() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let before = System::of(&lab, &router);
    router.edit(&Text { master: Some("nope0"), ..Text::of(SNAT) }.yaml()).unwrap();
    apply(&router).assert_refused(3, &["nope0", "up0"]);
    router.edit(&Text::of(SNAT).yaml()).unwrap();

    run(command(&router, "apply").args(["--cluster-interface", "eth7"])).assert_refused(3, &["eth7", "eth0"]);
    let mut elsewhere = Command::new(router.command("apply").get_program());
    elsewhere.args(["apply", "--netns", "no-such-namespace", "--spec"]).arg(router.spec());
    run(&mut elsewhere).assert_refused(3, &["no-such-namespace"]);
    let mut elsewhere = Command::new(router.command("apply").get_program());
    elsewhere.args(["apply", "--netns", lab.router.name(), "--master-netns", lab.node.name(), "--bpffs", "/proc/pins"]);
    run(elsewhere.arg("--spec").arg(router.spec())).assert_refused(3, &["/proc/pins"]);
    assert_same(&before, &System::of(&lab, &router), "after refusals");

    lab.outside.ip(["link", "set", "s0", "down"]).unwrap();
    apply(&router).assert_refused(3, &["up0", "carrier"]);
    lab.node.ip(["link", "set", "up0", "down"]).unwrap();
    let down = System::of(&lab, &router);
    apply(&router).assert_refused(3, &["up0", "down"]);
    assert_same(&down, &System::of(&lab, &router), "after a master that is down");
}

#[test]
fn a_missing_capability_is_named() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let before = System::of(&lab, &router);
    // Where nobody may read and run it: the build directory may be a private one.
    let open =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let (binary, spec) = (open.path().join("egress-router"), open.path().join("spec.yaml"));
    fs::copy(router.command("apply").get_program(), &binary).unwrap();
    fs::copy(router.spec(), &spec).unwrap();
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    for verb in ["apply", "run", "plan", "delete", "status", "rules", "flows", "drops"] {
        let mut command = Command::new(&binary);
        command.args([verb, "--netns", lab.router.name()]);
        if matches!(verb, "apply" | "run" | "plan") {
            command.arg("--spec").arg(&spec);
        }
        run(&mut wrapped(&nobody, &command)).assert_refused(3, &["CAP_SYS_ADMIN", "root"]);
    }
    for capability in ["net_admin", "net_raw", "sys_admin"] {
        let without = format!("-{capability}");
        let less = ["setpriv", "--inh-caps", &without, "--bounding-set", &without];
        let name = format!("lacks CAP_{}", capability.to_uppercase());
        run(&mut wrapped(&less, &command(&router, "apply"))).assert_refused(3, &[&name]);
    }
    assert_same(&before, &System::of(&lab, &router), "after refusals");
}

#[test]
fn a_kernel_without_bpf_is_named() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let before = System::of(&lab, &router);
    let refused = said(&sandbox::without_bpf(&mut command(&router, "apply")).unwrap());
    refused.assert_refused(3, &["kernel has no BPF"]);
    assert_same(&before, &System::of(&lab, &router), "without BPF");
}

#[test]
fn an_interface_that_is_there_is_adopted_or_refused_with_the_difference() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let make = |mode: &str, rest: &str| {
        let line = format!("link add link up0 name net1 netns {} {rest} type macvlan mode {mode}", lab.router.name());
        lab.node.ip(line.split_whitespace()).unwrap();
    };
    make("private", "");
    let before = System::of(&lab, &router);
    apply(&router).assert_refused(3, &["net1", "mode is private, wanted bridge", "MAC is"]);
    assert_same(&before, &System::of(&lab, &router), "after a refusal");
    lab.router.ip(["link", "delete", "net1"]).unwrap();

    lab.router.ip("link add net1 type bridge".split(' ')).unwrap();
    let before = System::of(&lab, &router);
    apply(&router).assert_refused(3, &["net1", "kind is bridge, wanted macvlan"]);
    assert_same(&before, &System::of(&lab, &router), "after a refusal");
    lab.router.ip(["link", "delete", "net1"]).unwrap();

    // The address that the router would give it, read off one that it made.
    apply(&router).assert_done();
    let mac = lab.router.mac("net1").unwrap().map(|octet| format!("{octet:02x}")).join(":");
    delete(&router).assert_done();
    make("bridge", &format!("address {mac}"));
    lab.router.ip(["link", "set", "net1", "up"]).unwrap();
    wait_until("its link-local address to be sure", WITHIN, || {
        lab.router.ip(["address", "show", "tentative"]).is_ok_and(|text| text.is_empty())
    })
    .unwrap();
    let before = System::of(&lab, &router);
    apply(&router).assert_done();
    assert_works(&lab, SNAT);
    delete(&router).assert_done();
    assert_same(&before, &System::of(&lab, &router), "after delete of an adopted interface");
}
