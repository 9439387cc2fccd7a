//! `ObjectMeta`: read from a request, completed by the server, checked.

use serde_json::{Map, Value, json};

use super::json::{compact, kind};
use super::names;
use super::status::Cause;

/// Bytes that the annotations of an object may have together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Go's type of each field, as its decoder names it.
const FIELDS: [(&str, &str); 15] = [
    ("annotations", "map[string]string"),
    ("creationTimestamp", "time"),
    ("deletionGracePeriodSeconds", "int64"),
    ("deletionTimestamp", "time"),
    ("finalizers", "[]string"),
    ("generateName", "string"),
    ("generation", "int64"),
    ("labels", "map[string]string"),
    ("managedFields", "[]v1.ManagedFieldsEntry"),
    ("name", "string"),
    ("namespace", "string"),
    ("ownerReferences", "[]v1.OwnerReference"),
    ("resourceVersion", "string"),
    ("selfLink", "string"),
    ("uid", "types.UID"),
];

const OWNER_FIELDS: [&str; 6] = ["apiVersion", "blockOwnerDeletion", "controller", "kind", "name", "uid"];

/// Brings `metadata` into the form that the server keeps, and names what it does not know.
///
/// # Errors
/// Go's message for a field of the wrong type.
pub(super) fn normalize(object: &mut Value, unknown: &mut Vec<String>) -> Result<(), String> {
    let Some(fields) = object.as_object_mut() else { return Ok(()) };
    let given = match fields.remove("metadata") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(metadata)) => metadata,
        Some(other) => {
            return Err(format!("json: cannot unmarshal {} into Go value of type v1.ObjectMeta", kind(&other)));
        }
    };
    let mut metadata = Map::new();
    for (name, value) in given {
        let Some((_, ty)) = FIELDS.iter().find(|(field, _)| *field == name) else {
            unknown.push(format!("metadata.{name}"));
            continue;
        };
        if let Some(value) = field(&name, ty, value, unknown)? {
            metadata.insert(name, value);
        }
    }
    fields.insert("metadata".to_owned(), Value::Object(metadata));
    Ok(())
}

/// A field in the server's form; none when it is as good as absent.
fn field(name: &str, ty: &str, value: Value, unknown: &mut Vec<String>) -> Result<Option<Value>, String> {
    let wrong = |value: &Value, ty: &str| {
        Err(format!("json: cannot unmarshal {} into Go struct field ObjectMeta.{name} of type {ty}", kind(value)))
    };
    match (ty, value) {
        (_, Value::Null) => Ok(None),
        ("string" | "types.UID", Value::String(text)) => Ok((!text.is_empty()).then_some(Value::String(text))),
        ("int64", Value::Number(number)) if number.is_i64() => {
            Ok((name != "generation" || number.as_i64() != Some(0)).then_some(Value::Number(number)))
        }
        ("time", Value::String(text)) => time(&text).map(Some),
        ("map[string]string", Value::Object(given)) => {
            let mut map = Map::new();
            for (key, value) in given {
                match value {
                    Value::String(_) => map.insert(key, value),
                    Value::Null => map.insert(key, "".into()),
                    other => return wrong(&other, "string"),
                };
            }
            Ok((!map.is_empty()).then_some(Value::Object(map)))
        }
        ("[]string", Value::Array(items)) => {
            let mut list = Vec::new();
            for item in items {
                match item {
                    Value::String(_) => list.push(item),
                    Value::Null => list.push("".into()),
                    other => return wrong(&other, "string"),
                }
            }
            Ok((!list.is_empty()).then_some(Value::Array(list)))
        }
        ("[]v1.OwnerReference", Value::Array(items)) => {
            let owners = items.into_iter().enumerate().map(|(index, owner)| reference(index, owner, unknown));
            let owners = owners.collect::<Result<Vec<Value>, String>>()?;
            Ok((!owners.is_empty()).then_some(Value::Array(owners)))
        }
        ("[]v1.ManagedFieldsEntry", list @ Value::Array(_)) => Ok(Some(list)),
        (ty, other) => wrong(&other, ty),
    }
}

