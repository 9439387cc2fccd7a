//! Events: what `kubectl describe` shows of what happened to a router.

use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::core::DynamicObject;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::Value;
use tracing::warn;

use crate::compile::RouterName;
use crate::spec::{API_VERSION, KIND};

/// Bytes of a message that an API takes.
const MAX_NOTE: usize = 1024;

/// The one who tells the API of events.
pub(super) struct Herald {
    recorder: Recorder,
    about: Mutex<ObjectReference>,
}

impl Herald {
    /// One who tells of a router.
    pub(super) fn new(client: Client, name: &RouterName) -> Self {
        let about = ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(KIND.to_owned()),
            name: Some(name.name.clone()),
            namespace: Some(name.namespace.clone()),
            ..ObjectReference::default()
        };
        Self { recorder: Recorder::new(client, Reporter::from("egress-router")), about: Mutex::new(about) }
    }

    /// From now on it is about this one of that name.
    pub(super) fn follow(&self, object: &DynamicObject) {
        let mut about = self.about.lock().unwrap_or_else(PoisonError::into_inner);
        about.uid.clone_from(&object.metadata.uid);
        about.resource_version.clone_from(&object.metadata.resource_version);
    }

    /// Tells of each condition that has turned, without waiting: an API that takes no events is told nothing, and the
    /// router works as before.
    pub(super) fn tell(&self, before: &Value, after: &Value) {
        let about = self.about.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let recorder = self.recorder.clone();
        let events = turned(before, after);
        tokio::spawn(async move {
            for event in events {
                if let Err(error) = recorder.publish(&event, &about).await {
                    warn!("event {} is not told: {error}", event.reason);
                }
            }
        });
    }
}

/// An event for each condition with another status or reason than before.
fn turned(before: &Value, after: &Value) -> Vec<Event> {
    let entries = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text =
        |condition: &Value, field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let known = entries(before);
    let new = |condition: &Value| {
        let old = known.iter().find(|old| old.get("type") == condition.get("type"));
        old.is_none_or(|old| ["status", "reason"].iter().any(|field| old.get(field) != condition.get(field)))
    };
    let event = |condition: &Value| {
        let (kind, status) = (text(condition, "type"), text(condition, "status"));
        let bad = matches!((kind.as_str(), status.as_str()), ("Degraded", "True") | ("Available", "False"));
        let mut note = format!("{kind} is {status}: {}", text(condition, "message"));
        note.truncate(note.floor_char_boundary(MAX_NOTE));
        Event {
            type_: if bad { EventType::Warning } else { EventType::Normal },
            reason: text(condition, "reason"),
            note: Some(note),
            action: kind,
            secondary: None,
        }
    };
    entries(after).iter().filter(|condition| new(condition)).map(event).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_turned_is_told() {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message});
        let before =
            json!([condition("Available", "True", "AsExpected", ""), condition("Degraded", "False", "AsExpected", "")]);
        let other_words = json!([
            condition("Available", "True", "AsExpected", "x"),
            condition("Degraded", "False", "AsExpected", "")
        ]);
        assert!(turned(&before, &other_words).is_empty());
        let long = "ä".repeat(MAX_NOTE);
        let after = json!([
            condition("Available", "True", "AsExpected", ""),
            condition("Degraded", "True", "MasterDown", &long)
        ]);
        let events = turned(&before, &after);
        let [event] = events.as_slice() else { panic!("one event, not {}", events.len()) };
        assert_eq!(
            (event.type_, event.reason.as_str(), event.action.as_str()),
            (EventType::Warning, "MasterDown", "Degraded")
        );
        let note = event.note.as_ref().unwrap();
        assert!(note.starts_with("Degraded is True: ää") && note.len() <= MAX_NOTE);
        assert_eq!(turned(&Value::Null, &after).len(), 2, "at first everything is new");
    }
}
