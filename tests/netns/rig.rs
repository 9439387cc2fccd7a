//! What the tests of this layer stand on: a lab, the real router in it, and the detector at its far side.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::time::Duration;

use egress_lab::address::{GATEWAY, Host, ON_LINK, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::detector::Detector;
use egress_lab::endpoint::{Seen, any_port};
use egress_lab::router::Router;
use egress_lab::tcp::{TcpConnection, TcpServer};
use egress_lab::udp::{UdpClient, UdpServer};
use egress_lab::{Family, Lab, Netns, Options};
use serde_json::Value;

/// For what must happen: a busy machine may be late, and only a failure waits this long.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// For what must not happen: as long as a test listens in vain.
pub(crate) const SILENCE: Duration = Duration::from_millis(700);

/// The lab with a router in it. Dropping it takes all away, and panics if the detector has found anything.
#[derive(Debug)]
pub(crate) struct Rig {
    /// Dropped first: it needs the namespaces to take itself out of them.
    pub(crate) router: Router,
    pub(crate) detector: Detector,
    lab: Lab,
}

impl Deref for Rig {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Rig {
    /// A router that runs with this specification, in a lab as most tests want it.
    pub(crate) fn start(spec: &Spec) -> Self {
        Self::with(&Options::default(), spec, &[])
    }

    /// A router that runs, in a lab of one's own choice, with arguments.
    pub(crate) fn with(options: &Options, spec: &Spec, arguments: &[&str]) -> Self {
        let mut rig = Self::prepare(options, spec, arguments);
        rig.router.start().unwrap();
        rig
    }

    /// All of it, with the router not started.
    pub(crate) fn prepare(options: &Options, spec: &Spec, arguments: &[&str]) -> Self {
        let lab = Lab::build(options).unwrap();
        let sources = spec.addresses.iter().flat_map(|host| host.both());
        let detector = Detector::start(&lab, sources).unwrap();
        let router = Router::new(&lab, &spec.yaml()).unwrap().with_arguments(arguments.iter().copied());
        Self { router, detector, lab }
    }

    /// All of it, with the node's uplink as the external interface, for the router to adopt.
    pub(crate) fn given(options: &Options, spec: &Spec, arguments: &[&str]) -> Self {
        let mut rig = Self::prepare(options, spec, arguments);
        rig.lab.give_uplink().unwrap();
        rig.router.adopt();
        rig
    }

    /// The router's namespace, which `router` without more would hide.
    pub(crate) fn router_netns(&self) -> &Netns {
        &self.lab.router
    }

    /// An echo server, on one of the lab's servers.
    pub(crate) fn tcp_server(&self, address: SocketAddr) -> TcpServer {
        TcpServer::start(self.holder(address.ip()), address).unwrap()
    }

    /// A server that answers datagrams, on one of the lab's servers.
    pub(crate) fn udp_server(&self, address: SocketAddr) -> UdpServer {
        UdpServer::start(self.holder(address.ip()), address).unwrap()
    }

    fn holder(&self, ip: IpAddr) -> &Netns {
        let host = [SERVER_1, SERVER_2, GATEWAY, ON_LINK].into_iter().find(|host| host.both().contains(&ip));
        self.server(host.unwrap()).unwrap()
    }

    /// A connection from a client to the router's port.
    pub(crate) fn connect(&self, from: SocketAddr, port: u16) -> std::io::Result<TcpConnection> {
        TcpConnection::open(&self.client, from, router(Family::of(from.ip()), port), TIMEOUT)
    }

    /// A connection to the router's port, once something went over it and back, and whom the server saw.
    pub(crate) fn tcp(&self, from: SocketAddr, port: u16) -> (TcpConnection, Seen) {
        let mut connection = self.connect(from, port).unwrap();
        let seen = connection.exchange(format!("from {from} to {port}").as_bytes()).unwrap();
        (connection, seen)
    }

    /// A socket for datagrams to the router's port, once one was answered, and whom the server saw.
    pub(crate) fn udp(&self, from: SocketAddr, port: u16) -> (UdpClient, Seen) {
        let client = UdpClient::open(&self.client, from, router(Family::of(from.ip()), port)).unwrap();
        let seen = client.exchange(format!("from {from} to {port}").as_bytes(), TIMEOUT).result.unwrap();
        (client, seen)
    }

    /// How many packets one program has had this outcome for: a verdict or a reason to drop.
    pub(crate) fn count(&self, program: &str, outcome: &str) -> u64 {
        let status = self.router.report("status").unwrap();
        let counters = status.get("counters").and_then(Value::as_array).unwrap();
        let is = |counter: &Value, name, value| counter.get(name).and_then(Value::as_str) == Some(value);
        let found = counters.iter().find(|counter| is(counter, "hook", program) && is(counter, "outcome", outcome));
        found.map_or(0, |counter| counter.get("packets").and_then(Value::as_u64).unwrap())
    }

    /// The flows, as the binary reports them.
    pub(crate) fn flows(&self) -> Vec<Value> {
        self.router.report("flows").unwrap().as_array().unwrap().clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.detector.assert_clean().unwrap();
        }
    }
}

/// The router's address and a port.
pub(crate) fn router(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(ROUTER.ip(family), port)
}

/// Some host's address and a port.
pub(crate) fn at(host: Host, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(host.ip(family), port)
}

/// The first client's address, with any port.
pub(crate) fn anyone(family: Family) -> SocketAddr {
    any_port(client(0).ip(family))
}

/// A specification. Rules are for both families.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    addresses: Vec<Host>,
    rules: Vec<(&'static str, u16, Host, Option<u16>)>,
    fallback: Option<IpAddr>,
}

impl Spec {
    /// No rules, and the lab's SNAT address.
    pub(crate) fn new() -> Self {
        Self { addresses: vec![SNAT], rules: Vec::new(), fallback: None }
    }

    /// With these addresses instead.
    pub(crate) fn addresses(mut self, addresses: impl IntoIterator<Item = Host>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// With a rule for TCP, to another port if one is given.
    pub(crate) fn tcp(mut self, port: u16, to: Host, target_port: impl Into<Option<u16>>) -> Self {
        self.rules.push(("TCP", port, to, target_port.into()));
        self
    }

    /// With a rule for UDP, to another port if one is given.
    pub(crate) fn udp(mut self, port: u16, to: Host, target_port: impl Into<Option<u16>>) -> Self {
        self.rules.push(("UDP", port, to, target_port.into()));
        self
    }

    /// With a rule for SCTP, to another port if one is given.
    pub(crate) fn sctp(mut self, port: u16, to: Host, target_port: impl Into<Option<u16>>) -> Self {
        self.rules.push(("SCTP", port, to, target_port.into()));
        self
    }

    /// With a fallback, which can serve one family only.
    pub(crate) fn fallback(mut self, to: IpAddr) -> Self {
        self.fallback = Some(to);
        self
    }

    /// As a file.
    pub(crate) fn yaml(&self) -> String {
        let mut text = String::from(
            "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata: {name: test}\nspec:\n  addresses:\n",
        );
        for host in &self.addresses {
            text += &format!("  - {{ip: {}/24, gateway: {}}}\n", host.v4, GATEWAY.v4);
            text += &format!("  - {{ip: \"{}/64\", gateway: \"{}\"}}\n", host.v6, GATEWAY.v6);
        }
        text += "  redirect:\n    redirectRules:\n";
        for (protocol, port, to, target_port) in &self.rules {
            let target_port = target_port.map(|port| format!(", targetPort: {port}")).unwrap_or_default();
            for ip in to.both() {
                text +=
                    &format!("    - {{protocol: {protocol}, port: {port}, destinationIP: \"{ip}\"{target_port}}}\n");
            }
        }
        if self.rules.is_empty() {
            text += "      []\n";
        }
        if let Some(fallback) = self.fallback {
            text += &format!("    fallbackIP: \"{fallback}\"\n");
        }
        text
    }
}
