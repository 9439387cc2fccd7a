//! The running agent: when it is ready, what it logs, beside another router, with many rules, and when its namespace goes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use egress_lab::address::{Host, ROUTER, SERVER_1, SERVER_2, SNAT, client, external};
use egress_lab::endpoint::any_port;
use egress_lab::router::Router;
use egress_lab::udp::{self, PacedStream, UdpClient, UdpServer};
use egress_lab::{Family, Lab, Netns, Options, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::specs::{Text, WITHIN, assert_works, one_datagram};
use crate::system::{System, apply, assert_same, command, delete, run};

fn servers(lab: &Lab) -> [UdpServer; 2] {
    Family::ALL.map(|family| {
        UdpServer::start(lab.server(SERVER_1).unwrap(), SocketAddr::new(SERVER_1.ip(family), 7000)).unwrap()
    })
}

#[test]
fn the_first_packet_after_ready_comes_through() {
    let lab = Lab::build(&Options::default()).unwrap();
    let servers = servers(&lab);
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let mut router = router.with_arguments(["--on-exit", "remove"]);
    for start in 0..20 {
        for netns in lab.all() {
            // As after a boot: nobody knows anybody.
            netns.ip(["neighbour", "flush", "all"]).unwrap();
        }
        router.start().unwrap();
        // One datagram, never repeated; either family goes first.
        let (first, second) = if start % 2 == 0 { (0, 1) } else { (1, 0) };
        one_datagram(&lab, &servers[first], Duration::from_secs(3));
        one_datagram(&lab, &servers[second], Duration::from_secs(3));
        assert_eq!(router.terminate().unwrap().code(), Some(0));
    }
}

#[test]
fn the_log_is_json_where_no_terminal_is() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let mut router = router.with_arguments(["--log-level", "debug"]);
    router.start().unwrap();
    assert_eq!(router.stdout(), "ready\n");
    router.edit("no: yaml: at: all").unwrap();
    wait_until("the refusal to be logged", WITHIN, || router.stderr().contains("edit refused")).unwrap();
    for line in router.stderr().lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "message"] {
            assert!(entry[field].is_string(), "no {field} in {line}");
        }
    }
    assert_works(&lab, SNAT);
}

/// A second pod on the same node, with a client network of its own.
struct Pod {
    netns: Netns,
    address: [IpAddr; 2],
    gateway: [IpAddr; 2],
}

impl Pod {
    fn beside(lab: &Lab) -> Self {
        let netns = Netns::new("pod").unwrap();
        netns.sysctl(["net.ipv6.conf.default.accept_dad=0", "net.ipv4.conf.all.rp_filter=0"]).unwrap();
        let wire = format!("link add c1 type veth peer name eth0 netns {}", netns.name());
        lab.client.ip(wire.split(' ')).unwrap();
        lab.client
            .ip_lines("address add 10.129.0.1/24 dev c1\naddress add fd00:11::1/64 dev c1 nodad\nlink set c1 up\n")
            .unwrap();
        netns
            .ip_lines(
                "address add 10.129.0.2/24 dev eth0\naddress add fd00:11::2/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via 10.129.0.1\nroute add default via fd00:11::1\n",
            )
            .unwrap();
        let both = |v4: &str, v6: &str| [v4, v6].map(|ip| ip.parse().unwrap());
        Self { netns, address: both("10.129.0.2", "fd00:11::2"), gateway: both("10.129.0.1", "fd00:11::1") }
    }

    /// One datagram in each family through the pod's router; whom the server saw.
    fn sources(&self, lab: &Lab) -> [IpAddr; 2] {
        let _servers = servers(lab);
        [0, 1].map(|family| {
            let (from, to) = (any_port(self.gateway[family]), SocketAddr::new(self.address[family], 7000));
            udp::exchange(&lab.client, from, to, b"second", WITHIN).result.unwrap().source.ip()
        })
    }
}

#[test]
fn two_routers_do_not_disturb_each_other() {
    let lab = Lab::build(&Options::default()).unwrap();
    let pod = Pod::beside(&lab);
    let mut first = Router::new(&lab, &Text { name: "first", ..Text::of(SNAT) }.yaml()).unwrap();
    let other = external(98);
    let second = Router::new(&lab, &Text { name: "second", ..Text::of(other) }.yaml()).unwrap();
    let mut second = second.beside(&first, &pod.netns);
    first.start().unwrap();
    let pins = |line: &str| line.starts_with("file ");
    let before = System::around(&pod.netns, &lab.node, &second).without(pins);
    second.start().unwrap();
    assert_works(&lab, SNAT);
    assert_eq!(pod.sources(&lab), other.both());

    assert_eq!(second.terminate().unwrap().code(), Some(0));
    delete(&second).assert_done();
    assert_same(&before, &System::around(&pod.netns, &lab.node, &second).without(pins), "after delete of the second");
    assert_works(&lab, SNAT);
    assert!(first.report("rules").is_ok());
}

