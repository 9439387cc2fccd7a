//! Rates out of two looks at the tables.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::datapath::{CounterRow, FlowRow, RuleId, RuleRow, RuleTotals, Tally, Use, protocol_name};
use crate::status::Conditions;

/// The tables at a moment.
pub(in crate::cli) struct Look {
    pub(in crate::cli) rules: Vec<RuleRow>,
    pub(in crate::cli) flows: Vec<FlowRow>,
    pub(in crate::cli) counters: Vec<CounterRow>,
    pub(in crate::cli) conditions: Conditions,
    /// Adds the table's flows to a tally.
    pub(in crate::cli) tally: AddUp,
}

/// Adds flows to a tally.
pub(in crate::cli) type AddUp = Box<dyn FnOnce(&mut Tally) -> anyhow::Result<()>>;

/// What is shown.
#[derive(Debug, Default)]
pub(super) struct Picture {
    pub(super) conditions: Conditions,
    pub(super) used: Use,
    /// Busiest first.
    pub(super) rules: Vec<RuleRate>,
    /// Busiest first.
    pub(super) flows: Vec<FlowRate>,
    /// Busiest first.
    pub(super) clients: Vec<ClientRate>,
    /// Those that go on first.
    pub(super) drops: Vec<DropRate>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct RuleRate {
    pub(super) name: String,
    pub(super) destination: String,
    pub(super) flows: u64,
    pub(super) opened: f64,
    pub(super) request_bytes: f64,
    pub(super) reply_bytes: f64,
    pub(super) packets: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct FlowRate {
    pub(super) flow: FlowRow,
    pub(super) bytes: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClientRate {
    pub(super) client: IpAddr,
    pub(super) flows: usize,
    pub(super) bytes: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct DropRate {
    pub(super) program: &'static str,
    pub(super) reason: &'static str,
    pub(super) packets: u64,
    pub(super) rate: f64,
}

/// One look after another.
pub(super) struct Looks<F> {
    look: F,
    tally: Tally,
    last: Option<Last>,
}

struct Last {
    at: Instant,
    totals: BTreeMap<RuleId, RuleTotals>,
    flows: HashMap<Ends, u64>,
    counters: HashMap<(&'static str, &'static str), u64>,
}

type Ends = (String, SocketAddr, SocketAddr);

impl<F: FnMut() -> anyhow::Result<Look>> Looks<F> {
    pub(super) fn at(look: F) -> Self {
        Self { look, tally: Tally::default(), last: None }
    }

    /// Looks again. Rates are since the last look; the first has none.
    pub(super) fn again(&mut self) -> anyhow::Result<Picture> {
        let Look { rules, flows, counters, conditions, tally } = (self.look)()?;
        tally(&mut self.tally)?;
        let now = Last {
            at: Instant::now(),
            totals: self.tally.rules().clone(),
            flows: flows.iter().map(|flow| (ends(flow), bytes(flow))).collect(),
            counters: counters.iter().map(|row| ((row.hook, row.outcome), row.packets)).collect(),
        };
        let since = self.last.as_ref().map(|last| Since { last, period: now.at.duration_since(last.at) });
        let picture = Picture {
            conditions,
            used: self.tally.used().clone(),
            rules: rule_rates(&rules, &now, since.as_ref()),
            clients: client_rates(&flows, since.as_ref()),
            flows: flow_rates(flows, since.as_ref()),
            drops: drop_rates(&counters, since.as_ref()),
        };
        self.last = Some(now);
        Ok(picture)
    }
}

struct Since<'a> {
    last: &'a Last,
    period: Duration,
}

impl Since<'_> {
    /// Of something that was `before` and is `now`.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people; what is counted in a second is far below 2^53")]
    fn rate(&self, now: u64, before: u64) -> f64 {
        now.saturating_sub(before) as f64 / self.period.as_secs_f64().max(0.001)
    }
}

/// What is to be known of a thing for which there was no look before.
fn rate(since: Option<&Since<'_>>, now: u64, before: impl FnOnce(&Last) -> Option<u64>) -> f64 {
    since.map_or(0.0, |since| since.rate(now, before(since.last).unwrap_or(0)))
}

fn ends(flow: &FlowRow) -> Ends {
    (flow.protocol.clone(), flow.client, flow.router)
}

fn bytes(flow: &FlowRow) -> u64 {
    flow.request_bytes + flow.reply_bytes
}

fn rule_rates(rules: &[RuleRow], now: &Last, since: Option<&Since<'_>>) -> Vec<RuleRate> {
    let mut rates: Vec<RuleRate> = now
        .totals
        .iter()
        .map(|(id, totals)| {
            let of =
                |figure: fn(&RuleTotals) -> u64| rate(since, figure(totals), |last| last.totals.get(id).map(figure));
            RuleRate {
                name: name(id),
                destination: destination(id, rules),
                flows: totals.flows,
                opened: of(|totals| totals.opened),
                request_bytes: of(|totals| totals.requests.bytes),
                reply_bytes: of(|totals| totals.replies.bytes),
                packets: of(|totals| totals.requests.packets + totals.replies.packets),
            }
        })
        .collect();
    let idle = rules.iter().filter(|rule| rule.destination.is_some());
    let idle = idle.map(|rule| (name_of(rule), rule)).filter(|(name, _)| rates.iter().all(|rate| rate.name != *name));
    let idle: Vec<RuleRate> = idle
        .map(|(name, rule)| RuleRate {
            name,
            destination: target(rule),
            flows: 0,
            opened: 0.0,
            request_bytes: 0.0,
            reply_bytes: 0.0,
            packets: 0.0,
        })
        .collect();
    rates.extend(idle);
    let busy = |rate: &RuleRate| rate.request_bytes + rate.reply_bytes;
    rates.sort_by(|a, b| busy(b).total_cmp(&busy(a)).then(b.flows.cmp(&a.flows)));
    rates
}

fn name(id: &RuleId) -> String {
    match id.port {
        Some((protocol, port)) => format!("{port}/{} IPv{}", protocol_name(protocol), id.family),
        None => format!("fallback IPv{}", id.family),
    }
}

fn name_of(rule: &RuleRow) -> String {
    match (rule.port, &rule.protocol) {
        (Some(port), Some(protocol)) => format!("{port}/{protocol} IPv{}", rule.family),
        _ => format!("fallback IPv{}", rule.family),
    }
}

fn destination(id: &RuleId, rules: &[RuleRow]) -> String {
    let name = name(id);
    rules.iter().find(|rule| name_of(rule) == name).map_or_else(|| "no rule any more".to_owned(), target)
}

fn target(rule: &RuleRow) -> String {
    match (rule.destination, rule.target_port.or(rule.port)) {
        (Some(ip), Some(port)) => SocketAddr::new(ip, port).to_string(),
        (Some(ip), None) => ip.to_string(),
        (None, _) => "the pod itself".to_owned(),
    }
}

fn flow_rates(flows: Vec<FlowRow>, since: Option<&Since<'_>>) -> Vec<FlowRate> {
    let of = |flow: &FlowRow| rate(since, bytes(flow), |last| last.flows.get(&ends(flow)).copied());
    let mut rates: Vec<FlowRate> = flows.into_iter().map(|flow| FlowRate { bytes: of(&flow), flow }).collect();
    rates.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then(bytes(&b.flow).cmp(&bytes(&a.flow))));
    rates
}

fn client_rates(flows: &[FlowRow], since: Option<&Since<'_>>) -> Vec<ClientRate> {
    let mut clients: BTreeMap<IpAddr, (usize, f64)> = BTreeMap::new();
    for flow in flows {
        let (count, sum) = clients.entry(flow.client.ip()).or_default();
        *count += 1;
        *sum += rate(since, bytes(flow), |last| last.flows.get(&ends(flow)).copied());
    }
    let mut rates: Vec<ClientRate> =
        clients.into_iter().map(|(client, (flows, bytes))| ClientRate { client, flows, bytes }).collect();
    rates.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then(b.flows.cmp(&a.flows)));
    rates
}

