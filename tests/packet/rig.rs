//! The rig: the real programs with their real maps, in a namespace of their own, fed one frame at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use bytemuck::{bytes_of, pod_read_unaligned};
use egress_ebpf::contract::{Direction, Flow, FlowKey, Mark, map};
use egress_ebpf::verdict::{DropReason, Hook, Verdict};
use egress_lab::address::{self, Host, ROUTER, SERVER_1, SNAT};
use egress_lab::packet::{Content, read};
use egress_lab::{Family, Netns};
use egress_user::compile::{Protocol, Rule, RuleTable};
use egress_user::datapath::{
    Arrival, Datapath, Departure, FlowRow, Interface, Interfaces, PinDir, Reader, Settings, Tables,
};

use crate::frame::{CLUSTER_MAC, EXTERNAL_MAC, Frame};

/// Port of the rule with a target port, TCP.
pub(crate) const TCP_MOVED: u16 = 80;
/// Its target port.
pub(crate) const TCP_TARGET: u16 = 8080;
/// Port of the rule without a target port, TCP.
pub(crate) const TCP_KEPT: u16 = 443;
/// Port of the rule with a target port, UDP.
pub(crate) const UDP_MOVED: u16 = 5000;
/// Its target port.
pub(crate) const UDP_TARGET: u16 = 5001;
/// Port of the rule without a target port, UDP.
pub(crate) const UDP_KEPT: u16 = 53;

/// `TC_ACT_UNSPEC`: on to the next program, and then the stack.
const ACTION_NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const ACTION_SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
const ACTION_REDIRECT: i32 = 7;

/// What a rig has that is not the same for all.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Rules and fallback.
    pub(crate) table: RuleTable,
    /// Settings.
    pub(crate) settings: Settings,
    /// External addresses that flows come from.
    pub(crate) snat: Vec<IpAddr>,
}

impl Default for Setup {
    /// A rule of each form for each family, all to the first server; the kernel forwards.
    fn default() -> Self {
        let rules = [
            (Protocol::Tcp, TCP_MOVED, Some(TCP_TARGET)),
            (Protocol::Tcp, TCP_KEPT, None),
            (Protocol::Udp, UDP_MOVED, Some(UDP_TARGET)),
            (Protocol::Udp, UDP_KEPT, None),
        ];
        let table = RuleTable {
            rules: Family::ALL
                .into_iter()
                .flat_map(|family| rules.map(|(protocol, port, target)| (protocol, port, SERVER_1.ip(family), target)))
                .zip(0..)
                .map(|((protocol, port, destination, target), index)| rule(index, protocol, port, destination, target))
                .collect(),
            fallback: None,
        };
        let settings = Settings { flows: 1024, redirect: false, ..Settings::default() };
        Self { table, settings, snat: SNAT.both().to_vec() }
    }
}

impl Setup {
    /// With a fallback host.
    pub(crate) fn fallback(host: IpAddr) -> Self {
        let mut setup = Self::default();
        setup.table.fallback = Some(host);
        setup
    }

    /// With other settings.
    pub(crate) fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }
}

/// A rule.
pub(crate) fn rule(index: u32, protocol: Protocol, port: u16, destination: IpAddr, target: Option<u16>) -> Rule {
    let target_port = target.map(|port| port.try_into().unwrap());
    Rule { index, protocol, port: port.try_into().unwrap(), destination, target_port }
}

/// Runs a test on a rig of this set-up.
pub(crate) fn with(setup: &Setup, test: impl FnOnce(&mut Rig) + Send) {
    bare(|rig| {
        rig.install(setup);
        test(rig);
    });
}

/// Runs a test once for each family, each time on a new rig of the usual set-up.
pub(crate) fn both(mut test: impl FnMut(&mut Rig, Family) + Send) {
    for family in Family::ALL {
        with(&Setup::default(), |rig| test(rig, family));
    }
}

/// Runs a test on a rig whose datapath is loaded and not configured.
pub(crate) fn bare(test: impl FnOnce(&mut Rig) + Send) {
    sized(Setup::default().settings.flows, test);
}

/// As [`bare`], with room for so many flows.
pub(crate) fn sized(flows: u32, test: impl FnOnce(&mut Rig) + Send) {
    let netns = Netns::new("packet").unwrap();
    let [cluster, external] = [CLUSTER_MAC, EXTERNAL_MAC].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    netns
        .ip_lines(&format!(
            "link add eth0 address {cluster} type veth peer name net1 address {external}\n\
             link set eth0 up\nlink set net1 up\n\
             addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             addr add {}/24 dev net1\naddr add {}/64 dev net1 nodad\n",
            ROUTER.v4, ROUTER.v6, SNAT.v4, SNAT.v6
        ))
        .unwrap();
    netns.run(|| test(&mut Rig::new(flows)));
}

