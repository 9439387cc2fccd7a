//! Kubernetes' protobuf, for the few documents that are had in it: refusals, discovery, questions about oneself.

use serde_json::Value;

/// What the bytes begin with.
const MAGIC: &[u8] = b"k8s\0";

/// Writes a document. What has no protobuf form here is an empty message.
pub(super) fn encode(value: &Value) -> Vec<u8> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let raw = match text("kind") {
        "Status" => status(value),
        "APIGroup" => group(value),
        "APIVersions" => versions(value),
        "APIResourceList" => resources(value),
        "PartialObjectMetadata" => partial(value),
        "PartialObjectMetadataList" => {
            let mut message = Message::default();
            let mut metadata = Message::default();
            let list = value.get("metadata").unwrap_or(&Value::Null);
            metadata.text(1, "");
            metadata.text(2, text_of(list, "resourceVersion"));
            metadata.text(3, text_of(list, "continue"));
            if let Some(remaining) = list.get("remainingItemCount").and_then(Value::as_u64) {
                metadata.number(4, remaining);
            }
            message.bytes(1, &metadata.0);
            message.each(2, value.get("items"), partial);
            message
        }
        _ => Message::default(),
    };
    let mut ty = Message::default();
    ty.text(1, text("apiVersion"));
    ty.text(2, text("kind"));
    let mut unknown = Message::default();
    unknown.bytes(1, &ty.0);
    unknown.bytes(2, &raw.0);
    unknown.text(3, "");
    unknown.text(4, "");
    [MAGIC, &unknown.0].concat()
}

/// Writes an event of a watch: its length, then the event.
pub(super) fn encode_event(event: &Value) -> Vec<u8> {
    let mut raw = Message::default();
    raw.bytes(1, &encode(event.get("object").unwrap_or(&Value::Null)));
    let mut message = Message::default();
    message.text(1, text_of(event, "type"));
    message.bytes(2, &raw.0);
    let length = u32::try_from(message.0.len()).unwrap_or_default().to_be_bytes();
    [&length, message.0.as_slice()].concat()
}

fn partial(value: &Value) -> Message {
    let mut message = Message::default();
    message.bytes(1, &metadata(value.get("metadata").unwrap_or(&Value::Null)).0);
    message
}

fn metadata(value: &Value) -> Message {
    let mut message = Message::default();
    let texts = ["name", "generateName", "namespace", "selfLink", "uid", "resourceVersion"];
    for (field, name) in (1..).zip(texts) {
        message.text(field, text_of(value, name));
    }
    message.number(7, value.get("generation").and_then(Value::as_u64).unwrap_or_default());
    message.bytes(8, &time(value.get("creationTimestamp")).0);
    if value.get("deletionTimestamp").is_some() {
        message.bytes(9, &time(value.get("deletionTimestamp")).0);
    }
    if let Some(seconds) = value.get("deletionGracePeriodSeconds").and_then(Value::as_u64) {
        message.number(10, seconds);
    }
    for (field, name) in [(11, "labels"), (12, "annotations")] {
        for (key, value) in value.get(name).and_then(Value::as_object).into_iter().flatten() {
            let mut entry = Message::default();
            entry.text(1, key);
            entry.text(2, value.as_str().unwrap_or_default());
            message.bytes(field, &entry.0);
        }
    }
    message.each(13, value.get("ownerReferences"), |owner| {
        let mut message = Message::default();
        for (field, name) in [(1, "kind"), (3, "name"), (4, "uid"), (5, "apiVersion")] {
            message.text(field, text_of(owner, name));
        }
        for (field, name) in [(6, "controller"), (7, "blockOwnerDeletion")] {
            if let Some(set) = owner.get(name).and_then(Value::as_bool) {
                message.number(field, u64::from(set));
            }
        }
        message
    });
    message.texts(14, value.get("finalizers"));
    message.each(17, value.get("managedFields"), |entry| {
        let mut message = Message::default();
        for (field, name) in [(1, "manager"), (2, "operation"), (3, "apiVersion")] {
            message.text(field, text_of(entry, name));
        }
        if entry.get("time").is_some() {
            message.bytes(4, &time(entry.get("time")).0);
        }
        message.text(6, text_of(entry, "fieldsType"));
        let mut fields = Message::default();
        fields.text(1, &super::json::compact(entry.get("fieldsV1").unwrap_or(&Value::Null)));
        message.bytes(7, &fields.0);
        message.text(8, text_of(entry, "subresource"));
        message
    });
    message
}

