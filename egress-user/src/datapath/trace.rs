//! Which rule a packet would hit, and why: the datapath's decisions on a new request, in words. Pure.

use std::net::{IpAddr, SocketAddr};

use egress_ebpf::addr::Addr;
use serde::Serialize;

use super::{FlowRow, RuleRow};

/// A packet that arrives on the cluster interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Protocol, as in [`RuleRow::protocol`].
    pub protocol: String,
    /// Who sends it; port 0 for any.
    pub from: SocketAddr,
    /// Whom to; none for the router's own address of the family.
    pub to: Option<IpAddr>,
    /// Destination port; none where the protocol has none.
    pub port: Option<u16>,
}

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// Rules, local ports and the fallback.
    pub rules: Vec<RuleRow>,
    /// Addresses of the cluster interface; none where they are not known.
    pub router: Option<Vec<IpAddr>>,
    /// Addresses that flows come from, in the specification's order.
    pub snat: Vec<IpAddr>,
    /// Live flows.
    pub flows: Vec<FlowRow>,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// What becomes of it, in one word as the counters have it: `translated`, `local`, `rejected`, or a drop reason.
    pub verdict: &'static str,
    /// The rule that claims it; none for the fallback and where none does.
    pub rule: Option<u32>,
    /// Whether the fallback does.
    pub fallback: bool,
    /// The address that it leaves with.
    pub source: Option<IpAddr>,
    /// Where it goes; port 0 where the protocol has none.
    pub destination: Option<SocketAddr>,
    /// Why, step by step.
    pub because: Vec<String>,
}

impl Answer {
    fn of(verdict: &'static str, because: Vec<String>) -> Self {
        Self { verdict, rule: None, fallback: false, source: None, destination: None, because }
    }
}

/// Answers a question.
pub fn trace(question: &Question, in_force: &InForce) -> Answer {
    let mut because = Vec::new();
    let Question { protocol, from, to, port } = question;
    let family = if from.is_ipv4() { 4 } else { 6 };
    if let (Some(to), Some(own)) = (to, &in_force.router) {
        if !own.contains(to) {
            because.push(format!("{to} is no address of the cluster interface, and the router forwards nothing else"));
            return Answer::of("foreign_destination", because);
        }
        because.push(format!("{to} is the router's own address"));
    }
    if let Some(flow) = flow_of(question, &in_force.flows) {
        because.push(format!("a flow of this client's port is live, and keeps its destination ({})", flow.state));
        return Answer {
            rule: flow.rule,
            fallback: flow.rule.is_none(),
            source: Some(flow.source.ip()),
            destination: Some(flow.destination),
            ..Answer::of("translated", because)
        };
    }
    let Some(rule) = rule_of(question, family, &in_force.rules, &mut because) else {
        because.push("so the router's own stack refuses it: a reset, or port unreachable".to_owned());
        return Answer::of("rejected", because);
    };
    let Some(destination) = rule.destination else {
        because.push("that port is the pod's own (--local-port)".to_owned());
        return Answer::of("local", because);
    };
    let Some(source) = source_for(from.ip(), &in_force.snat) else {
        because.push(format!("the specification has no IPv{family} address that it could come from"));
        return Answer::of("no_source_address", because);
    };
    let same_family = in_force.snat.iter().filter(|ip| ip.is_ipv4() == from.is_ipv4()).count();
    if same_family > 1 {
        because.push(format!("of {same_family} IPv{family} addresses, {source} is this client's"));
    }
    let target = rule.target_port.or(*port).unwrap_or(0);
    Answer {
        rule: rule.rule,
        fallback: rule.port.is_none(),
        source: Some(source),
        destination: Some(SocketAddr::new(destination, target)),
        ..Answer::of("translated", because)
    }
    .with_protocol_note(protocol)
}

impl Answer {
    fn with_protocol_note(mut self, protocol: &str) -> Self {
        if self.fallback && !matches!(protocol, "TCP" | "UDP") {
            self.because.push("the port, if the protocol has one, stays".to_owned());
        }
        self
    }
}

fn flow_of<'a>(question: &Question, flows: &'a [FlowRow]) -> Option<&'a FlowRow> {
    flows.iter().find(|flow| {
        question.from.port() != 0
            && flow.protocol == question.protocol
            && flow.client == question.from
            && Some(flow.router.port()) == question.port
            && question.to.is_none_or(|to| to == flow.router.ip())
    })
}

fn rule_of<'a>(
    question: &Question,
    family: u8,
    rules: &'a [RuleRow],
    because: &mut Vec<String>,
) -> Option<&'a RuleRow> {
    let of_family = |rule: &&RuleRow| rule.family == family;
    let protocol = &question.protocol;
    let wanted = match question.port {
        Some(port) => format!("IPv{family} {protocol} port {port}"),
        None => format!("IPv{family} {protocol}, which has no ports"),
    };
    let named = rules
        .iter()
        .filter(of_family)
        .find(|rule| question.port.is_some() && rule.port == question.port && rule.protocol.as_ref() == Some(protocol));
    if let Some(rule) = named {
        let name = rule.rule.map_or_else(|| "a local port".to_owned(), |index| format!("rule {index}"));
        because.push(format!("{name} is for {wanted}: {rule}"));
        return Some(rule);
    }
    because.push(format!("no rule is for {wanted}{}", near_miss(question, family, rules)));
    let fallback = rules.iter().filter(of_family).find(|rule| rule.port.is_none());
    match fallback {
        Some(rule) => because.push(format!("the fallback takes what no rule names: {rule}")),
        None => because.push(format!("there is no fallback for IPv{family}")),
    }
    fallback
}

