//! What Prometheus is told: figures as of one scrape, in OpenMetrics' text form.
//!
//! Nothing is counted here. The kernel counts packets, the flows count theirs, the agent counts what it does; this names and
//! labels them. Labels take a bounded number of values: rules up to [`RULES`], and enumerations.

use std::fmt::Error;
use std::net::{IpAddr, SocketAddr};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::flow_log::Unlogged;
use super::keep::Counts;
use crate::datapath::{CounterRow, PortUse, RuleId, RuleTotals};
use crate::status::{ConditionType, Conditions, Reason};

/// Most rules that have series of their own; the others' sum is under `port="other"`.
pub(super) const RULES: usize = 1000;

/// Everything that is told.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// When the agent began, seconds since the epoch.
    pub(super) started_s: f64,
    /// Whether it has the addresses, or is to have them: not while it stands by.
    pub(super) active: bool,
    pub(super) conditions: Conditions,
    /// The reasons of the faults that there are.
    pub(super) faults: Vec<Reason>,
    pub(super) counts: Counts,
    /// What is not in the flow log, where there is one.
    pub(super) unlogged: Option<Unlogged>,
    pub(super) rules: Vec<Rule>,
    pub(super) flows: usize,
    pub(super) flows_limit: usize,
    pub(super) ports: Vec<PortUse>,
    pub(super) counters: Vec<CounterRow>,
    pub(super) port_searches: Vec<u64>,
    pub(super) interfaces: Vec<Interface>,
    /// Each gateway, and whether it answers.
    pub(super) gateways: Vec<(IpAddr, bool)>,
}

/// A rule and what it adds up to.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) name: RuleName,
    /// Where it leads to; none of a rule that is no more and whose flows live.
    pub(super) destination: Option<SocketAddr>,
    pub(super) totals: RuleTotals,
}

/// Labels of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuleName {
    pub(super) family: &'static str,
    pub(super) protocol: String,
    pub(super) port: String,
}

/// An interface of the router.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) side: &'static str,
    pub(super) up: bool,
    pub(super) carrier: bool,
    pub(super) addresses: usize,
}

impl RuleName {
    pub(super) fn of(id: &RuleId, protocol: impl Fn(u8) -> String) -> Self {
        let family = if id.family == 4 { "IPv4" } else { "IPv6" };
        match id.port {
            Some((number, port)) => Self { family, protocol: protocol(number), port: port.to_string() },
            None => Self { family, protocol: "any".to_owned(), port: "any".to_owned() },
        }
    }

    fn other() -> Self {
        Self { family: "any", protocol: "any".to_owned(), port: "other".to_owned() }
    }

    fn labels(&self) -> Labels {
        vec![("family", self.family.to_owned()), ("protocol", self.protocol.clone()), ("port", self.port.clone())]
    }
}

impl Figures {
    /// As text.
    pub(super) fn encode(self) -> Result<String, Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    /// Keeps at most [`RULES`] rules, and adds the others up.
    pub(super) fn bound(mut rules: Vec<Rule>) -> Vec<Rule> {
        if rules.len() <= RULES {
            return rules;
        }
        // The busiest of all time, so that a series does not come and go.
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.totals.opened));
        let others = rules.split_off(RULES - 1);
        let sum = others.iter().fold(RuleTotals::default(), |mut sum, rule| {
            let RuleTotals { flows, opened, requests, replies } = rule.totals;
            sum.flows += flows;
            sum.opened += opened;
            for (to, from) in [(&mut sum.requests, requests), (&mut sum.replies, replies)] {
                to.packets += from.packets;
                to.bytes += from.bytes;
            }
            sum
        });
        rules.push(Rule { name: RuleName::other(), destination: None, totals: sum });
        rules
    }
}

type Labels = Vec<(&'static str, String)>;
type Sample<N> = (Labels, N);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let out = &mut encoder;
        self.agent(out)?;
        self.rules(out)?;
        self.tables(out)?;
        self.packets(out)?;
        self.links(out)
    }
}

