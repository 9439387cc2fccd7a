//! A source of packets that outruns any path, and a sink that counts them.
//!
//! The kernel makes the frames itself (`BPF_PROG_TEST_RUN` with live frames), puts them into the client's veth, and
//! carries them through the router to the sink in the softirqs of the same call: one thread pays for the whole way, on one
//! processor, and its time divided by the packets is what a packet costs. The same with a drop at the router's entrance is
//! what the source itself costs.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader, Pod};
use egress_ebpf::source::{
    AT_ENTRANCE, AT_SINK, BALANCE_AT, MAGIC, Plan, Spread, V4_BYTES, V6_BYTES, balance, flow, fold, map,
};
use nix::net::if_::if_nametoindex;
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};

use crate::inject::Injector;
use crate::processor::{Clock, Core};
use crate::{Family, Netns};

pub use egress_ebpf::source::Tally;

/// Frames that the kernel makes before it lets them go: no more than the ring of a veth takes, and few enough to stay
/// in the processor's caches.
const BATCH: u32 = 64;

/// How long the last packets of a paced stream may be under way.
const SETTLED_AFTER: Duration = Duration::from_millis(200);

/// The packets to send.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Link addresses: of the client's interface, and of the router's.
    pub macs: ([u8; 6], [u8; 6]),
    /// The first client. There are [`clients`](Self::clients), one after the other.
    pub client: IpAddr,
    /// How many addresses the packets come from.
    pub clients: u16,
    /// Where they go.
    pub to: IpAddr,
    /// The first port that they go to.
    pub first_rule: u16,
    /// How many ports they go to.
    pub rules: u32,
    /// The first source port.
    pub first_port: u16,
    /// How many source ports there are; flows beyond that differ in the address and the port that they go to.
    pub ports: u16,
    /// How many flows there are.
    pub flows: u32,
    /// Whether each flow's rule follows from its source port, and not from the flows before it.
    pub scattered: bool,
    /// Whether flows come one after the other, and not all over the place.
    pub in_turn: bool,
}

/// What a number of packets cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Processor time, from source to sink.
    pub time: Duration,
    /// Packets that were sent.
    pub sent: u64,
    /// What the sink saw of them.
    pub arrived: Tally,
}

impl Cost {
    /// How many packets did not arrive.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.arrived.packets)
    }

    /// Whether so few were lost that the rest stands for all: one in a thousand.
    pub fn is_whole(&self) -> bool {
        self.lost() * 1000 <= self.sent
    }

    /// Nanoseconds for each packet sent.
    pub fn ns_per_packet(&self) -> f64 {
        // Both numbers are far below 2^52.
        self.time.as_nanos() as f64 / self.sent as f64
    }
}

/// The programs of one rig.
pub struct Source {
    ebpf: Ebpf,
    tallies: Tallies,
    /// What is sent, and out of which interface of the client's.
    chosen: Option<(Plan, String)>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("chosen", &self.chosen).finish_non_exhaustive()
    }
}

type Tallies = PerCpuArray<MapData, Words<Tally>>;

/// Plain numbers, as `aya` wants them marked.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Words<T>(T);

// SAFETY: the contract's types are bytemuck::Pod: plain numbers, without padding.
unsafe impl Pod for Words<Plan> {}
// SAFETY: as above.
unsafe impl Pod for Words<Tally> {}

impl Source {
    /// Loads the benchmark's object, which `cargo xtask bench` builds.
    ///
    /// # Errors
    /// When it is not there, or the kernel refuses it.
    pub fn load(object: &Path) -> Result<Self> {
        // Kernels before 5.11 count a map's memory as locked.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX);
        let mut ebpf = EbpfLoader::new().load_file(object).with_context(|| format!("load {}", object.display()))?;
        let tallies = ebpf.take_map(map::TALLY).context("no map TALLY")?.try_into()?;
        let mut source = Self { ebpf, tallies, chosen: None };
        source_program(&mut source.ebpf)?.load().context("load the program source")?;
        Ok(source)
    }

