//! One sequence: what happens is drawn from a seed, and goes through the programs and the model.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use egress_ebpf::timeout::{Class, defaults_s};
use egress_ebpf::verdict::{DropReason, Hook, Verdict};
use egress_lab::Family;
use egress_lab::address::{ON_LINK, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::random::Random;
use egress_user::compile;

use crate::frame::flag::{ACK, FIN, PSH, RST, SYN};
use crate::frame::{Body, CLUSTER_MAC, ETHERNET, EXTERNAL_MAC, Frame, PEER_MAC};
use crate::nat::{Connection, From, Nat, Protocol, Request, Table, Timeouts};
use crate::rig::{self, Outcome, Rig, Setup};

/// Time goes by in steps of this. No timeout is near a whole number of steps, so that it does not matter how long the test
/// itself takes.
const STEP_S: u64 = 20;
/// So much may go by between two sweeps: entries cannot be made older than the machine.
const UNSWEPT_S: u64 = 60;

const TIMEOUTS: Timeouts = Timeouts {
    syn_sent_s: 30,
    syn_recv_s: 31,
    established_s: 70,
    fin_wait_s: 51,
    close_wait_s: 50,
    time_wait_s: 32,
    close_s: 10,
    udp_s: 33,
    udp_stream_s: 52,
    echo_s: 34,
};

/// What one sequence differs in from another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) fallback: Family,
    pub(crate) redirect: bool,
    pub(crate) ports: Option<(u16, u16)>,
}

/// The ports of the router that there are rules for, in one table or another, and one that there is none for.
const PORTS: [u16; 4] = [80, 443, 53, 9];

/// The `number`th specification of three: rules that lead elsewhere, and rules that are missing.
fn table(number: usize) -> Vec<(Family, Protocol, u16, SocketAddr)> {
    let servers = [SERVER_1, SERVER_2, ON_LINK];
    let mut rules = Vec::new();
    for family in Family::ALL {
        let to = |shift: usize, port| SocketAddr::new(servers[(number + shift) % 3].ip(family), port);
        rules.push((family, Protocol::Tcp, 80, to(0, 8080)));
        rules.push((family, Protocol::Tcp, 443, to(1, 443)));
        rules.push((family, Protocol::Udp, 53, to(0, 53)));
        if number != 1 {
            rules.push((family, Protocol::Udp, 80, to(2, 5000)));
        }
    }
    rules
}

fn fallback(world: &World, number: usize) -> Option<IpAddr> {
    (number != 2).then(|| [SERVER_2, SERVER_1][number].ip(world.fallback))
}

/// The same for the programs.
pub(crate) fn setup(world: &World, number: usize) -> Setup {
    let mut setup = Setup::default().settings(|settings| {
        settings.redirect = world.redirect;
        settings.snat_ports = world.ports;
        settings.timeouts_s = defaults_s();
        let mut set =
            |class: Class, limit_s: u64| settings.timeouts_s[class as usize] = u32::try_from(limit_s).unwrap();
        set(Class::TcpSynSent, TIMEOUTS.syn_sent_s);
        set(Class::TcpSynRecv, TIMEOUTS.syn_recv_s);
        set(Class::TcpEstablished, TIMEOUTS.established_s);
        set(Class::TcpFinWait, TIMEOUTS.fin_wait_s);
        set(Class::TcpCloseWait, TIMEOUTS.close_wait_s);
        set(Class::TcpTimeWait, TIMEOUTS.time_wait_s);
        set(Class::TcpClose, TIMEOUTS.close_s);
        set(Class::Udp, TIMEOUTS.udp_s);
        set(Class::UdpStream, TIMEOUTS.udp_stream_s);
        set(Class::Icmp, TIMEOUTS.echo_s);
    });
    let rules = (0..).zip(table(number)).map(|(index, (_, protocol, port, to))| {
        let protocol = if protocol == Protocol::Tcp { compile::Protocol::Tcp } else { compile::Protocol::Udp };
        rig::rule(index, protocol, port, to.ip(), Some(to.port()))
    });
    setup.table.rules = rules.collect();
    setup.table.fallback = fallback(world, number);
    setup
}