/// The address that the outside has for another one, if it has one that it would use.
fn neighbour(lab: &Lab, ip: IpAddr) -> String {
    let text = lab.outside.ip(["neighbour", "show", "to", &ip.to_string(), "dev", "s0"]).unwrap();
    text.split_once("lladdr ").map(|(_, rest)| rest.split(' ').next().unwrap().to_owned()).unwrap_or_default()
}

#[test]
fn a_second_router_waits_for_the_first_ones_end() {
    let lab = Lab::build(&Options::default()).unwrap();
    let pod = Pod::beside(&lab);
    let first = Router::new(&lab, &Text { name: "first", ..Text::of(SNAT) }.yaml()).unwrap();
    let second = Router::new(&lab, &Text { name: "second", ..Text::of(SNAT) }.yaml()).unwrap();
    let mut second = second.beside(&first, &pod.netns);
    apply(&first).assert_done();
    assert_works(&lab, SNAT);
    let mac = |netns: &Netns| netns.mac("net1").unwrap().map(|octet| format!("{octet:02x}")).join(":");
    let old = mac(&lab.router);
    for ip in SNAT.both() {
        assert_eq!(neighbour(&lab, ip), old);
    }
    let before = System::around(&pod.netns, &lab.node, &second);
    apply(&second).assert_refused(3, &["192.168.12.99", "fd00:12::99", &old]);
    assert_same(&before, &System::around(&pod.netns, &lab.node, &second), "after a refusal");
    assert_works(&lab, SNAT);

    delete(&first).assert_done();
    second.start().unwrap();
    let new = mac(&pod.netns);
    assert_ne!(old, new);
    wait_until("the outside to learn the new holder", Duration::from_secs(1), || {
        SNAT.both().iter().all(|ip| neighbour(&lab, *ip) == new)
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?} is not {new}", SNAT.both().map(|ip| neighbour(&lab, ip))));
    assert_eq!(pod.sources(&lab), SNAT.both());
}

#[test]
fn a_namespace_deleted_under_the_agent_takes_the_router_along() {
    let lab = Lab::build(&Options::default()).unwrap();
    let pod = Pod::beside(&lab);
    let anchor = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let mut router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap().beside(&anchor, &pod.netns);
    router.start().unwrap();
    assert_eq!(pod.sources(&lab), SNAT.both());
    lab.client.ip(["link", "show", "c1"]).unwrap();
    // As a person would, and not as the lab: the agent must not be killed with it.
    run(std::process::Command::new("ip").args(["netns", "delete", pod.netns.name()])).assert_done();
    assert_eq!(router.wait().unwrap().code(), Some(0));
    assert!(!router.bpffs().exists(), "pins are left");
    // A start without a namespace ends at once, with its name.
    run(&mut command(&router, "run")).assert_refused(3, &[pod.netns.name()]);
    // Now nobody holds it open but this test.
    drop(pod);
    wait_until("the pod's interfaces to go with it", WITHIN, || lab.client.ip(["link", "show", "c1"]).is_err())
        .unwrap();
}

#[test]
fn an_idle_agent_costs_nothing() {
    let lab = Lab::build(&Options::default()).unwrap();
    let mut router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    router.start().unwrap();
    let pid = router.pid().unwrap();
    // The uplink goes: nothing that the agent could repair. Its addresses stay, for the end of the test.
    lab.outside.sysctl(["net.ipv6.conf.s0.keep_addr_on_down=1"]).unwrap();
    lab.outside.ip(["link", "set", "s0", "down"]).unwrap();
    lab.router.ip(["link", "delete", "net1"]).unwrap();
    wait_until("the agent to find that it cannot repair", Duration::from_secs(15), || {
        router.stderr().contains("could not be put right")
    })
    .unwrap();
    let started = Instant::now();
    let (before, mut seconds) = (cpu_time(pid), 0.0);
    wait_until("the next two rounds to pass", Duration::from_secs(25), || {
        seconds = started.elapsed().as_secs_f64();
        seconds > 11.0
    })
    .unwrap();
    let used = (cpu_time(pid) - before).as_secs_f64();
    assert!(used < seconds * 0.05, "{used} s of processor in {seconds} s");
    let logged = router.stderr();
    let entries = logged.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].to_string());
    let failures: Vec<String> = entries.filter(|message| message.contains("could not be put right")).collect();
    let different: BTreeSet<&String> = failures.iter().collect();
    assert_eq!(failures.len(), different.len(), "the same is logged again and again: {failures:?}");
    lab.outside.ip(["link", "set", "s0", "up"]).unwrap();
    wait_until("the agent to put it right", Duration::from_secs(25), || router.stderr().contains("was put right"))
        .unwrap();
    assert_works(&lab, SNAT);
}