    /// Has packets dropped and counted where they arrive at `device`.
    ///
    /// # Errors
    /// When the interface is missing or the kernel refuses.
    pub fn sink_at(&mut self, netns: &Netns, device: &str) -> Result<()> {
        self.attach("sink", netns, device)
    }

    /// As [`sink_at`](Self::sink_at), with the times of a change of destination.
    ///
    /// # Errors
    /// When the interface is missing or the kernel refuses.
    pub fn timed_sink_at(&mut self, netns: &Netns, device: &str) -> Result<()> {
        self.attach("timed_sink", netns, device)
    }

    /// Has packets dropped at the router's entrance.
    ///
    /// # Errors
    /// When the interface is missing or the kernel refuses.
    pub fn drop_at(&mut self, netns: &Netns, device: &str) -> Result<()> {
        self.attach("entrance", netns, device)
    }

    /// Has packets redirected, unchanged, from `device` to neighbours on `to`, one for each family.
    ///
    /// # Errors
    /// When an interface is missing or the kernel refuses.
    pub fn redirect_at(&mut self, netns: &Netns, device: &str, to: &str, neighbours: [IpAddr; 2]) -> Result<()> {
        let ifindex = netns.run(|| if_nametoindex(to)).with_context(|| format!("find interface {to}"))?;
        let mut hops: Array<&mut MapData, [u32; 6]> = self.ebpf.map_mut("HOP").context("no map HOP")?.try_into()?;
        for (index, neighbour) in (0..).zip(neighbours) {
            let (family, words) = match neighbour {
                IpAddr::V4(ip) => (nix::libc::AF_INET, [u32::from_ne_bytes(ip.octets()), 0, 0, 0]),
                IpAddr::V6(ip) => (nix::libc::AF_INET6, bytemuck::cast(ip.octets())),
            };
            let [a, b, c, d] = words;
            hops.set(index, [ifindex, family.unsigned_abs(), a, b, c, d], 0).context("set the next hop")?;
        }
        self.attach("redirect", netns, device)
    }