/// A loaded datapath and the namespace around it. Removes its pins when it goes.
pub(crate) struct Rig {
    datapath: Datapath,
    reader: Reader,
    pins: PinDir,
    ifindexes: [u32; 2],
    counted: Counters,
}

/// By hook and outcome: packets and bytes.
type Counters = BTreeMap<(&'static str, &'static str), (u64, u64)>;

/// What became of a frame.
#[derive(Debug)]
pub(crate) struct Run {
    hook: Hook,
    len: usize,
    departure: Departure,
    moved: Counters,
}

impl Rig {
    fn new(flows: u32) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = u64::from(std::process::id()) << 20 | NEXT.fetch_add(1, Ordering::Relaxed);
        let pins = PinDir::new(Path::new("/sys/fs/bpf/egress-test"), unique);
        let datapath = Datapath::load(pins.clone(), flows).unwrap_or_else(|error| {
            let _ = pins.remove();
            panic!("{}", chain(&error));
        });
        let reader = Reader::open(&pins).unwrap();
        let ifindexes = ["eth0", "net1"].map(ifindex);
        Self { datapath, reader, pins, ifindexes, counted: Counters::new() }
    }

    /// Both interfaces, as the datapath is told of them.
    pub(crate) fn interfaces(&self, snat: &[IpAddr]) -> Interfaces {
        let interface = |name: &str, index, host: Host, link_local: &str| {
            let mut addresses = host.both().to_vec();
            addresses.push(link_local.parse().unwrap());
            Interface { name: name.into(), index, addresses }
        };
        let cluster = interface("eth0", self.ifindexes[0], ROUTER, CLUSTER_LINK_LOCAL);
        let mut external = interface("net1", self.ifindexes[1], SNAT, EXTERNAL_LINK_LOCAL);
        external.addresses.retain(|address| snat.contains(address) || address.to_string() == EXTERNAL_LINK_LOCAL);
        external.addresses.extend(snat.iter().filter(|address| !SNAT.both().contains(address)));
        Interfaces { cluster, external, snat: snat.to_vec() }
    }

    /// Puts rules, settings and addresses in force.
    pub(crate) fn install(&mut self, setup: &Setup) {
        let tables = Tables::new(&setup.table, &setup.settings, &self.interfaces(&setup.snat)).unwrap();
        assert!(self.datapath.install(&tables).unwrap(), "the tables are in force already");
    }

    /// The datapath.
    pub(crate) fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// The reader of its maps.
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Where it is pinned.
    pub(crate) fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// Gives a frame with no mark to a program.
    pub(crate) fn run(&mut self, hook: Hook, frame: &[u8]) -> Run {
        self.run_marked(hook, frame, 0)
    }

    /// Gives a frame to a program.
    pub(crate) fn run_marked(&mut self, hook: Hook, frame: &[u8], mark: u32) -> Run {
        let departure = self.feed(hook, frame, mark);
        let now = self.counters();
        let mut moved = Counters::new();
        for (name, (packets, bytes)) in &now {
            let (packets_before, bytes_before) = self.counted.get(name).copied().unwrap_or_default();
            if (*packets, *bytes) != (packets_before, bytes_before) {
                moved.insert(*name, (packets - packets_before, bytes - bytes_before));
            }
        }
        self.counted = now;
        Run { hook, len: frame.len(), departure, moved }
    }

    /// As [`run_marked`](Self::run_marked), with no look at the counters: for many frames.
    pub(crate) fn feed(&mut self, hook: Hook, frame: &[u8], mark: u32) -> Departure {
        let ifindex = match hook {
            Hook::ClusterIngress | Hook::ClusterEgress => self.ifindexes[0],
            Hook::ExternalIngress | Hook::ExternalEgress => self.ifindexes[1],
        };
        self.datapath
            .test_run(hook, &Arrival { frame, ifindex, mark })
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// All counters that have counted.
    pub(crate) fn counters(&self) -> Counters {
        let rows = self.reader.counters().unwrap();
        rows.into_iter().map(|row| ((row.hook, row.outcome), (row.packets, row.bytes))).collect()
    }

    /// Sends a request the whole way, and returns what leaves.
    pub(crate) fn request(&mut self, frame: &Frame) -> Vec<u8> {
        let half = self.run(Hook::ClusterIngress, &frame.bytes()).is(Verdict::Request);
        let run = self.run_marked(Hook::ExternalEgress, half.frame(), half.mark()).is(Verdict::SourceHalf);
        assert_eq!(run.mark(), 0, "the mark is taken off");
        run.departure.frame
    }

    /// Sends a request the whole way; the source port, or identifier, that it leaves with.
    pub(crate) fn source_port(&mut self, frame: &Frame) -> u16 {
        let sent = self.request(frame);
        ends(&sent).0.port()
    }

    /// Sends a reply the whole way, and returns what reaches the client.
    pub(crate) fn reply(&mut self, frame: &Frame) -> Vec<u8> {
        let half = self.run(Hook::ExternalIngress, &frame.bytes()).is(Verdict::Reply);
        let run = self.run_marked(Hook::ClusterEgress, half.frame(), half.mark()).is(Verdict::SourceHalf);
        assert_eq!(run.mark(), 0, "the mark is taken off");
        run.departure.frame
    }

    /// Live flows, as the command line shows them.
    pub(crate) fn flows(&self) -> Vec<FlowRow> {
        self.reader.flows().unwrap()
    }

    /// The one live flow.
    pub(crate) fn flow(&self) -> FlowRow {
        let mut flows = self.flows();
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows.remove(0)
    }

    /// Entries of the flow table, expired ones included.
    pub(crate) fn entries(&self) -> Vec<(FlowKey, Flow)> {
        let read = |item: Result<([u8; KEY], [u8; VALUE]), _>| {
            let (key, flow) = item.unwrap();
            (pod_read_unaligned(&key), pod_read_unaligned(&flow))
        };
        self.flow_map().iter().map(read).collect()
    }

    /// The one flow's entry of one direction.
    pub(crate) fn entry(&self, direction: Direction) -> Option<(FlowKey, Flow)> {
        let mut entries = self.entries();
        entries.retain(|(key, _)| key.direction == direction as u8);
        assert!(entries.len() < 2, "{entries:?}");
        entries.pop()
    }

    /// Writes an entry of the flow table.
    pub(crate) fn set_entry(&self, key: &FlowKey, flow: &Flow) {
        let key: [u8; KEY] = bytes_of(key).try_into().unwrap();
        let flow: [u8; VALUE] = bytes_of(flow).try_into().unwrap();
        self.flow_map().insert(key, flow, 0).unwrap();
    }

    /// Removes an entry of the flow table.
    pub(crate) fn remove_entry(&self, key: &FlowKey) {
        let key: [u8; KEY] = bytes_of(key).try_into().unwrap();
        self.flow_map().remove(&key).unwrap();
    }

    /// Makes everything in the flow table this much older, as if so much time had gone by.
    pub(crate) fn pass_time(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap();
        for (key, mut flow) in self.entries() {
            flow.created_ns = flow.created_ns.saturating_sub(ns);
            flow.last_seen_ns = flow.last_seen_ns.saturating_sub(ns);
            self.set_entry(&key, &flow);
        }
    }

    /// Checks that the two entries of every flow are there and point at each other.
    pub(crate) fn assert_paired(&self) {
        let entries: std::collections::HashMap<FlowKey, Flow> = self.entries().into_iter().collect();
        for (key, flow) in &entries {
            let twin = entries.get(&key.twin(flow)).unwrap_or_else(|| panic!("no twin of {key:?} {flow:?}"));
            assert_eq!(key.twin(flow).twin(twin), *key);
        }
    }

    fn flow_map(&self) -> HashMap<MapData, [u8; KEY], [u8; VALUE]> {
        let pin: PathBuf = self.pins.map(map::FLOWS);
        HashMap::try_from(Map::HashMap(MapData::from_pin(pin).unwrap())).unwrap()
    }
}

