//! Events: what happened to routers, told by their agents.
//!
//! This room has their words, fields and cells; [`keep`] has those that are stored. They are stored in the core group's
//! words, whatever group they came by, and apart from the routers, whose versions they do not use up. An event that nobody
//! writes again goes after an hour, and there are never many more than [`KEEPING`](keep::KEEPING) says.

pub(super) mod keep;

use serde_json::{Map, Value, json};

use super::meta;
use super::resource::Resource;

/// The group besides the core group that events belong to.
pub(super) const GROUP: &str = "events.k8s.io";
/// With its version.
pub(super) const API_VERSION: &str = "events.k8s.io/v1";
/// One of them.
pub(super) const KIND: &str = "Event";

/// Fields in the core group's words, in those of the own group, and their type.
const FIELDS: [(&str, &str, Ty); 15] = [
    ("involvedObject", "regarding", Ty::Object),
    ("related", "related", Ty::Object),
    ("source", "deprecatedSource", Ty::Object),
    ("series", "series", Ty::Object),
    ("reason", "reason", Ty::Text),
    ("message", "note", Ty::Text),
    ("type", "type", Ty::Text),
    ("action", "action", Ty::Text),
    ("reportingComponent", "reportingController", Ty::Text),
    ("reportingInstance", "reportingInstance", Ty::Text),
    ("eventTime", "eventTime", Ty::Text),
    ("firstTimestamp", "deprecatedFirstTimestamp", Ty::Text),
    ("lastTimestamp", "deprecatedLastTimestamp", Ty::Text),
    ("count", "deprecatedCount", Ty::Number),
    ("metadata", "metadata", Ty::Object),
];

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ty {
    Object,
    Text,
    Number,
}

impl Ty {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Object => value.is_object(),
            Self::Text => value.is_string(),
            Self::Number => value.is_i64(),
        }
    }
}

/// Fields that a selector can name: in the core group's words, in those of the own group, and the place in the object.
const SELECTABLE: [(&str, &str, &str); 11] = [
    ("involvedObject.kind", "regarding.kind", "/involvedObject/kind"),
    ("involvedObject.namespace", "regarding.namespace", "/involvedObject/namespace"),
    ("involvedObject.name", "regarding.name", "/involvedObject/name"),
    ("involvedObject.uid", "regarding.uid", "/involvedObject/uid"),
    ("involvedObject.apiVersion", "regarding.apiVersion", "/involvedObject/apiVersion"),
    ("involvedObject.resourceVersion", "regarding.resourceVersion", "/involvedObject/resourceVersion"),
    ("involvedObject.fieldPath", "regarding.fieldPath", "/involvedObject/fieldPath"),
    ("reason", "reason", "/reason"),
    ("reportingComponent", "reportingController", "/reportingComponent"),
    ("source", "source", "/reportingComponent"),
    ("type", "type", "/type"),
];

/// Where the field of a selector is.
pub(super) fn selectable(resource: Resource, field: &str) -> Option<&'static str> {
    let named =
        SELECTABLE.iter().find(|(core, own, _)| field == if resource == Resource::Events { *own } else { *core });
    named.map(|(.., place)| *place)
}

/// An event in the words of its own group.
pub(super) fn in_own_words(event: Value) -> Value {
    let Value::Object(mut fields) = event else { return event };
    let mut renamed: Map<String, Value> =
        FIELDS.iter().filter_map(|(core, own, _)| Some(((*own).to_owned(), fields.remove(*core)?))).collect();
    renamed.insert("kind".to_owned(), KIND.into());
    renamed.insert("apiVersion".to_owned(), API_VERSION.into());
    Value::Object(renamed)
}

/// The fields of an event, as OpenAPI describes them.
pub(super) fn properties(resource: Resource) -> Map<String, Value> {
    let fields = FIELDS.iter().map(|(core, own, ty)| {
        let ty = match ty {
            Ty::Object => "object",
            Ty::Text => "string",
            Ty::Number => "integer",
        };
        let name = if resource == Resource::Events { own } else { core };
        ((*name).to_owned(), json!({"type": ty}))
    });
    let kind = ["apiVersion", "kind"].map(|name| (name.to_owned(), json!({"type": "string"})));
    fields.chain(kind).collect()
}

/// Name, description and priority of a table's columns.
pub(super) const COLUMNS: [(&str, &str, u8); 10] = [
    ("Last Seen", "Time of the latest occurrence", 0),
    ("Type", "Normal or Warning", 0),
    ("Reason", "Why it happened, in one word", 0),
    ("Object", "The object that it is about", 0),
    ("Subobject", "The part of the object that it is about", 1),
    ("Source", "Who tells", 1),
    ("Message", "What happened", 0),
    ("First Seen", "Time of the first occurrence", 1),
    ("Count", "How often it happened", 1),
    ("Name", "Name of the event", 1),
];

/// The cells of an event's row.
pub(super) fn cells(event: &Value) -> Vec<Value> {
    let at = |place: &str| event.pointer(place).and_then(Value::as_str).unwrap_or_default();
    let first_of = |places: &[&str]| places.iter().map(|place| at(place)).find(|text| !text.is_empty()).unwrap_or("");
    let ago = |time: &str| {
        let seconds = time.parse::<jiff::Timestamp>().map(|time| jiff::Timestamp::now().as_second() - time.as_second());
        seconds.map_or_else(|_never| "<unknown>".to_owned(), |seconds| duration(u64::try_from(seconds).unwrap_or(0)))
    };
    let last = first_of(&["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"]);
    let first = first_of(&["/firstTimestamp", "/eventTime"]);
    let object = format!("{}/{}", at("/involvedObject/kind").to_lowercase(), at("/involvedObject/name"));
    let count = event.pointer("/series/count").or_else(|| event.get("count")).cloned().unwrap_or_else(|| 1.into());
    vec![
        ago(last).into(),
        at("/type").into(),
        at("/reason").into(),
        object.into(),
        at("/involvedObject/fieldPath").into(),
        first_of(&["/source/component", "/reportingComponent"]).into(),
        at("/message").into(),
        ago(first).into(),
        count,
        meta::text(event, "name").into(),
    ]
}

/// A duration for people, in two units at most, as kubectl shows it.
fn duration(seconds: u64) -> String {
    let with = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => with(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => with(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => with(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_kubectls() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (3599, "59m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (86_400, "24h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ];
        for (seconds, shown) in cases {
            assert_eq!(duration(seconds), shown);
        }
    }

    #[test]
    fn words_of_both_groups() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "a"}});
        let own = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "m", "regarding": {"name": "a"}});
        assert_eq!(in_own_words(core), own);
        assert_eq!(selectable(Resource::Events, "regarding.name"), Some("/involvedObject/name"));
        assert_eq!(selectable(Resource::CoreEvents, "regarding.name"), None);
    }
}
