//! The options of requests: from the query, and for deletes from the body.

use serde_json::{Value, json};

use super::json::{self, kind};
use super::negotiate::BodyType;
use super::object::FieldValidation;
use super::route::Query;
use super::status::{Cause, Refusal};
use super::yaml;

/// Bytes of a manager's name.
const MAX_MANAGER: usize = 128;

/// Options of a write.
#[derive(Clone, Debug)]
pub(super) struct WriteOptions {
    /// Whether nothing is to be stored.
    pub(super) dry_run: bool,
    /// Who writes.
    pub(super) manager: String,
    /// How odd fields are met.
    pub(super) validation: FieldValidation,
    /// Whether fields are taken from other managers.
    pub(super) force: bool,
}

/// Which write it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH of a kind that changes.
    Patch,
    /// PATCH of the kind that applies.
    Apply,
}

impl Verb {
    fn options(self) -> &'static str {
        match self {
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Patch | Self::Apply => "PatchOptions",
        }
    }
}

/// Reads the options of a write.
///
/// # Errors
/// 422.
pub(super) fn of_write(query: &Query, agent: Option<&str>, verb: Verb) -> Result<WriteOptions, Refusal> {
    let mut causes = Vec::new();
    if verb == Verb::Patch && query.text("force").is_some() {
        causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
    }
    let manager = query.text("fieldManager").unwrap_or_default();
    if verb == Verb::Apply && manager.is_empty() {
        causes.push(Cause::required("fieldManager", "is required for apply patch"));
    }
    causes.extend(check_manager(&manager));
    let dry_run = query.all("dryRun");
    causes.extend(check_dry_run(&dry_run));
    let validation = match query.text("fieldValidation").as_deref().unwrap_or_default() {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            let supported = ["", "Ignore", "Strict", "Warn"];
            causes.push(Cause::unsupported("fieldValidation", &other.into(), &supported));
            FieldValidation::Warn
        }
    };
    if !causes.is_empty() {
        return Err(Refusal::invalid_options(verb.options(), &causes));
    }
    let manager = if manager.is_empty() { manager_of(agent) } else { manager };
    let force = query.switch("force").unwrap_or(false);
    Ok(WriteOptions { dry_run: !dry_run.is_empty(), manager, validation, force })
}

/// The manager of a client that names none: its program's name.
fn manager_of(agent: Option<&str>) -> String {
    let Some(agent) = agent else { return "unknown".to_owned() };
    let name = agent.split('/').next().unwrap_or_default();
    let name: String = name.chars().filter(|character| !character.is_control()).collect();
    let cut =
        name.char_indices().map(|(at, character)| at + character.len_utf8()).take_while(|end| *end <= MAX_MANAGER);
    match name.get(..cut.last().unwrap_or(0)) {
        None | Some("") => "unknown".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn check_manager(manager: &str) -> Option<Cause> {
    if manager.len() > MAX_MANAGER {
        return Some(Cause::too_long("fieldManager", MAX_MANAGER));
    }
    let (position, bad) = manager.chars().enumerate().find(|(_, character)| character.is_control())?;
    let what = format!("invalid character U+{:04X} (at position {position})", bad as u32);
    Some(Cause::invalid("fieldManager", &manager.into(), &what))
}

fn check_dry_run(values: &[String]) -> Option<Cause> {
    let bad = values.iter().any(|value| value != "All");
    bad.then(|| Cause::unsupported("dryRun", &json!(values), &["All"]))
}

/// Options of a delete.
#[derive(Clone, Debug, Default)]
pub(super) struct DeleteOptions {
    /// Whether nothing is to be deleted.
    pub(super) dry_run: bool,
    /// What happens to what the object owns.
    pub(super) propagation: Option<Propagation>,
    /// The object must have this uid.
    pub(super) uid: Option<String>,
    /// The object must have this version.
    pub(super) version: Option<String>,
}

/// What happens to what a deleted object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Propagation {
    /// It is deleted afterwards.
    Background,
    /// It is deleted before.
    Foreground,
    /// It stays.
    Orphan,
}

/// Reads the options of a delete; a body counts before the query.
///
/// # Errors
/// 400, 415 or 422.
pub(super) fn of_delete(
    query: &Query,
    body: &[u8],
    ty: impl FnOnce() -> Result<BodyType, Refusal>,
) -> Result<DeleteOptions, Refusal> {
    let given = if body.is_empty() { from_query(query)? } else { from_body(body, ty()?)? };
    let mut causes = Vec::new();
    let policy = given.policy.as_deref();
    if let (Some(policy), true) = (policy, given.orphan.is_some()) {
        let what = "orphanDependents and deletionPropagation cannot be both set";
        causes.push(Cause::invalid("propagationPolicy", &policy.into(), what));
    }
    let propagation = match policy {
        None => given.orphan.map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background }),
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some("Orphan") => Some(Propagation::Orphan),
        Some(other) => {
            let supported = ["Foreground", "Background", "Orphan", "nil"];
            causes.push(Cause::unsupported("propagationPolicy", &other.into(), &supported));
            None
        }
    };
    causes.extend(check_dry_run(&given.dry_run));
    if !causes.is_empty() {
        return Err(Refusal::invalid_options("DeleteOptions", &causes));
    }
    Ok(DeleteOptions { dry_run: !given.dry_run.is_empty(), propagation, uid: given.uid, version: given.version })
}

