//! Two agents of one specification on two nodes: one works, and the other takes over when it does not.

mod hostile;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use egress_lab::address::{Host, ON_LINK, ROUTER, SECOND_ROUTER, SERVER_1, SNAT, client, external, second_pod};
use egress_lab::capture::{Capture, Tap};
use egress_lab::detector::Detector;
use egress_lab::inject::Injector;
use egress_lab::router::Router;
use egress_lab::second_node::{NODE_PORTS, SecondNode};
use egress_lab::udp::{self, PacedStream, UdpClient, UdpServer};
use egress_lab::wait::wait_for;
use egress_lab::{Family, Lab, Netns, Options, wait_until};
use etherparse::{Icmpv6Type, PacketBuilder};
use serde_json::Value;
use tempfile::TempDir;

use crate::metrics::{free_address, get};
use crate::rig::{SILENCE, TIMEOUT, at};
use crate::specs::Text;
use crate::system::{System, assert_same};

/// How long clients may be without a router when one dies: a few seconds, and more on a machine that is busy.
const GAP: Duration = Duration::from_secs(15);
/// As long as a test looks on whether what has settled stays so: longer than any router waits for another.
const SETTLED: Duration = Duration::from_secs(8);

/// Where an edit moves the router to.
const MOVED: Host = external(98);

/// One agent of the two.
struct Member {
    router: Router,
    status: PathBuf,
    metrics: SocketAddr,
}

impl Member {
    fn new(lab: &Lab, files: &TempDir, name: &str, spec: &str, arguments: &[&str]) -> Self {
        let (status, metrics) = (files.path().join(name).join("status.json"), free_address());
        let own = ["--standby", "--metrics", &metrics.to_string(), "--status-file", status.to_str().unwrap()];
        let arguments = own.into_iter().chain(arguments.iter().copied());
        let router = Router::new(lab, spec).unwrap().with_arguments(arguments);
        Self { router, status, metrics }
    }

    fn condition(&self, kind: &str) -> Value {
        let text = fs::read_to_string(&self.status).unwrap_or_default();
        let status: Value = serde_json::from_str(&text).unwrap_or_default();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == kind).unwrap_or_default()
    }

    fn is(&self, kind: &str, status: &str, reason: &str) -> bool {
        let condition = self.condition(kind);
        condition["status"] == status && condition["reason"] == reason
    }

    #[track_caller]
    fn wait(&self, kind: &str, status: &str, reason: &str) {
        wait_until(&format!("{kind} to be {status}, {reason}"), TIMEOUT, || self.is(kind, status, reason))
            .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", self.condition(kind), self.router.stderr()));
    }

    fn works(&self) -> bool {
        self.is("Available", "True", "Translating")
    }

    /// A series without labels.
    fn figure(&self, series: &str) -> f64 {
        let (status, figures) = get(self.metrics, "/metrics");
        assert_eq!(status, 200);
        let value = figures.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{figures}")).parse().unwrap()
    }

    fn takeovers(&self) -> f64 {
        self.figure("egress_router_takeovers_total")
    }
}

/// Both, in a lab with two nodes.
struct Pair {
    first: Member,
    second: Member,
    detector: Detector,
    lab: Lab,
    _files: TempDir,
}

impl Pair {
    fn new() -> Self {
        Self::of(&Text::of(SNAT), &[])
    }

    fn of(text: &Text, arguments: &[&str]) -> Self {
        let lab = Lab::build(&Options { second_node: true, ..Options::default() }).unwrap();
        let files = tempfile::tempdir().unwrap();
        let detector = Detector::start(&lab, SNAT.both().into_iter().chain(MOVED.both())).unwrap();
        let first = Member::new(&lab, &files, "first", &text.yaml(), arguments);
        let mut second = Member::new(&lab, &files, "second", &text.yaml(), arguments);
        second.router = second.router.on_second_node(&lab).unwrap();
        Self { first, second, detector, lab, _files: files }
    }

    /// The first works, and the second stands by.
    fn settled() -> Self {
        Self::settled_as(&Text::of(SNAT))
    }

    fn settled_as(text: &Text) -> Self {
        let mut pair = Self::of(text, &[]);
        pair.first.router.start().unwrap();
        pair.second.router.launch().unwrap();
        pair.second.wait("Available", "False", "Standby");
        pair
    }

    fn nodes(&self) -> &SecondNode {
        self.lab.second.as_ref().unwrap()
    }

    fn servers(&self) -> [UdpServer; 2] {
        Family::ALL.map(|family| {
            let start = || UdpServer::start(self.lab.server(SERVER_1).unwrap(), at(SERVER_1, family, 7000)).ok();
            // A process that another test is just starting may hold a copy of an earlier server's socket for a moment.
            wait_for("the port to be free", TIMEOUT, start).unwrap()
        })
    }

