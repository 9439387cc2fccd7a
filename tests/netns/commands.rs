//! What the commands print: for people, for programs, and for shells.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use egress_lab::address::{ROUTER, SERVER_1, SNAT, client};
use egress_lab::endpoint::any_port;
use egress_lab::router::Router;
use egress_lab::{Family, Lab, Options, udp, wait_until};
use serde_json::Value;

use crate::specs::{Text, WITHIN, assert_works};
use crate::system::{Said, apply, run};

const READERS: [&str; 4] = ["status", "rules", "flows", "drops"];

#[test]
fn before_anything_is_installed_the_readers_say_what_to_do() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    for verb in READERS {
        run(&mut router.reader(verb)).assert_refused(3, &["no datapath is installed", "egress-router run"]);
    }
}

#[test]
fn the_readers_hold_what_traffic_did() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    apply(&router).assert_done();
    assert_works(&lab, SNAT);
    for family in Family::ALL {
        // No rule and no fallback: counted, and refused by the pod itself.
        let to = SocketAddr::new(ROUTER.ip(family), 9);
        let refused = udp::exchange(&lab.client, any_port(client(0).ip(family)), to, b"discard", WITHIN);
        assert_eq!(refused.result.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }

    let status = router.report("status").unwrap();
    assert_eq!((&status["rules"], &status["flows"]), (&4.into(), &4.into()), "{status}");
    assert!(status["link"]["external"]["mac"].is_string(), "{status}");
    let addresses: Vec<&str> = status["snatAddresses"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
    assert_eq!(addresses, ["192.168.12.99", "fd00:12::99"]);

    let rules = router.report("rules").unwrap();
    for (family, server) in [(4, SERVER_1.ip(Family::V4)), (6, SERVER_1.ip(Family::V6))] {
        let rule = |protocol: &str, port: u16, target: Value| {
            let mut fitting = rules.as_array().unwrap().iter();
            let found = fitting.find(|rule| rule["family"] == family && rule["protocol"] == protocol).unwrap();
            assert_eq!(found["port"], port);
            assert_eq!(found["destination"], server.to_string());
            assert_eq!(found["targetPort"], target);
        };
        rule("TCP", 80, 8080.into());
        rule("UDP", 7000, Value::Null);
    }

    let flows = router.report("flows").unwrap();
    for flow in flows.as_array().unwrap() {
        let tcp = flow["protocol"] == "TCP";
        let end = |name: &str| flow[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
        let family = Family::of(end("client").ip());
        assert_eq!(end("client").ip(), client(0).ip(family));
        assert_eq!(end("router"), SocketAddr::new(ROUTER.ip(family), if tcp { 80 } else { 7000 }));
        assert_eq!(end("source").ip(), SNAT.ip(family));
        assert_eq!(end("destination"), SocketAddr::new(SERVER_1.ip(family), if tcp { 8080 } else { 7000 }));
        assert!(flow["requestPackets"].as_u64() >= Some(1) && flow["replyPackets"].as_u64() >= Some(1), "{flow}");
    }

    let drops = router.report("drops").unwrap();
    let rejected: u64 = drops
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["hook"] == "cluster_ingress" && row["outcome"] == "rejected")
        .flat_map(|row| row["packets"].as_u64())
        .sum();
    assert_eq!(rejected, 2, "{drops}");
    every_form_says_the_same(&router);
}

fn every_form_says_the_same(router: &Router) {
    for verb in READERS {
        let json = router.report(verb).unwrap();
        let said = |format| run(router.reader(verb).args(["-o", format]));
        let yaml: Value = serde_saphyr::from_str(&said("yaml").assert_done().stdout).unwrap();
        if verb == "status" {
            // What goes on counting aside.
            assert_eq!(yaml["link"], json["link"]);
            continue;
        }
        let rows = json.as_array().unwrap().len();
        assert!(rows > 0, "{verb} shows nothing");
        assert_eq!(yaml.as_array().unwrap().len(), rows, "{verb}");
        // A title, a line, and a row for each.
        let table = said("table");
        assert_eq!(table.assert_done().stdout.lines().count(), rows + 2, "{verb}: {table:?}");
    }
    let rules = router.show("rules").unwrap();
    assert!(rules.contains("| 203.0.113.26"), "{rules}");
}

/// The binary, for what needs no router.
fn egress_router(arguments: &[&str]) -> Said {
    run(&mut binary(arguments))
}

fn binary(arguments: &[&str]) -> Command {
    let lab = std::env::current_exe().unwrap();
    let beside = lab.ancestors().skip(1).take(2).map(|folder| folder.join("egress-router"));
    let path = std::env::var_os("EGRESS_ROUTER_BIN").map(Into::into);
    let path: std::path::PathBuf = path.or_else(|| beside.into_iter().find(|path| path.is_file())).unwrap();
    let mut command = Command::new(path);
    command.args(arguments);
    command
}

#[test]
fn every_command_has_help_with_an_example() {
    let help = egress_router(&["--help"]);
    let commands = help.assert_done().stdout.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        let help = egress_router(&[name, "--help"]);
        let text = &help.assert_done().stdout;
        assert!(text.contains("Example") && text.contains(&format!("  egress-router {name}")), "{name}: {text}");
    }
}

#[test]
fn completions_are_scripts_of_their_shells() {
    for (shell, mark) in
        [("bash", "complete -F"), ("zsh", "#compdef egress-router"), ("fish", "complete -c egress-router")]
    {
        let script = egress_router(&["completions", shell]);
        assert!(script.assert_done().stdout.contains(mark), "{shell}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), egress_router(&["completions", "bash"]).stdout).unwrap();
    run(Command::new("bash").arg("-n").arg(file.path())).assert_done();
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for arguments in [&["completions", "bash"][..], &["--help"], &["run", "--help"]] {
        let mut child = binary(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Nobody is there when it writes.
        drop(child.stdout.take());
        let mut status = None;
        wait_until("egress-router to end", WITHIN, || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status.unwrap().success() && said.is_empty(), "{arguments:?}: {status:?} {said}");
    }
}
