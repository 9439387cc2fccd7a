//! Router, host and outside world, each in a namespace of its own:
//!
//! ```text
//!   client c0 ──── eth0 router net1 ┄┄┄ (macvlan) ┄┄┄ up0 host up1 ──── …
//!                                                      └──── s0 outside
//! ```

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::compile::{Address, LinkPlan, MacvlanMode, RouterName};
use crate::link::{LinkError, Mac, Netns, NetnsRef, Place, Plan, Snapshot, Sysctl, apply, plan, snapshot};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// The outside's addresses on the external network.
pub(super) const OUTSIDE: [&str; 2] = ["192.168.12.1", "2001:db8:12::1"];
pub(super) const OUTSIDE_MAC: &str = "02:aa:00:00:00:01";

/// A namespace that goes away with its value.
pub(super) struct Namespace {
    pub(super) name: String,
    pub(super) netns: Netns,
}

impl Namespace {
    pub(super) fn new(role: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lk{}-{number}{role}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        let netns = NetnsRef::Name(name.clone()).open().unwrap();
        let namespace = Self { name, netns };
        namespace.ip("link set lo up");
        namespace
    }

    /// `ip -n NAME ...`, with its output.
    pub(super) fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        run(&[&["ip", "-n", &self.name], arguments.as_slice()].concat())
    }

    /// `ip -n NAME ...` that has to fail, with its error.
    pub(super) fn ip_fails(&self, arguments: &str) -> String {
        let all = ["-n", &self.name].into_iter().chain(arguments.split_whitespace());
        let output = Command::new("ip").args(all).output().unwrap();
        assert!(!output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    pub(super) fn mac(&self, interface: &str) -> Mac {
        snapshot(&self.netns, &[], None).unwrap().interface(interface).unwrap().mac.unwrap()
    }

    /// Whether a datagram from here, from `source` if given, gets to `to` in the other namespace and its answer back.
    pub(super) fn reaches(&self, other: &Self, source: Option<&str>, to: &str) -> bool {
        let target: IpAddr = to.parse().unwrap();
        let server = other.netns.run(|| UdpSocket::bind((target, 0))).unwrap().unwrap();
        let anywhere = if target.is_ipv4() { "0.0.0.0" } else { "::" };
        let source: IpAddr = source.unwrap_or(anywhere).parse().unwrap();
        let client = self.netns.run(|| UdpSocket::bind((source, 0))).unwrap().unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        }
        // Without a route the kernel refuses to send at all.
        if client.send_to(b"ask", server.local_addr().unwrap()).is_err() {
            return false;
        }
        let mut buffer = [0; 16];
        let Ok((_, from)) = server.recv_from(&mut buffer) else { return false };
        server.send_to(b"answer", from).unwrap();
        client.recv_from(&mut buffer).is_ok()
    }

    pub(super) fn sysctl(&self, key: &str) -> String {
        let key = Sysctl::new(key);
        let state = snapshot(&self.netns, std::slice::from_ref(&key), None).unwrap();
        state.sysctl(&key).unwrap_or("none").to_owned()
    }

    pub(super) fn set_sysctl(&self, key: &str, value: &str) {
        let path = Sysctl::new(key).path();
        self.netns.run(|| std::fs::write(path, value)).unwrap().unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ignored = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

pub(super) fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{}: {} (needs root)", command.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(super) struct Lab {
    pub(super) client: Namespace,
    pub(super) router: Namespace,
    pub(super) host: Namespace,
    pub(super) outside: Namespace,
    pub(super) records: tempfile::TempDir,
}

impl Lab {
    pub(super) fn new() -> Self {
        let [client, router, host, outside] = ["c", "r", "h", "s"].map(Namespace::new);
        for namespace in [&client, &router, &host, &outside] {
            // Addresses of the lab itself need no duplicate detection, which would only cost time.
            namespace.set_sysctl("net/ipv6/conf/default/accept_dad", "0");
        }
        // Indexes that differ from the peers': the kernel takes up to a second to notice the carrier of an interface
        // whose peer has the same, and hears no IPv6 multicast until then.
        client.ip(&format!("link add c0 index 10 type veth peer name eth0 netns {}", router.name));
        host.ip(&format!("link add up0 index 10 type veth peer name s0 address {OUTSIDE_MAC} netns {}", outside.name));
        client.ip("address add 10.128.0.1/24 dev c0");
        client.ip("address add fd00:128::1/64 dev c0 nodad");
        client.ip("link set c0 up");
        // The kernel's own link-local address would turn up in the middle of a test.
        router.ip("link set eth0 addrgenmode none");
        router.ip("address add fe80::2/64 dev eth0 nodad");
        router.ip("address add 10.128.0.2/24 dev eth0");
        router.ip("address add fd00:128::2/64 dev eth0 nodad");
        router.ip("link set eth0 up");
        router.ip("route add default via 10.128.0.1");
        router.ip("-6 route add default via fd00:128::1");
        host.ip("link set up0 up");
        outside.ip("address add 192.168.12.1/24 dev s0");
        outside.ip("address add 2001:db8:12::1/64 dev s0 nodad");
        outside.ip("link set s0 up");
        Self { client, router, host, outside, records: tempfile::tempdir().unwrap() }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            router: self.router.netns.clone(),
            master: self.host.netns.clone(),
            cluster_interface: "eth0".to_owned(),
            external_interface: "net1".to_owned(),
            adopt: false,
            reply_mark: None,
            standby: false,
        }
    }

    pub(super) fn record(&self) -> PathBuf {
        self.records.path().join("record.json")
    }

    pub(super) fn plan(&self, link: &LinkPlan) -> Result<Plan, LinkError> {
        plan(&self.place(), &router_name(), link, &[])
    }

    pub(super) fn apply(&self, link: &LinkPlan) -> Result<Plan, LinkError> {
        let place = self.place();
        let plan = self.plan(link)?;
        let mut applied = apply::prepare(&place, plan, &self.record())?;
        match applied.claim() {
            Ok(()) => Ok(applied.plan().clone()),
            Err(error) => {
                applied.undo().expect("undo");
                Err(error)
            }
        }
    }

    /// All that a plan may touch in the router's namespace.
    pub(super) fn state(&self) -> Snapshot {
        let settings = crate::link::settings::read_by_plans("eth0", "net1");
        snapshot(&self.router.netns, &settings, None).unwrap()
    }
}

