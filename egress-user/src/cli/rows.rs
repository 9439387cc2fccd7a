//! How each thing looks as a row of a table.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::output::Row;
use crate::compile::RuleTable;
use crate::datapath::{CounterRow, FlowRow, RuleId, RuleRow, Tally, protocol_name};
use crate::link::Change;
use crate::status::Condition;

impl Row for RuleRow {
    const HEADER: &'static [&'static str] = &["RULE", "FAMILY", "PROTOCOL", "PORT", "DESTINATION", "TARGET PORT"];

    fn cells(&self) -> Vec<String> {
        let or = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.to_owned());
        let rule = match (self.rule, self.port) {
            (Some(rule), _) => rule.to_string(),
            (None, Some(_)) => "local".to_owned(),
            (None, None) => "fallback".to_owned(),
        };
        vec![
            rule,
            format!("IPv{}", self.family),
            or(self.protocol.clone(), "any"),
            or(self.port.map(|port| port.to_string()), "any"),
            or(self.destination.map(|destination| destination.to_string()), "the pod itself"),
            or(self.target_port.map(|port| port.to_string()), "same"),
        ]
    }
}

/// A rule with what its live flows have counted.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CountedRule {
    #[serde(flatten)]
    rule: RuleRow,
    flows: u64,
    request_packets: u64,
    request_bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
}

impl CountedRule {
    pub(super) fn new(rule: RuleRow, tally: &Tally) -> Self {
        let is = |id: &RuleId| {
            let port = id.port.map(|(protocol, port)| (protocol_name(protocol), port));
            id.family == rule.family && port == rule.protocol.clone().zip(rule.port)
        };
        let totals = tally.rules().iter().find(|(id, _)| is(id)).map(|(_, totals)| *totals).unwrap_or_default();
        Self {
            rule,
            flows: totals.flows,
            request_packets: totals.requests.packets,
            request_bytes: totals.requests.bytes,
            reply_packets: totals.replies.packets,
            reply_bytes: totals.replies.bytes,
        }
    }
}

impl Row for CountedRule {
    const HEADER: &'static [&'static str] =
        &["RULE", "FAMILY", "PROTOCOL", "PORT", "DESTINATION", "TARGET PORT", "FLOWS", "PACKETS", "BYTES"];

    fn cells(&self) -> Vec<String> {
        let mut cells = self.rule.cells();
        cells.push(self.flows.to_string());
        cells.push(format!("{}/{}", self.request_packets, self.reply_packets));
        cells.push(format!("{}/{}", self.request_bytes, self.reply_bytes));
        cells
    }
}

impl Row for FlowRow {
    const HEADER: &'static [&'static str] =
        &["PROTOCOL", "CLIENT", "ROUTER", "SOURCE", "DESTINATION", "RULE", "STATE", "AGE", "IDLE", "PACKETS", "BYTES"];

    fn cells(&self) -> Vec<String> {
        let socket = |address: SocketAddr| address.to_string();
        vec![
            self.protocol.clone(),
            socket(self.client),
            socket(self.router),
            socket(self.source),
            socket(self.destination),
            self.rule.map_or_else(|| "fallback".to_owned(), |rule| rule.to_string()),
            self.state.to_owned(),
            format!("{}s", self.age_s),
            format!("{}s", self.idle_s),
            format!("{}/{}", self.request_packets, self.reply_packets),
            format!("{}/{}", self.request_bytes, self.reply_bytes),
        ]
    }
}

impl Row for Condition {
    const HEADER: &'static [&'static str] = &["CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"];

    fn cells(&self) -> Vec<String> {
        let since = self.last_transition_time.map_or_else(|| "-".to_owned(), |time| time.to_string());
        vec![format!("{:?}", self.kind), format!("{:?}", self.status), since, self.reason.clone(), self.message.clone()]
    }
}

impl Row for CounterRow {
    const HEADER: &'static [&'static str] = &["PROGRAM", "REASON", "PACKETS", "BYTES"];

    fn cells(&self) -> Vec<String> {
        vec![self.hook.to_owned(), self.outcome.to_owned(), self.packets.to_string(), self.bytes.to_string()]
    }
}

/// One change of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PlanRow {
    what: &'static str,
    change: String,
}

impl Row for PlanRow {
    const HEADER: &'static [&'static str] = &["WHAT", "CHANGE"];

    fn cells(&self) -> Vec<String> {
        vec![self.what.to_owned(), self.change.clone()]
    }
}

impl PlanRow {
    /// A change of the link.
    pub(super) fn link(change: &Change) -> Self {
        Self { what: "link", change: change.to_string() }
    }

    /// A program that is not attached.
    pub(super) fn program(program: &str, interface: &str) -> Self {
        Self { what: "program", change: format!("attach {program} to {interface}") }
    }

    /// The changes from rules in force to the wanted ones.
    pub(super) fn rules(installed: &[RuleRow], wanted: &RuleTable) -> Vec<Self> {
        let wanted = RuleRow::of(wanted);
        let show = |sign: char, row: &RuleRow| Self { what: "rule", change: format!("{sign} {row}") };
        let (now, then): (HashSet<_>, HashSet<_>) =
            (installed.iter().map(meaning).collect(), wanted.iter().map(meaning).collect());
        let gone = installed.iter().filter(|old| old.destination.is_some() && !then.contains(&meaning(old)));
        let new = wanted.iter().filter(|new| !now.contains(&meaning(new)));
        gone.map(|old| show('-', old)).chain(new.map(|new| show('+', new))).collect()
    }
}

/// What a rule does, wherever it stands in the specification.
type Meaning<'a> = (u8, Option<&'a str>, Option<u16>, Option<IpAddr>, Option<u16>);

fn meaning(row: &RuleRow) -> Meaning<'_> {
    (row.family, row.protocol.as_deref(), row.port, row.destination, row.target_port)
}