impl Figures {
    fn agent(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauge(out, "build_info", "The agent's version", [(version, 1.0)])?;
        gauge(out, "start_time_seconds", "When the agent began, since the epoch", [(Vec::new(), self.started_s)])?;
        let help = "Whether the router has its addresses, or is to have them: 0 while it stands by for another";
        gauge(out, "active", help, [(Vec::new(), number(self.active))])?;
        let kinds = [ConditionType::Available, ConditionType::Progressing, ConditionType::Degraded];
        let conditions =
            kinds.map(|kind| (vec![("condition", format!("{kind:?}"))], number(self.conditions.holds(kind))));
        gauge(out, "condition", "Whether a condition of the router's status holds", conditions)?;
        let faults = Reason::ALL
            .map(|reason| (vec![("reason", reason.name().to_owned())], number(self.faults.contains(&reason))));
        gauge(out, "fault", "Whether something is the matter, by reason", faults)?;
        let Counts { applied, refused, repaired, repairs_failed, status_failed, takeovers } = self.counts;
        for (name, help, count) in [
            ("applies", "Specifications put in force", applied),
            ("edits_refused", "Edits of the specification that were refused", refused),
            ("repairs", "Times that the system had drifted and was put right", repaired),
            ("repair_failures", "Times that the system had drifted and could not be put right", repairs_failed),
            ("takeovers", "Times that the router took the addresses over, after standing by", takeovers),
            ("status_write_failures", "Times that the status could not be written", status_failed),
        ] {
            counter(out, name, help, [(Vec::new(), count)])?;
        }
        let unlogged = self.unlogged.iter().flat_map(|unlogged| {
            let Unlogged { over_rate, no_room, unwritten } = *unlogged;
            [("rate", over_rate), ("buffer", no_room), ("file", unwritten)]
        });
        let help = "Events of flows and drops that are not in the flow log, by why";
        counter(
            out,
            "flow_log_lost_events",
            help,
            unlogged.map(|(reason, lost)| (vec![("reason", reason.to_owned())], lost)),
        )
    }

    fn rules(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let named = || self.rules.iter().map(|rule| (rule.name.labels(), &rule.totals));
        let in_force = self.rules.iter().filter_map(|rule| Some((rule.name.labels(), rule.destination?)));
        let info = in_force.map(|(mut labels, destination)| {
            labels.push(("destination", destination.ip().to_string()));
            labels.push(("destination_port", port_label(destination.port())));
            (labels, 1.0)
        });
        gauge(out, "rule_info", "A rule in force, and where it leads to", info)?;
        let flows = named().map(|(labels, totals)| (labels, figure(totals.flows)));
        gauge(out, "rule_flows", "Live flows of a rule", flows)?;
        let opened = named().map(|(labels, totals)| (labels, totals.opened));
        counter(out, "rule_flows_opened", "Flows of a rule that began", opened)?;
        let both = |of: fn(&crate::datapath::Traffic) -> u64| {
            named().flat_map(move |(labels, totals)| {
                [("request", &totals.requests), ("reply", &totals.replies)].map(|(direction, traffic)| {
                    let mut labels = labels.clone();
                    labels.push(("direction", direction.to_owned()));
                    (labels, of(traffic))
                })
            })
        };
        counter(out, "rule_packets", "Packets of a rule's flows", both(|traffic| traffic.packets))?;
        counter(out, "rule_bytes", "Bytes of a rule's flows, link headers included", both(|traffic| traffic.bytes))
    }

    fn tables(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        gauge(out, "flows", "Live flows", [(Vec::new(), size(self.flows))])?;
        gauge(out, "flows_limit", "Flows that the table holds", [(Vec::new(), size(self.flows_limit))])?;
        let by_destination = |of: fn(&PortUse) -> usize| {
            self.ports.iter().map(move |ports| {
                let labels = vec![
                    ("protocol", crate::datapath::protocol_name(ports.protocol)),
                    ("source", ports.source.to_string()),
                    ("destination", ports.destination.to_string()),
                ];
                (labels, size(of(ports)))
            })
        };
        let help = "Source ports taken towards a destination, of the 64 destinations with most";
        gauge(out, "ports_used", help, by_destination(|ports| ports.used))?;
        let help = "Source ports that there are towards a destination";
        gauge(out, "ports_available", help, by_destination(|ports| ports.available))?;
        let searches = self.port_searches.iter().zip(0_u32..).map(|(count, bucket)| {
            let last = usize::try_from(bucket).is_ok_and(|bucket| bucket + 1 == self.port_searches.len());
            let tries = if last { "more".to_owned() } else { ((1_u64 << bucket) - 1).to_string() };
            (vec![("tries_up_to", tries)], *count)
        });
        let help = "Searches for a source port, by how many taken ones were met at most";
        counter(out, "port_searches", help, searches)
    }

