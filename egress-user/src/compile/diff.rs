//! What has to change between two rule tables.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Serialize;

use super::{Protocol, Rule, RuleTable};

/// The way from one rule table to another, as packets see it: a rule that only moved within the list is not a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuleChanges {
    /// Rules for ports that had none, in the order of the new table.
    pub added: Vec<Rule>,
    /// Rules for ports that have none any more, in the order of the old table.
    pub removed: Vec<Rule>,
    /// Rules whose port now goes elsewhere, in the order of the new table.
    pub changed: Vec<RuleChange>,
    /// The fallback, if it is another one now.
    pub fallback: Option<FallbackChange>,
}

/// One port of one protocol that goes elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RuleChange {
    /// Before.
    pub from: Rule,
    /// After.
    pub to: Rule,
}

/// Another fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FallbackChange {
    /// Before.
    pub from: Option<IpAddr>,
    /// After.
    pub to: Option<IpAddr>,
}

impl RuleChanges {
    /// Whether packets see no difference.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The one-line summary for logs: `2 rules added, 1 changed, fallback none -> 203.0.113.27`.
impl fmt::Display for RuleChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [(self.added.len(), "added"), (self.removed.len(), "removed"), (self.changed.len(), "changed")];
        let mut parts = Vec::new();
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            let noun = match (parts.is_empty(), count) {
                (false, _) => "",
                (true, 1) => "rule ",
                (true, _) => "rules ",
            };
            parts.push(format!("{count} {noun}{what}"));
        }
        if let Some(FallbackChange { from, to }) = self.fallback {
            let name = |host: Option<IpAddr>| host.map_or_else(|| "none".to_owned(), |host| host.to_string());
            parts.push(format!("fallback {} -> {}", name(from), name(to)));
        }
        if parts.is_empty() {
            return f.write_str("no change");
        }
        f.write_str(&parts.join(", "))
    }
}

/// What leads from `old` to `new`.
pub fn diff(old: &RuleTable, new: &RuleTable) -> RuleChanges {
    let before: HashMap<_, _> = old.rules.iter().map(|rule| (key(rule), *rule)).collect();
    let after: HashMap<_, _> = new.rules.iter().map(|rule| (key(rule), *rule)).collect();
    let mut changes = RuleChanges::default();
    for rule in &new.rules {
        match before.get(&key(rule)) {
            None => changes.added.push(*rule),
            Some(from) if target(from) != target(rule) => changes.changed.push(RuleChange { from: *from, to: *rule }),
            Some(_) => {}
        }
    }
    changes.removed = old.rules.iter().filter(|rule| !after.contains_key(&key(rule))).copied().collect();
    changes.fallback =
        (old.fallback != new.fallback).then_some(FallbackChange { from: old.fallback, to: new.fallback });
    changes
}

/// What makes a rule the only one of a table.
fn key(rule: &Rule) -> (bool, Protocol, NonZeroU16) {
    (rule.destination.is_ipv6(), rule.protocol, rule.port)
}