    fn attach(&mut self, name: &str, netns: &Netns, device: &str) -> Result<()> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut SchedClassifier = program.try_into().with_context(|| format!("program {name}"))?;
        program.load().with_context(|| format!("load the program {name}"))?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        netns
            .run(|| program.attach_with_options(device, TcAttachType::Ingress, options))
            .with_context(|| format!("attach {name} to {device}"))?;
        Ok(())
    }

    /// Chooses what is sent from now on, out of `device` of the client's namespace.
    ///
    /// # Errors
    /// When the interface is missing.
    pub fn choose(&mut self, netns: &Netns, device: &str, traffic: &Traffic) -> Result<()> {
        let ifindex = netns.run(|| if_nametoindex(device)).with_context(|| format!("find interface {device}"))?;
        let plan = traffic.plan(ifindex);
        let mut plans: Array<&mut MapData, Words<Plan>> =
            self.ebpf.map_mut(map::PLAN).context("no map PLAN")?.try_into()?;
        plans.set(0, Words(plan), 0).context("set the plan")?;
        self.chosen = Some((plan, device.to_owned()));
        // With the first flow.
        let mut position: Array<&mut MapData, u32> =
            self.ebpf.map_mut(map::POSITION).context("no map POSITION")?.try_into()?;
        position.set(0, 0, 0).context("set the position")
    }

    /// Sends `packets` from the client's namespace, holding `core`.
    ///
    /// # Errors
    /// When the kernel cannot run the source.
    pub fn send(&mut self, netns: &Netns, core: Core, packets: u32) -> Result<Cost> {
        let before = self.arrived()?;
        let (plan, _) = self.chosen.as_ref().context("nothing was chosen to be sent")?;
        let frame = vec![0; frame_bytes(plan)];
        let program = source_program(&mut self.ebpf)?;
        let time = netns.run(|| -> Result<Duration> {
            core.hold()?;
            let mut options = TestRunOptions::new();
            options.data_in = Some(&frame);
            options.repeat = packets;
            options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
            let clock = Clock::start(core)?;
            program.test_run(options).context("run the source")?;
            clock.used()
        })?;
        Ok(Cost { time, sent: packets.into(), arrived: self.arrived()?.since(&before) })
    }

    /// Sends at an even pace, from a socket of a thread of its own, for as long as `meanwhile` takes; that can look at
    /// what has arrived. Returns how many packets were sent, once the last ones have had time to arrive, and what
    /// `meanwhile` did.
    ///
    /// # Errors
    /// When frames cannot be sent, or `meanwhile` fails.
    pub fn pace<T>(
        &self,
        netns: &Netns,
        pace: Pace,
        meanwhile: impl FnOnce(&dyn Fn() -> Tally) -> Result<T>,
    ) -> Result<(u64, T)> {
        let (plan, device) = self.chosen.as_ref().context("nothing was chosen to be sent")?;
        let injector = Injector::open(netns, device)?;
        let counts = || total(&self.tallies, AT_SINK).unwrap_or_default();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| send_paced(&injector, plan, pace, &stop));
            let result = meanwhile(&counts);
            stop.store(true, Ordering::Release);
            let sent = sending.join().map_err(|_panic| anyhow!("the paced source panicked"))??;
            Ok((sent, result?))
        })
    }

    /// What the sink has counted, or, where packets are dropped at the entrance, that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arrived(&self) -> Result<Arrived> {
        Ok(Arrived { entrance: total(&self.tallies, AT_ENTRANCE)?, sink: total(&self.tallies, AT_SINK)? })
    }

    /// Forgets what was counted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reset(&mut self) -> Result<()> {
        let processors = nr_cpus().map_err(|(file, error)| anyhow!("{file}: {error}"))?;
        for place in [AT_ENTRANCE, AT_SINK] {
            let zeros = PerCpuValues::try_from(vec![Words(Tally::default()); processors])?;
            self.tallies.set(place, zeros, 0).context("forget what was counted")?;
        }
        Ok(())
    }
}

fn source_program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf.program_mut("source").context("no program source")?;
    program.try_into().context("program source")
}

/// An even pace.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// So many packets together ...
    pub burst: u32,
    /// ... every so often.
    pub period: Duration,
}

fn send_paced(injector: &Injector, plan: &Plan, pace: Pace, stop: &AtomicBool) -> Result<u64> {
    let started = Instant::now();
    let (mut sent, mut number, mut bursts) = (0, 0, 0);
    while !stop.load(Ordering::Acquire) {
        for _ in 0..pace.burst {
            injector.send(&frame(plan, number)?)?;
            number = (number + plan.step) % plan.flows;
            sent += 1;
        }
        bursts += 1;
        // By the start, not by the last burst: a late one does not delay the rest.
        let due = started + pace.period * bursts;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    // Nothing is queued for longer than a softirq takes, which another processor's load can put off.
    thread::sleep(SETTLED_AFTER);
    Ok(sent)
}

fn frame_bytes(plan: &Plan) -> usize {
    if plan.family == 4 { V4_BYTES } else { V6_BYTES }
}

/// The frame of a flow, as the program writes it.
fn frame(plan: &Plan, number: u32) -> Result<Vec<u8>> {
    let (client, port, rule) = flow(plan, number);
    let mut frame = plan.template.get(..frame_bytes(plan)).context("a template too short")?.to_vec();
    let (address_end, l4) = if plan.family == 4 { (30, 34) } else { (38, 54) };
    let mut put = |at: usize, number: u32| -> Result<()> {
        let bytes = u16::try_from(number & 0xffff).context("a word")?.to_be_bytes();
        frame.get_mut(at..at + 2).context("a frame too short")?.copy_from_slice(&bytes);
        Ok(())
    };
    put(address_end - 2, client)?;
    put(l4, port)?;
    put(l4 + 2, rule)?;
    put(l4 + 8 + BALANCE_AT, balance(plan.sum, client + port + rule))?;
    if plan.family == 4 {
        put(24, !fold(plan.header_sum + client))?;
    }
    Ok(frame)
}

/// Everything that one place has counted, on all processors.
fn total(tallies: &Tallies, place: u32) -> Result<Tally> {
    let values: PerCpuValues<Words<Tally>> = tallies.get(&place, 0).context("read what was counted")?;
    let mut total = Tally::default();
    for Words(tally) in values.iter() {
        total.packets += tally.packets;
        total.odd += tally.odd;
        total.sources += tally.sources;
        total.last_even_ns = total.last_even_ns.max(tally.last_even_ns);
        total.first_odd_ns = match (total.first_odd_ns, tally.first_odd_ns) {
            (0, first) | (first, 0) => first,
            (one, other) => one.min(other),
        };
    }
    Ok(total)
}

/// The clock that the kernel's programs read, in nanoseconds.
///
/// # Errors
/// When the kernel has no such clock.
pub fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    u64::try_from(Duration::from(now).as_nanos()).context("the clock is past its end")
}