/// How often what happened.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally(HashMap<&'static str, u64>);

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, count)| *self.0.entry(*what).or_default() += count);
    }

    /// A model that nothing tries proves nothing.
    pub(crate) fn assert_everything_happened(&self) {
        for what in [
            "connections opened",
            "requests",
            "requests redirected",
            "replies",
            "replies redirected",
            "ports exhausted",
            "ports changed",
            "requests rejected",
            "packets of another host",
            "errors translated",
            "errors about nothing",
            "fragments",
            "fragments without a first",
            "connections ended by time",
            "edits",
            "foreign destinations",
        ] {
            assert!(self.0.get(what).is_some_and(|count| *count > 0), "never happened: {what}; {self}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = self.0.iter().collect::<Vec<_>>();
        counts.sort();
        let words = counts.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>();
        f.write_str(&words.join(", "))
    }
}

/// Which datagram a fragment is of: source, destination, number.
type Datagram = (IpAddr, IpAddr, u32);

/// A sequence under way.
pub(crate) struct Play<'a> {
    rig: &'a mut Rig,
    world: World,
    nat: Nat,
    table: usize,
    unswept_s: u64,
    /// Ports of the datagrams whose first fragment was seen.
    firsts: HashMap<Datagram, (SocketAddr, SocketAddr)>,
    pub(crate) tally: Tally,
    story: Story,
}

/// What has happened so far, told when it ends badly.
struct Story(String, Vec<String>);

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.1.len().saturating_sub(12);
            eprintln!("{}, event {}; the last ones:\n{}", self.0, self.1.len(), self.1[from..].join("\n"));
        }
    }
}

impl<'a> Play<'a> {
    pub(crate) fn new(rig: &'a mut Rig, world: &World, title: String) -> Self {
        let nat =
            Nat { table: Table::default(), timeouts: TIMEOUTS, ports: world.ports, now_s: 0, connections: Vec::new() };
        let mut play = Self {
            rig,
            world: *world,
            nat,
            table: 0,
            unswept_s: 0,
            firsts: HashMap::new(),
            tally: Tally::default(),
            story: Story(title, Vec::new()),
        };
        play.enact(0);
        play
    }

    fn enact(&mut self, number: usize) {
        let rules = table(number).into_iter();
        let rules = rules.map(|(family, protocol, port, to)| ((family, protocol, port), to)).collect();
        self.nat.table = Table { rules, fallback: fallback(&self.world, number) };
        self.table = number;
    }

    pub(crate) fn event(&mut self, random: &mut Random) {
        match random.below(64) {
            0..22 => self.request(random),
            22..32 => self.more(random),
            32..48 => self.reply(random),
            48..51 => self.stranger(random),
            51..55 => self.error(random),
            55..61 => self.fragments(random),
            61 => self.edit(random),
            62 => self.foreign(random),
            _ => self.time(random),
        }
        // Reading the whole table takes longer than anything else here.
        if random.chance(8) {
            self.rig.assert_paired();
            assert_eq!(self.rig.flows().len(), self.nat.connections.len(), "live connections");
        }
    }

    fn tell(&mut self, what: impl fmt::Debug) {
        self.story.1.push(format!("{what:?}"));
    }

    fn request(&mut self, random: &mut Random) {
        let (protocol, from, to) = ends(random);
        let frame = Frame::request(from, to, body(random, protocol, From::Client));
        let frame = varied(random, frame);
        self.tell(&frame);
        self.send_request(protocol, &frame);
    }

