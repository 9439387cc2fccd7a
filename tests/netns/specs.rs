//! Specifications of these tests, and the traffic that shows whether one is in force.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use egress_lab::address::{GATEWAY, Host, ROUTER, SERVER_1, client};
use egress_lab::endpoint::any_port;
use egress_lab::probe::{Kind, Probe, Servers};
use egress_lab::udp::{self, UdpServer};
use egress_lab::{Family, Lab};

/// How long something may take that takes milliseconds on an idle machine.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// A specification that can be bent for a test.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) name: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) master: Option<&'static str>,
    /// With the length of their subnets, and the gateway.
    pub(crate) addresses: Vec<(Host, Option<Host>)>,
    pub(crate) rules: Vec<(&'static str, u16, Host, Option<u16>)>,
}

impl Text {
    /// TCP 80 and UDP 7000 in both families, from one address of each.
    pub(crate) fn of(external: Host) -> Self {
        Self {
            name: "lifecycle",
            mode: "Bridge",
            master: None,
            addresses: vec![(external, Some(GATEWAY))],
            rules: vec![("TCP", 80, SERVER_1, Some(8080)), ("UDP", 7000, SERVER_1, None)],
        }
    }

    pub(crate) fn yaml(&self) -> String {
        let mut text = format!(
            "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata:\n  name: {}\nspec:\n  networkInterface:\n    macvlan:\n      mode: {}\n",
            self.name, self.mode
        );
        // Writing to a string cannot fail, here and below.
        if let Some(master) = self.master {
            let _ = writeln!(text, "      master: {master}");
        }
        text.push_str("  addresses:\n");
        for (address, gateway) in &self.addresses {
            for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
                let _ = writeln!(text, "  - ip: {}/{length}", address.ip(family));
                if let Some(gateway) = gateway {
                    let _ = writeln!(text, "    gateway: {}", gateway.ip(family));
                }
            }
        }
        text.push_str("  redirect:\n    redirectRules:\n");
        for (protocol, port, destination, target) in &self.rules {
            for ip in destination.both() {
                let _ = writeln!(text, "    - {{port: {port}, protocol: {protocol}, destinationIP: \"{ip}\"");
                // Inside the braces a line break is a space.
                if let Some(target) = target {
                    let _ = writeln!(text, "       , targetPort: {target}");
                }
                text.push_str("      }\n");
            }
        }
        text
    }
}

/// Sends through both rules of [`Text::of`] in both families, and checks where that arrives and whom the server sees.
#[track_caller]
pub(crate) fn assert_works(lab: &Lab, external: Host) {
    let probes: Vec<Probe> = Family::ALL
        .into_iter()
        .flat_map(|family| {
            let probe = |kind, port, server_port| Probe {
                kind,
                from: client(0).ip(family),
                to: SocketAddr::new(ROUTER.ip(family), port),
                server: SocketAddr::new(SERVER_1.ip(family), server_port),
                source: external.ip(family),
            };
            [probe(Kind::Tcp, 80, 8080), probe(Kind::Udp, 7000, 7000)]
        })
        .collect();
    let servers = Servers::start(lab, &probes).unwrap();
    for probe in probes {
        assert_eq!(servers.send(lab, probe, WITHIN).verdict(), Ok(()), "{probe:?}");
    }
}

/// One datagram to the router's UDP port 7000, and its answer.
#[track_caller]
pub(crate) fn one_datagram(lab: &Lab, server: &UdpServer, within: Duration) {
    let family = Family::of(server.address().ip());
    let to = SocketAddr::new(ROUTER.ip(family), 7000);
    let attempt = udp::exchange(&lab.client, any_port(client(0).ip(family)), to, b"first", within);
    let seen = attempt.result.unwrap_or_else(|error| panic!("{family}: {error} after {:?}", attempt.took));
    assert_eq!(seen.server, server.address());
}
