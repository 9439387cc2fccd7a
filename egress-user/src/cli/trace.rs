//! `trace`: which rule a packet would hit, by the router in force or by a specification.

use std::net::{IpAddr, SocketAddr};

use super::args;
use super::output::{self, Format};
use crate::datapath::{Answer, InForce, Question, RuleRow, trace};

/// What is traced, as a person writes it: `tcp/80`, or `icmp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Protocol, as flows show it.
    pub protocol: String,
    /// Destination port.
    pub port: Option<u16>,
}

impl std::str::FromStr for Traced {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no packet to trace: write tcp/PORT, udp/PORT, sctp/PORT, icmp or a number");
        let (name, port) = match text.split_once('/') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_no_port| wrong())?)),
            None => (text, None),
        };
        let protocol = name.to_ascii_uppercase();
        let fits = match protocol.as_str() {
            "TCP" | "UDP" | "SCTP" => port.is_some_and(|port| port > 0),
            "ICMP" | "ICMPV6" => port.is_none(),
            _ => port.is_none() && name.parse::<u8>().is_ok(),
        };
        let protocol = if protocol == "ICMPV6" { "ICMPv6".to_owned() } else { protocol };
        if fits { Ok(Self { protocol, port }) } else { Err(wrong()) }
    }
}

/// A client, with or without its port.
pub(super) fn client(text: &str) -> Result<SocketAddr, String> {
    let without = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
    text.parse::<SocketAddr>().or_else(|_no_port| without()).map_err(|_neither| {
        format!("{text:?} is no client: write an address, or an address and a port as in 10.128.0.1:40000 or [fd00::1]:40000")
    })
}

/// Prints the answer.
pub(super) fn run(args: &args::Trace) -> anyhow::Result<()> {
    if args.live {
        return super::live::run(args);
    }
    let (Some(packet), Some(from)) = (&args.packet, args.from) else { anyhow::bail!("give a packet and --from") };
    let in_force = match &args.spec {
        Some(file) => {
            let (desired, _warnings) = crate::compile::desired_from_file(file, args.router.as_deref())?;
            InForce {
                rules: RuleRow::of(&desired.rules),
                snat: by_family(desired.link.addresses.iter().map(|address| address.net.addr())),
                ..InForce::default()
            }
        }
        None => {
            let (reader, router) = super::commands::installed(&args.target)?;
            InForce {
                rules: reader.rules()?,
                router: Some(router),
                snat: reader.snat_in_order()?,
                flows: reader.flows()?,
            }
        }
    };
    let question = Question { protocol: packet.protocol.clone(), from, to: args.to, port: packet.port };
    let answer = trace(&question, &in_force);
    if args.output.format == Format::Table {
        return Ok(output::text(&sentence(&question, &answer))?);
    }
    Ok(output::value(&answer, args.output.format)?)
}

/// IPv4's first, as the datapath has them.
fn by_family(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    v4.into_iter().chain(v6).collect()
}

fn sentence(question: &Question, answer: &Answer) -> String {
    let mut text = String::new();
    for why in &answer.because {
        text.push_str(&format!("{why}\n"));
    }
    let port = question.port.map(|port| format!(" to port {port}")).unwrap_or_default();
    let from = if question.from.port() == 0 { question.from.ip().to_string() } else { question.from.to_string() };
    text.push_str(&format!("=> {} from {from}{port}: {}", question.protocol, answer.verdict));
    if let (Some(source), Some(destination)) = (answer.source, answer.destination) {
        let to = if destination.port() == 0 { destination.ip().to_string() } else { destination.to_string() };
        text.push_str(&format!(", leaves as {source} to {to}"));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_to_trace() {
        let traced = |text: &str| text.parse::<Traced>().map(|traced| (traced.protocol, traced.port));
        assert_eq!(traced("tcp/80"), Ok(("TCP".to_owned(), Some(80))));
        assert_eq!(traced("SCTP/9"), Ok(("SCTP".to_owned(), Some(9))));
        assert_eq!(traced("icmpv6"), Ok(("ICMPv6".to_owned(), None)));
        assert_eq!(traced("47"), Ok(("47".to_owned(), None)));
        for wrong in ["", "tcp", "tcp/", "tcp/0", "tcp/65536", "icmp/1", "80/tcp", "gre", "256"] {
            assert!(traced(wrong).is_err(), "{wrong}");
        }
        assert_eq!(client("10.0.0.1").unwrap().port(), 0);
        assert_eq!(client("[fd00::1]:7").unwrap().port(), 7);
        assert!(client("10.0.0.1/24").is_err());
    }
}
