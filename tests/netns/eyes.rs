//! What a person can see: `trace` says what then happens, `flows`, `rules`, `drops` and `top` show what has.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egress_lab::address::{SERVER_1, SERVER_2, SNAT, client, external};
use egress_lab::{Family, Options, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at, router};
use crate::system::run;

fn trace(rig: &Rig, arguments: &[&str]) -> Value {
    let said = run(rig.router.reader("trace").args(arguments).args(["-o", "json"]));
    serde_json::from_str(&said.assert_done().stdout).unwrap()
}

#[test]
fn a_trace_says_what_then_happens() {
    // Several addresses: which one a client gets is part of the answer.
    let addresses = [external(99), external(97), external(98)];
    let spec = Spec::new()
        .addresses(addresses)
        .udp(7000, SERVER_1, None)
        .udp(7001, SERVER_1, 7000)
        .fallback(SERVER_2.ip(Family::V4));
    let rig = Rig::with(&Options { clients: 5, ..Options::default() }, &spec, &["--local-port", "udp/7100"]);
    let hosts = || [SERVER_1, SERVER_2].into_iter().flat_map(|host| Family::ALL.map(|family| (host, family)));
    let _servers: Vec<_> = hosts().map(|(host, family)| rig.udp_server(at(host, family, 7000))).collect();
    let _fallback = rig.udp_server(at(SERVER_2, Family::V4, 7002));
    for (number, port) in (0..5).zip([7000, 7001, 7002, 7000, 7001]) {
        for family in Family::ALL {
            let from = client(number).ip(family);
            let answer = trace(&rig, &[&format!("udp/{port}"), "--from", &from.to_string()]);
            if family == Family::V6 && port == 7002 {
                assert_eq!(answer["verdict"], "rejected", "{answer}");
                continue;
            }
            let (_, seen) = rig.udp(at(client(number), family, 20_000 + port), port);
            assert_eq!(answer["verdict"], "translated");
            assert_eq!(answer["destination"], seen.server.to_string(), "{answer}");
            assert_eq!(answer["source"], seen.source.ip().to_string(), "{answer}");
            assert_eq!(answer["fallback"], port == 7002);
        }
    }
    let from = client(0).v4.to_string();
    assert_eq!(trace(&rig, &["udp/7100", "--from", &from])["verdict"], "local");
    let answer = trace(&rig, &["udp/7000", "--from", &from, "--to", "10.128.0.77"]);
    assert_eq!(answer["verdict"], "foreign_destination");
    // A live flow keeps its destination though its rule is gone; another port follows the rules.
    rig.router.edit(&Spec::new().addresses(addresses).tcp(80, SERVER_1, None).yaml()).unwrap();
    let asked = |port: u16| trace(&rig, &["udp/7000", "--from", &format!("{from}:{port}")]);
    wait_until("the edit to be in force", TIMEOUT, || asked(20_001)["verdict"] == "rejected").unwrap();
    assert_eq!(asked(27_000)["destination"], at(SERVER_1, Family::V4, 7000).to_string());
    // By a specification, without a router.
    let file = rig.router.spec();
    let said = run(rig.router.reader("trace").args(["tcp/80", "--from", &from, "--spec"]).arg(&file));
    let line = format!("leaves as {}", addresses[0].v4.to_string().rsplit_once('.').unwrap().0);
    assert!(said.assert_done().stdout.contains(&line), "{said:?}");
    assert!(said.stdout.contains("rule 0 is for IPv4 TCP port 80"), "{said:?}");
}