/// What both places have counted.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    /// At the router's entrance, where they are dropped there.
    pub entrance: Tally,
    /// At the far end.
    pub sink: Tally,
}

impl Arrived {
    /// What came since `earlier`, at either place.
    fn since(&self, earlier: &Self) -> Tally {
        let packets = |arrived: &Self| arrived.entrance.packets + arrived.sink.packets;
        Tally {
            packets: packets(self) - packets(earlier),
            odd: self.sink.odd - earlier.sink.odd,
            sources: self.sink.sources - earlier.sink.sources,
            last_even_ns: self.sink.last_even_ns,
            first_odd_ns: self.sink.first_odd_ns,
        }
    }
}

impl Traffic {
    /// How the source does it.
    fn plan(&self, ifindex: u32) -> Plan {
        let template = self.template();
        let family = match Family::of(self.to) {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        let l3 = if family == 4 { V4_BYTES - 14 } else { V6_BYTES - 14 };
        let l3 = template.get(14..14 + l3).unwrap_or_default();
        let header_sum = if family == 4 { words(l3.get(..20).unwrap_or_default()) } else { 0 };
        // Their own words in the template are zero, so that what they add up to is what is missing.
        let sum = 0x4567;
        Plan {
            template,
            ifindex,
            family,
            flows: self.flows,
            step: if self.in_turn { 1 } else { step(self.flows) },
            ports: self.ports.into(),
            clients: self.clients.into(),
            rules: self.rules,
            spread: if self.scattered { Spread::Ports } else { Spread::Lines } as u32,
            first_client: last_word(self.client).into(),
            first_port: self.first_port.into(),
            first_rule: self.first_rule.into(),
            sum,
            header_sum,
        }
    }

    /// A frame without what differs from flow to flow, its UDP checksum right once that adds up to the plan's sum.
    fn template(&self) -> [u8; V6_BYTES] {
        let (client_mac, router_mac) = self.macs;
        let mut payload = [0; egress_ebpf::source::PAYLOAD_BYTES];
        for (place, byte) in payload.iter_mut().zip(MAGIC) {
            *place = byte;
        }
        debug_assert!(MAGIC.len() <= BALANCE_AT);
        let udp_bytes = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
        let mut frame = Vec::with_capacity(V6_BYTES);
        frame.extend(router_mac);
        frame.extend(client_mac);
        let mut pseudo = Vec::new();
        match (self.client, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [a, b, ..] = from.octets();
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((udp_bytes + 20).to_be_bytes());
                frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, a, b, 0, 0]);
                frame.extend(to.octets());
                pseudo.extend([a, b, 0, 0]);
                pseudo.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut source = from.octets();
                source.iter_mut().skip(14).for_each(|octet| *octet = 0);
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(udp_bytes.to_be_bytes());
                frame.extend([17, 64]);
                frame.extend(source);
                frame.extend(to.octets());
                pseudo.extend(source);
                pseudo.extend(to.octets());
            }
            _ => {}
        }
        pseudo.extend([0, 17]);
        pseudo.extend(udp_bytes.to_be_bytes());
        // Ports and checksum are zero; the length is here a second time, as it is in the header.
        pseudo.extend(udp_bytes.to_be_bytes());
        pseudo.extend(payload);
        let checksum = !fold(words(&pseudo) + 0x4567) & 0xffff;
        frame.extend([0; 4]);
        frame.extend(udp_bytes.to_be_bytes());
        frame.extend(u16::try_from(checksum).unwrap_or_default().to_be_bytes());
        frame.extend(payload);
        frame.resize(V6_BYTES, 0);
        frame.try_into().unwrap_or([0; V6_BYTES])
    }
}

