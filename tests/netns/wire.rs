//! Single packets through the router, seen byte by byte at both ends.
//!
//! Client and server are ghosts: addresses that frames are sent from and to, but that no kernel has, so that nobody answers
//! what was only meant to be looked at.

use std::net::SocketAddr;

use egress_lab::address::{GATEWAY, Host, ROUTER, SNAT, far, pod};
use egress_lab::capture::{Capture, Frame as Captured};
use egress_lab::endpoint::any_port;
use egress_lab::frame::Frame;
use egress_lab::inject::Injector;
use egress_lab::packet::{self, Content};
use egress_lab::topology::{CLUSTER_INTERFACE, EXTERNAL_INTERFACE, OUTSIDE_INTERFACE};
use egress_lab::udp::UdpClient;
use egress_lab::{Family, Options, wait_until};

use crate::rig::{Rig, Spec, TIMEOUT, at};

/// A client that no kernel has.
pub(crate) const GHOST_CLIENT: Host = pod(50);
/// Another one.
pub(crate) const GHOST_CLIENT_2: Host = pod(51);
/// A destination that no kernel has.
pub(crate) const GHOST_SERVER: Host = far(99);

/// Frames into both ends of a rig, and what arrives there.
pub(crate) struct Wire {
    pub(crate) rig: Rig,
    pub(crate) at_client: Capture,
    pub(crate) at_outside: Capture,
    client: Injector,
    outside: Injector,
    /// Destination and source link address of what the client sends, and of what the outside sends.
    client_macs: [[u8; 6]; 2],
    outside_macs: [[u8; 6]; 2],
}

/// Which end of the rig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client's.
    Client,
    /// The outside's.
    Outside,
}

impl Wire {
    /// A router that runs with this specification, and ghosts around it.
    pub(crate) fn start(spec: &Spec) -> Self {
        Self::with(&Options::default(), spec)
    }

    /// The same in a lab of one's own choice.
    pub(crate) fn with(options: &Options, spec: &Spec) -> Self {
        Self::around(Rig::with(options, spec, &[]))
    }

    /// The same with arguments for the router.
    pub(crate) fn with_arguments(spec: &Spec, arguments: &[&str]) -> Self {
        Self::around(Rig::with(&Options::default(), spec, arguments))
    }

    fn around(rig: Rig) -> Self {
        let c0 = rig.client.mac("c0").unwrap();
        let text = c0.map(|byte| format!("{byte:02x}")).join(":");
        for ip in [GHOST_CLIENT, GHOST_CLIENT_2].into_iter().flat_map(Host::both) {
            let line = format!("neigh replace {ip} lladdr {text} dev {CLUSTER_INTERFACE} nud permanent\n");
            rig.router_netns().ip_lines(&line).unwrap();
        }
        for ip in GHOST_SERVER.both() {
            rig.outside.ip_lines(&format!("route add blackhole {ip}\n")).unwrap();
        }
        unlimited_errors(&rig);
        meet_the_gateway(&rig);
        Self {
            at_client: Capture::start(&rig.client, "c0").unwrap(),
            at_outside: Capture::start(&rig.outside, OUTSIDE_INTERFACE).unwrap(),
            client: Injector::open(&rig.client, "c0").unwrap(),
            outside: Injector::open(&rig.outside, OUTSIDE_INTERFACE).unwrap(),
            client_macs: [rig.router_netns().mac(CLUSTER_INTERFACE).unwrap(), c0],
            outside_macs: [
                rig.router_netns().mac(EXTERNAL_INTERFACE).unwrap(),
                rig.outside.mac(OUTSIDE_INTERFACE).unwrap(),
            ],
            rig,
        }
    }

    /// Sends a packet to the router from one of its ends.
    pub(crate) fn send(&self, from: End, frame: &Frame) {
        let (injector, [to, own]) = match from {
            End::Client => (&self.client, self.client_macs),
            End::Outside => (&self.outside, self.outside_macs),
        };
        injector.send(&frame.bytes(to, own)).unwrap();
    }

    /// Waits for exactly this packet at one of the ends.
    #[track_caller]
    pub(crate) fn expect(&self, at: End, wanted: &Frame) {
        self.expect_bytes(at, &wanted.packet());
    }

    /// Waits for exactly this packet at one of the ends.
    #[track_caller]
    pub(crate) fn expect_bytes(&self, at: End, wanted: &[u8]) {
        let found =
            self.capture(at).wait_for("the packet", TIMEOUT, |frame| (ip_bytes(frame) == Some(wanted)).then_some(()));
        if found.is_err() {
            let seen = self.capture(at).frames().unwrap();
            let seen = seen.iter().filter_map(ip_bytes).map(|bytes| format!("\n{}", hex(bytes))).collect::<String>();
            panic!("not at the {at:?}:\n{}\nbut only:{seen}", hex(wanted));
        }
    }

    /// Sends a packet, and waits for exactly this one at the other end.
    #[track_caller]
    pub(crate) fn passes(&self, from: End, sent: &Frame, wanted: &Frame) {
        self.send(from, sent);
        self.expect(from.other(), wanted);
    }

    /// Whether an IP packet of this kind has arrived at one of the ends up to now.
    pub(crate) fn has_seen(&self, at: End, mut look: impl FnMut(&packet::Packet<'_>) -> bool) -> bool {
        self.capture(at).frames().unwrap().iter().any(|frame| match packet::read(&frame.bytes) {
            Content::Ip(packet) => look(&packet),
            _ => false,
        })
    }

    fn capture(&self, at: End) -> &Capture {
        match at {
            End::Client => &self.at_client,
            End::Outside => &self.at_outside,
        }
    }
}

impl End {
    /// The opposite one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Outside,
            Self::Outside => Self::Client,
        }
    }
}

/// Has the router know its gateway's link address: until it does, the kernel sends a flow's packets on.
fn meet_the_gateway(rig: &Rig) {
    for family in Family::ALL {
        let to = at(GATEWAY, family, 9);
        let socket = UdpClient::open(rig.router_netns(), any_port(SNAT.ip(family)), to).unwrap();
        socket.socket().send(b"hello").unwrap();
        wait_until("the router to know its gateway", TIMEOUT, || {
            let neighbour = rig.router_netns().ip(["neigh", "show", "to", &to.ip().to_string()]).unwrap();
            neighbour.contains("REACHABLE") || neighbour.contains("STALE") || neighbour.contains("DELAY")
        })
        .unwrap();
    }
}

/// Switches the kernels' limits of ICMP errors off: they would make tests of many errors depend on the time they take.
pub(crate) fn unlimited_errors(rig: &Rig) {
    for netns in rig.all() {
        netns.sysctl(["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]).unwrap();
    }
}

/// The IP packet within a captured frame.
pub(crate) fn ip_bytes(frame: &Captured) -> Option<&[u8]> {
    packet::ip_bytes(&frame.bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(160).map(|byte| format!("{byte:02x}")).collect()
}

/// A ghost client's port and the router's: where requests come from and go to.
pub(crate) fn request_ends(family: Family, source_port: u16, port: u16) -> (SocketAddr, SocketAddr) {
    (at(GHOST_CLIENT, family, source_port), at(ROUTER, family, port))
}

/// The SNAT address and the ghost server: the same, once they are translated.
pub(crate) fn translated_ends(family: Family, source_port: u16, port: u16) -> (SocketAddr, SocketAddr) {
    (at(SNAT, family, source_port), at(GHOST_SERVER, family, port))
}

/// The gateway, where errors about requests come from.
pub(crate) fn gateway(family: Family) -> std::net::IpAddr {
    GATEWAY.ip(family)
}
