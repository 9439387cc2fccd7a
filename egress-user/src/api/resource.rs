//! What can be listed and watched: routers, the events about them, and the namespaces that they are in.

use serde_json::{Value, json};

use super::store::Stored;
use super::{GROUP, LIST_KIND, PLURAL, VERSION, crd, events, json};
use crate::spec::{API_VERSION, KIND};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// Routers.
    Routers,
    /// Events, in the core group's words.
    CoreEvents,
    /// The same events, in those of their own group.
    Events,
    /// Namespaces, which exist without being stored.
    Namespaces,
}

impl Resource {
    /// Its group; empty for the core group.
    pub(super) fn group(self) -> &'static str {
        match self {
            Self::Routers => GROUP,
            Self::Events => events::GROUP,
            Self::CoreEvents | Self::Namespaces => "",
        }
    }

    /// Group and version, as objects name them.
    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::Routers => API_VERSION,
            Self::Events => events::API_VERSION,
            Self::CoreEvents | Self::Namespaces => VERSION,
        }
    }

    /// The kind of one.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Routers => KIND,
            Self::Events | Self::CoreEvents => events::KIND,
            Self::Namespaces => "Namespace",
        }
    }

    /// The kind of a list.
    pub(super) fn list_kind(self) -> &'static str {
        match self {
            Self::Routers => LIST_KIND,
            Self::Events | Self::CoreEvents => "EventList",
            Self::Namespaces => "NamespaceList",
        }
    }

    /// The name in paths.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Routers => PLURAL,
            Self::Events | Self::CoreEvents => "events",
            Self::Namespaces => "namespaces",
        }
    }

    /// A name with the group behind it, as messages have it.
    pub(super) fn qualified(self, name: &str) -> String {
        if self.group().is_empty() { name.to_owned() } else { format!("{name}.{}", self.group()) }
    }

    /// Where in an object a field is that a field selector can name, besides name and namespace.
    pub(super) fn selectable(self, field: &str) -> Option<&'static str> {
        match self {
            Self::Routers | Self::Namespaces => None,
            Self::Events | Self::CoreEvents => events::selectable(self, field),
        }
    }

    /// A stored object as it is shown.
    pub(super) fn shown(self, stored: &Stored) -> Value {
        match self {
            Self::Events => events::in_own_words(stored.versioned()),
            _ => stored.versioned(),
        }
    }

    /// The same as JSON, on one line without its end.
    pub(super) fn text(self, stored: &Stored) -> axum::body::Bytes {
        match self {
            Self::Events => json::compact(&self.shown(stored)).into(),
            _ => stored.text(),
        }
    }

    /// The columns of a table.
    pub(super) fn columns(self) -> Vec<Value> {
        const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
            resources may allow a client to request the generation of an appropriate name automatically. Name is \
            primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: \
            https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
        let name = json!({"name": "Name", "type": "string", "format": "name", "description": NAME, "priority": 0});
        let column = |name: &str, description: &str, priority: u8| json!({"name": name, "type": "string", "format": "", "description": description, "priority": priority});
        match self {
            Self::Routers => {
                let others = crd::COLUMNS.iter().map(|(name, path)| {
                    column(name, &format!("Custom resource definition column (in JSONPath format): {path}"), 0)
                });
                std::iter::once(name).chain(others).collect()
            }
            Self::Events | Self::CoreEvents => events::COLUMNS
                .iter()
                .map(|(name, description, priority)| column(name, description, *priority))
                .collect(),
            Self::Namespaces => {
                vec![name, column("Status", "The status of the namespace", 0), column("Age", "Not known here", 0)]
            }
        }
    }

    /// An object's cells.
    pub(super) fn cells(self, object: &Value) -> Vec<Value> {
        let name = || super::meta::text(object, "name").into();
        match self {
            Self::Routers => {
                let first = object.pointer("/status/conditions/0");
                let part = |field: &str| first.and_then(|condition| condition.get(field)).cloned().unwrap_or_default();
                vec![name(), part("type"), part("status")]
            }
            Self::Events | Self::CoreEvents => events::cells(object),
            Self::Namespaces => vec![name(), "Active".into(), "<unknown>".into()],
        }
    }
}