fn reference(index: usize, owner: Value, unknown: &mut Vec<String>) -> Result<Value, String> {
    let Value::Object(given) = owner else {
        let kind = kind(&owner);
        return Err(format!(
            "json: cannot unmarshal {kind} into Go struct field ObjectMeta.ownerReferences of type v1.OwnerReference"
        ));
    };
    let mut reference: Map<String, Value> =
        ["apiVersion", "kind", "name", "uid"].iter().map(|name| ((*name).to_owned(), "".into())).collect();
    for (name, value) in given {
        if !OWNER_FIELDS.contains(&name.as_str()) {
            unknown.push(format!("metadata.ownerReferences[{index}].{name}"));
        } else if !value.is_null() {
            reference.insert(name, value);
        }
    }
    Ok(Value::Object(reference))
}

/// A time in whole seconds, as the server keeps it.
fn time(text: &str) -> Result<Value, String> {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(format(time).into()),
        Err(_) => {
            Err(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""))
        }
    }
}

/// RFC 3339 in seconds.
pub(super) fn format(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Now, as objects carry it.
pub(super) fn now() -> String {
    format(jiff::Timestamp::now())
}

/// The text of a metadata field, or nothing.
pub(super) fn text<'o>(object: &'o Value, field: &str) -> &'o str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// Sets a metadata field; none removes it.
pub(super) fn set(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(object) = object.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        match value {
            Some(value) => metadata.insert(field.to_owned(), value),
            None => metadata.remove(field),
        };
    }
}

/// A metadata field.
pub(super) fn get<'o>(object: &'o Value, field: &str) -> Option<&'o Value> {
    object.get("metadata")?.get(field)
}

/// The finalizers of an object.
pub(super) fn finalizers(object: &Value) -> Vec<String> {
    let items = get(object, "finalizers").and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What is wrong with the metadata of an object that is to be stored.
pub(super) fn check(object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let generate_name = text(object, "generateName");
    if !generate_name.is_empty() {
        // A prefix may end in a dash.
        let prefix =
            generate_name.strip_suffix('-').map_or_else(|| generate_name.to_owned(), |rest| format!("{rest}a"));
        for what in names::subdomain(&prefix) {
            causes.push(Cause::invalid("metadata.generateName", &generate_name.into(), &what));
        }
    }
    let name = text(object, "name");
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else {
        for what in names::subdomain(name) {
            causes.push(Cause::invalid("metadata.name", &name.into(), &what));
        }
    }
    check_labels(object, &mut causes);
    check_annotations(object, &mut causes);
    check_owners(object, &mut causes);
    check_finalizers(object, &mut causes);
    causes
}

fn map<'o>(object: &'o Value, field: &str) -> impl Iterator<Item = (&'o String, &'o str)> {
    let entries = get(object, field).and_then(Value::as_object).into_iter().flatten();
    entries.map(|(key, value)| (key, value.as_str().unwrap_or_default()))
}

fn check_labels(object: &Value, causes: &mut Vec<Cause>) {
    for (key, value) in map(object, "labels") {
        for what in names::qualified(key.as_bytes()) {
            causes.push(Cause::invalid("metadata.labels", &key.as_str().into(), &what));
        }
        for what in names::label_value(value.as_bytes()) {
            causes.push(Cause::invalid("metadata.labels", &value.into(), &what));
        }
    }
}

