//! One packet through one rule: what was sent where, where it arrived, and whom the server saw.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::address::{GATEWAY, Host, ON_LINK, SERVER_1, SERVER_2};
use crate::endpoint::{Seen, any_port};
use crate::icmp::{Echo, Witness};
use crate::tcp::TcpServer;
use crate::udp::UdpServer;
use crate::{Lab, Netns, tcp, udp};

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A TCP connection with one exchange.
    Tcp,
    /// A datagram and its answer.
    Udp,
    /// An echo request; ports are zero.
    IcmpEcho,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::IcmpEcho => "ICMP echo",
        })
    }
}

/// What is sent to the router, and what must become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// What is sent.
    pub kind: Kind,
    /// The client's address.
    pub from: IpAddr,
    /// The router's address and port.
    pub to: SocketAddr,
    /// The server that it must reach.
    pub server: SocketAddr,
    /// The source that the server must see.
    pub source: IpAddr,
}

/// What became of a probe.
#[derive(Debug)]
pub struct Outcome {
    /// The probe.
    pub probe: Probe,
    /// What the server saw, or the client's error.
    pub seen: Result<Seen>,
    /// From the first packet to the answer.
    pub took: Duration,
}

impl Outcome {
    /// Whether the right server saw the right source.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn verdict(&self) -> std::result::Result<(), String> {
        match &self.seen {
            Err(error) => Err(format!("{error:#}")),
            Ok(seen) if seen.server != self.probe.server => Err(format!("should arrive at {}", self.probe.server)),
            Ok(seen) if seen.source.ip() != self.probe.source => Err(format!("should come from {}", self.probe.source)),
            Ok(_) => Ok(()),
        }
    }
}

/// Servers on every address that probes shall reach, which stay for as long as this is kept.
#[derive(Debug)]
pub struct Servers {
    tcp: Vec<TcpServer>,
    udp: Vec<UdpServer>,
    witnesses: Vec<(Host, Witness)>,
}

impl Servers {
    /// Starts what `probes` need.
    ///
    /// # Errors
    /// When the lab has no such server, or it cannot listen there.
    pub fn start(lab: &Lab, probes: &[Probe]) -> Result<Self> {
        let mut servers = Self { tcp: Vec::new(), udp: Vec::new(), witnesses: Vec::new() };
        for probe in probes {
            let (host, netns) = holder(lab, probe.server.ip())?;
            match probe.kind {
                Kind::Tcp if servers.tcp.iter().all(|server| server.address() != probe.server) => {
                    servers.tcp.push(TcpServer::start(netns, probe.server)?);
                }
                Kind::Udp if servers.udp.iter().all(|server| server.address() != probe.server) => {
                    servers.udp.push(UdpServer::start(netns, probe.server)?);
                }
                Kind::IcmpEcho if servers.witnesses.iter().all(|(other, _)| *other != host) => {
                    let device = if netns.name() == lab.outside.name() { "s0" } else { "eth0" };
                    servers.witnesses.push((host, Witness::start(netns, device)?));
                }
                Kind::Tcp | Kind::Udp | Kind::IcmpEcho => {}
            }
        }
        Ok(servers)
    }

    /// Sends one probe from the lab's client.
    pub fn send(&self, lab: &Lab, probe: Probe, timeout: Duration) -> Outcome {
        // Different for each probe, so that an answer cannot be another one's.
        let payload = format!("{} {} from {}", probe.kind, probe.to, probe.from).into_bytes();
        let (seen, took) = match probe.kind {
            Kind::Tcp => {
                let attempt = tcp::exchange(&lab.client, any_port(probe.from), probe.to, &payload, timeout);
                (attempt.result.map_err(anyhow::Error::from), attempt.took)
            }
            Kind::Udp => {
                let attempt = udp::exchange(&lab.client, any_port(probe.from), probe.to, &payload, timeout);
                (attempt.result.map_err(anyhow::Error::from), attempt.took)
            }
            Kind::IcmpEcho => {
                let to = probe.to.ip();
                let echo = Echo { from: probe.from, to, id: probe.to.port(), sequence: 1, payload: &payload };
                let attempt = echo.exchange(&lab.client, timeout);
                let seen = attempt.result.map_err(anyhow::Error::from).and_then(|_| self.witnessed(&payload));
                (seen, attempt.took)
            }
        };
        Outcome { probe, seen, took }
    }

    /// Where the echo request with `payload` was seen; its own addresses, with port zero.
    fn witnessed(&self, payload: &[u8]) -> Result<Seen> {
        // A reply has come, so whichever server it was has seen the request by now.
        let within = Duration::from_millis(100);
        let echo = self.witnesses.iter().find_map(|(_, witness)| witness.wait_for(payload, within).ok());
        let echo = echo.context("a reply came, but no server saw the request")?;
        Ok(Seen { source: any_port(echo.source), server: any_port(echo.destination) })
    }
}

/// Which of the lab's hosts has an address, and in which namespace.
fn holder(lab: &Lab, ip: IpAddr) -> Result<(Host, &Netns)> {
    [SERVER_1, SERVER_2, GATEWAY, ON_LINK]
        .into_iter()
        .find(|host| host.both().contains(&ip))
        .and_then(|host| lab.server(host).map(|netns| (host, netns)))
        .with_context(|| format!("the lab has no server with the address {ip}"))
}
