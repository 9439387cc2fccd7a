//! The rig: client, router, node, outside and two servers, wired as [the crate](crate) draws them.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::address::{self, GATEWAY, Host, NODE, ON_LINK, ROUTER, SERVER_1, SERVER_2};
use crate::second_node::SecondNode;
use crate::{Family, Netns, netns};

/// The cluster interface's name in the router.
pub const CLUSTER_INTERFACE: &str = "eth0";
/// The external interface's name in the router, once there is one.
pub const EXTERNAL_INTERFACE: &str = "net1";
/// The macvlan's master in the node.
pub const MASTER: &str = "up0";
/// The second uplink in the node, with [`Options::second_uplink`].
pub const SECOND_MASTER: &str = "up1";
/// The outside's interface towards the router.
pub const OUTSIDE_INTERFACE: &str = "s0";

/// What may differ from one lab to another.
#[derive(Debug, Clone)]
pub struct Options {
    /// The families that the lab has addresses of. The other one is switched off in every namespace.
    pub families: Vec<Family>,
    /// MTU of the veth between client and router, in bytes.
    pub cluster_mtu: u32,
    /// MTU of the veth between node and outside, which the macvlan takes over, in bytes.
    pub uplink_mtu: u32,
    /// Whether the devices may leave checksums and segmentation to the next one, as they do by default.
    pub offloads: bool,
    /// How many addresses the client has, in each family.
    pub clients: u8,
    /// Whether the node has a second uplink, `up1`, whose far end is `s1` in the outside.
    pub second_uplink: bool,
    /// Whether there is a second node; a switch joins both and the outside then.
    pub second_node: bool,
    /// Whether the node's uplink has addresses of its own, so that a master can be inferred.
    pub node_addresses: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            families: Family::ALL.to_vec(),
            cluster_mtu: 1500,
            uplink_mtu: 1500,
            offloads: true,
            clients: 2,
            second_uplink: false,
            second_node: false,
            node_addresses: true,
        }
    }
}

impl Options {
    /// A lab with one family only.
    pub fn only(family: Family) -> Self {
        Self { families: vec![family], ..Self::default() }
    }

    fn has(&self, family: Family) -> bool {
        self.families.contains(&family)
    }
}

/// The namespaces, wired and addressed. All of it goes when this is dropped.
#[derive(Debug)]
pub struct Lab {
    /// C: `c0`, and the addresses of [`address::client`].
    pub client: Netns,
    /// R: `eth0`, default route by the client; no `net1` yet.
    pub router: Netns,
    /// H: holds the master `up0`.
    pub node: Netns,
    /// S: `s0`, gateway to the servers; also the on-link host.
    pub outside: Netns,
    /// S1 and S2, behind the outside.
    pub servers: [Netns; 2],
    /// H2, and R2 on it.
    pub second: Option<SecondNode>,
    /// What it was built with.
    pub options: Options,
}

impl Lab {
    /// Builds the rig. When it returns, every address can be used at once.
    ///
    /// # Errors
    /// When we are not root, or a tool or a kernel feature is missing; what was made is removed again.
    pub fn build(options: &Options) -> Result<Self> {
        if !crate::is_root() {
            bail!("the lab makes network namespaces, which needs root");
        }
        let lab = Self {
            client: Netns::new("client")?,
            router: Netns::new("router")?,
            node: Netns::new("node")?,
            outside: Netns::new("outside")?,
            servers: [Netns::new("server1")?, Netns::new("server2")?],
            second: options.second_node.then(SecondNode::new).transpose()?,
            options: options.clone(),
        };
        lab.quiet()?;
        lab.wire().context("wire the lab")?;
        lab.address().context("address the lab")?;
        if !options.offloads {
            lab.switch_offloads_off()?;
        }
        Ok(lab)
    }