    /// One more packet of a connection that there is.
    fn more(&mut self, random: &mut Random) {
        if self.nat.connections.is_empty() {
            return self.request(random);
        }
        let one = &self.nat.connections[random.below(self.nat.connections.len())];
        let (protocol, frame) =
            (one.protocol, Frame::request(one.client, one.router, body(random, one.protocol, From::Client)));
        let frame = varied(random, frame);
        self.tell(&frame);
        self.send_request(protocol, &frame);
    }

    /// A packet from a client, which may open a connection.
    fn send_request(&mut self, protocol: Protocol, frame: &Frame) {
        match self.nat.request(protocol, frame.src, frame.dst) {
            Request::Of(at) => {
                self.nat.packet(at, From::Client, flags(frame));
                let one = self.nat.connections[at].clone();
                self.passes_out(frame, &one);
            }
            Request::Opens(server) => {
                let free = self.nat.free_ports(protocol, frame.src, server);
                let port = self.port_after(frame);
                assert!(free.contains(&port), "port {port} was given to {frame:?}");
                if port != frame.src.port() {
                    self.tally.count("ports changed");
                }
                self.tally.count("connections opened");
                let at = self.nat.open(protocol, frame.src, frame.dst, server, port);
                self.nat.packet(at, From::Client, flags(frame));
            }
            Request::Exhausted => {
                self.rig
                    .run(Hook::ClusterIngress, &frame.bytes())
                    .is(DropReason::PortsExhausted)
                    .untouched(&frame.bytes());
                self.tally.count("ports exhausted");
            }
            Request::Rejected => {
                self.rig.run(Hook::ClusterIngress, &frame.bytes()).is(Verdict::Rejected).untouched(&frame.bytes());
                self.tally.count("requests rejected");
            }
        }
    }

    /// Sends a connection's first packet, which must be as the model says but for its source port. Returns that.
    fn port_after(&mut self, frame: &Frame) -> u16 {
        let (sent, hops) = self.through(Hook::ClusterIngress, frame);
        let protocol = if matches!(frame.body, Body::EchoRequest) { Protocol::Echo } else { transport(frame) };
        let Request::Opens(server) = self.nat.request(protocol, frame.src, frame.dst) else { unreachable!() };
        let at = frame.l4() + if protocol == Protocol::Echo { 4 } else { 0 };
        let port = u16::from_be_bytes([sent[at], sent[at + 1]]);
        let snat = SocketAddr::new(SNAT.ip(Family::of(frame.src.ip())), port);
        rig::assert_same(&sent, &frame.from(snat).to(server).with(|frame| frame.ttl -= hops));
        port
    }

    /// A request of a connection.
    fn passes_out(&mut self, frame: &Frame, one: &Connection) {
        let (sent, hops) = self.through(Hook::ClusterIngress, frame);
        same(&sent, &frame.from(one.snat).to(one.server).with(|frame| frame.ttl -= hops));
        self.tally.count(if hops == 0 { "requests" } else { "requests redirected" });
    }

    /// A reply of a connection.
    fn passes_in(&mut self, frame: &Frame, one: &Connection) {
        let (sent, hops) = self.through(Hook::ExternalIngress, frame);
        same(&sent, &frame.from(one.router).to(one.client).with(|frame| frame.ttl -= hops));
        self.tally.count(if hops == 0 { "replies" } else { "replies redirected" });
    }

