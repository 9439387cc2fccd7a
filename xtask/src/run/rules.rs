//! What the binary says its rules are, and the traffic that tries each of them.
//!
//! `egress-router rules -o json` gives an array, or an object with the array under `rules`. A rule has `protocol`, `port`,
//! `destination` (an address) and, when the destination's port is another one, `targetPort`; a fallback has neither
//! `protocol` nor `port`. What has no `destination` stays with the pod itself, and nothing is sent to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use egress_lab::Family;
use egress_lab::address::Host;
use egress_lab::probe::{Kind, Probe};
use serde_json::Value;

/// The identifier of echo requests, which stands where a port would.
const ECHO_ID: u16 = 0x4552;
/// Where the search for a port that no rule names begins.
const UNNAMED_PORT: u16 = 4000;

/// A rule, or the fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// What it takes; none for the fallback.
    takes: Option<(Kind, u16)>,
    destination: IpAddr,
    target_port: Option<u16>,
}

/// Reads what `egress-router rules -o json` printed.
pub(super) fn read(report: &Value) -> Result<Vec<Rule>> {
    let rules = report.get("rules").unwrap_or(report);
    let rules = rules.as_array().with_context(|| format!("`rules -o json` holds no array of rules: {report}"))?;
    let forwarding =
        rules.iter().filter(|rule| rule.get("destination").is_none_or(|destination| !destination.is_null()));
    forwarding.map(|rule| read_one(rule).with_context(|| format!("read the rule {rule}"))).collect()
}

fn read_one(rule: &Value) -> Result<Rule> {
    let present = |name| rule.get(name).filter(|value| !value.is_null());
    let port = |name| {
        let number = present(name).map(|value| value.as_u64().and_then(|port| u16::try_from(port).ok()));
        number.map(|port| port.with_context(|| format!("{name} is no port"))).transpose()
    };
    let protocol = present("protocol").and_then(Value::as_str).map(str::to_ascii_uppercase);
    let kind = match protocol.as_deref() {
        Some("TCP") => Some(Kind::Tcp),
        Some("UDP") => Some(Kind::Udp),
        None => None,
        Some(other) => bail!("the lab cannot send {other}"),
    };
    let takes = match (kind, port("port")?) {
        (Some(kind), Some(port)) => Some((kind, port)),
        (None, None) => None,
        _ => bail!("protocol without port, or port without protocol"),
    };
    let destination = present("destination").and_then(Value::as_str).context("no destination")?;
    let destination = destination.parse().with_context(|| format!("{destination} is no address"))?;
    Ok(Rule { takes, destination, target_port: port("targetPort")? })
}

/// One probe for each rule; for each fallback one of each kind, to a port that no rule names.
pub(super) fn probes(rules: &[Rule], client: Host, router: Host, snat: Host) -> Vec<Probe> {
    let named = rules.iter().filter_map(|rule| rule.takes).map(|(_, port)| port).collect::<BTreeSet<_>>();
    let unnamed = (UNNAMED_PORT..).find(|port| !named.contains(port)).unwrap_or(UNNAMED_PORT);
    let probe = |rule: &Rule, kind, port, server_port| {
        let family = Family::of(rule.destination);
        Probe {
            kind,
            from: client.ip(family),
            to: SocketAddr::new(router.ip(family), port),
            server: SocketAddr::new(rule.destination, server_port),
            source: snat.ip(family),
        }
    };
    rules
        .iter()
        .flat_map(|rule| match rule.takes {
            Some((kind, port)) => vec![probe(rule, kind, port, rule.target_port.unwrap_or(port))],
            None => vec![
                probe(rule, Kind::Tcp, unnamed, unnamed),
                probe(rule, Kind::Udp, unnamed, unnamed),
                probe(rule, Kind::IcmpEcho, ECHO_ID, 0),
            ],
        })
        .collect()
}

/// Where a probe is sent to, with port 0 where the protocol has none.
pub(super) fn shown(probe: &Probe) -> SocketAddr {
    let port = if probe.kind == Kind::IcmpEcho { 0 } else { probe.to.port() };
    SocketAddr::new(probe.to.ip(), port)
}

#[cfg(test)]
mod tests {
    use egress_lab::address::{ROUTER, SNAT, client};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_rule_gets_a_probe_and_a_fallback_three() {
        let report = json!({ "rules": [
            { "protocol": "TCP", "port": 80, "destination": "203.0.113.26", "targetPort": 8080, "packets": 7 },
            { "protocol": "UDP", "port": 4000, "destination": "2001:db8:113::26", "targetPort": null },
            { "protocol": null, "destination": "203.0.113.27" },
            { "protocol": "TCP", "port": 9090, "destination": null },
        ]});
        let probes = probes(&read(&report).unwrap(), client(0), ROUTER, SNAT);
        let lines = probes.iter().map(|probe| format!("{} {} {}", probe.kind, shown(probe), probe.server));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                "TCP 10.128.0.2:80 203.0.113.26:8080",
                "UDP [fd00:10::2]:4000 [2001:db8:113::26]:4000",
                "TCP 10.128.0.2:4001 203.0.113.27:4001",
                "UDP 10.128.0.2:4001 203.0.113.27:4001",
                "ICMP echo 10.128.0.2:0 203.0.113.27:0",
            ]
        );
    }

    #[test]
    fn a_report_that_is_no_list_of_rules_is_refused() {
        for report in [
            json!({}),
            json!([{ "protocol": "TCP", "port": 80 }]),
            json!([{ "protocol": "TCP", "destination": "203.0.113.26" }]),
            json!([{ "protocol": "GRE", "port": 1, "destination": "203.0.113.26" }]),
            json!([{ "protocol": "TCP", "port": 65536, "destination": "203.0.113.26" }]),
            json!([{ "protocol": "TCP", "port": 80, "destination": "203.0.113.26/32" }]),
        ] {
            assert!(read(&report).is_err(), "{report}");
        }
    }
}