    /// Moves the node's uplink into the router, as `net1`: an interface that is there before the router makes one.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn give_uplink(&self) -> Result<()> {
        self.node.ip(["link", "set", MASTER, "netns", self.router.name(), "name", EXTERNAL_INTERFACE]).map(|_| ())
    }

    /// The namespace that holds a server's address, if one does.
    pub fn server(&self, host: Host) -> Option<&Netns> {
        let [first, second] = &self.servers;
        match host {
            SERVER_1 => Some(first),
            SERVER_2 => Some(second),
            GATEWAY | ON_LINK => Some(&self.outside),
            _ => None,
        }
    }

    /// What is configured in the router's namespace: links, addresses, routes, traffic control. Equal before and after
    /// something means that it left nothing behind. The pins are not part of it.
    ///
    /// # Errors
    /// When `ip` or `tc` fails.
    pub fn configuration(&self) -> Result<String> {
        let mut text = self.router.ip(["-d", "link", "show"])?;
        text += &self.router.ip(["address", "show"])?;
        text += &self.router.ip(["-4", "rule", "show"])?;
        text += &self.router.ip(["-6", "rule", "show"])?;
        text += &self.router.ip(["-4", "route", "show", "table", "all"])?;
        text += &self.router.ip(["-6", "route", "show", "table", "all"])?;
        let mut tc = self.router.command("tc");
        text += &netns::output(tc.args(["qdisc", "show"]))?;
        for device in [CLUSTER_INTERFACE, EXTERNAL_INTERFACE] {
            for parent in ["ingress", "egress"] {
                let mut tc = self.router.command("tc");
                // No such interface, or no place for filters: then there are none.
                text += &netns::output(tc.args(["filter", "show", "dev", device, parent])).unwrap_or_default();
            }
        }
        Ok(text)
    }

    /// Every namespace, but those of a second node.
    pub fn all(&self) -> [&Netns; 6] {
        let [first, second] = &self.servers;
        [&self.client, &self.router, &self.node, &self.outside, first, second]
    }

    /// Sets what must be set before there are interfaces.
    fn quiet(&self) -> Result<()> {
        let all = || self.all().into_iter().chain(self.second.iter().flat_map(SecondNode::all));
        for netns in all() {
            // New namespaces copy these from the machine, whose settings must not decide a test.
            netns.sysctl([
                "net.ipv4.conf.all.rp_filter=0",
                "net.ipv4.conf.default.rp_filter=0",
                "net.ipv4.ip_forward=0",
                "net.ipv4.conf.all.proxy_arp=0",
            ])?;
            if !self.options.has(Family::V6) {
                netns.sysctl(["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"])?;
            }
        }
        // Link-local addresses are there at once; with duplicate address detection they would take two seconds, in which
        // nothing can be resolved. The router gets its default back for the interface that it will make.
        for netns in all() {
            netns.sysctl(["net.ipv6.conf.default.accept_dad=0"])?;
        }
        self.outside.sysctl(["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    }

    fn wire(&self) -> Result<()> {
        let (cluster, uplink) = (self.options.cluster_mtu, self.options.uplink_mtu);
        veth((&self.client, "c0"), (&self.router, CLUSTER_INTERFACE), cluster)?;
        match &self.second {
            Some(second) => second.wire(self, OUTSIDE_INTERFACE)?,
            None => veth((&self.node, MASTER), (&self.outside, OUTSIDE_INTERFACE), uplink)?,
        }
        if self.options.second_uplink {
            veth((&self.node, SECOND_MASTER), (&self.outside, "s1"), uplink)?;
        }
        self.router.sysctl(["net.ipv6.conf.default.accept_dad=1"])?;
        for (number, server) in (1..).zip(&self.servers) {
            veth((&self.outside, &format!("o{number}")), (server, "eth0"), 1500)?;
        }
        Ok(())
    }

    fn address(&self) -> Result<()> {
        let mut client = Lines::new(&self.options);
        for number in 0..self.options.clients {
            client.address(address::client(number), "c0", Prefix::Network);
        }
        client.run(&self.client)?;

        let mut router = Lines::new(&self.options);
        router.address(ROUTER, CLUSTER_INTERFACE, Prefix::Network);
        router.default_route(address::client(0), CLUSTER_INTERFACE);
        router.run(&self.router)?;

        let mut node = Lines::new(&self.options);
        if self.options.node_addresses {
            node.address(NODE, MASTER, Prefix::Network);
            node.default_route(GATEWAY, MASTER);
            if self.options.second_uplink {
                node.address(address::second_external(2), SECOND_MASTER, Prefix::Network);
            }
        }
        node.run(&self.node)?;
        if let Some(second) = &self.second {
            second.address(&self.client, &self.options)?;
        }

        let mut outside = Lines::new(&self.options);
        outside.address(GATEWAY, OUTSIDE_INTERFACE, Prefix::Network);
        outside.address(ON_LINK, OUTSIDE_INTERFACE, Prefix::Network);
        if self.options.second_uplink {
            outside.address(address::second_external(1), "s1", Prefix::Network);
        }
        for (number, host) in [(1, SERVER_1), (2, SERVER_2)] {
            let device = format!("o{number}");
            // IPv6 answers neighbour solicitations only on the interface that has the address, so each has a gateway
            // of its own; for IPv4 the outside's address on s0 answers on every interface.
            outside.line(Family::V6, &format!("address add fe80::1/64 dev {device} nodad"));
            outside.host_route(host, &device);
        }
        outside.run(&self.outside)?;

        for (server, host) in self.servers.iter().zip([SERVER_1, SERVER_2]) {
            let mut lines = Lines::new(&self.options);
            lines.address(host, "eth0", Prefix::Single);
            lines.line(Family::V4, &format!("route add default via {} dev eth0 onlink", GATEWAY.v4));
            lines.line(Family::V6, "route add default via fe80::1 dev eth0");
            lines.run(server)?;
        }
        Ok(())
    }

    /// Makes every device finish checksums and segments itself, so that each captured packet is one on the wire.
    fn switch_offloads_off(&self) -> Result<()> {
        let devices = [
            (&self.client, "c0"),
            (&self.router, CLUSTER_INTERFACE),
            (&self.node, MASTER),
            (&self.outside, OUTSIDE_INTERFACE),
        ];
        let [first, second] = &self.servers;
        let inner = [(&self.outside, "o1"), (&self.outside, "o2"), (first, "eth0"), (second, "eth0")];
        for (netns, device) in devices.into_iter().chain(inner) {
            switch_offloads_off(netns, device)?;
        }
        if self.options.second_uplink {
            switch_offloads_off(&self.node, SECOND_MASTER)?;
            switch_offloads_off(&self.outside, "s1")?;
        }
        Ok(())
    }
}

/// Switches checksum, segmentation and receive offloads of one device off.
///
/// # Errors
/// When `ethtool` is missing or the device is.
pub fn switch_offloads_off(netns: &Netns, device: &str) -> Result<()> {
    let mut command = netns.command("ethtool");
    command.args(["-K", device, "rx", "off", "tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off"]);
    netns::output(&mut command).map(|_| ()).with_context(|| format!("switch offloads of {device} off"))
}

/// Switches one of a device's offloads, by the name that `ethtool` has for it.
///
/// # Errors
/// When `ethtool` is missing or the device is.
pub fn set_offload(netns: &Netns, device: &str, offload: &str, on: bool) -> Result<()> {
    let mut command = netns.command("ethtool");
    command.args(["-K", device, offload, if on { "on" } else { "off" }]);
    netns::output(&mut command).map(|_| ()).with_context(|| format!("switch {offload} of {device}"))
}

/// Makes a veth pair, each end in its namespace and up.
pub(crate) fn veth(one: (&Netns, &str), other: (&Netns, &str), mtu: u32) -> Result<()> {
    let mtu = mtu.to_string();
    let mut command = Command::new("ip");
    command.args(["-n", one.0.name(), "link", "add", one.1, "mtu", &mtu, "type", "veth"]);
    command.args(["peer", "name", other.1, "mtu", &mtu, "netns", other.0.name()]);
    netns::output(&mut command)?;
    one.0.ip(["link", "set", one.1, "up"])?;
    other.0.ip(["link", "set", other.1, "up"]).map(|_| ())
}

/// How much of an address is the network.
#[derive(Clone, Copy)]
pub(crate) enum Prefix {
    /// /24 and /64.
    Network,
    /// /32 and /128.
    Single,
}

/// Lines for `ip -batch`, of the families that the lab has.
pub(crate) struct Lines<'a> {
    options: &'a Options,
    text: String,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        Self { options, text: String::new() }
    }

    /// Adds a line, whose family `ip` reads off its addresses.
    fn line(&mut self, family: Family, line: &str) {
        if self.options.has(family) {
            // Writing to a string cannot fail.
            let _ = writeln!(self.text, "{line}");
        }
    }

    pub(crate) fn address(&mut self, host: Host, device: &str, prefix: Prefix) {
        let (v4, v6) = match prefix {
            Prefix::Network => (24, 64),
            Prefix::Single => (32, 128),
        };
        self.line(Family::V4, &format!("address add {}/{v4} dev {device}", host.v4));
        self.line(Family::V6, &format!("address add {}/{v6} dev {device} nodad", host.v6));
    }

    pub(crate) fn default_route(&mut self, gateway: Host, device: &str) {
        for (family, ip) in Family::ALL.into_iter().zip(gateway.both()) {
            self.line(family, &format!("route add default via {ip} dev {device}"));
        }
    }

    fn host_route(&mut self, host: Host, device: &str) {
        for (family, ip) in Family::ALL.into_iter().zip(host.both()) {
            self.line(family, &format!("route add {ip} dev {device}"));
        }
    }

    pub(crate) fn run(self, netns: &Netns) -> Result<()> {
        if self.text.is_empty() { Ok(()) } else { netns.ip_lines(&self.text) }
    }
}