    /// A steady stream to one of the routers, in each family.
    fn streams(&self, router: Host) -> [PacedStream; 2] {
        let from = if router == ROUTER { client(0) } else { second_pod(1) };
        Family::ALL.map(|family| {
            let socket = UdpClient::open(&self.lab.client, at(from, family, 30_000), at(router, family, 7000)).unwrap();
            PacedStream::start(socket, Duration::from_millis(5)).unwrap()
        })
    }

    /// Whether datagrams come through one of the routers, from its address, in both families.
    #[track_caller]
    fn assert_works(&self, router: Host) {
        let _servers = self.servers();
        let from = if router == ROUTER { client(0) } else { second_pod(1) };
        for family in Family::ALL {
            let (from, to) = (at(from, family, 0), at(router, family, 7000));
            let seen = udp::exchange(&self.lab.client, from, to, b"through", TIMEOUT).result.unwrap();
            assert_eq!(seen.source.ip(), SNAT.ip(family));
        }
    }

    #[track_caller]
    fn wait_for_one(&self) {
        wait_until("exactly one to work", TIMEOUT, || {
            let one = |works: &Member, waits: &Member| works.works() && waits.is("Available", "False", "Standby");
            one(&self.first, &self.second) || one(&self.second, &self.first)
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.told()));
    }

    /// Nothing changes for a while, and the addresses are answered for once.
    #[track_caller]
    fn assert_one_stays(&self) {
        let state = || [&self.first, &self.second].map(|one| (one.works(), one.takeovers()));
        let (before, since) = (state(), Instant::now());
        wait_until("a while to pass", TIMEOUT, || {
            assert_eq!(state(), before, "{}", self.told());
            since.elapsed() > SETTLED
        })
        .unwrap();
        assert_eq!(before.iter().filter(|(works, _)| *works).count(), 1, "{}", self.told());
        assert_eq!(answers(&self.lab), [1, 1], "answers to ARP and neighbour discovery");
    }

    fn told(&self) -> String {
        format!("first:\n{}\nsecond:\n{}", self.first.router.stderr(), self.second.router.stderr())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.detector.assert_clean().unwrap();
        }
    }
}

fn has_net1(netns: &Netns) -> bool {
    netns.ip(["link", "show", "net1"]).is_ok()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// How often a host on the external network is told where the router's address is when it asks once, by family.
fn answers(lab: &Lab) -> [usize; 2] {
    // A host that nobody else answers for.
    let asker = [2, 0, 0, 0, 0, 0x50];
    let mut tap = Tap::open(&lab.outside, "s0").unwrap();
    let injector = Injector::open(&lab.outside, "s0").unwrap();
    let mut arp = [[0xff; 6], asker].concat();
    arp.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    arp.extend(asker);
    arp.extend(ON_LINK.v4.octets());
    arp.extend([0; 6]);
    arp.extend(SNAT.v4.octets());
    let target = SNAT.v6.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15]];
    let mut solicitation = Vec::new();
    PacketBuilder::ethernet2(asker, [0x33, 0x33, 0xff, target[13], target[14], target[15]])
        .ipv6(ON_LINK.v6.octets(), group, 255)
        .icmpv6(Icmpv6Type::Unknown { type_u8: 135, code_u8: 0, bytes5to8: [0; 4] })
        .write(&mut solicitation, &[&target[..], &[1, 1], &asker].concat())
        .unwrap();
    for frame in [arp, solicitation] {
        injector.send(&frame).unwrap();
    }
    let (mut found, since) = ([0; 2], Instant::now());
    wait_until("answers, in vain for most of the time", TIMEOUT, || {
        for frame in tap.read().unwrap().into_iter().map(|frame| frame.bytes).filter(|bytes| bytes[..6] == asker) {
            let says = |at: usize, ip: IpAddr| match ip {
                IpAddr::V4(ip) => frame[at..at + 4] == ip.octets(),
                IpAddr::V6(ip) => frame[at..at + 16] == ip.octets(),
            };
            found[0] += usize::from(frame[12..14] == [8, 6] && says(28, SNAT.v4.into()));
            found[1] += usize::from(frame[12..14] == [0x86, 0xdd] && frame[54] == 136 && says(62, SNAT.v6.into()));
        }
        since.elapsed() > SILENCE
    })
    .unwrap();
    found
}

