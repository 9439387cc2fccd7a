//! The rigs: one lab for each way through, all alike but for what forwards in the router.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use egress_lab::address::{GATEWAY, Host, ON_LINK, ROUTER, SNAT, client};
use egress_lab::kernel_nat::{self, Filter, KernelNat, Rule, Uplink};
use egress_lab::processor::Core;
use egress_lab::router::Router;
use egress_lab::source::{Source, Traffic, all_arrived};
use egress_lab::topology::{CLUSTER_INTERFACE, EXTERNAL_INTERFACE, OUTSIDE_INTERFACE, set_offload};
use egress_lab::{Family, Lab, Netns, Options, bpf, udp, wait_until};

use super::Bench;

/// The client's interface.
pub(super) const CLIENT_INTERFACE: &str = "c0";
/// The first of the clients that packets of the source come from, and how many there can be.
pub(super) const FIRST_CLIENT: u8 = 16;
/// How long a path may take until its first packet goes through.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Both ends' congestion control: every kernel has it, every namespace may choose it, and it does not pace.
pub(super) const CONGESTION_CONTROL: &str = "reno";
/// How often packets are sent until they all arrive.
const TRIES: u32 = 3;
/// How often packets were sent again.
static REPEATED: AtomicU32 = AtomicU32::new(0);

/// How often packets were sent again because some of them were lost, by whichever path.
pub(super) fn repeated() -> u32 {
    REPEATED.load(Ordering::Relaxed)
}

/// A way through the router's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Path {
    /// egress-router, its tc programs.
    Tc,
    /// The same, with its XDP programs before them.
    Xdp,
    /// The same, with the kernel's stack between ingress and egress for every packet.
    TcSlow,
    /// The original's rules, nftables.
    Nft,
    /// The same rules, iptables.
    Iptables,
    /// The kernel's forwarding, nothing translated.
    Forward,
    /// A program that redirects each packet to one neighbour, nothing translated.
    Redirect,
    /// A drop where packets enter the router: what they cost before they get there.
    Floor,
}

impl Path {
    /// Those that can carry connections.
    pub(super) const BOTH_WAYS: [Self; 5] = [Self::Tc, Self::TcSlow, Self::Nft, Self::Iptables, Self::Forward];

    /// Whether egress-router is what forwards.
    fn is_ours(self) -> bool {
        matches!(self, Self::Tc | Self::Xdp | Self::TcSlow)
    }

    /// Whether clients speak to the router, and not to the destination itself.
    fn translates(self) -> bool {
        self.is_ours() || matches!(self, Self::Nft | Self::Iptables)
    }

    /// Whether it keeps flows.
    pub(super) fn tracks(self) -> bool {
        self.translates()
    }

    /// The name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Xdp => "xdp",
            Self::TcSlow => "tc-slow",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Forward => "forward",
            Self::Redirect => "redirect",
            Self::Floor => "floor",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of an uplink in reports.
pub(super) fn uplink_name(uplink: Uplink) -> &'static str {
    match uplink {
        Uplink::Macvlan => "macvlan",
        Uplink::Veth => "veth",
    }
}

/// A router's rules: ports that lead to the same port of one host.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) ports: Vec<(&'static str, u16)>,
    /// The first of the ports, all UDP and in a row, that the source sends to.
    first: u16,
    to: Host,
}

impl Rules {
    /// UDP ports in a row.
    pub(super) fn udp(first: u16, count: u32) -> Self {
        let last = u32::from(first) + count.saturating_sub(1);
        let last = u16::try_from(last).unwrap_or(u16::MAX);
        Self { ports: (first..=last).map(|port| ("udp", port)).collect(), first, to: ON_LINK }
    }

    /// With others before them.
    pub(super) fn after(mut self, others: &[(&'static str, u16)]) -> Self {
        self.ports.splice(0..0, others.iter().copied());
        self
    }

    /// The same ports, led to another host.
    pub(super) fn led_to(&self, to: Host) -> Self {
        Self { to, ..self.clone() }
    }

    /// As an EgressRouter, for both families.
    pub(super) fn spec(&self) -> String {
        let mut text = format!(
            "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata:\n  name: bench\nspec:\n  \
             networkInterface:\n    macvlan:\n      mode: Bridge\n  addresses:\n    - ip: {}/24\n      gateway: {}\n    \
             - ip: {}/64\n      gateway: {}\n  redirect:\n    redirectRules:\n",
            SNAT.v4, GATEWAY.v4, SNAT.v6, GATEWAY.v6
        );
        for ip in self.to.both() {
            for (protocol, port) in &self.ports {
                let protocol = protocol.to_uppercase();
                // Writing to a string cannot fail.
                let _ = writeln!(text, "      - {{port: {port}, protocol: {protocol}, destinationIP: \"{ip}\"}}");
            }
        }
        text
    }

    /// For the kernel.
    pub(super) fn kernel(&self) -> KernelNat {
        let rules = self.to.both().into_iter().flat_map(|destination| {
            self.ports.iter().map(move |(protocol, port)| Rule {
                protocol,
                port: *port,
                destination,
                target_port: None,
            })
        });
        KernelNat { rules: rules.collect(), fallback: Vec::new(), snat: Some(SNAT) }
    }
}

/// What all rigs are built with.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    /// The optimised `egress-router`.
    pub(super) binary: PathBuf,
    /// The object with the benchmark's programs.
    pub(super) object: PathBuf,
    /// Another `egress-router` to measure beside.
    pub(super) beside: Option<PathBuf>,
    /// The kubeconfig of a kube-apiserver to measure beside.
    pub(super) api_peer: Option<PathBuf>,
}

/// One way through, ready for packets.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) path: Path,
    pub(super) uplink: Uplink,
    // Before the lab, so that it is taken away first.
    pub(super) router: Option<Router>,
    pub(super) source: Source,
    pub(super) lab: Lab,
    pub(super) rules: Rules,
    /// Of what the source sends.
    family: Family,
}