/// Where a rule sends packets. A target port that is written out and equals the port is the same as none.
fn target(rule: &Rule) -> (IpAddr, NonZeroU16) {
    (rule.destination, rule.destination_port())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Meaning = (BTreeMap<(bool, Protocol, NonZeroU16), (IpAddr, NonZeroU16)>, Option<IpAddr>);

    /// A table as packets see it.
    fn meaning(table: &RuleTable) -> Meaning {
        (table.rules.iter().map(|rule| (key(rule), target(rule))).collect(), table.fallback)
    }

    /// Does what the changes say, with a panic where they do not fit.
    fn apply(changes: &RuleChanges, (mut rules, mut fallback): Meaning) -> Meaning {
        for rule in &changes.removed {
            assert_eq!(rules.remove(&key(rule)), Some(target(rule)), "removes what is there");
        }
        for RuleChange { from, to } in &changes.changed {
            assert_eq!(rules.insert(key(to), target(to)), Some(target(from)), "changes what is there");
        }
        for rule in &changes.added {
            assert_eq!(rules.insert(key(rule), target(rule)), None, "adds what is not there");
        }
        if let Some(change) = changes.fallback {
            assert_eq!(fallback, change.from);
            fallback = change.to;
        }
        (rules, fallback)
    }

    fn hosts() -> impl Strategy<Value = IpAddr> {
        // Few values, so that two tables have much in common.
        prop::sample::select(vec!["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"])
            .prop_map(|host| host.parse().unwrap())
    }

    fn ports() -> impl Strategy<Value = NonZeroU16> {
        (1..5_u16).prop_map(|port| NonZeroU16::new(port).unwrap())
    }

    fn tables() -> impl Strategy<Value = RuleTable> {
        let protocols = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
        let rules = prop::collection::vec((protocols, ports(), hosts(), prop::option::of(ports())), 0..20);
        (rules, prop::option::of(hosts())).prop_map(|(rules, fallback)| {
            let mut table = RuleTable { rules: Vec::new(), fallback };
            for (protocol, port, destination, target_port) in rules {
                let index = u32::try_from(table.rules.len()).unwrap();
                let rule = Rule { index, protocol, port, destination, target_port };
                if table.rules.iter().all(|other| key(other) != key(&rule)) {
                    table.rules.push(rule);
                }
            }
            table
        })
    }

    proptest! {
        #[test]
        fn applied_to_old_gives_new(old in tables(), new in tables()) {
            let changes = diff(&old, &new);
            prop_assert_eq!(apply(&changes, meaning(&old)), meaning(&new));
            prop_assert_eq!(changes.is_empty(), meaning(&old) == meaning(&new));
        }

        #[test]
        fn order_is_no_change(table in tables()) {
            let mut moved = table.clone();
            moved.rules.reverse();
            prop_assert!(diff(&table, &moved).is_empty());
        }

        #[test]
        fn backwards_swaps_added_and_removed(old in tables(), new in tables()) {
            let (there, back) = (diff(&old, &new), diff(&new, &old));
            prop_assert_eq!(there.added, back.removed);
            prop_assert_eq!(there.removed, back.added);
            prop_assert_eq!(there.changed.len(), back.changed.len());
        }
    }

    fn rule(port: u16, destination: &str, target_port: Option<u16>) -> Rule {
        Rule {
            index: 0,
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(port).unwrap(),
            destination: destination.parse().unwrap(),
            target_port: target_port.and_then(NonZeroU16::new),
        }
    }

    #[test]
    fn displays_what_changed() {
        let old = RuleTable { rules: vec![rule(80, "192.0.2.1", None), rule(81, "192.0.2.1", None)], fallback: None };
        let mut new = RuleTable {
            rules: vec![rule(80, "192.0.2.2", None), rule(82, "192.0.2.1", None), rule(83, "192.0.2.1", None)],
            fallback: Some("192.0.2.9".parse().unwrap()),
        };
        let text = diff(&old, &new).to_string();
        assert_eq!(text, "2 rules added, 1 removed, 1 changed, fallback none -> 192.0.2.9");
        assert_eq!(diff(&old, &old).to_string(), "no change");
        new.rules.truncate(1);
        new.fallback = None;
        assert_eq!(diff(&old, &new).to_string(), "1 rule removed, 1 changed");
    }

    #[test]
    fn a_target_port_that_equals_the_port_is_no_change() {
        let table = |rule| RuleTable { rules: vec![rule], fallback: None };
        let (kept, written) = (table(rule(80, "192.0.2.1", None)), table(rule(80, "192.0.2.1", Some(80))));
        assert!(diff(&kept, &written).is_empty());
        assert!(!diff(&kept, &table(rule(80, "192.0.2.1", Some(81)))).is_empty());
    }

    #[test]
    fn the_same_port_of_two_families_is_two_rules() {
        let table = |rules| RuleTable { rules, fallback: None };
        let both = table(vec![rule(80, "192.0.2.1", None), rule(80, "2001:db8::1", None)]);
        let changes = diff(&both, &table(vec![rule(80, "2001:db8::1", None)]));
        assert_eq!(changes.removed, [rule(80, "192.0.2.1", None)]);
        assert_eq!((changes.added.len(), changes.changed.len()), (0, 0));
    }
}
