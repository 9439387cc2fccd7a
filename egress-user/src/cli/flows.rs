//! `flows`: which of them, in which order.

use std::cmp::Reverse;
use std::net::IpAddr;

use clap::ValueEnum;
use ipnet::IpNet;

use super::args::FlowFilter;
use crate::datapath::FlowRow;

/// By what flows are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FlowOrder {
    /// Client, then port.
    #[default]
    Client,
    /// Destination, then port.
    Destination,
    /// Most bytes first, both ways together.
    Bytes,
    /// Most packets first, both ways together.
    Packets,
    /// Oldest first.
    Age,
    /// Longest idle first.
    Idle,
}

/// Which rule's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOfFlow {
    /// By index in the specification.
    Index(u32),
    /// The fallback's.
    Fallback,
}

impl std::str::FromStr for RuleOfFlow {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "fallback" { Ok(Self::Fallback) } else { Ok(Self::Index(text.parse()?)) }
    }
}

/// A host, or a network, as in 10.128.0.0/14.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let host = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_no_prefix| host()).map_err(|_neither| {
        format!("{text:?} is neither an address nor a network: write one as in 10.128.0.1 or 10.128.0.0/14")
    })
}

/// The flows that are asked for, in order.
pub(super) fn select(mut flows: Vec<FlowRow>, filter: &FlowFilter) -> Vec<FlowRow> {
    flows.retain(|flow| wanted(flow, filter));
    let bytes = |flow: &FlowRow| flow.request_bytes + flow.reply_bytes;
    let packets = |flow: &FlowRow| flow.request_packets + flow.reply_packets;
    match filter.sort {
        FlowOrder::Client => flows.sort_by_key(|flow| (flow.client, flow.router)),
        FlowOrder::Destination => flows.sort_by_key(|flow| (flow.destination, flow.client)),
        FlowOrder::Bytes => flows.sort_by_key(|flow| Reverse(bytes(flow))),
        FlowOrder::Packets => flows.sort_by_key(|flow| Reverse(packets(flow))),
        FlowOrder::Age => flows.sort_by_key(|flow| Reverse(flow.age_s)),
        FlowOrder::Idle => flows.sort_by_key(|flow| Reverse(flow.idle_s)),
    }
    if let Some(limit) = filter.limit {
        flows.truncate(limit);
    }
    flows
}

fn wanted(flow: &FlowRow, filter: &FlowFilter) -> bool {
    let within = |network: Option<IpNet>, ip: IpAddr| network.is_none_or(|network| network.contains(&ip));
    let protocol = filter.protocol.as_ref().is_none_or(|name| flow.protocol.eq_ignore_ascii_case(name));
    let state = filter.state.as_ref().is_none_or(|state| flow.state == state);
    let port = filter.port.is_none_or(|port| flow.router.port() == port);
    let rule = match filter.rule {
        None => true,
        Some(RuleOfFlow::Index(index)) => flow.rule == Some(index),
        Some(RuleOfFlow::Fallback) => flow.rule.is_none(),
    };
    protocol
        && state
        && port
        && rule
        && within(filter.client, flow.client.ip())
        && within(filter.destination, flow.destination.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: &str, to: &str, rule: Option<u32>, bytes: u64) -> FlowRow {
        FlowRow {
            protocol: "TCP".into(),
            client: client.parse().unwrap(),
            router: "10.128.0.2:80".parse().unwrap(),
            destination: to.parse().unwrap(),
            rule,
            state: "tcp-established",
            reply_bytes: bytes,
            age_s: bytes,
            ..FlowRow::default()
        }
    }

    fn flows() -> Vec<FlowRow> {
        vec![
            flow("10.128.0.3:1", "203.0.113.1:80", Some(0), 10),
            flow("10.128.0.1:1", "203.0.113.2:80", None, 30),
            flow("10.129.0.1:1", "203.0.113.1:81", Some(1), 20),
            flow("[fd00::1]:1", "[2001:db8::1]:80", Some(0), 5),
        ]
    }

    fn clients(filter: &FlowFilter) -> Vec<String> {
        select(flows(), filter).iter().map(|flow| flow.client.ip().to_string()).collect()
    }

    #[test]
    fn filters_narrow_down() {
        let filter = FlowFilter { client: Some(network("10.128.0.0/16").unwrap()), ..FlowFilter::default() };
        assert_eq!(clients(&filter), ["10.128.0.1", "10.128.0.3"]);
        let filter = FlowFilter { destination: Some(network("203.0.113.1").unwrap()), ..FlowFilter::default() };
        assert_eq!(clients(&filter), ["10.128.0.3", "10.129.0.1"]);
        let filter = FlowFilter { rule: Some("fallback".parse().unwrap()), ..FlowFilter::default() };
        assert_eq!(clients(&filter), ["10.128.0.1"]);
        let filter = FlowFilter { rule: Some("0".parse().unwrap()), ..FlowFilter::default() };
        assert_eq!(clients(&filter), ["10.128.0.3", "fd00::1"]);
        let none = [
            FlowFilter { protocol: Some("udp".into()), ..FlowFilter::default() },
            FlowFilter { state: Some("tcp-close".into()), ..FlowFilter::default() },
            FlowFilter { port: Some(81), ..FlowFilter::default() },
        ];
        assert!(none.iter().all(|filter| clients(filter).is_empty()));
        assert_eq!(clients(&FlowFilter { protocol: Some("tcp".into()), ..FlowFilter::default() }).len(), 4);
    }

    #[test]
    fn orders_and_limit() {
        let filter = FlowFilter { sort: FlowOrder::Bytes, limit: Some(2), ..FlowFilter::default() };
        assert_eq!(clients(&filter), ["10.128.0.1", "10.129.0.1"]);
        let filter = FlowFilter { sort: FlowOrder::Destination, ..FlowFilter::default() };
        assert_eq!(clients(&filter), ["10.128.0.3", "10.129.0.1", "10.128.0.1", "fd00::1"]);
    }

    #[test]
    fn a_wrong_network_says_what_to_write() {
        assert!(network("10.128").unwrap_err().contains("10.128.0.0/14"));
    }
}