pub(super) fn router_name() -> RouterName {
    RouterName { namespace: "egress".to_owned(), name: "prod".to_owned() }
}

pub(super) fn address(net: &str, gateway: Option<&str>) -> Address {
    Address { net: net.parse().unwrap(), gateway: gateway.map(|gateway| gateway.parse().unwrap()) }
}

/// Both families, with gateways.
pub(super) fn dual_stack() -> LinkPlan {
    LinkPlan {
        master: Some("up0".to_owned()),
        mode: MacvlanMode::Bridge,
        addresses: vec![
            address("192.168.12.99/24", Some("192.168.12.1")),
            address("2001:db8:12::99/64", Some("2001:db8:12::1")),
        ],
    }
}

/// Panics with the lines in which the two differ.
#[track_caller]
pub(super) fn assert_same(after: &Snapshot, before: &Snapshot, when: &str) {
    let lines = |state: &Snapshot| -> Vec<String> {
        let parts = [
            state.interfaces.iter().map(|part| format!("{part:?}")).collect::<Vec<_>>(),
            state.routes.iter().map(|part| format!("{part:?}")).collect(),
            state.rules.iter().map(ToString::to_string).collect(),
            state.sysctls.iter().map(|part| format!("{part:?}")).collect(),
        ];
        parts.concat()
    };
    let (after, before) = (lines(after), lines(before));
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    assert!(new.is_empty() && lost.is_empty(), "{when}:\nnew {new:#?}\nlost {lost:#?}");
}