fn drop_rates(counters: &[CounterRow], since: Option<&Since<'_>>) -> Vec<DropRate> {
    let drops = counters.iter().filter(|row| row.dropped || row.outcome == "rejected");
    let mut rates: Vec<DropRate> = drops
        .map(|row| DropRate {
            program: row.hook,
            reason: row.outcome,
            packets: row.packets,
            rate: rate(since, row.packets, |last| last.counters.get(&(row.hook, row.outcome)).copied()),
        })
        .collect();
    rates.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.packets.cmp(&a.packets)));
    rates
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn flow(client: &str, bytes: u64) -> FlowRow {
        FlowRow {
            protocol: "TCP".into(),
            client: client.parse().unwrap(),
            router: "10.128.0.2:80".parse().unwrap(),
            source: "192.168.12.99:40000".parse().unwrap(),
            destination: "203.0.113.26:8080".parse().unwrap(),
            rule: Some(0),
            state: "tcp-established",
            reply_bytes: bytes,
            ..FlowRow::default()
        }
    }

    pub(in super::super) fn look(flows: Vec<FlowRow>, dropped: u64) -> Look {
        let rule = RuleRow {
            rule: Some(0),
            family: 4,
            protocol: Some("TCP".to_owned()),
            port: Some(80),
            destination: Some("203.0.113.26".parse().unwrap()),
            target_port: Some(8080),
        };
        let counter =
            CounterRow { hook: "cluster_ingress", outcome: "table_full", dropped: true, packets: dropped, bytes: 0 };
        Look {
            rules: vec![rule],
            flows,
            counters: vec![counter],
            conditions: Conditions::default(),
            tally: Box::new(|_| Ok(())),
        }
    }

    #[test]
    fn rates_are_between_two_looks() {
        let mut next = vec![
            look(vec![flow("10.128.0.1:2", 5_000_000), flow("10.128.0.1:1", 0), flow("10.128.0.3:1", 0)], 9),
            look(vec![flow("10.128.0.1:2", 1_000_000), flow("10.128.0.1:1", 0)], 4),
        ];
        let mut looks = Looks::at(|| Ok(next.pop().unwrap()));
        let first = looks.again().unwrap();
        assert!(first.flows.iter().all(|flow| flow.bytes == 0.0), "nothing to compare with");
        assert_eq!(first.rules.len(), 1, "a rule without flows is shown too");
        assert_eq!(first.rules[0].destination, "203.0.113.26:8080");
        std::thread::sleep(Duration::from_millis(20));
        let second = looks.again().unwrap();
        assert_eq!(second.flows[0].flow.client.port(), 2);
        assert!(second.flows[0].bytes > 0.0 && second.flows[0].bytes <= 4_000_000.0 / 0.02);
        let clients: Vec<_> = second.clients.iter().map(|one| (one.client.to_string(), one.flows)).collect();
        assert_eq!(clients, [("10.128.0.1".to_owned(), 2), ("10.128.0.3".to_owned(), 1)]);
        assert!(second.drops[0].rate > 0.0 && second.drops[0].packets == 9);
    }
}
