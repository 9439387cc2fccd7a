//! Answers that are a `Status`: refusals above all.

use serde_json::{Map, Value, json};

use super::GROUP;
use super::json::compact;
use super::resource::Resource;
use crate::spec::KIND;

/// Why a request is refused, as a `Status` says it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// HTTP status code.
    pub(super) code: u16,
    /// Reason of the `Status`; empty for a fault of the server's.
    reason: &'static str,
    /// For people.
    pub(super) message: String,
    details: Option<Box<Value>>,
    /// Where a client with an expired continue token may go on.
    continue_at: Option<Box<str>>,
    /// Warnings that were found on the way.
    pub(super) warnings: Vec<String>,
}

/// Something wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Cause {
    fn new(reason: &'static str, field: impl Into<String>, message: String) -> Self {
        Self { reason, message, field: field.into() }
    }

    pub(super) fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self::new("FieldValueRequired", field, message)
    }

    pub(super) fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {}: {detail}", shown(value)))
    }

    /// Where the value is shown in another way than its JSON.
    pub(super) fn invalid_shown(field: impl Into<String>, value: &str, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"))
    }

    /// A value of the wrong type.
    pub(super) fn wrong_type(field: impl Into<String>, value: &str, detail: &str) -> Self {
        Self::new("FieldValueTypeInvalid", field, format!("Invalid value: {value}: {detail}"))
    }

    pub(super) fn unsupported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let message = format!("Unsupported value: {}: supported values: {}", shown(value), supported.join(", "));
        Self::new("FieldValueNotSupported", field, message)
    }

    pub(super) fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {detail}"))
    }

    pub(super) fn too_long(field: impl Into<String>, limit: usize) -> Self {
        Self::new("FieldValueTooLong", field, format!("Too long: may not be more than {limit} bytes"))
    }

    pub(super) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {}", shown(value)))
    }

    fn to_json(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

/// A value in a message.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => super::json::go_quoted(text),
        other => {
            // Messages do not escape what JSON on the wire does.
            compact(other).replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u0026", "&")
        }
    }
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, continue_at: None, warnings: Vec::new() }
    }

    fn with_details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    pub(super) fn with_warnings(mut self, warnings: &[String]) -> Self {
        self.warnings.extend_from_slice(warnings);
        self
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// Nothing of that name.
    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let kind = resource.qualified(resource.plural());
        Self::new(404, "NotFound", format!("{kind} {} not found", super::json::go_quoted(name))).with_details(details(
            resource,
            resource.plural(),
            name,
        ))
    }

    /// No such path.
    pub(super) fn no_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(json!({}))
    }

    pub(super) fn already_exists(resource: Resource, name: &str, terminating: bool) -> Self {
        let prefix = if terminating { "object is being deleted: " } else { "" };
        let kind = resource.qualified(resource.plural());
        let message = format!("{prefix}{kind} {} already exists", super::json::go_quoted(name));
        Self::new(409, "AlreadyExists", message).with_details(details(resource, resource.plural(), name))
    }

    /// A write that is based on another version than the stored one.
    pub(super) fn modified(resource: Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, resource.plural(), name, why)
    }

    pub(super) fn conflict(resource: Resource, kind: &str, name: &str, why: &str) -> Self {
        let (shown, qualified) = (super::json::go_quoted(name), resource.qualified(kind));
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {qualified} {shown}: {why}"))
            .with_details(details(resource, kind, name))
    }

    /// A conflict of server-side apply: other managers' fields.
    pub(super) fn apply_conflict(message: String, causes: Vec<(String, String)>) -> Self {
        let causes: Vec<Value> = causes
            .into_iter()
            .map(|(message, field)| json!({"reason": "FieldManagerConflict", "message": message, "field": field}))
            .collect();
        Self::new(409, "Conflict", message).with_details(json!({"causes": causes}))
    }

    /// The object is invalid.
    pub(super) fn invalid(kind: &str, name: &str, causes: &[Cause]) -> Self {
        Self::invalid_of(kind, GROUP, name, causes)
    }

    /// An event is invalid.
    pub(super) fn invalid_event(resource: Resource, name: &str, causes: &[Cause]) -> Self {
        Self::invalid_of(resource.kind(), resource.group(), name, causes)
    }

    /// Options in the query or in the body are invalid.
    pub(super) fn invalid_options(kind: &str, causes: &[Cause]) -> Self {
        Self::invalid_of(kind, "meta.k8s.io", "", causes)
    }

    /// The result of a patch cannot be read.
    pub(super) fn invalid_patch(cause: &Cause) -> Self {
        let message = format!(" \"\" is invalid: {}: {}", cause.field, cause.message);
        Self::new(422, "Invalid", message).with_details(json!({"causes": [cause.to_json()]}))
    }

    fn invalid_of(kind: &str, group: &str, name: &str, causes: &[Cause]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for text in causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let texts = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        let dot = if group.is_empty() { "" } else { "." };
        let message = format!("{kind}{dot}{group} {} is invalid: {texts}", super::json::go_quoted(name));
        let causes: Vec<Value> = causes.iter().map(Cause::to_json).collect();
        let mut details = Map::new();
        if !name.is_empty() {
            details.insert("name".to_owned(), name.into());
        }
        details.insert("group".to_owned(), group.into());
        details.insert("kind".to_owned(), kind.into());
        details.insert("causes".to_owned(), causes.into());
        Self::new(422, "Invalid", message).with_details(details.into())
    }

    /// A JSON patch that does not fit.
    pub(super) fn unprocessable() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request")
            .with_details(json!({}))
    }

    pub(super) fn verb_not_supported(resource: Resource, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind \"{}\"", resource.qualified(resource.plural()));
        Self::new(405, "MethodNotAllowed", message).with_details(details(resource, resource.plural(), ""))
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with_details(json!({}))
    }

    pub(super) fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    pub(super) fn unsupported_media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(super) fn too_large(detail: &str) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {detail}"))
    }

    /// The history that the request needs is gone.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The state that a list was begun in is gone; it may go on in the newest.
    pub(super) fn expired_continue(token: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start \
            a new list without the continue parameter, or use the continue token in this response to retrieve the \
            remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
            that were created, modified, or deleted between the time the first chunk was returned and now may show \
            up in the list.";
        Self { continue_at: Some(token.into()), ..Self::expired(message) }
    }

    pub(super) fn version_too_large(asked: u64, newest: u64) -> Self {
        let causes = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        Self::new(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {newest}"))
            .with_details(json!({"causes": causes, "retryAfterSeconds": 1}))
    }

    pub(super) fn too_many_requests() -> Self {
        let message = "Too many requests, please try again later.";
        Self::new(429, "TooManyRequests", message).with_details(json!({"retryAfterSeconds": 1}))
    }

    /// Nothing that the request could have done better.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    pub(super) fn forbidden(resource: Resource, name: &str, detail: &str) -> Self {
        let shown = if name.is_empty() { String::new() } else { format!(" {}", super::json::go_quoted(name)) };
        let kind = resource.qualified(resource.plural());
        Self::new(403, "Forbidden", format!("{kind}{shown} is forbidden: {detail}")).with_details(details(
            resource,
            resource.plural(),
            name,
        ))
    }

    /// As [`forbidden`](Self::forbidden), where there is no resource or one of another group.
    pub(super) fn forbidden_path(message: String) -> Self {
        Self::new(403, "Forbidden", message).with_details(json!({}))
    }

    /// The answer to a client that takes nothing that `/api` has.
    pub(super) fn no_representation() -> Self {
        let message = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
            application/vnd.kubernetes.protobuf";
        Self::not_acceptable(message).with_details(json!({}))
    }

    /// Whether it is about who asks, not about what for.
    pub(super) fn by_authorization(&self) -> bool {
        self.message.contains(" User ") || self.message.starts_with("forbidden: User ")
    }

    /// Seconds after which trying again makes sense.
    pub(super) fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }

    /// The `Status` object.
    pub(super) fn to_json(&self) -> Value {
        let metadata = self.continue_at.as_ref().map_or_else(|| json!({}), |token| json!({"continue": token}));
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if let Some(fields) = status.as_object_mut() {
            if !self.reason.is_empty() {
                fields.insert("reason".to_owned(), self.reason.into());
            }
            if let Some(details) = &self.details {
                fields.insert("details".to_owned(), (**details).clone());
            }
        }
        status
    }
}