/// Folded sum of the words of `bytes`.
fn words(bytes: &[u8]) -> u32 {
    let sum = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    fold(sum.sum())
}

/// The last two octets of an address.
pub fn last_word(address: IpAddr) -> u16 {
    let (high, low) = match address {
        IpAddr::V4(ip) => {
            let [_, _, high, low] = ip.octets();
            (high, low)
        }
        IpAddr::V6(ip) => {
            let [.., high, low] = ip.octets();
            (high, low)
        }
    };
    u16::from_be_bytes([high, low])
}

/// A step that leads to every one of `flows` before it comes back, and never to a neighbour.
fn step(flows: u32) -> u32 {
    let golden = (u64::from(flows) * 2_654_435_769) >> 32;
    let start = u32::try_from(golden).unwrap_or(1).max(1);
    (start..).find(|step| gcd(*step, flows) == 1).unwrap_or(1)
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Checks that all packets arrived, with the source address that they should have.
///
/// # Errors
/// When they did not; a figure made of them would not be one.
pub fn all_arrived(cost: &Cost, source: Option<IpAddr>) -> Result<()> {
    ensure!(cost.is_whole(), "{} of {} packets were lost", cost.lost(), cost.sent);
    if let Some(source) = source {
        let right = u64::from(last_word(source)) * cost.arrived.packets;
        ensure!(cost.arrived.sources == right, "packets arrived that do not come from {source}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn frames_are_valid_packets() {
        for (client, to) in [("10.128.0.16", "10.128.0.2"), ("fd00:10::16", "fd00:10::2")] {
            let traffic = Traffic {
                macs: ([2; 6], [4; 6]),
                client: client.parse().unwrap(),
                clients: 200,
                to: to.parse().unwrap(),
                first_rule: 9000,
                rules: 32,
                first_port: 65_000,
                ports: 500,
                flows: 100_000,
                scattered: false,
                in_turn: false,
            };
            let plan = traffic.plan(7);
            for number in [0, 1, 499, 500, 77_777, 99_999] {
                let frame = frame(&plan, number).unwrap();
                let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
                let header = udp.to_header();
                let right = match packet.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        let ip = ip.header().to_header();
                        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                        header.calc_checksum_ipv4(&ip, udp.payload())
                    }
                    NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                    other => panic!("{other:?}"),
                };
                assert_eq!(header.checksum, right.unwrap(), "{client} {number}");
                assert_eq!(u32::from(header.destination_port), 9000 + number / 500 % 32);
            }
        }
    }

    #[test]
    fn a_step_leads_everywhere() {
        for flows in [1, 2, 64, 1000, 1024, 65_536] {
            let (mut seen, mut at) = (vec![false; flows as usize], 0);
            for _ in 0..flows {
                assert!(!std::mem::replace(&mut seen[at as usize], true), "{flows}");
                at = (at + step(flows)) % flows;
            }
        }
    }
}
