//! Sets of fields, as managedFields keep them.
//!
//! A step is its key in `FieldsV1`: `f:name` for a field, `k:{"type":"x"}` for an item of a list with keys, `v:"x"` for
//! an item of a set.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    members: BTreeSet<String>,
    children: BTreeMap<String, Set>,
}

impl Set {
    /// A set of these paths, each written `a.b` of plain fields.
    pub(super) fn of(paths: &[&str]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let steps: Vec<String> = path.split('.').map(|name| format!("f:{name}")).collect();
            set.insert(&steps);
        }
        set
    }

    pub(super) fn insert(&mut self, path: &[String]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Self::is_empty)
    }

    pub(super) fn has(&self, step: &str) -> bool {
        self.members.contains(step)
    }

    /// What is below a step.
    pub(super) fn below(&self, step: &str) -> Option<&Self> {
        self.children.get(step).filter(|set| !set.is_empty())
    }

    /// The steps that have something below them.
    pub(super) fn inner(&self) -> impl Iterator<Item = (&String, &Self)> {
        self.children.iter()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.members.extend(other.members.iter().cloned());
        for (step, set) in &other.children {
            let merged = union.children.get(step).map_or_else(|| set.clone(), |ours| ours.union(set));
            union.children.insert(step.clone(), merged);
        }
        union
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let both = |(step, set): (&String, &Self)| {
            let common = set.intersection(other.children.get(step)?);
            (!common.is_empty()).then(|| (step.clone(), common))
        };
        Self {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: self.children.iter().filter_map(both).collect(),
        }
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        let rest = |(step, set): (&String, &Self)| {
            let rest = other.children.get(step).map_or_else(|| set.clone(), |theirs| set.difference(theirs));
            (!rest.is_empty()).then(|| (step.clone(), rest))
        };
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            children: self.children.iter().filter_map(rest).collect(),
        }
    }

    /// As [`difference`](Self::difference), and everything below what is taken away goes too.
    pub(super) fn without(&self, other: &Self) -> Self {
        let rest = |(step, set): (&String, &Self)| {
            if other.members.contains(step) {
                return None;
            }
            let rest = other.children.get(step).map_or_else(|| set.clone(), |theirs| set.without(theirs));
            (!rest.is_empty()).then(|| (step.clone(), rest))
        };
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            children: self.children.iter().filter_map(rest).collect(),
        }
    }

    /// Adds a step itself where something below it is in the set.
    pub(super) fn add_member(&mut self, step: &str) {
        self.members.insert(step.to_owned());
    }

    pub(super) fn set_below(&mut self, step: &str, set: Self) {
        self.children.insert(step.to_owned(), set);
    }

    /// From `FieldsV1`.
    pub(super) fn from_json(fields: &Value) -> Self {
        let mut set = Self::default();
        for (step, below) in fields.as_object().into_iter().flatten() {
            if step == "." {
                continue;
            }
            let inner = below.as_object();
            if inner.is_none_or(|inner| inner.is_empty() || inner.contains_key(".")) {
                set.members.insert(step.clone());
            }
            let children = Self::from_json(below);
            if !children.is_empty() {
                set.children.insert(step.clone(), children);
            }
        }
        set
    }

    /// To `FieldsV1`.
    pub(super) fn to_json(&self) -> Value {
        let mut fields: Map<String, Value> = Map::new();
        for step in &self.members {
            fields.insert(step.clone(), Value::Object(Map::new()));
        }
        for (step, set) in self.children.iter().filter(|(_, set)| !set.is_empty()) {
            let mut below = set.to_json();
            if let Some(below) = below.as_object_mut().filter(|_| self.members.contains(step)) {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            fields.insert(step.clone(), below);
        }
        Value::Object(fields)
    }

    /// Each path as messages show it, in order: `.status.conditions[type="Available"].status`.
    pub(super) fn shown(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.show("", &mut paths);
        paths
    }

    fn show(&self, prefix: &str, paths: &mut Vec<String>) {
        paths.extend(self.members.iter().map(|step| format!("{prefix}{}", shown(step))));
        for (step, set) in &self.children {
            set.show(&format!("{prefix}{}", shown(step)), paths);
        }
    }
}

/// A step as messages show it.
pub(super) fn shown(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("k", key)) => {
            let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let parts: Vec<String> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", parts.join(","))
        }
        _ => step.to_owned(),
    }
}