    /// Gives a packet that is to be translated to the program where it arrives and to the one where it leaves. Returns what
    /// leaves, and how many hops the programs have counted.
    fn through(&mut self, hook: Hook, frame: &Frame) -> (Vec<u8>, u8) {
        let (leaves, slow, fast) = match hook {
            Hook::ClusterIngress => (Hook::ExternalEgress, Verdict::Request, Verdict::RequestRedirected),
            _ => (Hook::ClusterEgress, Verdict::Reply, Verdict::ReplyRedirected),
        };
        let half = self.rig.run(hook, &frame.bytes());
        let (then, hops) = match half.outcome() {
            Outcome::On(verdict) if verdict == slow => (Verdict::SourceHalf, 0),
            Outcome::On(verdict) if verdict == fast && self.world.redirect => (Verdict::Redirected, 1),
            other => panic!("{other:?} for {frame:?}"),
        };
        let run = self.rig.run_marked(leaves, half.frame(), half.mark()).is(then);
        assert_eq!(run.mark(), 0, "the mark is taken off");
        let mut sent = run.frame().to_vec();
        if hops == 1 {
            // It is addressed on the link it leaves by, here or, once in a while, later by the kernel.
            let from = if leaves == Hook::ExternalEgress { EXTERNAL_MAC } else { CLUSTER_MAC };
            let (here, before) = ([PEER_MAC, from].concat(), frame.bytes()[..12].to_vec());
            assert!(sent[..12] == here || sent[..12] == before, "{:02x?}", &sent[..12]);
            sent[..12].copy_from_slice(&before);
        }
        (sent, hops)
    }

    fn reply(&mut self, random: &mut Random) {
        if self.nat.connections.is_empty() {
            return self.request(random);
        }
        let at = random.below(self.nat.connections.len());
        let one = self.nat.connections[at].clone();
        let frame = Frame::outside(one.server, one.snat, body(random, one.protocol, From::Server));
        let frame = varied(random, frame);
        self.tell(&frame);
        self.nat.packet(at, From::Server, flags(&frame));
        self.passes_in(&frame, &one);
    }

    /// A packet from the outside that is of no connection, or of one that has ended.
    fn stranger(&mut self, random: &mut Random) {
        let family = random.pick(&Family::ALL);
        let protocol = random.pick(&[Protocol::Tcp, Protocol::Udp]);
        let from =
            SocketAddr::new(random.pick(&[SERVER_1, SERVER_2, ON_LINK]).ip(family), random.pick(&[8080, 443, 53, 1]));
        let to = SocketAddr::new(SNAT.ip(family), random.pick(&[40_000, 40_001, 40_002, 300, 12_345]));
        let frame = Frame::outside(from, to, body(random, protocol, From::Client));
        let frame = varied(random, frame);
        self.tell(&frame);
        if let Some(at) = self.nat.reply(protocol, from, to) {
            let one = self.nat.connections[at].clone();
            self.nat.packet(at, From::Server, flags(&frame));
            return self.passes_in(&frame, &one);
        }
        let opens = protocol == Protocol::Udp || flags(&frame) & (SYN | ACK | RST) == SYN;
        let outcome: Outcome = if opens { DropReason::Unsolicited.into() } else { Verdict::Local.into() };
        self.rig.run(Hook::ExternalIngress, &frame.bytes()).is(outcome).untouched(&frame.bytes());
        self.tally.count("packets of another host");
    }