const KEY: usize = size_of::<FlowKey>();
const VALUE: usize = size_of::<Flow>();

/// The cluster interface's link-local address.
pub(crate) const CLUSTER_LINK_LOCAL: &str = "fe80::10";
/// The external interface's link-local address.
pub(crate) const EXTERNAL_LINK_LOCAL: &str = "fe80::20";

impl Drop for Rig {
    fn drop(&mut self) {
        if let Err(errors) = self.pins.remove() {
            eprintln!("remove {}: {errors:?}", self.pins.path().display());
        }
    }
}

impl Run {
    /// Checks what became of the frame: the action, and that exactly this outcome's counter of this hook moved, by one packet
    /// and its bytes.
    #[track_caller]
    pub(crate) fn is(self, outcome: impl Into<Outcome>) -> Self {
        let outcome = outcome.into();
        let (name, action) = match outcome {
            Outcome::On(Verdict::Redirected) => (Verdict::Redirected.name(), ACTION_REDIRECT),
            Outcome::On(verdict) => (verdict.name(), ACTION_NEXT),
            Outcome::Drop(reason) => (reason.name(), ACTION_SHOT),
        };
        let wanted = Counters::from([((self.hook.name(), name), (1, self.len as u64))]);
        assert_eq!(self.moved, wanted, "counters");
        assert_eq!(self.departure.action, action, "action of {outcome:?}");
        self
    }

