//! A second node on the external network, with a place for a router of its own.
//!
//! ```text
//!  client C            router R2               node H2            switch              outside S, node H
//!  10.129.0.1 (c1)     10.129.0.2 (eth0)       192.168.12.3       p1: node H
//!  fd00:11::1          fd00:11::2              (up0)              p2: node H2
//!                                                                 p0: outside
//!      c1 ────veth──── eth0    net1 ─macvlan── up0 ─────veth───── p2   p0 ──────veth── s0
//! ```

use anyhow::Result;

use crate::address::{SECOND_NODE, SECOND_ROUTER, second_pod};
use crate::topology::{CLUSTER_INTERFACE, Lines, MASTER, Prefix, veth};
use crate::{Lab, Netns, Options};

/// The switch's bridge.
const BRIDGE: &str = "b0";
/// The switch's port to the outside.
pub const OUTSIDE_PORT: &str = "p0";
/// The switch's ports to the first and the second node.
pub const NODE_PORTS: [&str; 2] = ["p1", "p2"];

/// The second node, and the switch that joins both nodes and the outside.
#[derive(Debug)]
pub struct SecondNode {
    /// A bridge.
    pub switch: Netns,
    /// Holds the master `up0`.
    pub node: Netns,
    /// `eth0`, default route by the client; no `net1` yet.
    pub router: Netns,
}

impl SecondNode {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { switch: Netns::new("switch")?, node: Netns::new("node2")?, router: Netns::new("router2")? })
    }

    pub(crate) fn all(&self) -> [&Netns; 3] {
        [&self.switch, &self.node, &self.router]
    }

    /// Takes a node's port out of the switch, whose link stays up, as when a network falls in two.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn part(&self, port: &str) -> Result<()> {
        self.switch.ip(["link", "set", port, "nomaster"]).map(|_| ())
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn join(&self, port: &str) -> Result<()> {
        self.switch.ip(["link", "set", port, "master", BRIDGE]).map(|_| ())
    }

    /// Wires both nodes and the outside to the switch, and the second router to the client.
    pub(crate) fn wire(&self, lab: &Lab, outside: &str) -> Result<()> {
        let (cluster, uplink) = (lab.options.cluster_mtu, lab.options.uplink_mtu);
        // No snooping: the bridge would ask who listens, and wait for answers.
        self.switch.ip(["link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0"])?;
        self.switch.sysctl(["net.ipv6.conf.b0.disable_ipv6=1"])?;
        self.switch.ip(["link", "set", BRIDGE, "up"])?;
        let [first, second] = NODE_PORTS;
        for (netns, device, port) in
            [(&lab.outside, outside, OUTSIDE_PORT), (&lab.node, MASTER, first), (&self.node, MASTER, second)]
        {
            veth((netns, device), (&self.switch, port), uplink)?;
            self.switch.sysctl([format!("net.ipv6.conf.{port}.disable_ipv6=1").as_str()])?;
            self.join(port)?;
        }
        veth((&lab.client, "c1"), (&self.router, CLUSTER_INTERFACE), cluster)?;
        self.router.sysctl(["net.ipv6.conf.default.accept_dad=1"])
    }

    pub(crate) fn address(&self, client: &Netns, options: &Options) -> Result<()> {
        let mut lines = Lines::new(options);
        lines.address(second_pod(1), "c1", Prefix::Network);
        lines.run(client)?;
        let mut lines = Lines::new(options);
        lines.address(SECOND_ROUTER, CLUSTER_INTERFACE, Prefix::Network);
        lines.default_route(second_pod(1), CLUSTER_INTERFACE);
        lines.run(&self.router)?;
        let mut lines = Lines::new(options);
        lines.address(SECOND_NODE, MASTER, Prefix::Network);
        lines.run(&self.node)
    }
}