    fn packets(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = |dropped: bool, label: &'static str, of: fn(&CounterRow) -> u64| {
            self.counters
                .iter()
                .filter(move |row| row.dropped == dropped)
                .map(move |row| (vec![("program", row.hook.to_owned()), (label, row.outcome.to_owned())], of(row)))
        };
        let help = "Packets that went on, by program and how";
        counter(out, "packets", help, all(false, "outcome", |row| row.packets))?;
        let help = "Bytes of packets that went on, by program and how";
        counter(out, "bytes", help, all(false, "outcome", |row| row.bytes))?;
        let help = "Packets that were dropped, by program and reason";
        counter(out, "dropped_packets", help, all(true, "reason", |row| row.packets))?;
        let help = "Bytes of packets that were dropped, by program and reason";
        counter(out, "dropped_bytes", help, all(true, "reason", |row| row.bytes))
    }

    fn links(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let each = |of: fn(&Interface) -> f64| {
            self.interfaces.iter().map(move |interface| {
                let labels = vec![("interface", interface.name.clone()), ("side", interface.side.to_owned())];
                (labels, of(interface))
            })
        };
        gauge(out, "interface_up", "Whether an interface is set up", each(|interface| number(interface.up)))?;
        let help = "Whether an interface has a carrier";
        gauge(out, "interface_carrier", help, each(|interface| number(interface.carrier)))?;
        let help = "Addresses that an interface holds";
        gauge(out, "interface_addresses", help, each(|interface| size(interface.addresses)))?;
        let gateways = self.gateways.iter().map(|(ip, answers)| (vec![("gateway", ip.to_string())], number(*answers)));
        gauge(out, "gateway_answers", "Whether a gateway answers ARP or neighbour discovery", gateways)
    }
}

/// What every name begins with.
const PREFIX: &str = "egress_router_";

fn gauge(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = Sample<f64>>,
) -> Result<(), Error> {
    family(out, name, help, MetricType::Gauge, samples, |mut encoder, value| encoder.encode_gauge(&value))
}

fn counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = Sample<u64>>,
) -> Result<(), Error> {
    family(out, name, help, MetricType::Counter, samples, |mut encoder, value| {
        encoder.encode_counter::<Labels, _, u64>(&value, None)
    })
}

fn family<N>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    samples: impl IntoIterator<Item = Sample<N>>,
    encode: impl Fn(MetricEncoder<'_>, N) -> Result<(), Error>,
) -> Result<(), Error> {
    let name = format!("{PREFIX}{name}");
    let mut metric = out.encode_descriptor(&name, help, None, kind)?;
    for (labels, value) in samples {
        encode(metric.encode_family(&labels)?, value)?;
    }
    Ok(())
}

fn number(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn size(count: usize) -> f64 {
    figure(u64::try_from(count).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; counts of flows and ports are far below 2^53")]
fn figure(count: u64) -> f64 {
    count as f64
}

/// 0 stands for the port that the client chose.
fn port_label(port: u16) -> String {
    if port == 0 { "same".to_owned() } else { port.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Traffic;

    fn rule(port: u16, opened: u64) -> Rule {
        let totals =
            RuleTotals { flows: 1, opened, requests: Traffic { packets: 2, bytes: 3 }, replies: Traffic::default() };
        let name = RuleName::of(&RuleId { family: 4, port: Some((6, port)) }, |_| "TCP".to_owned());
        Rule { name, destination: Some("203.0.113.26:8080".parse().unwrap()), totals }
    }

    #[test]
    fn the_text_is_open_metrics() {
        let figures = Figures {
            rules: vec![rule(80, 7)],
            faults: vec![Reason::MasterDown],
            port_searches: vec![5, 4, 3],
            ..Figures::default()
        };
        let text = figures.encode().unwrap();
        for line in [
            "# TYPE egress_router_rule_packets counter",
            "egress_router_rule_packets_total{family=\"IPv4\",protocol=\"TCP\",port=\"80\",direction=\"request\"} 2",
            "egress_router_rule_flows_opened_total{family=\"IPv4\",protocol=\"TCP\",port=\"80\"} 7",
            "egress_router_fault{reason=\"MasterDown\"} 1.0",
            "egress_router_fault{reason=\"NoRoute\"} 0.0",
            "egress_router_port_searches_total{tries_up_to=\"1\"} 4",
            "egress_router_port_searches_total{tries_up_to=\"more\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn rules_beyond_the_bound_are_added_up() {
        let many = (1..=1500).map(|port| rule(port, u64::from(port))).collect();
        let bound = Figures::bound(many);
        assert_eq!(bound.len(), RULES);
        assert_eq!(bound[0].name.port, "1500", "the busiest has its own");
        let last = bound.last().unwrap();
        assert_eq!((last.name.port.as_str(), last.totals.flows, last.totals.requests.packets), ("other", 501, 1002));
        let opened: u64 = bound.iter().map(|rule| rule.totals.opened).sum();
        assert_eq!(opened, (1..=1500).sum::<u64>());
    }
}