#[test]
fn a_standby_takes_over_when_the_working_node_loses_its_link_and_keeps_the_addresses() {
    let mut pair = Pair::new();
    let servers = pair.servers();
    pair.first.router.start().unwrap();
    let system = |pair: &Pair| System::around(&pair.nodes().router, &pair.nodes().node, &pair.second.router);
    let before = system(&pair);
    let from_second = Capture::start(&pair.nodes().switch, NODE_PORTS[1]).unwrap();
    pair.second.router.launch().unwrap();
    let lab = &pair.lab;
    let own = lab.router.mac("net1").unwrap();
    for address in SNAT.both() {
        wait_until("the holder to be named", TIMEOUT, || {
            let message = pair.second.condition("Available")["message"].to_string();
            message.contains(&format!("{address} is at {}", text(own)))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}", pair.second.condition("Available")));
    }
    pair.second.wait("Available", "False", "Standby");
    pair.second.wait("Degraded", "False", "AsSpecified");
    pair.second.wait("Progressing", "False", "Settled");
    let health = |member: &Member| ["/healthz", "/readyz"].map(|path| get(member.metrics, path).0);
    assert_eq!((health(&pair.first), health(&pair.second)), ([200, 200], [200, 503]));
    let active = |member: &Member| member.figure("egress_router_active");
    assert_eq!((active(&pair.first), active(&pair.second)), (1.0, 0.0));
    assert!(!pair.second.router.is_ready());
    let reported = pair.second.router.report("status").unwrap();
    assert_eq!((&reported["installed"], &reported["conditions"][0]["reason"]), (&false.into(), &"Standby".into()));
    assert_same(&before, &system(&pair), "while it stands by");
    // Not even its questions say that its MAC is where it is not.
    let frames = from_second.frames().unwrap();
    assert!(frames.iter().all(|frame| frame.bytes[6..12] != own), "it spoke as the router");

    let to_first = pair.streams(ROUTER);
    let to_second = pair.streams(SECOND_ROUTER);
    for stream in &to_first {
        wait_until("the first to work", TIMEOUT, || stream.answered() > 100).unwrap();
    }
    assert!(to_second.iter().all(|stream| stream.answered() == 0));
    let down = Instant::now();
    // Back with its link, the node can still tell in whose network it is.
    lab.node.sysctl(["net.ipv6.conf.up0.keep_addr_on_down=1"]).unwrap();
    lab.node.ip(["link", "set", "up0", "down"]).unwrap();
    wait_until("the second to work", Duration::from_secs(60), || to_second.iter().all(|one| one.answered() > 0))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
    let gap = down.elapsed();
    eprintln!("clients were without a router for {gap:?}");
    assert!(gap < GAP, "{gap:?}");
    for (family, stream) in Family::ALL.into_iter().zip(to_first) {
        let report = stream.finish().unwrap();
        assert!(report.answered.keys().all(|seen| seen.source.ip() == SNAT.ip(family)), "{report:?}");
    }
    for (family, stream) in Family::ALL.into_iter().zip(to_second) {
        let answered = stream.answered();
        wait_until("the second to go on", TIMEOUT, || stream.answered() > answered + 100).unwrap();
        let report = stream.finish().unwrap();
        assert!(report.answered.keys().all(|seen| seen.source.ip() == SNAT.ip(family)), "{report:?}");
    }
    wait_until("the second to say so", TIMEOUT, || pair.second.router.is_ready() && pair.second.works()).unwrap();
    pair.first.wait("Available", "False", "MasterDown");
    assert!(!has_net1(&lab.router), "the first kept what it gave up");
    assert_eq!((health(&pair.first), health(&pair.second)), ([200, 503], [200, 200]));

    lab.node.ip(["link", "set", "up0", "up"]).unwrap();
    pair.first.wait("Available", "False", "Standby");
    wait_until("the new holder to be named", TIMEOUT, || {
        pair.first.condition("Available")["message"].to_string().contains(&text(own))
    })
    .unwrap();
    pair.first.wait("Degraded", "False", "AsSpecified");
    pair.assert_one_stays();
    assert!(pair.second.works());
    drop(servers);
    pair.assert_works(SECOND_ROUTER);
}

/// Which of the two has the lower master's MAC, and so the precedence.
fn lower(pair: &Pair) -> &Member {
    let first = pair.lab.node.mac("up0").unwrap() < pair.nodes().node.mac("up0").unwrap();
    if first { &pair.first } else { &pair.second }
}

fn one_is_left_after_a_partition(mode: &'static str) {
    let pair = Pair::settled_as(&Text { mode, ..Text::of(SNAT) });
    pair.nodes().part(NODE_PORTS[1]).unwrap();
    wait_until("both to work", TIMEOUT, || pair.second.works()).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(pair.first.works());
    let healed = Instant::now();
    pair.nodes().join(NODE_PORTS[1]).unwrap();
    wait_until("one to give way", TIMEOUT, || !(pair.first.works() && pair.second.works()))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
    pair.wait_for_one();
    eprintln!("{mode}: one was left after {:?}", healed.elapsed());
    pair.assert_one_stays();
    assert!(lower(&pair).works(), "{}", pair.told());
    let one = if pair.first.works() { ROUTER } else { SECOND_ROUTER };
    pair.assert_works(one);
}

#[test]
fn one_of_two_is_left_when_a_network_that_was_in_two_has_healed() {
    one_is_left_after_a_partition("Bridge");
}

#[test]
fn one_of_two_is_left_whatever_the_mode_lets_their_interfaces_hear() {
    one_is_left_after_a_partition("Private");
    one_is_left_after_a_partition("Passthru");
}

#[test]
fn one_that_works_without_its_agent_is_heard_too() {
    let mut pair = Pair::settled();
    pair.first.router.kill().unwrap();
    pair.nodes().part(NODE_PORTS[0]).unwrap();
    wait_until("the second to work", TIMEOUT, || pair.second.works()).unwrap();
    pair.nodes().join(NODE_PORTS[0]).unwrap();
    // The other cannot give way, so this one does, and stays away for as long as it hears it.
    pair.second.wait("Available", "False", "Standby");
    let since = Instant::now();
    wait_until("a while to pass", TIMEOUT, || since.elapsed() > SETTLED).unwrap();
    assert!(pair.second.is("Available", "False", "Standby"), "{}", pair.second.router.stderr());
    assert_eq!(answers(&pair.lab), [1, 1]);
    pair.assert_works(ROUTER);
}

#[test]
fn an_agent_that_is_killed_finds_what_it_left_and_loses_no_packet() {
    let mut pair = Pair::settled();
    let _servers = pair.servers();
    let streams = pair.streams(ROUTER);
    for stream in &streams {
        wait_until("the stream to flow", TIMEOUT, || stream.answered() > 100).unwrap();
    }
    pair.first.router.kill().unwrap();
    fs::remove_file(&pair.first.status).unwrap();
    pair.first.router.start().unwrap();
    pair.first.wait("Available", "True", "Translating");
    pair.assert_one_stays();
    assert_eq!((pair.first.takeovers(), pair.second.takeovers()), (0.0, 0.0));
    for stream in streams {
        let report = stream.finish().unwrap();
        assert!(report.is_perfect(), "{report:?}\n{}", pair.told());
    }
}

#[test]
fn of_two_that_begin_at_the_same_time_one_works() {
    let mut pair = Pair::new();
    pair.first.router.launch().unwrap();
    pair.second.router.launch().unwrap();
    pair.wait_for_one();
    pair.assert_one_stays();
    assert!(lower(&pair).works(), "{}", pair.told());
}

#[test]
fn who_ends_and_removes_its_router_leaves_the_addresses_to_the_standby() {
    let mut pair = Pair::of(&Text::of(SNAT), &["--on-exit", "remove"]);
    pair.first.router.start().unwrap();
    pair.second.router.launch().unwrap();
    pair.second.wait("Available", "False", "Standby");

    // An edit is read and judged while it waits, and is what it takes over with.
    pair.second.router.edit("kind: nonsense\n").unwrap();
    pair.second.wait("Degraded", "True", "SpecificationInvalid");
    assert!(pair.second.is("Available", "False", "Standby"));
    let mut edited = Text::of(SNAT);
    edited.rules.push(("UDP", 7001, SERVER_1, Some(7000)));
    pair.second.router.edit(&edited.yaml()).unwrap();
    pair.second.wait("Degraded", "False", "AsSpecified");

    assert_eq!(pair.first.router.terminate().unwrap().code(), Some(0));
    wait_until("the second to work", TIMEOUT, || pair.second.works())
        .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.second.router.stderr()));
    let _servers = pair.servers();
    for family in Family::ALL {
        let (from, to) = (at(second_pod(1), family, 0), at(SECOND_ROUTER, family, 7001));
        let seen = udp::exchange(&pair.lab.client, from, to, b"edited", TIMEOUT).result.unwrap();
        assert_eq!(seen.source.ip(), SNAT.ip(family));
    }
    assert_eq!(answers(&pair.lab), [1, 1]);

    // One that waits ends at once, and has nothing to leave or to take away.
    pair.first.router.launch().unwrap();
    pair.first.wait("Available", "False", "Standby");
    let asked = Instant::now();
    assert_eq!(pair.first.router.terminate().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(!has_net1(&pair.lab.router));
    assert!(pair.second.works());
}

#[test]
fn a_switch_that_gives_back_what_is_sent_is_not_taken_for_another_router() {
    let pair = Pair::settled();
    pair.nodes().switch.ip(["link", "set", NODE_PORTS[0], "type", "bridge_slave", "hairpin", "on"]).unwrap();
    wait_until("it to be told", TIMEOUT, || pair.first.router.stderr().contains("gives back what is sent"))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
    let since = Instant::now();
    wait_until("a while to pass", TIMEOUT, || since.elapsed() > SETTLED).unwrap();
    assert!(pair.first.works() && pair.second.is("Available", "False", "Standby"), "{}", pair.told());
}
