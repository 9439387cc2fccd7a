//! Two labs, alike but for who translates. Every step goes through both.
//!
//! All ends are ghosts, addresses that no kernel has: nobody answers what was only meant to be looked at. The thread that
//! sends stays on one processor, so that the kernel delivers in order, and a last packet of a known flow, once it has
//! arrived, tells that everything before it has.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use egress_lab::address::{GATEWAY, Host, ROUTER, SNAT, far, pod};
use egress_lab::capture::Tap;
use egress_lab::frame::{Body, Frame};
use egress_lab::inject::Injector;
use egress_lab::kernel_nat::{KernelNat, Rule};
use egress_lab::processor::Core;
use egress_lab::router::Router;
use egress_lab::topology::{CLUSTER_INTERFACE, EXTERNAL_INTERFACE, OUTSIDE_INTERFACE};
use egress_lab::{Family, Lab, Options};

use crate::outcome::{Difference, Observed};
use crate::step::{End, Flow, Step};
use crate::trace::Place;

/// The clients.
pub(crate) const CLIENTS: [Host; 3] = [pod(50), pod(51), pod(52)];
/// Where all rules lead to.
pub(crate) const SERVER: Host = far(99);
/// Where the fallback leads to.
pub(crate) const FALLBACK: Host = far(98);
/// A host that nothing leads to.
pub(crate) const STRANGER: Host = far(97);
/// A pod that is no client of ours.
pub(crate) const POD: Host = pod(77);
/// A router on the way.
pub(crate) const HOP: Host = far(96);

/// Rules for each family: protocol, port, target port.
pub(crate) const RULES: [(&str, u16, Option<u16>); 7] = [
    ("tcp", 80, Some(8080)),
    ("tcp", 443, None),
    ("udp", 7000, Some(7001)),
    ("udp", 53, None),
    ("sctp", 9000, Some(9001)),
    ("sctp", 9002, None),
    ("udp", LAST, None),
];
/// The port of the packets that tell that all before them has arrived.
const LAST: u16 = 9999;
/// For what must happen.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What is the same in both labs, and not in all tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    /// The family that has a fallback; the other one has none.
    pub(crate) fallback: Family,
    pub(crate) cluster_mtu: u32,
    pub(crate) uplink_mtu: u32,
}

/// The labs.
pub(crate) struct Twins {
    original: Side,
    ours: Side,
    world: World,
    next_port: u16,
    packets: u64,
    seen: u64,
}

/// One of them.
struct Side {
    /// Dropped before the namespaces that it is in.
    _router: Option<Router>,
    taps: [Tap; 2],
    injectors: [Injector; 2],
    /// Of each end: the router's link address there, and its own.
    macs: [[[u8; 6]; 2]; 2],
    ports: HashMap<Flow, u16>,
    last: u32,
    _lab: Lab,
}

impl Twins {
    pub(crate) fn start(world: &World) -> Self {
        Core::last().unwrap().stay().unwrap();
        Self {
            original: Side::original(world),
            ours: Side::ours(world),
            world: *world,
            next_port: 20_000,
            packets: 0,
            seen: 0,
        }
    }

    /// Where a trace happens: with ports that no other one has.
    pub(crate) fn place(&mut self, family: Family, round: usize) -> Place {
        self.next_port += 8;
        Place {
            family,
            client: CLIENTS[round % CLIENTS.len()],
            port: self.next_port,
            fallback: (family == self.world.fallback).then_some(FALLBACK),
            uplink_is_narrow: self.world.uplink_mtu < self.world.cluster_mtu,
        }
    }

    /// Sends a step through both labs; what is different then.
    pub(crate) fn play(&mut self, step: &Step) -> Option<Difference> {
        let original = self.original.play(step);
        let ours = self.ours.play(step);
        self.packets += step.packets.len() as u64;
        self.seen += (original.len() + ours.len()) as u64;
        Difference::between(step, original, ours)
    }

    pub(crate) fn packets(&self) -> u64 {
        self.packets
    }

    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }
}

impl Side {
    fn original(world: &World) -> Self {
        let lab = Lab::build(&options(world)).unwrap();
        let mut rules = Vec::new();
        for (protocol, port, target_port) in RULES {
            for destination in SERVER.both() {
                rules.push(Rule { protocol, port, destination, target_port });
            }
        }
        let nat = KernelNat { rules, fallback: vec![FALLBACK.ip(world.fallback)], snat: Some(SNAT) };
        nat.install(&lab, SNAT).unwrap();
        Self::new(lab, None)
    }

    fn ours(world: &World) -> Self {
        let lab = Lab::build(&options(world)).unwrap();
        let mut router = Router::new(&lab, &specification(world)).unwrap();
        router.start().unwrap();
        Self::new(lab, Some(router))
    }