fn check_annotations(object: &Value, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in map(object, "annotations") {
        for what in names::qualified(key.to_lowercase().as_bytes()) {
            causes.push(Cause::invalid("metadata.annotations", &key.as_str().into(), &what));
        }
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        causes.push(Cause::too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
}

fn check_owners(object: &Value, causes: &mut Vec<Cause>) {
    const FIELD: &str = "metadata.ownerReferences";
    let Some(owners) = get(object, "ownerReferences").and_then(Value::as_array) else { return };
    let part = |owner: &Value, field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut controller: Option<String> = None;
    for owner in owners {
        let (version, kind) = (part(owner, "apiVersion"), part(owner, "kind"));
        for (field, value, what) in [
            ("apiVersion", version.as_str(), "version must not be empty"),
            ("kind", &kind, "must not be empty"),
            ("name", &part(owner, "name"), "must not be empty"),
            ("uid", &part(owner, "uid"), "must not be empty"),
        ] {
            if value.is_empty() {
                causes.push(Cause::invalid(format!("{FIELD}.{field}"), &"".into(), what));
            }
        }
        if version == "v1" && kind == "Event" {
            let what = "/v1, Kind=Event is disallowed from being an owner";
            causes.push(Cause::invalid_shown(FIELD, &shown_owner(owner), what));
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            let this = format!("{kind}/{}", part(owner, "name"));
            if let Some(first) = &controller {
                let what = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                );
                let shown: Vec<String> = owners.iter().map(shown_owner).collect();
                causes.push(Cause::invalid_shown(FIELD, &format!("[{}]", shown.join(",")), &what));
            } else {
                controller = Some(this);
            }
        }
    }
}

/// An owner with its fields in Go's order.
fn shown_owner(owner: &Value) -> String {
    let order = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
    let fields = order.iter().filter_map(|name| owner.get(name).map(|value| format!("{name:?}:{}", compact(value))));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

fn check_finalizers(object: &Value, causes: &mut Vec<Cause>) {
    const FIELD: &str = "metadata.finalizers";
    let finalizers = finalizers(object);
    for finalizer in &finalizers {
        for what in names::qualified(finalizer.as_bytes()) {
            causes.push(Cause::invalid(FIELD, &finalizer.as_str().into(), &what));
        }
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        let what = "finalizer orphan and foregroundDeletion cannot be both set";
        causes.push(Cause::invalid(FIELD, &json!(finalizers), what));
    }
}

/// What an update may not do to the metadata.
pub(super) fn check_update(old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if get(old, "deletionTimestamp").is_some() {
        let kept = finalizers(old);
        let added: Vec<String> = finalizers(new).into_iter().filter(|name| !kept.contains(name)).collect();
        if !added.is_empty() {
            let shown: Vec<String> = added.iter().map(|name| format!("{name:?}")).collect();
            let what = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                shown.join(", ")
            );
            causes.push(Cause::forbidden("metadata.finalizers", &what));
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (before, after) = (get(old, field), get(new, field));
        if before != after {
            let shown = after.cloned().unwrap_or(Value::Null);
            causes.push(Cause::invalid(format!("metadata.{field}"), &shown, "field is immutable"));
        }
    }
    causes
}

/// Warnings about finalizers that this write brings in.
pub(super) fn warnings(old: Option<&Value>, new: &Value) -> Vec<String> {
    let kept = old.map(finalizers).unwrap_or_default();
    let plain = finalizers(new).into_iter().filter(|name| !name.contains('/') && !kept.contains(name));
    let plain = plain.filter(|name| !matches!(name.as_str(), "orphan" | "foregroundDeletion" | "kubernetes"));
    plain
        .map(|name| {
            format!(
                "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name to avoid accidental conflicts \
                 with other finalizer writers"
            )
        })
        .collect()
}

/// Folds owners that are given twice; says which.
pub(super) fn fold_owners(object: &mut Value) -> Option<String> {
    let owners = object.pointer_mut("/metadata/ownerReferences")?.as_array_mut()?;
    let mut seen: Vec<Value> = Vec::new();
    let mut twice: Vec<String> = Vec::new();
    owners.retain(|owner| {
        if seen.contains(owner) {
            let uid = owner.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned();
            if !twice.contains(&uid) {
                twice.push(uid);
            }
            return false;
        }
        seen.push(owner.clone());
        true
    });
    (!twice.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may \
             reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        )
    })
}