    /// An error about a packet of a connection, from the outside or from the client; now and then about another port.
    fn error(&mut self, random: &mut Random) {
        if self.nat.connections.is_empty() {
            return self.request(random);
        }
        let at = random.below(self.nat.connections.len());
        let one = self.nat.connections[at].clone();
        let outside = random.chance(2);
        let family = Family::of(one.client.ip());
        let sender = SocketAddr::new(if outside { ON_LINK.ip(family) } else { one.client.ip() }, 0);
        let about = match outside {
            true => Frame::outside(one.snat, one.server, body(random, one.protocol, From::Client)),
            false => Frame::outside(one.router, one.client, body(random, one.protocol, From::Server)),
        };
        let about = varied(random, about);
        let length = random.pick(&[8, 28, 500]);
        let error = |from: SocketAddr, to: IpAddr, about: &Frame| {
            let frame =
                Frame::request(from, SocketAddr::new(to, 0), Body::Icmp(if family == Family::V4 { 3 } else { 1 }));
            let frame = if outside { Frame::outside(frame.src, frame.dst, frame.body) } else { frame };
            let bytes = about.bytes();
            let quote = bytes[ETHERNET..bytes.len().min(about.l4() + length)].to_vec();
            frame.with(|frame| frame.payload = [vec![0; 4], quote].concat())
        };
        let to = if outside { one.snat.ip() } else { one.router.ip() };
        if random.chance(4) {
            // Of the same ends but for the port of the other one, which nobody has.
            let about = about.with(|frame| if outside { frame.dst.set_port(7) } else { frame.src.set_port(7) });
            if one.protocol != Protocol::Echo {
                let hook = if outside { Hook::ExternalIngress } else { Hook::ClusterIngress };
                let frame = error(sender, to, &about);
                self.tell(&frame);
                self.rig.run(hook, &frame.bytes()).is(Verdict::Local).untouched(&frame.bytes());
                self.tally.count("errors about nothing");
                return;
            }
        }
        let frame = error(sender, to, &about);
        self.tell(&frame);
        let (hook, from, to, about) = match outside {
            true => (Hook::ExternalIngress, one.router, one.client, about.from(one.client).to(one.router)),
            false => (Hook::ClusterIngress, one.snat, one.server, about.from(one.server).to(one.snat)),
        };
        let (sent, hops) = self.through(hook, &frame);
        let wanted = error(SocketAddr::new(from.ip(), 0), to.ip(), &about).with(|frame| frame.ttl -= hops);
        same(&sent, &wanted);
        self.tally.count("errors translated");
    }

    /// Parts of a datagram, in any order.
    fn fragments(&mut self, random: &mut Random) {
        let replying = random.chance(2).then(|| self.nat.connections.iter().find(|one| one.protocol == Protocol::Udp));
        let (hook, frame) = match replying.flatten() {
            Some(one) => (Hook::ExternalIngress, Frame::outside(one.server, one.snat, Body::Udp)),
            None => {
                let family = random.pick(&Family::ALL);
                let to = SocketAddr::new(ROUTER.ip(family), random.pick(&[53, 80]));
                (Hook::ClusterIngress, Frame::request(client_end(random, family), to, Body::Udp))
            }
        };
        let frame = varied(random, frame);
        let id = u32::try_from(random.below(6)).unwrap();
        let (first, later) = frame.parts(id, 8 * (random.below(2) + 1));
        let datagram = (frame.src.ip(), frame.dst.ip(), id);
        for _ in 0..random.below(2) + 1 {
            if random.chance(2) {
                self.tell(&first);
                self.fragment(hook, &first);
                self.firsts.insert(datagram, (first.src, first.dst));
            } else {
                self.tell(&later);
                match self.firsts.get(&datagram).copied() {
                    None => {
                        let run = self.rig.run(hook, &later.bytes());
                        run.is(DropReason::FragmentUnknown).untouched(&later.bytes());
                        self.tally.count("fragments without a first");
                    }
                    // It belongs to where its first one went.
                    Some((src, dst)) => self.fragment(hook, &later.from(src).to(dst)),
                }
            }
        }
    }

    fn fragment(&mut self, hook: Hook, frame: &Frame) {
        let later = frame.part.is_some_and(|part| part.start > 0);
        let at = match hook {
            Hook::ClusterIngress => match self.nat.request(Protocol::Udp, frame.src, frame.dst) {
                Request::Of(at) => Some(at),
                _ if later => None,
                _ => return self.send_request(Protocol::Udp, frame),
            },
            _ => self.nat.reply(Protocol::Udp, frame.src, frame.dst),
        };
        let Some(at) = at else {
            let outcome: Outcome = if later { Verdict::Local.into() } else { DropReason::Unsolicited.into() };
            self.rig.run(hook, &frame.bytes()).is(outcome).untouched(&frame.bytes());
            return;
        };
        let one = self.nat.connections[at].clone();
        if hook == Hook::ClusterIngress {
            self.nat.packet(at, From::Client, 0);
            self.passes_out(frame, &one);
        } else {
            self.nat.packet(at, From::Server, 0);
            self.passes_in(frame, &one);
        }
        self.tally.count("fragments");
    }