    fn new(lab: Lab, router: Option<Router>) -> Self {
        for netns in lab.all() {
            // Limits would make what is answered depend on how fast the test is; a random label is different each time.
            netns.sysctl(["net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0", "net.ipv6.icmp.ratemask="]).unwrap();
            netns.sysctl(["net.ipv6.auto_flowlabels=0"]).unwrap();
        }
        let mac = |netns: &egress_lab::Netns, device| netns.mac(device).unwrap();
        let macs = [
            [mac(&lab.router, CLUSTER_INTERFACE), mac(&lab.client, "c0")],
            [mac(&lab.router, EXTERNAL_INTERFACE), mac(&lab.outside, OUTSIDE_INTERFACE)],
        ];
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let mut neighbours = String::new();
        for ip in CLIENTS.into_iter().chain([POD]).flat_map(Host::both) {
            neighbours +=
                &format!("neigh replace {ip} lladdr {} dev {CLUSTER_INTERFACE} nud permanent\n", text(macs[0][1]));
        }
        for ip in GATEWAY.both() {
            neighbours +=
                &format!("neigh replace {ip} lladdr {} dev {EXTERNAL_INTERFACE} nud permanent\n", text(macs[1][1]));
        }
        lab.router.ip_lines(&neighbours).unwrap();
        for ip in [SERVER, FALLBACK, STRANGER, HOP].into_iter().flat_map(Host::both) {
            lab.outside.ip_lines(&format!("route add blackhole {ip}\n")).unwrap();
        }
        Self {
            _router: router,
            taps: [Tap::open(&lab.client, "c0").unwrap(), Tap::open(&lab.outside, OUTSIDE_INTERFACE).unwrap()],
            injectors: [
                Injector::open(&lab.client, "c0").unwrap(),
                Injector::open(&lab.outside, OUTSIDE_INTERFACE).unwrap(),
            ],
            macs,
            ports: HashMap::new(),
            last: 0,
            _lab: lab,
        }
    }

    fn play(&mut self, step: &Step) -> Vec<Observed> {
        let port = step.flow.and_then(|flow| self.ports.get(&flow).map(|port| (flow, *port)));
        for packet in &step.packets {
            self.send(step.from, &packet.bytes(port, step.damage));
        }
        let mut observed = self.collect();
        if let (Some(flow), None, End::Client) = (step.flow, port, step.from) {
            let left = observed
                .iter()
                .find(|seen| seen.end == End::Outside && seen.is_between(flow.snat.ip(), flow.server.ip()));
            if let Some(port) = left.and_then(Observed::source_port) {
                self.ports.insert(flow, port);
            }
        }
        if let Some(flow) = step.flow
            && let Some(port) = self.ports.get(&flow).filter(|port| **port != flow.snat.port())
        {
            observed.iter_mut().for_each(|seen| seen.give_back(&flow, *port));
        }
        observed
    }

    fn send(&self, from: End, packet: &[u8]) {
        let [to, own] = self.macs[from as usize];
        let kind: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        let frame = [&to[..], &own, &kind.to_be_bytes(), packet].concat();
        self.injectors[from as usize].send(&frame).unwrap();
    }

    /// Everything that has arrived at the ends since the last time.
    fn collect(&mut self) -> Vec<Observed> {
        self.last += 1;
        let number = self.last.to_be_bytes();
        let ends = |from: Host, to: Host| (from.ip(Family::V4), to.ip(Family::V4));
        let (from, to) = ends(CLIENTS[0], ROUTER);
        let last = Frame::new((from, 999).into(), (to, LAST).into(), Body::Udp);
        let last = last.with(|frame| frame.payload = [&b"the last of step "[..], &number].concat());
        self.send(End::Client, &last.packet());
        let deadline = Instant::now() + TIMEOUT;
        let mut outside = Vec::new();
        loop {
            outside.extend(self.taps[1].read().unwrap());
            let arrived = outside.iter().position(|frame| frame.bytes.ends_with(&last.payload));
            if let Some(at) = arrived {
                outside.remove(at);
                break;
            }
            assert!(Instant::now() < deadline, "the last packet of step {} has not arrived", self.last);
            std::thread::yield_now();
        }
        let client = self.taps[0].read().unwrap();
        let read = |end: End, frames: Vec<egress_lab::capture::Frame>| {
            let macs = self.macs[end as usize];
            frames.into_iter().filter_map(move |frame| Observed::of(end, &frame.bytes, macs)).collect::<Vec<_>>()
        };
        [read(End::Client, client), read(End::Outside, outside)].concat()
    }
}

fn options(world: &World) -> Options {
    Options { cluster_mtu: world.cluster_mtu, uplink_mtu: world.uplink_mtu, ..Options::default() }
}

fn specification(world: &World) -> String {
    let mut text = String::from(
        "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata: {name: twin}\nspec:\n  addresses:\n",
    );
    text += &format!("  - {{ip: {}/24, gateway: {}}}\n", SNAT.v4, GATEWAY.v4);
    text += &format!("  - {{ip: \"{}/64\", gateway: \"{}\"}}\n", SNAT.v6, GATEWAY.v6);
    text += &format!("  redirect:\n    fallbackIP: \"{}\"\n    redirectRules:\n", FALLBACK.ip(world.fallback));
    for (protocol, port, target) in RULES {
        let target = target.map(|port| format!(", targetPort: {port}")).unwrap_or_default();
        for ip in SERVER.both() {
            let protocol = protocol.to_uppercase();
            text += &format!("    - {{protocol: {protocol}, port: {port}, destinationIP: \"{ip}\"{target}}}\n");
        }
    }
    text
}