/// `trace --live`, and what it has printed.
struct Live {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Live {
    fn start(rig: &Rig, arguments: &[&str]) -> Self {
        let mut command = rig.router.reader("trace");
        command.arg("--live").args(arguments).args(["-o", "json"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let (theirs, out) = (Arc::clone(&lines), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                theirs.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }

    fn has(&self, program: &str, verdict: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line["program"] == program && line["verdict"] == verdict)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_live_trace_shows_packets_as_they_pass_and_ends_with_whoever_looks() {
    let rig = Rig::start(&Spec::new().udp(7000, SERVER_1, None).udp(7001, SERVER_2, 7002));
    let _servers: Vec<_> = [(SERVER_1, 7000), (SERVER_2, 7002)]
        .into_iter()
        .flat_map(|(host, port)| Family::ALL.map(|family| rig.udp_server(at(host, family, port))))
        .collect();
    for family in Family::ALL {
        // Established long since: its packets take the short way.
        let (udp, seen) = rig.udp(anyone(family), 7000);
        let (other, _) = rig.udp(anyone(family), 7001);
        let local = udp.local().unwrap();
        let live = Live::start(&rig, &["udp/7000", "--from", &local.ip().to_string()]);
        wait_until("a packet and its answer", TIMEOUT, || {
            udp.exchange(b"look", TIMEOUT).result.unwrap();
            other.exchange(b"and not here", TIMEOUT).result.unwrap();
            live.has("cluster_ingress", "request_redirected") && live.has("external_ingress", "reply_redirected")
        })
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", live.lines.lock().unwrap()));
        let second = run(rig.router.reader("trace").args(["--live", "--during", "1"]));
        second.assert_refused(3, &["somebody traces already"]);
        let lines = live.lines.lock().unwrap().clone();
        for line in &lines {
            let (from, to) =
                if line["program"] == "cluster_ingress" { ("from", "to") } else { ("destination", "source") };
            assert_eq!((&line[from], &line[to]), (&local.to_string().into(), &router(family, 7000).to_string().into()));
            let (source, server) = if from == "from" { ("source", "destination") } else { ("to", "from") };
            assert_eq!(line[source], seen.source.to_string(), "{line}");
            assert_eq!(line[server], seen.server.to_string(), "{line}");
            assert!(line["because"].as_str().unwrap().starts_with("it is a live flow's"), "{line}");
        }
        // Killed, it says no good-bye, and still ends.
        drop(live);
        let again = || run(rig.router.reader("trace").args(["--live", "--during", "1"])).code;
        wait_until("tracing to have ended", TIMEOUT, || again() == 0).unwrap();
    }
    // A new flow, one that no rule names, and one from the outside: by any protocol, for people.
    let mut live = Live::start(&rig, &[]);
    wait_until("all three", TIMEOUT, || {
        rig.udp(anyone(Family::V4), 7000);
        let nobody = router(Family::V4, 9);
        let refused = egress_lab::udp::UdpClient::open(&rig.client, anyone(Family::V4), nobody).unwrap();
        refused.exchange(b"nobody", TIMEOUT).result.unwrap_err();
        let outside = rig.server(SERVER_1).unwrap();
        let stray =
            egress_lab::udp::UdpClient::open(outside, at(SERVER_1, Family::V4, 9), at(SNAT, Family::V4, 9)).unwrap();
        stray.socket().send(b"hello?").unwrap();
        live.has("cluster_ingress", "rejected") && live.has("external_ingress", "unsolicited")
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", live.lines.lock().unwrap()));
    let opened = |line: &Value| line["because"].as_str().unwrap().ends_with("and it opens a flow");
    assert!(live.lines.lock().unwrap().iter().any(opened));
    // Asked to end, it ends, and well.
    kill(Pid::from_raw(live.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(live.child.wait().unwrap().code(), Some(0));
    // Nobody reads any more.
    let mut unread = rig.router.reader("trace").arg("--live").stdout(Stdio::piped()).spawn().unwrap();
    drop(unread.stdout.take());
    let ended = wait_until("it to end", TIMEOUT, || unread.try_wait().unwrap().is_some());
    unread.kill().unwrap();
    ended.unwrap();
}

#[test]
fn flows_and_rules_are_narrowed_down_and_counted() {
    let rig = Rig::start(&Spec::new().udp(7000, SERVER_1, None).udp(7001, SERVER_2, 7000));
    let _servers: Vec<_> = [SERVER_1, SERVER_2].map(|host| rig.udp_server(at(host, Family::V4, 7000))).into();
    let (busy, _) = rig.udp(at(client(1), Family::V4, 0), 7000);
    for _ in 0..5 {
        busy.exchange(b"more", TIMEOUT).result.unwrap();
    }
    let _idle = rig.udp(at(client(0), Family::V4, 0), 7001);
    let flows = |arguments: &[&str]| -> Vec<Value> {
        let said = run(rig.router.reader("flows").args(arguments).args(["-o", "json"]));
        serde_json::from_str(&said.assert_done().stdout).unwrap()
    };
    let clients = |arguments: &[&str]| -> Vec<IpAddr> {
        let ip = |flow: &Value| flow["client"].as_str().unwrap().parse::<std::net::SocketAddr>().unwrap().ip();
        flows(arguments).iter().map(ip).collect()
    };
    let (first, second) = (client(0).ip(Family::V4), client(1).ip(Family::V4));
    assert_eq!(clients(&["--sort", "bytes"]), [second, first]);
    assert_eq!(clients(&["--sort", "bytes", "--limit", "1"]), [second]);
    assert_eq!(clients(&["--client", &first.to_string()]), [first]);
    assert_eq!(clients(&["--destination", &format!("{}/32", SERVER_1.v4)]), [second]);
    assert_eq!(clients(&["--rule", "fallback"]), Vec::<IpAddr>::new());
    assert_eq!(clients(&["--port", "7001", "--protocol", "udp"]), [first]);
    let said = run(rig.router.reader("rules").args(["--counts", "-o", "json"]));
    let rules: Vec<Value> = serde_json::from_str(&said.assert_done().stdout).unwrap();
    let of = |port: u16| rules.iter().find(|rule| rule["port"] == port && rule["family"] == 4).unwrap();
    assert_eq!((of(7000)["flows"].as_u64(), of(7000)["requestPackets"].as_u64()), (Some(1), Some(6)));
    assert_eq!((of(7001)["flows"].as_u64(), of(7001)["replyPackets"].as_u64()), (Some(1), Some(1)));
}

#[test]
fn drops_and_top_show_what_happens() {
    let rig = Rig::start(&Spec::new().udp(7000, SERVER_1, None));
    let _server = rig.udp_server(at(SERVER_1, Family::V4, 7000));
    let (udp, _) = rig.udp(anyone(Family::V4), 7000);
    let mut watching =
        rig.router.reader("drops").args(["--watch", "1", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    // The first look has to be made before anything happens.
    std::thread::sleep(Duration::from_millis(800));
    for _ in 0..3 {
        let to = router(Family::V4, 9);
        let refused = egress_lab::udp::UdpClient::open(&rig.client, anyone(Family::V4), to).unwrap();
        refused.exchange(b"nobody", TIMEOUT).result.unwrap_err();
    }
    let mut buffer = [0; 4096];
    let read = watching.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
    said.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert!(said.contains("\"rejected\""), "{said}");

    let flowing = egress_lab::udp::PacedStream::start(udp, Duration::from_millis(2)).unwrap();
    let top = run(rig.router.reader("top").args(["--once", "--interval", "500"]));
    let text = &top.assert_done().stdout;
    let line = text.lines().find(|line| line.contains("7000/UDP IPv4")).unwrap_or_else(|| panic!("{text}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    let packets: f64 = words[words.len() - 2].parse().unwrap();
    assert!(packets > 100.0, "1000 packets a second, two ways: {line}");
    assert!(text.contains("rejected") && text.contains("Available=True"), "{text}");
    flowing.finish().unwrap();
}