#[derive(Default)]
struct Given {
    policy: Option<String>,
    orphan: Option<bool>,
    dry_run: Vec<String>,
    uid: Option<String>,
    version: Option<String>,
}

fn from_query(query: &Query) -> Result<Given, Refusal> {
    query.number("gracePeriodSeconds").map_err(Refusal::bad_request)?;
    Ok(Given {
        policy: query.text("propagationPolicy"),
        orphan: query.switch("orphanDependents"),
        dry_run: query.all("dryRun"),
        uid: query.text("uid"),
        version: query.text("resourceVersion"),
    })
}

fn from_body(body: &[u8], ty: BodyType) -> Result<Given, Refusal> {
    let value = match ty {
        BodyType::Json => {
            let decoded = json::decode(body)
                .map_err(|what| Refusal::bad_request(format!("couldn't get version/kind; json parse error: {what}")))?;
            decoded.value
        }
        BodyType::Yaml => yaml::decode(body).map_err(Refusal::bad_request)?.value,
    };
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Null => return Ok(Given::default()),
        other => {
            let ty = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                \"json:\\\"kind,omitempty\\\"\" }";
            let what = format!("json: cannot unmarshal {} into Go value of type {ty}", kind(&other));
            return Err(Refusal::bad_request(format!("couldn't get version/kind; json parse error: {what}")));
        }
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    if let Some(other) = text("kind").filter(|kind| !kind.is_empty() && *kind != "DeleteOptions") {
        let version = text("apiVersion").unwrap_or_default();
        let what = format!(
            "no kind {other:?} is registered for version {version:?} in scheme \
             \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
        );
        return Err(Refusal::bad_request(what));
    }
    let wrong = |name: &str, value: &Value, ty: &str| {
        Refusal::bad_request(format!(
            "json: cannot unmarshal {} into Go struct field DeleteOptions.{name} of type {ty}",
            kind(value)
        ))
    };
    let mut given = Given::default();
    for (name, value) in &fields {
        match (name.as_str(), value) {
            (_, Value::Null) => {}
            ("propagationPolicy", Value::String(policy)) => given.policy = Some(policy.clone()),
            ("propagationPolicy", other) => return Err(wrong(name, other, "v1.DeletionPropagation")),
            ("orphanDependents", Value::Bool(orphan)) => given.orphan = Some(*orphan),
            ("orphanDependents", other) => return Err(wrong(name, other, "bool")),
            ("gracePeriodSeconds", Value::Number(number)) if number.is_i64() => {}
            ("gracePeriodSeconds", other) => return Err(wrong(name, other, "int64")),
            ("dryRun", Value::Array(items)) => {
                given.dry_run = items.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            }
            ("dryRun", other) => return Err(wrong(name, other, "[]string")),
            ("preconditions", Value::Object(conditions)) => {
                let text = |name: &str| conditions.get(name).and_then(Value::as_str).map(str::to_owned);
                given.uid = text("uid");
                given.version = text("resourceVersion");
            }
            ("preconditions", other) => return Err(wrong(name, other, "v1.Preconditions")),
            _ => {}
        }
    }
    Ok(given)
}
