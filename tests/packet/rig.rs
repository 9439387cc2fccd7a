//! The rig: the real programs with their real maps, in a namespace of their own, fed one frame at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use bytemuck::{bytes_of, pod_read_unaligned};
use egress_ebpf::contract::{
    AddressKey, Config, Direction, Flow, FlowKey, FragmentKey, FragmentPorts, Mark, Place, map,
};
use egress_ebpf::event::{Budget, Event, Filter, Logging, STREAMS, Stream};
use egress_ebpf::verdict::{DropReason, Hook, Verdict};
use egress_lab::address::{self, GATEWAY, Host, ROUTER, SERVER_1, SNAT};
use egress_lab::packet::{Content, read};
use egress_lab::{Family, Netns};
use egress_user::compile::{Protocol, Rule, RuleTable};
use egress_user::datapath::{
    Arrival, Datapath, Departure, Entry, Events, FlowRow, FlowTable, Interface, Interfaces, PinDir, Reader, Settings,
    Table, Tables,
};

use crate::frame::{CLUSTER_MAC, EXTERNAL_MAC, Frame, PEER_MAC};

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

/// `XDP_DROP`.
const XDP_DROP: i32 = 1;
/// `XDP_PASS`: on to the tc program.
const XDP_PASS: i32 = 2;
/// `XDP_REDIRECT`.
const XDP_REDIRECT: i32 = 4;

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
        let settings = Settings { flows: FLOWS, redirect: false, ..Settings::default() };
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

impl Setup {
    /// Where the first rule sends its packets.
    pub(crate) fn server(&self) -> SocketAddr {
        let rule = self.table.rules[0];
        SocketAddr::new(rule.destination, rule.destination_port().get())
    }

    /// Where the usual rules send UDP of the moved port.
    pub(crate) fn udp_server(&self, family: Family) -> SocketAddr {
        let mut rules = self.table.rules.iter();
        let rule = rules.find(|rule| rule.port.get() == UDP_MOVED && Family::of(rule.destination) == family).unwrap();
        SocketAddr::new(rule.destination, rule.destination_port().get())
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
    // Loading takes the verifier about a second, so what a test has done with is emptied and used again.
    static IDLE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());
    let idle = IDLE.lock().unwrap().pop();
    let mut loaded = in_namespace(idle.unwrap_or_else(|| Loaded::new(FLOWS)), test);
    loaded.clear();
    IDLE.lock().unwrap().push(loaded);
}

/// How many frames a long test sends: as many as EGRESS_FRAMES says, else its own number.
pub(crate) fn frames(default: u64) -> u64 {
    std::env::var("EGRESS_FRAMES").ok().map_or(default, |frames| frames.parse().unwrap())
}

/// As [`bare`], with room for so many flows.
pub(crate) fn sized(flows: u32, test: impl FnOnce(&mut Rig) + Send) {
    in_namespace(Loaded::new(flows), test);
}