fn time(value: Option<&Value>) -> Message {
    let mut message = Message::default();
    let text = value.and_then(Value::as_str).unwrap_or_default();
    let seconds = text.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second);
    message.number(1, u64::try_from(seconds).unwrap_or_default());
    message.number(2, 0);
    message
}

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap_or_default());
    }

    fn number(&mut self, field: u64, number: u64) {
        self.varint(field << 3);
        self.varint(number);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(u64::try_from(bytes.len()).unwrap_or_default());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn texts(&mut self, field: u64, list: Option<&Value>) {
        for text in list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.text(field, text);
        }
    }

    fn each(&mut self, field: u64, list: Option<&Value>, message: fn(&Value) -> Message) {
        for item in list.and_then(Value::as_array).into_iter().flatten() {
            self.bytes(field, &message(item).0);
        }
    }
}

/// The fields of a message that came in, as far as it can be read; only those that are bytes.
pub(super) struct Fields<'b>(Vec<(u64, &'b [u8])>);

impl<'b> Fields<'b> {
    /// The object in a body; none if it is not of this form.
    pub(super) fn of_object(body: &'b [u8]) -> Option<Self> {
        Self::of(body.strip_prefix(MAGIC)?).bytes(2).map(Fields::of)
    }

    /// The fields of a message.
    pub(super) fn of(mut bytes: &'b [u8]) -> Self {
        let mut fields = Vec::new();
        while let Some(tag) = varint(&mut bytes) {
            match tag & 7 {
                0 => drop(varint(&mut bytes)),
                2 => {
                    let length = varint(&mut bytes).and_then(|length| usize::try_from(length).ok());
                    let Some((field, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else { break };
                    fields.push((tag >> 3, field));
                    bytes = rest;
                }
                _ => break,
            }
        }
        Self(fields)
    }

    /// A field; of several, the last.
    pub(super) fn bytes(&self, field: u64) -> Option<&'b [u8]> {
        self.0.iter().rev().find(|(number, _)| *number == field).map(|(_, bytes)| *bytes)
    }

    /// A field that is text; empty where it is absent.
    pub(super) fn text(&self, field: u64) -> String {
        String::from_utf8_lossy(self.bytes(field).unwrap_or_default()).into_owned()
    }
}

/// Takes a number from the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn text_of<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn status(value: &Value) -> Message {
    let mut metadata = Message::default();
    for (field, name) in [(1, "selfLink"), (2, "resourceVersion"), (3, "continue")] {
        metadata.text(field, value.get("metadata").map_or("", |metadata| text_of(metadata, name)));
    }
    let mut status = Message::default();
    status.bytes(1, &metadata.0);
    status.text(2, text_of(value, "status"));
    status.text(3, text_of(value, "message"));
    status.text(4, text_of(value, "reason"));
    if let Some(details) = value.get("details") {
        let mut message = Message::default();
        message.text(1, text_of(details, "name"));
        message.text(2, text_of(details, "group"));
        message.text(3, text_of(details, "kind"));
        message.each(4, details.get("causes"), |cause| {
            let mut message = Message::default();
            message.text(1, text_of(cause, "reason"));
            message.text(2, text_of(cause, "message"));
            message.text(3, text_of(cause, "field"));
            message
        });
        message.number(5, details.get("retryAfterSeconds").and_then(Value::as_u64).unwrap_or_default());
        message.text(6, text_of(details, "uid"));
        status.bytes(5, &message.0);
    }
    status.number(6, value.get("code").and_then(Value::as_u64).unwrap_or_default());
    status
}

fn version(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, text_of(value, "groupVersion"));
    message.text(2, text_of(value, "version"));
    message
}

fn address(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, text_of(value, "clientCIDR"));
    message.text(2, text_of(value, "serverAddress"));
    message
}

fn group(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, text_of(value, "name"));
    message.each(2, value.get("versions"), version);
    message.bytes(3, &version(value.get("preferredVersion").unwrap_or(&Value::Null)).0);
    message.each(4, value.get("serverAddressByClientCIDRs"), address);
    message
}

fn versions(value: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, value.get("versions"));
    message.each(2, value.get("serverAddressByClientCIDRs"), address);
    message
}

fn resources(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, text_of(value, "groupVersion"));
    message.each(2, value.get("resources"), |resource| {
        let mut message = Message::default();
        message.text(1, text_of(resource, "name"));
        message.number(2, u64::from(resource.get("namespaced") == Some(&Value::Bool(true))));
        message.text(3, text_of(resource, "kind"));
        let mut verbs = Message::default();
        verbs.texts(1, resource.get("verbs"));
        message.bytes(4, &verbs.0);
        message.texts(5, resource.get("shortNames"));
        message.text(6, text_of(resource, "singularName"));
        message.texts(7, resource.get("categories"));
        message.text(8, text_of(resource, "group"));
        message.text(9, text_of(resource, "version"));
        message.text(10, text_of(resource, "storageVersionHash"));
        message
    });
    message
}
