//! Conditions in the form of the Kubernetes API.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use crate::spec::{ConditionStatus, ConditionType};

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One condition, in the form of `status.conditions[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Since when its status is this one, to the second; none where nobody has watched.
    pub last_transition_time: Option<Timestamp>,
    /// Why, in one CamelCase word, for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

/// A condition as it was just found, without a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is about.
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

/// All conditions of a router, each type once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// Conditions that nobody has watched: without a time.
    pub fn unwatched(verdicts: impl IntoIterator<Item = Verdict>) -> Self {
        Self(verdicts.into_iter().map(|verdict| condition(verdict, None)).collect())
    }

    /// Takes over what was found. A condition whose status stays keeps its transition time, whatever its reason and message
    /// are now. Returns whether anything is said differently.
    pub fn update(&mut self, verdicts: impl IntoIterator<Item = Verdict>, now: Timestamp) -> bool {
        let mut changed = false;
        for verdict in verdicts {
            let old = self.0.iter_mut().find(|condition| condition.kind == verdict.kind);
            let since =
                old.as_ref().filter(|old| old.status == verdict.status).and_then(|old| old.last_transition_time);
            let new = condition(verdict, Some(since.unwrap_or_else(|| to_the_second(now))));
            match old {
                Some(old) if *old == new => {}
                Some(old) => {
                    *old = new;
                    changed = true;
                }
                None => {
                    self.0.push(new);
                    changed = true;
                }
            }
        }
        changed
    }

    /// The condition of this type.
    pub fn get(&self, kind: ConditionType) -> Option<&Condition> {
        self.0.iter().find(|condition| condition.kind == kind)
    }

    /// Whether the condition of this type holds.
    pub fn holds(&self, kind: ConditionType) -> bool {
        self.get(kind).is_some_and(|condition| condition.status == ConditionStatus::True)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Condition> {
        self.0.iter()
    }
}

fn condition(verdict: Verdict, last_transition_time: Option<Timestamp>) -> Condition {
    let Verdict { kind, status, reason, message } = verdict;
    Condition { kind, status, last_transition_time, reason: reason.to_owned(), message }
}

/// As Kubernetes keeps times.
fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: ConditionStatus, message: &str) -> Verdict {
        Verdict { kind: ConditionType::Degraded, status, reason: "MasterDown", message: message.to_owned() }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let mut conditions = Conditions::default();
        let time = |conditions: &Conditions| conditions.get(ConditionType::Degraded).unwrap().last_transition_time;
        let (one, two, three) = (at("2026-01-01T00:00:00.7Z"), at("2026-01-01T00:00:05Z"), at("2026-01-01T00:00:09Z"));
        assert!(conditions.update([verdict(ConditionStatus::True, "a")], one));
        assert!(!conditions.update([verdict(ConditionStatus::True, "a")], two), "nothing new is said");
        assert!(conditions.update([verdict(ConditionStatus::True, "b")], two), "another message is");
        assert_eq!(time(&conditions), Some(at("2026-01-01T00:00:00Z")), "and is no transition");
        assert!(conditions.update([verdict(ConditionStatus::False, "b")], three));
        assert_eq!(time(&conditions), Some(three));
        assert!(!conditions.holds(ConditionType::Degraded));
        assert_eq!(conditions.iter().count(), 1);
    }

    #[test]
    fn the_form_is_that_of_the_api() {
        let mut conditions = Conditions::default();
        conditions.update([verdict(ConditionStatus::True, "up0 is down")], at("2026-01-01T00:00:00.7Z"));
        let json = serde_json::json!([{
            "type": "Degraded", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
            "reason": "MasterDown", "message": "up0 is down",
        }]);
        assert_eq!(serde_json::to_value(&conditions).unwrap(), json);
        assert_eq!(serde_json::from_value::<Conditions>(json).unwrap(), conditions);
        let unwatched = Conditions::unwatched([verdict(ConditionStatus::Unknown, "")]);
        assert_eq!(serde_json::to_value(&unwatched).unwrap()[0]["lastTransitionTime"], serde_json::Value::Null);
    }
}