    fn edit(&mut self, random: &mut Random) {
        let number = (self.table + 1 + random.below(2)) % 3;
        self.tell(format!("table {number}"));
        self.rig.install(&setup(&self.world, number));
        self.enact(number);
        self.tally.count("edits");
    }

    fn foreign(&mut self, random: &mut Random) {
        let family = random.pick(&Family::ALL);
        let to = SocketAddr::new(random.pick(&[SERVER_1, SNAT, client(1)]).ip(family), random.pick(&PORTS));
        let frame = Frame::request(client_end(random, family), to, body(random, Protocol::Tcp, From::Client));
        self.tell(&frame);
        let run = self.rig.run(Hook::ClusterIngress, &frame.bytes());
        run.is(DropReason::ForeignDestination).untouched(&frame.bytes());
        self.tally.count("foreign destinations");
    }

    fn time(&mut self, random: &mut Random) {
        let time_s = random.pick(&[STEP_S, STEP_S, 2 * STEP_S]);
        self.unswept_s += time_s;
        let swept = random.chance(2) || self.unswept_s >= UNSWEPT_S;
        self.tell(format!("{time_s} s, swept: {swept}"));
        self.rig.pass_time(Duration::from_secs(time_s));
        let before = self.nat.connections.len();
        self.nat.pass(time_s);
        if self.nat.connections.len() < before {
            self.tally.count("connections ended by time");
        }
        if swept {
            self.rig.datapath().sweep(&mut egress_user::datapath::Tally::default(), false).unwrap();
            assert_eq!(self.rig.entries().len(), 2 * self.nat.connections.len(), "entries after a sweep");
            self.unswept_s = 0;
        }
    }
}

/// Compares what left with what had to. Of a fragment, the transport's checksum covers more than is there.
#[track_caller]
fn same(sent: &[u8], wanted: &Frame) {
    rig::assert_same(sent, wanted);
}

/// A client's end: few enough that connections meet.
fn client_end(random: &mut Random, family: Family) -> SocketAddr {
    let number = random.pick(&[0, 1, 2, 3]);
    SocketAddr::new(client(number).ip(family), random.pick(&[40_000, 40_001, 40_002, 300]))
}

fn ends(random: &mut Random) -> (Protocol, SocketAddr, SocketAddr) {
    let family = random.pick(&Family::ALL);
    let protocol = random.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Echo]);
    let port = if protocol == Protocol::Echo { 0 } else { random.pick(&PORTS) };
    (protocol, client_end(random, family), SocketAddr::new(ROUTER.ip(family), port))
}

fn body(random: &mut Random, protocol: Protocol, from: From) -> Body {
    match (protocol, from) {
        (Protocol::Udp, _) => Body::Udp,
        (Protocol::Echo, From::Client) => Body::EchoRequest,
        (Protocol::Echo, From::Server) => Body::EchoReply,
        (Protocol::Tcp, From::Client) => Body::Tcp(random.pick(&[SYN, SYN, ACK, PSH | ACK, FIN | ACK, RST, 0, FIN])),
        (Protocol::Tcp, From::Server) => {
            Body::Tcp(random.pick(&[SYN | ACK, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST | ACK, 0, FIN]))
        }
    }
}

/// Another payload and another number of hops left.
fn varied(random: &mut Random, frame: Frame) -> Frame {
    // Enough for the second part of a datagram, which begins at a multiple of eight.
    let length = random.below(60) + 20;
    let payload = random.bytes(length);
    let ttl = random.pick(&[2, 61, 64, 255]);
    frame.with(|frame| (frame.payload, frame.ttl) = (payload, ttl))
}

fn transport(frame: &Frame) -> Protocol {
    if matches!(frame.body, Body::Tcp(_)) { Protocol::Tcp } else { Protocol::Udp }
}

fn flags(frame: &Frame) -> u8 {
    match frame.body {
        Body::Tcp(flags) => flags,
        _ => 0,
    }
}