/// Which object a `Status` is about.
fn details(resource: Resource, kind: &str, name: &str) -> Value {
    let mut details = Map::new();
    for (field, value) in [("name", name), ("group", resource.group()), ("kind", kind)] {
        if !value.is_empty() {
            details.insert(field.to_owned(), value.into());
        }
    }
    details.into()
}

/// What a delete answers when the object is gone.
pub(super) fn deleted(resource: Resource, name: &str, uid: &Value) -> Value {
    let mut details = details(resource, resource.plural(), name);
    if let Some(fields) = details.as_object_mut() {
        fields.insert("uid".to_owned(), uid.clone());
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// The refusal of a body that is no `EgressRouter` at all.
pub(super) fn unrecognized(why: &str, body: &[u8]) -> Refusal {
    let start = if body.is_empty() { "<empty>".to_owned() } else { beginning(body) };
    Refusal::bad_request(format!("the object provided is unrecognized (must be of type {KIND}): {why} ({start})"))
}

/// The first bytes of a body: as text if it looks like JSON, else in hexadecimal.
fn beginning(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let cut = if body.len() > SHOWN { " ..." } else { "" };
    let shown = body.get(..body.len().min(SHOWN)).unwrap_or_default();
    if body.trim_ascii_start().starts_with(b"{") {
        format!("{}{cut}", String::from_utf8_lossy(shown))
    } else {
        let hexadecimal: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hexadecimal}{cut}")
    }
}
