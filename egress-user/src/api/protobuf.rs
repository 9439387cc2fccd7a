//! Kubernetes' protobuf, for the few documents that are had in it: refusals and discovery.

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