impl Rig {
    /// Builds the lab, has the path forward in it, and waits until a packet of each family has come through and back.
    pub(super) fn build(parts: &Parts, path: Path, uplink: Uplink, rules: &Rules, flows: u32) -> Result<Self> {
        Self::build_with(parts, path, uplink, rules, flows, Source::sink_at)
            .with_context(|| format!("build the rig {path}"))
    }

    /// As [`build`](Self::build), with a sink that keeps times.
    pub(super) fn build_timed(parts: &Parts, path: Path, uplink: Uplink, rules: &Rules, flows: u32) -> Result<Self> {
        Self::build_with(parts, path, uplink, rules, flows, Source::timed_sink_at)
            .with_context(|| format!("build the rig {path}"))
    }

    fn build_with(
        parts: &Parts,
        path: Path,
        uplink: Uplink,
        rules: &Rules,
        flows: u32,
        attach_sink: impl FnOnce(&mut Source, &Netns, &str) -> Result<()>,
    ) -> Result<Self> {
        let lab = Lab::build(&Options::default())?;
        let source = Source::load(&parts.object)?;
        let mut rig = Self { path, uplink, router: None, source, lab, rules: rules.clone(), family: Family::V4 };
        match path {
            Path::Tc | Path::Xdp | Path::TcSlow => {
                let fast = if path == Path::TcSlow { "off" } else { "on" };
                let hook = if path == Path::Xdp { "xdp" } else { "tc" };
                let mut router = Router::of(&rig.lab, &rules.spec(), parts.binary.clone())?.with_arguments([
                    format!("--flows={flows}"),
                    format!("--fast-path={fast}"),
                    format!("--hook={hook}"),
                ]);
                if uplink == Uplink::Veth {
                    rig.lab.give_uplink()?;
                    router.adopt();
                }
                if path == Path::Xdp {
                    // A veth takes redirected frames once it polls.
                    set_offload(&rig.lab.client, CLIENT_INTERFACE, "gro", true)?;
                    set_offload(&rig.lab.outside, OUTSIDE_INTERFACE, "gro", true)?;
                }
                router.start()?;
                rig.router = Some(router);
            }
            _ => kernel_nat::forward(&rig.lab, SNAT, uplink)?,
        }
        match path {
            Path::Nft => rules.kernel().give_to(Filter::Nftables, &rig.lab)?,
            Path::Iptables => rules.kernel().give_to(Filter::Iptables, &rig.lab)?,
            Path::Floor => rig.source.drop_at(&rig.lab.router, CLUSTER_INTERFACE)?,
            Path::Redirect => {
                rig.source.redirect_at(&rig.lab.router, CLUSTER_INTERFACE, EXTERNAL_INTERFACE, ON_LINK.both())?;
            }
            Path::Tc | Path::Xdp | Path::TcSlow | Path::Forward => {}
        }
        if path == Path::Nft || path == Path::Iptables {
            // Devices check checksums; the source's frames come from none, and the rules shall not pay for that.
            rig.lab.router.sysctl(["net.netfilter.nf_conntrack_checksum=0"])?;
        }
        // A machine may pace by default (BBR): streams then measure the senders' timers and estimates, not the path.
        for ends in [&rig.lab.client, &rig.lab.outside] {
            ends.sysctl([format!("net.ipv4.tcp_congestion_control={CONGESTION_CONTROL}").as_str()])?;
        }
        rig.route_both_ways()?;
        // The veth then polls, as devices do, which is what takes the source's frames; sockets' packets go on as before.
        set_offload(&rig.lab.router, CLUSTER_INTERFACE, "gro", true)?;
        attach_sink(&mut rig.source, &rig.lab.outside, OUTSIDE_INTERFACE)?;
        if path != Path::Floor {
            Family::ALL.into_iter().try_for_each(|family| rig.proven(family))?;
        }
        Ok(rig)
    }