/// What the one who asks may have meant.
fn near_miss(question: &Question, family: u8, rules: &[RuleRow]) -> String {
    let near = rules.iter().find(|rule| {
        rule.port.is_some()
            && rule.port == question.port
            && (rule.family != family || rule.protocol.as_ref() != Some(&question.protocol))
    });
    near.map(|rule| format!(" (but there is one: {rule})")).unwrap_or_default()
}

/// As `source_for` of the programs: the same address for all flows of a client.
fn source_for(client: IpAddr, snat: &[IpAddr]) -> Option<IpAddr> {
    let own: Vec<IpAddr> = snat.iter().copied().filter(|ip| ip.is_ipv4() == client.is_ipv4()).collect();
    let count = u32::try_from(own.len()).ok()?;
    let position = ((Addr::from(client).spread() & 0xffff) * count) >> 16;
    own.get(usize::try_from(position).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Protocol, Rule, RuleTable};

    fn in_force() -> InForce {
        let rule = |index, protocol, port: u16, to: &str, target: Option<u16>| Rule {
            index,
            protocol,
            port: port.try_into().unwrap(),
            destination: to.parse().unwrap(),
            target_port: target.map(|port| port.try_into().unwrap()),
        };
        let table = RuleTable {
            rules: vec![
                rule(0, Protocol::Tcp, 80, "203.0.113.26", Some(8080)),
                rule(1, Protocol::Udp, 53, "2001:db8::53", None),
            ],
            fallback: Some("203.0.113.27".parse().unwrap()),
        };
        let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        InForce {
            rules: RuleRow::of(&table),
            router: Some(ips(&["10.128.0.2", "fd00:10::2"])),
            snat: ips(&["192.168.12.99", "192.168.12.98", "fd00:12::99"]),
            flows: Vec::new(),
        }
    }

    fn ask(protocol: &str, from: &str, port: Option<u16>) -> Answer {
        trace(&question(protocol, from, port), &in_force())
    }

    fn question(protocol: &str, from: &str, port: Option<u16>) -> Question {
        let from = from.parse::<IpAddr>().unwrap();
        Question { protocol: protocol.to_owned(), from: SocketAddr::new(from, 0), to: None, port }
    }

    #[test]
    fn a_rule_is_named_with_its_destination() {
        let answer = ask("TCP", "10.128.0.1", Some(80));
        assert_eq!((answer.verdict, answer.rule, answer.fallback), ("translated", Some(0), false));
        assert_eq!(answer.destination, Some("203.0.113.26:8080".parse().unwrap()));
        assert!(answer.source.unwrap().to_string().starts_with("192.168.12.9"));
        assert!(answer.because[0].starts_with("rule 0 is for IPv4 TCP port 80: "), "{:?}", answer.because);
    }

    #[test]
    fn the_fallback_takes_the_rest_of_its_family() {
        let answer = ask("UDP", "10.128.0.1", Some(80));
        assert!(answer.fallback && answer.verdict == "translated");
        assert_eq!(answer.destination, Some("203.0.113.27:80".parse().unwrap()));
        assert!(answer.because[0].contains("but there is one: 80/TCP IPv4"), "{:?}", answer.because);
        assert_eq!(ask("ICMP", "10.128.0.1", None).destination, Some("203.0.113.27:0".parse().unwrap()));
        let answer = ask("TCP", "fd00:10::1", Some(80));
        assert_eq!(answer.verdict, "rejected");
        assert!(answer.because.iter().any(|why| why == "there is no fallback for IPv6"), "{:?}", answer.because);
        assert_eq!(ask("UDP", "fd00:10::1", Some(53)).destination, Some("[2001:db8::53]:53".parse().unwrap()));
    }

    #[test]
    fn what_is_not_the_routers_is_dropped() {
        let to = Some("10.128.0.9".parse().unwrap());
        let answer = trace(&Question { to, ..question("TCP", "10.128.0.1", Some(80)) }, &in_force());
        assert_eq!(answer.verdict, "foreign_destination");
        let mut without = in_force();
        without.snat.retain(IpAddr::is_ipv4);
        let answer = trace(&question("UDP", "fd00:10::1", Some(53)), &without);
        assert_eq!(answer.verdict, "no_source_address");
    }

    #[test]
    fn a_live_flow_wins_over_the_rules() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut in_force = in_force();
        in_force.flows.push(FlowRow {
            protocol: "TCP".into(),
            client: end("10.128.0.1:40000"),
            router: end("10.128.0.2:80"),
            source: end("192.168.12.98:40000"),
            destination: end("198.51.100.1:80"),
            rule: Some(7),
            state: "tcp-established",
            ..FlowRow::default()
        });
        let asked = Question { from: end("10.128.0.1:40000"), ..question("TCP", "10.128.0.1", Some(80)) };
        let answer = trace(&asked, &in_force);
        assert_eq!((answer.rule, answer.destination), (Some(7), Some(end("198.51.100.1:80"))));
        let other = Question { from: end("10.128.0.1:40001"), ..asked };
        assert_eq!(trace(&other, &in_force).rule, Some(0));
    }
}