fn in_namespace(loaded: Loaded, test: impl FnOnce(&mut Rig) + Send) -> Loaded {
    let netns = Netns::new("packet").unwrap();
    let [cluster, external] = [CLUSTER_MAC, EXTERNAL_MAC].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    netns
        .ip_lines(&format!(
            "link add eth0 address {cluster} type veth peer name net1 address {external}\n\
             link set eth0 up\nlink set net1 up\n\
             addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             addr add {}/24 dev net1\naddr add {}/64 dev net1 nodad\n\
             route add default via {} dev net1\nroute add default via {} dev net1\n",
            ROUTER.v4, ROUTER.v6, SNAT.v4, SNAT.v6, GATEWAY.v4, GATEWAY.v6
        ))
        .unwrap();
    // Nobody is there to answer for them, and what nobody answers for is left to the kernel.
    let peer = PEER_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for (host, device) in [(GATEWAY, "net1"), (address::client(0), "eth0")] {
        for ip in host.both() {
            netns.ip(["neigh", "add", &ip.to_string(), "lladdr", &peer, "dev", device, "nud", "permanent"]).unwrap();
        }
    }
    netns.sysctl(["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]).unwrap();
    netns.run(|| {
        let mut rig = Rig::new(loaded);
        test(&mut rig);
        rig.loaded
    })
}

/// Flows that a rig has room for.
pub(crate) const FLOWS: u32 = 1024;

/// A loaded datapath in a namespace of its own.
pub(crate) struct Rig {
    loaded: Loaded,
    ifindexes: [u32; 2],
    counted: Counters,
}

/// The programs and their maps. Nothing of them stays pinned, so nothing is left behind.
struct Loaded {
    datapath: Datapath,
    reader: Reader,
    active: Array<MapData, u32>,
    config: Array<MapData, [u8; size_of::<Config>()]>,
    addresses: HashMap<MapData, [u8; size_of::<AddressKey>()], u32>,
    /// Read as user space does, written as an array.
    flow_table: FlowTable,
    places: Array<MapData, [u8; size_of::<Place>()]>,
    fragments: HashMap<MapData, [u8; size_of::<FragmentKey>()], [u8; size_of::<FragmentPorts>()]>,
    trace: Array<MapData, [u8; size_of::<Filter>()]>,
    budgets: PerCpuArray<MapData, [u8; size_of::<Budget>()]>,
    events: Events,
    traced: Events,
}

impl Loaded {
    fn new(flows: u32) -> Self {
        let pins = own_pins();
        let loaded = Datapath::load(pins.clone(), flows).map(|datapath| {
            let open = |name| MapData::from_pin(pins.map(name)).unwrap();
            Self {
                datapath,
                reader: Reader::open(&pins).unwrap(),
                active: Array::try_from(Map::Array(open(map::ACTIVE))).unwrap(),
                config: Array::try_from(Map::Array(open(map::CONFIG))).unwrap(),
                addresses: HashMap::try_from(Map::HashMap(open(map::ADDRESSES))).unwrap(),
                flow_table: FlowTable::open(&pins).unwrap(),
                places: Array::try_from(Map::Array(open(map::FLOWS))).unwrap(),
                fragments: HashMap::try_from(Map::LruHashMap(open(map::FRAGMENTS))).unwrap(),
                trace: Array::try_from(Map::Array(open(map::TRACE))).unwrap(),
                budgets: PerCpuArray::try_from(Map::PerCpuArray(open(map::BUDGETS))).unwrap(),
                events: Events::of_flows(&pins).unwrap(),
                traced: Events::of_trace(&pins).unwrap(),
            }
        });
        pins.remove().unwrap();
        loaded.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Back to what it was when it was loaded, but for the counters.
    fn clear(&mut self) {
        self.active.set(0, 0, 0).unwrap();
        for generation in 0..2 {
            self.config.set(generation, [0; size_of::<Config>()], 0).unwrap();
        }
        for key in self.addresses.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            self.addresses.remove(&key).unwrap();
        }
        let flows = self.flow_table.table().unwrap();
        for entry in flows.iter() {
            assert!(flows.remove(&entry));
        }
        assert_eq!(flows.used(), 0);
        for key in self.fragments.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            self.fragments.remove(&key).unwrap();
        }
        self.datapath.set_logging(Logging::default()).unwrap();
        self.trace.set(0, [0; size_of::<Filter>()], 0).unwrap();
        let processors = aya::util::nr_cpus().unwrap();
        for stream in 0..STREAMS {
            let none = PerCpuValues::try_from(vec![[0; size_of::<Budget>()]; processors]).unwrap();
            self.budgets.set(stream, none, 0).unwrap();
        }
        while self.events.take().or_else(|| self.traced.take()).is_some() {}
    }
}

/// Pins that no other test has.
fn own_pins() -> PinDir {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = u64::from(std::process::id()) << 20 | NEXT.fetch_add(1, Ordering::Relaxed);
    PinDir::new(Path::new("/sys/fs/bpf/egress-test"), unique)
}

/// By hook and outcome: packets and bytes.
pub(crate) type Counters = BTreeMap<(&'static str, &'static str), (u64, u64)>;

/// What became of a frame.
#[derive(Debug)]
pub(crate) struct Run {
    hook: Hook,
    len: usize,
    departure: Departure,
    moved: Counters,
}

impl Rig {
    fn new(loaded: Loaded) -> Self {
        let mut rig = Self { loaded, ifindexes: ["eth0", "net1"].map(ifindex), counted: Counters::new() };
        rig.counted = rig.counters();
        rig
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
        Interfaces {
            cluster,
            external,
            snat: snat.to_vec(),
            cluster_mac: CLUSTER_MAC,
            external_mac: EXTERNAL_MAC,
            mtu: 1500,
        }
    }

    /// Puts rules, settings and addresses in force.
    pub(crate) fn install(&mut self, setup: &Setup) {
        let tables = Tables::new(&setup.table, &setup.settings, &self.interfaces(&setup.snat)).unwrap();
        assert!(self.loaded.datapath.install(&tables).unwrap(), "the tables are in force already");
    }

    /// The datapath.
    pub(crate) fn datapath(&mut self) -> &mut Datapath {
        &mut self.loaded.datapath
    }

    /// The reader of its maps.
    pub(crate) fn reader(&self) -> &Reader {
        &self.loaded.reader
    }

    /// Lets one flow in so many, and drops, be told of: at most `rate` a second.
    pub(crate) fn log(&mut self, one_in: u32, rate: u32) {
        self.datapath().set_logging(Logging { one_in, rate }).unwrap();
    }

    /// What was told of flows and drops since this was asked last.
    pub(crate) fn told(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.loaded.events.take()).collect()
    }

    /// Lets packets be told of that a filter takes.
    pub(crate) fn trace(&mut self, filter: &Filter) {
        self.loaded.trace.set(0, <[u8; size_of::<Filter>()]>::try_from(bytes_of(filter)).unwrap(), 0).unwrap();
    }

    /// What was told of traced packets since this was asked last.
    pub(crate) fn traced(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.loaded.traced.take()).collect()
    }

    /// What was not told of a stream: too many, no room.
    pub(crate) fn untold(&self, stream: Stream) -> (u64, u64) {
        let budgets = self.loaded.budgets.get(&(stream as u32), 0).unwrap();
        let budgets = budgets.iter().map(|bytes| pod_read_unaligned::<Budget>(bytes));
        budgets.fold((0, 0), |sum, budget| (sum.0 + budget.over_rate, sum.1 + budget.no_room))
    }

    /// Gives a frame with no mark to a program.
    pub(crate) fn run(&mut self, hook: Hook, frame: &[u8]) -> Run {
        self.run_marked(hook, frame, 0)
    }

    /// Gives a frame to a program.
    pub(crate) fn run_marked(&mut self, hook: Hook, frame: &[u8], mark: u32) -> Run {
        let departure = self.feed(hook, frame, mark);
        let moved = self.moved();
        Run { hook, len: frame.len(), departure, moved }
    }

    /// As [`run`](Self::run), once more where it was just time for the flow to look its next hop up: that frame is addressed by
    /// the kernel, later.
    pub(crate) fn run_settled(&mut self, hook: Hook, frame: &[u8]) -> Run {
        let run = self.run(hook, frame);
        if run.frame()[..12] == frame[..12] { self.run(hook, frame) } else { run }
    }

    /// As [`run_xdp`](Self::run_xdp), once more where it was just time for that: the tc program does it.
    pub(crate) fn run_xdp_settled(&mut self, hook: Hook, frame: &[u8]) -> Run {
        let run = self.run_xdp(hook, frame);
        if !is_left(&run.departure) {
            return run;
        }
        self.feed(hook, frame, 0);
        self.forget_counted();
        self.run_xdp(hook, frame)
    }

    /// Gives a frame to the XDP program before the tc program of an ingress hook.
    pub(crate) fn run_xdp(&mut self, hook: Hook, frame: &[u8]) -> Run {
        let departure = self.feed_xdp(hook, frame);
        let moved = self.moved();
        Run { hook, len: frame.len(), departure, moved }
    }

    /// As [`run_xdp`](Self::run_xdp), with no look at the counters.
    pub(crate) fn feed_xdp(&mut self, hook: Hook, frame: &[u8]) -> Departure {
        let direction = if hook == Hook::ClusterIngress { Direction::Request } else { Direction::Reply };
        let departure = self.loaded.datapath.test_run_xdp(direction, frame);
        departure.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// What the counters have counted since they were last looked at.
    fn moved(&mut self) -> Counters {
        let now = self.counters();
        let mut moved = Counters::new();
        for (name, (packets, bytes)) in &now {
            let (packets_before, bytes_before) = self.counted.get(name).copied().unwrap_or_default();
            if (*packets, *bytes) != (packets_before, bytes_before) {
                moved.insert(*name, (packets - packets_before, bytes - bytes_before));
            }
        }
        self.counted = now;
        moved
    }

    /// As [`run_marked`](Self::run_marked), with no look at the counters: for many frames.
    pub(crate) fn feed(&self, hook: Hook, frame: &[u8], mark: u32) -> Departure {
        let ifindex = match hook {
            Hook::ClusterIngress | Hook::ClusterEgress => self.ifindexes[0],
            Hook::ExternalIngress | Hook::ExternalEgress => self.ifindexes[1],
        };
        self.loaded
            .datapath
            .test_run(hook, &Arrival { frame, ifindex, mark })
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// All counters that have counted.
    pub(crate) fn counters(&self) -> Counters {
        let rows = self.loaded.reader.counters().unwrap();
        rows.into_iter().map(|row| ((row.hook, row.outcome), (row.packets, row.bytes))).collect()
    }

    /// How many packets have been counted in all, on whatever outcome.
    pub(crate) fn counted_packets(&self) -> u64 {
        self.counters().values().map(|(packets, _)| packets).sum()
    }

    /// Looks at the counters again, after frames that were only fed.
    pub(crate) fn forget_counted(&mut self) {
        self.counted = self.counters();
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
        self.loaded.reader.flows().unwrap()
    }

    /// The one live flow.
    pub(crate) fn flow(&self) -> FlowRow {
        let mut flows = self.flows();
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows.remove(0)
    }

    /// The flow table, as user space has it.
    pub(crate) fn table(&self) -> Table<'_> {
        self.loaded.flow_table.table().unwrap()
    }

    /// Entries of the flow table, expired ones included.
    pub(crate) fn entries(&self) -> Vec<(FlowKey, Flow)> {
        self.table().iter().map(|entry| (entry.key, entry.flow)).collect()
    }

    /// The one flow's entry of one direction.
    pub(crate) fn entry(&self, direction: Direction) -> Option<(FlowKey, Flow)> {
        let mut entries = self.entries();
        entries.retain(|(key, _)| key.direction == direction as u8);
        assert!(entries.len() < 2, "{entries:?}");
        entries.pop()
    }

    /// Writes an entry that the flow table has.
    pub(crate) fn set_entry(&mut self, key: &FlowKey, flow: &Flow) {
        let Entry { place, flow: now, .. } = self.table().find(key).unwrap();
        let mut at: Place = pod_read_unaligned(&self.loaded.places.get(&place, 0).unwrap());
        at.flow = Flow { state: now.state, reach: at.flow.reach, ..*flow };
        self.loaded.places.set(place, <[u8; size_of::<Place>()]>::try_from(bytes_of(&at)).unwrap(), 0).unwrap();
    }

    /// Removes an entry of the flow table.
    pub(crate) fn remove_entry(&mut self, key: &FlowKey) {
        let flows = self.table();
        assert!(flows.remove(&flows.find(key).unwrap()));
    }

    /// Makes everything in the flow table this much older, as if so much time had gone by.
    pub(crate) fn pass_time(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap();
        for (key, mut flow) in self.entries() {
            assert!(
                flow.last_seen_ns >= ns,
                "this machine was started less than {time:?} ago: too young for this test"
            );
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
}

/// The cluster interface's link-local address.
pub(crate) const CLUSTER_LINK_LOCAL: &str = "fe80::10";
/// The external interface's link-local address.
pub(crate) const EXTERNAL_LINK_LOCAL: &str = "fe80::20";

impl Run {
    /// Checks what became of the frame: the action, and that exactly this outcome's counter of this hook moved, by one packet
    /// and its bytes.
    #[track_caller]
    pub(crate) fn is(self, outcome: impl Into<Outcome>) -> Self {
        let outcome = outcome.into();
        let (name, action) = match outcome {
            Outcome::On(verdict @ (Verdict::RequestRedirected | Verdict::ReplyRedirected)) => {
                (verdict.name(), ACTION_REDIRECT)
            }
            Outcome::On(verdict @ Verdict::Accelerated) => (verdict.name(), XDP_REDIRECT),
            Outcome::On(verdict) => (verdict.name(), ACTION_NEXT),
            Outcome::Drop(reason) => (reason.name(), ACTION_SHOT),
        };
        let wanted = Counters::from([((self.hook.name(), name), (1, self.len as u64))]);
        assert_eq!(self.moved, wanted, "counters");
        assert_eq!(self.departure.action, action, "action of {outcome:?}");
        self
    }

    /// Checks that an XDP program left the frame to the tc program, as it came and uncounted.
    #[track_caller]
    pub(crate) fn is_left(&self, frame: &[u8]) {
        assert_eq!(self.departure.action, XDP_PASS, "action");
        assert_eq!(self.moved, Counters::new(), "counters");
        assert_eq!(self.departure.frame, frame);
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
            Outcome::On(Verdict::RequestRedirected | Verdict::ReplyRedirected) => &[ACTION_REDIRECT],
            Outcome::On(_) => &[ACTION_NEXT],
            Outcome::Drop(_) => &[ACTION_SHOT],
        };
        assert!(actions.contains(&self.departure.action), "{outcome:?} with action {}", self.departure.action);
        outcome
    }

    /// Whether the frame goes on.
    pub(crate) fn goes_on(&self) -> bool {
        goes_on(&self.departure)
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

/// Whether an XDP program's return value leaves the frame to the tc program; it must be one of those declared.
pub(crate) fn is_left(departure: &Departure) -> bool {
    assert!([XDP_PASS, XDP_REDIRECT, XDP_DROP].contains(&departure.action), "action {}", departure.action);
    departure.action == XDP_PASS
}

/// Whether a program's return value sends the frame past the stack.
pub(crate) fn is_redirected(departure: &Departure) -> bool {
    departure.action == ACTION_REDIRECT
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