    /// Where nothing is translated, both ends must know the way to each other.
    fn route_both_ways(&self) -> Result<()> {
        if self.path.translates() {
            return Ok(());
        }
        self.lab.client.ip_lines(&format!(
            "route add default via {} dev {CLIENT_INTERFACE}\nroute add default via {} dev {CLIENT_INTERFACE}\n",
            ROUTER.v4, ROUTER.v6
        ))?;
        self.lab.outside.ip_lines(&format!(
            "route add 10.128.0.0/24 via {} dev {OUTSIDE_INTERFACE}\nroute add fd00:10::/64 via {} dev {OUTSIDE_INTERFACE}\n",
            SNAT.v4, SNAT.v6
        ))
    }

    /// Sends datagrams until one is answered, and checks whom the server saw.
    fn proven(&self, family: Family) -> Result<()> {
        let port = self.rules.first;
        let server = udp::UdpServer::start(&self.lab.outside, SocketAddr::new(self.rules.to.ip(family), port))?;
        let (from, to) = (SocketAddr::new(client(0).ip(family), 0), SocketAddr::new(self.address(family), port));
        let source = if self.path.translates() { SNAT } else { client(0) }.ip(family);
        wait_until(&format!("an answer over {family} by {}", self.path), READY_WITHIN, || {
            let seen = udp::exchange(&self.lab.client, from, to, b"ready", Duration::from_millis(300)).result;
            seen.is_ok_and(|seen| seen.source.ip() == source)
        })?;
        drop(server);
        Ok(())
    }

    /// The address that clients of this path speak to.
    pub(super) fn address(&self, family: Family) -> IpAddr {
        if self.path.translates() { ROUTER.ip(family) } else { self.rules.to.ip(family) }
    }

    /// Packets of one family for this path: so many flows.
    pub(super) fn traffic(&self, family: Family, flows: u32) -> Result<Traffic> {
        // A redirect takes what is sent to the router; packets that are not the source's are forwarded there.
        let to = if self.path == Path::Redirect { ROUTER.ip(family) } else { self.address(family) };
        let first = egress_lab::address::pod(FIRST_CLIENT).ip(family);
        Ok(Traffic {
            macs: (self.lab.client.mac(CLIENT_INTERFACE)?, self.lab.router.mac(CLUSTER_INTERFACE)?),
            client: first,
            clients: 1,
            to,
            first_rule: self.rules.first,
            rules: 1,
            first_port: 20_000,
            ports: u16::try_from(flows).unwrap_or(u16::MAX),
            flows,
            scattered: false,
            in_turn: false,
        })
    }

    /// Sends this from now on.
    pub(super) fn choose(&mut self, traffic: &Traffic) -> Result<()> {
        self.family = Family::of(traffic.to);
        self.source.choose(&self.lab.client, CLIENT_INTERFACE, traffic)
    }

    /// How many flows the router has.
    pub(super) fn live_flows(&self) -> Result<u64> {
        let router = self.router.as_ref().context("no router in the rig")?;
        // Two entries a flow.
        Ok(u64::from(bpf::number(&router.pin("USED")?)?) / 2)
    }

    /// The host that all rules lead to.
    pub(super) fn server(&self, family: Family) -> IpAddr {
        self.rules.to.ip(family)
    }

    /// Sends packets, all of which must arrive, from the address that the far end is to see. Returns nanoseconds for each.
    ///
    /// A machine that others use may leave a queue too long for once: what loses packets is sent again, and counted.
    pub(super) fn send(&mut self, core: Core, packets: u32) -> Result<f64> {
        let source = self.path.translates().then(|| SNAT.ip(self.family));
        let mut cost = self.source.send(&self.lab.client, core, packets)?;
        for _ in 1..TRIES {
            if cost.is_whole() {
                break;
            }
            REPEATED.fetch_add(1, Ordering::Relaxed);
            cost = self.source.send(&self.lab.client, core, packets)?;
        }
        all_arrived(&cost, source).with_context(|| format!("packets by {}", self.path))?;
        Ok(cost.ns_per_packet())
    }
}

/// Builds several rigs at once: most of the time each of them waits for the kernel.
pub(super) fn build_all<T: Sync>(
    bench: &Bench,
    wanted: &[T],
    build: impl Fn(&T) -> Result<Rig> + Sync,
) -> Result<Vec<Rig>> {
    bench.go_on()?;
    bench.progress.set_message("building rigs");
    let built = std::thread::scope(|scope| {
        let threads = wanted.iter().map(|one| scope.spawn(|| build(one))).collect::<Vec<_>>();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Rig>>| match thread.join() {
            Ok(built) => built,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // All of them, before the first error ends it: what was built is then taken away.
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    built.into_iter().collect()
}