    /// Checks that the frame is as it came.
    #[track_caller]
    pub(crate) fn untouched(self, frame: &[u8]) -> Self {
        assert_eq!(self.departure.frame, frame);
        self
    }

    /// Checks what the frame is now, byte by byte, and that every checksum in it is right.
    #[track_caller]
    pub(crate) fn becomes(self, frame: &Frame) -> Self {
        assert_same(&self.departure.frame, frame);
        self
    }

    /// The outcome, which has to be one of the declared, counted once.
    #[track_caller]
    pub(crate) fn outcome(&self) -> Outcome {
        let [((hook, name), (1, bytes))] = self.moved.iter().collect::<Vec<_>>()[..]
            .try_into()
            .map(|one: [_; 1]| {
                let [(key, value)] = one;
                [(*key, *value)]
            })
            .unwrap_or_else(|_| panic!("not one counter: {:?}", self.moved))
        else {
            panic!("not one packet: {:?}", self.moved)
        };
        assert_eq!((hook, bytes), (self.hook.name(), self.len as u64));
        let verdict = Verdict::ALL.iter().find(|verdict| verdict.name() == name).map(|verdict| Outcome::On(*verdict));
        let drop = DropReason::ALL.iter().find(|reason| reason.name() == name).map(|reason| Outcome::Drop(*reason));
        let outcome = verdict.or(drop).unwrap();
        let actions: &[i32] = match outcome {
            Outcome::On(Verdict::Redirected) => &[ACTION_REDIRECT],
            Outcome::On(_) => &[ACTION_NEXT],
            Outcome::Drop(_) => &[ACTION_SHOT],
        };
        assert!(actions.contains(&self.departure.action), "{outcome:?} with action {}", self.departure.action);
        outcome
    }

    /// The frame.
    pub(crate) fn frame(&self) -> &[u8] {
        &self.departure.frame
    }

    /// `skb->mark`.
    pub(crate) fn mark(&self) -> u32 {
        self.departure.mark
    }
}

/// What may become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on.
    On(Verdict),
    /// It ends.
    Drop(DropReason),
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        Self::On(verdict)
    }
}

impl From<DropReason> for Outcome {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// Whether a program's return value lets the frame go on.
pub(crate) fn goes_on(departure: &Departure) -> bool {
    assert!([ACTION_NEXT, ACTION_SHOT, ACTION_REDIRECT].contains(&departure.action), "action {}", departure.action);
    departure.action != ACTION_SHOT
}

/// Checks a frame byte by byte against what it is to be, and its checksums apart from that.
#[track_caller]
pub(crate) fn assert_same(frame: &[u8], wanted: &Frame) {
    let bytes = wanted.bytes();
    assert_eq!(frame.len(), bytes.len(), "length");
    let differ: Vec<_> = (0..bytes.len()).filter(|at| frame[*at] != bytes[*at]).collect();
    assert!(differ.is_empty(), "bytes {differ:?} differ:\n is {frame:02x?}\n not {bytes:02x?}");
    let Content::Ip(packet) = read(frame) else { panic!("not IP: {frame:02x?}") };
    assert_eq!(packet.wrong_checksum(), None);
}

/// Source and destination of a whole IP packet in a frame, read apart from the builder and the datapath. An echo identifier
/// counts as both ports.
#[track_caller]
pub(crate) fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let Content::Ip(packet) = read(frame) else { panic!("not IP: {frame:02x?}") };
    let (src, dst) = packet.ports().unwrap_or_else(|| {
        let id = u16::from_be_bytes([packet.payload[4], packet.payload[5]]);
        (id, id)
    });
    (SocketAddr::new(packet.source, src), SocketAddr::new(packet.destination, dst))
}

/// Checks the mark that ingress leaves.
#[track_caller]
pub(crate) fn assert_mark(mark: u32, direction: Direction, index: u8, port: u16) {
    assert_eq!(mark, Mark::new(direction, index, egress_ebpf::addr::Port::new(port)).0, "mark {mark:#x}");
}

/// A client's socket address.
pub(crate) fn client(number: u8, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(address::client(number).ip(family), port)
}

/// A host's socket address.
pub(crate) fn at(host: Host, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(host.ip(family), port)
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(this) = cause {
        text += &format!(": {this}");
        cause = this.source();
    }
    text
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}