/// Processor time of a process, in both modes.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    // USER_HZ is 100 on every architecture that this runs on.
    Duration::from_millis(ticks * 10)
}

/// 10,000 UDP rules from port 10000 on, IPv4 and IPv6 by turns, to one server's port 7000.
fn ten_thousand(server: Host) -> String {
    let mut text = Text { rules: Vec::new(), ..Text::of(SNAT) }.yaml();
    for number in 0..10_000_u16 {
        let ip = server.ip(Family::ALL[usize::from(number % 2)]);
        let port = 10_000 + number;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    - {{port: {port}, protocol: UDP, destinationIP: \"{ip}\", targetPort: 7000}}");
    }
    text
}

/// Whom a client's datagram to a port reaches.
fn reached(lab: &Lab, port: u16) -> SocketAddr {
    let family = Family::ALL[usize::from(port % 2)];
    let to = SocketAddr::new(ROUTER.ip(family), port);
    let attempt = udp::exchange(&lab.client, any_port(client(0).ip(family)), to, b"many", WITHIN);
    attempt.result.unwrap_or_else(|error| panic!("port {port}: {error}")).server
}

#[test]
fn ten_thousand_rules_are_in_force_within_a_second_and_change_without_loss() {
    let lab = Lab::build(&Options::default()).unwrap();
    let _first = servers(&lab);
    let _second = Family::ALL.map(|family| {
        UdpServer::start(lab.server(SERVER_2).unwrap(), SocketAddr::new(SERVER_2.ip(family), 7000)).unwrap()
    });
    let mut router = Router::new(&lab, &ten_thousand(SERVER_1)).unwrap();
    router.start().unwrap();
    // An odd step: both families.
    let every_500th = || (10_000..20_000_u16).step_by(499);
    let everywhere = |server: Host| {
        for port in every_500th() {
            let ip = server.ip(Family::ALL[usize::from(port % 2)]);
            assert_eq!(reached(&lab, port), SocketAddr::new(ip, 7000), "port {port}");
        }
    };
    everywhere(SERVER_1);
    let took = || {
        let lines = router.stderr();
        let entries = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries
            .filter(|entry| entry["tables_changed"] == true)
            .flat_map(|entry| entry["tables_took_ms"].as_u64())
            .collect::<Vec<_>>()
    };
    assert!(matches!(took()[..], [ms] if ms < 1000), "{:?} ms", took());

    let to = SocketAddr::new(ROUTER.ip(Family::V4), 10_500);
    let udp = UdpClient::open(&lab.client, any_port(client(1).ip(Family::V4)), to).unwrap();
    udp.exchange(b"warm", WITHIN).result.unwrap();
    let stream = PacedStream::start(udp, Duration::from_millis(1)).unwrap();
    wait_until("the stream to flow", WITHIN, || stream.answered() > 100).unwrap();
    router.edit(&ten_thousand(SERVER_2)).unwrap();
    wait_until("the edit to be in force", WITHIN * 2, || took().len() == 2).unwrap();
    let answered = stream.answered();
    wait_until("the stream to go on", WITHIN, || stream.answered() > answered + 100).unwrap();
    let report = stream.finish().unwrap();
    assert!(report.is_perfect(), "{report:?}");
    // A live flow keeps its destination.
    assert_eq!(report.answered.keys().map(|seen| seen.server.ip()).collect::<Vec<_>>(), [SERVER_1.ip(Family::V4)]);
    assert!(took().iter().all(|ms| *ms < 1000), "{:?} ms", took());
    everywhere(SERVER_2);
    let planned = run(&mut command(&router, "plan"));
    assert!(planned.assert_done().stdout.contains("nothing to change"), "{planned:?}");
    router.signal(Signal::SIGTERM).unwrap();
    assert_eq!(router.wait().unwrap().code(), Some(0));
}
