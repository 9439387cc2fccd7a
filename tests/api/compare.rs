//! Whether an answer is the recorded one.

use serde_json::Value;

use crate::corpus::Response;
use crate::placeholders::Bindings;
use egress_lab::https as client;

/// How an answer differs from the record; none if it does not.
pub(crate) fn difference(recorded: &Response, real: &client::Response, bindings: &mut Bindings) -> Option<String> {
    if recorded.status != real.status {
        let body = String::from_utf8_lossy(&real.body);
        return Some(format!("status {} is {}: {}", recorded.status, real.status, cut(&body)));
    }
    if let Some(difference) = headers(recorded, real, bindings) {
        return Some(difference);
    }
    body(recorded, real, bindings)
}

fn headers(recorded: &Response, real: &client::Response, bindings: &mut Bindings) -> Option<String> {
    for (name, value) in &recorded.headers {
        let wanted: Vec<&str> = match value {
            Value::Null => Vec::new(),
            Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
            other => other.as_str().into_iter().collect(),
        };
        let real = real.all(name);
        let same =
            wanted.len() == real.len() && wanted.iter().zip(&real).all(|(one, other)| bindings.matches(one, other));
        if !same {
            return Some(format!("header {name}: {wanted:?} is {real:?}"));
        }
    }
    let silent = |name: &str| !recorded.headers.contains_key(name);
    if silent("cache-control") && real.all("cache-control") != ["no-cache, private"] {
        return Some(format!("header cache-control is {:?}", real.all("cache-control")));
    }
    let unsaid = ["warning", "retry-after", "content-encoding", "location"];
    unsaid
        .into_iter()
        .find(|name| silent(name) && !real.all(name).is_empty())
        .map(|name| format!("header {name} is not in the record: {:?}", real.all(name)))
}

fn body(recorded: &Response, real: &client::Response, bindings: &mut Bindings) -> Option<String> {
    if recorded.body_omitted.is_some() {
        return None;
    }
    if let Some(text) = &recorded.body_text {
        let real = String::from_utf8_lossy(&real.body);
        return (!bindings.matches(text, &real)).then(|| format!("text {} is {}", cut(text), cut(&real)));
    }
    match &recorded.body_binary {
        Some(Value::Number(length)) => {
            let real = real.body.len() as u64;
            return (length.as_u64() != Some(real)).then(|| format!("{length} bytes are {real}"));
        }
        Some(_) => return (!real.body.starts_with(&[0x1f, 0x8b])).then(|| "not compressed".to_owned()),
        None => {}
    }
    let Some(body) = &recorded.body else {
        return (!real.body.is_empty()).then(|| format!("no body is {}", cut(&String::from_utf8_lossy(&real.body))));
    };
    let text = String::from_utf8_lossy(&real.body);
    let Ok(value) = serde_json::from_str::<Value>(&text) else {
        return Some(format!("not JSON: {}", cut(&text)));
    };
    if let Some(difference) = layout(recorded.framing.as_deref(), &text) {
        return Some(difference);
    }
    values(body, &value, bindings)
}

fn layout(framing: Option<&str>, text: &str) -> Option<String> {
    let indented = text.starts_with("{\n  \"");
    let ended = text.ends_with('\n');
    let lines = text.trim_end().lines().count();
    let right = match framing {
        None => !indented && ended && lines == 1,
        Some("compact") => !indented && !ended && lines == 1,
        Some(_) => indented && !ended,
    };
    (!right).then(|| format!("layout {} is {}", framing.unwrap_or("line"), cut(text)))
}

/// How a JSON value differs.
pub(crate) fn values(recorded: &Value, real: &Value, bindings: &mut Bindings) -> Option<String> {
    bindings.differ(&ordered(own(recorded)), &ordered(own(real)), "")
}

/// A document that lists what else a server has, without that.
fn own(value: &Value) -> Value {
    const GROUP: &str = "network.operator.openshift.io";
    let mut value = value.clone();
    let named = |item: &Value| item.get("name").or_else(|| item.pointer("/metadata/name")) == Some(&GROUP.into());
    if let Some(Value::Array(paths)) = value.get_mut("paths") {
        // What a server's own paths are is its own matter: that they are listed is not.
        *paths = Vec::new();
    }
    for list in ["groups", "items"] {
        if matches!(value.get("kind").and_then(Value::as_str), Some("APIGroupList" | "APIGroupDiscoveryList"))
            && let Some(Value::Array(items)) = value.get_mut(list)
        {
            items.retain(named);
        }
    }
    value
}

/// With the lists in order that have none, and the sentences of a message too.
fn ordered(mut value: Value) -> Value {
    let causes = value.pointer("/details/causes").and_then(Value::as_array).cloned();
    if let Some(mut causes) = causes {
        let text = |cause: &Value, name: &str| cause.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        causes.sort_by_key(|cause| (text(cause, "field"), text(cause, "message")));
        if causes.len() > 1
            && let Some(message) = value.get("message").and_then(Value::as_str)
        {
            let mut rest = message.to_owned();
            let mut sentences: Vec<String> =
                causes.iter().map(|cause| format!("{}: {}", text(cause, "field"), text(cause, "message"))).collect();
            sentences.sort_by_key(|sentence| std::cmp::Reverse(sentence.len()));
            for sentence in sentences {
                rest = rest.replacen(&sentence, "", 1);
            }
            value["message"] = rest.into();
        }
        value["details"]["causes"] = causes.into();
    }
    sort_managers(&mut value);
    value
}

/// Managers are sorted by time, and two writes may or may not share a second.
fn sort_managers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::Array(entries) if key == "managedFields" => {
                        let text = |entry: &Value, name: &str| {
                            entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
                        };
                        entries.sort_by_key(|entry| {
                            (text(entry, "operation"), text(entry, "manager"), text(entry, "subresource"))
                        });
                    }
                    _ => sort_managers(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(sort_managers),
        _ => {}
    }
}

fn cut(text: &str) -> String {
    const SHOWN: usize = 700;
    let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
    format!("{:?}", &text[..end])
}
