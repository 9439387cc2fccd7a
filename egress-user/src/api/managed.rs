//! Who manages which field: what updates and server-side apply do to `metadata.managedFields`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fields::Set;
use super::last_applied;
use super::status::Refusal;
use super::typed::Type;
use crate::spec::API_VERSION;

/// Fields that nobody manages.
const UNMANAGED: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "metadata.name",
    "metadata.namespace",
    "metadata.creationTimestamp",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
];

/// Managers by update that an object keeps apart; the oldest of more are folded into one.
const MAX_UPDATERS: usize = 10;

/// Which of the two endpoints of an object is written through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// The object itself; its status is not touched.
    Main,
    /// Its status alone.
    Status,
}

impl Endpoint {
    fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
        }
    }

    /// What a write through this endpoint cannot change.
    fn ignored(self) -> Set {
        match self {
            Self::Main => Set::of(&["status"]),
            Self::Status => Set::of(&["spec", "metadata"]),
        }
    }
}

/// Who does something, and when.
#[derive(Clone, Debug)]
pub(super) struct Writer<'a> {
    /// Name of the manager.
    pub(super) name: &'a str,
    /// Through which endpoint.
    pub(super) endpoint: Endpoint,
    /// RFC 3339.
    pub(super) now: &'a str,
}

/// What tells managers apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Manager {
    /// `Apply` or `Update`.
    operation: String,
    name: String,
    version: String,
    subresource: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Managed {
    set: Set,
    time: Option<String>,
}

type Managers = BTreeMap<Manager, Managed>;

fn manager(writer: &Writer<'_>, operation: &str) -> Manager {
    Manager {
        operation: operation.to_owned(),
        name: writer.name.to_owned(),
        version: API_VERSION.to_owned(),
        subresource: writer.endpoint.subresource().to_owned(),
    }
}

/// The managers of an object; none if the list says nothing that is understood.
fn read(object: &Value) -> Managers {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let mut managers = Managers::new();
    for entry in entries.into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = text("operation");
        if !matches!(operation.as_str(), "Apply" | "Update") {
            return Managers::new();
        }
        let manager =
            Manager { operation, name: text("manager"), version: text("apiVersion"), subresource: text("subresource") };
        let set = entry.get("fieldsV1").map(Set::from_json).unwrap_or_default();
        let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
        managers.insert(manager, Managed { set, time });
    }
    managers
}

/// The list of an object, sorted by operation, time and manager.
fn write(managers: &Managers) -> Value {
    let mut entries: Vec<(&Manager, &Managed)> = managers.iter().collect();
    entries.sort_by_key(|(manager, managed)| (&manager.operation, &managed.time, &manager.name, &manager.subresource));
    let entries = entries.into_iter().map(|(manager, managed)| {
        let mut entry = json!({
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.version,
            "fieldsType": "FieldsV1",
            "fieldsV1": managed.set.to_json(),
        });
        if let Some(fields) = entry.as_object_mut() {
            if let Some(time) = &managed.time {
                fields.insert("time".to_owned(), time.as_str().into());
            }
            if !manager.subresource.is_empty() {
                fields.insert("subresource".to_owned(), manager.subresource.as_str().into());
            }
        }
        entry
    });
    Value::Array(entries.collect())
}

fn store(object: &mut Value, managers: &Managers) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if managers.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), write(managers));
    }
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// Whether a list asks for all managers to be forgotten: `[{}]`.
fn is_reset(object: &Value) -> bool {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.is_some_and(
        |entries| matches!(entries.as_slice(), [only] if only.as_object().is_some_and(|only| only.is_empty())),
    )
}

/// Notes in `new` who changed what since `live`; `live` is `None` for an object that is created.
pub(super) fn update(ty: &Type, live: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let managers = match live {
        Some(live) if writer.endpoint == Endpoint::Status => read(live),
        _ if is_reset(new) => Managers::new(),
        _ => {
            let given = read(new);
            if given.is_empty() { live.map(read).unwrap_or_default() } else { given }
        }
    };
    // What does not fit the schema has no fields that could be owned.
    if (live.is_some() && managers.is_empty()) || ty.check(new, "", false).is_err() {
        store(new, &Managers::new());
        return;
    }
    let empty = json!({"metadata": {}});
    let managers = changed(ty, live.unwrap_or(&empty), new, managers, writer);
    store(new, &capped(managers));
}

/// The managers after `writer` has changed `live` into `new` by an update.
fn changed(ty: &Type, live: &Value, new: &Value, mut managers: Managers, writer: &Writer<'_>) -> Managers {
    let ignored = writer.endpoint.ignored();
    let comparison = ty.compare(&without_managers(live), &without_managers(new)).without(&ignored);
    let touched = comparison.modified.union(&comparison.added);
    for managed in managers.values_mut() {
        managed.set = managed.set.difference(&touched).difference(&comparison.removed);
    }
    let own = touched.without(&ignored).difference(&Set::of(UNMANAGED));
    managers.retain(|_, managed| !managed.set.is_empty());
    if !own.is_empty() {
        let entry =
            managers.entry(manager(writer, "Update")).or_insert_with(|| Managed { set: Set::default(), time: None });
        entry.set = entry.set.union(&own);
        entry.time = Some(writer.now.to_owned());
    }
    managers
}

/// Folds the oldest managers by update together where there are too many.
fn capped(mut managers: Managers) -> Managers {
    loop {
        let mut updaters: Vec<(&Manager, &Managed)> =
            managers.iter().filter(|(manager, _)| manager.operation == "Update").collect();
        if updaters.len() <= MAX_UPDATERS {
            return managers;
        }
        updaters.sort_by_key(|(manager, managed)| (&managed.time, &manager.name));
        let oldest: Vec<Manager> = updaters.iter().take(2).map(|(manager, _)| (*manager).clone()).collect();
        let mut folded = Managed { set: Set::default(), time: None };
        for manager in &oldest {
            if let Some(managed) = managers.remove(manager) {
                folded.set = folded.set.union(&managed.set);
                folded.time = folded.time.max(managed.time);
            }
        }
        let subresource = oldest.first().map(|manager| manager.subresource.clone()).unwrap_or_default();
        let name = "ancient-changes".to_owned();
        let manager = Manager { operation: "Update".to_owned(), name, version: API_VERSION.to_owned(), subresource };
        managers.insert(manager, folded);
    }
}

/// Applies a configuration to an object; with `force`, fields are taken from their managers. Fields that `kubectl apply`
/// set before it applied on the server's side are its own, whoever is noted as their manager.
///
/// # Errors
/// A conflict, or a configuration that does not fit the schema.
pub(super) fn apply(
    ty: &Type,
    live: &Value,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Refusal> {
    let last = if writer.name == last_applied::MANAGER { last_applied::fields(ty, live) } else { Set::default() };
    let taking = if force { Taking::All } else { Taking::Of(&last) };
    let mut applied = merged(ty, live, config, writer, taking)?;
    if writer.name == last_applied::MANAGER {
        last_applied::note(&mut applied, config);
    }
    Ok(applied)
}

/// Which fields an apply may take from other managers.
#[derive(Clone, Copy)]
enum Taking<'a> {
    All,
    Of(&'a Set),
}

fn merged(ty: &Type, live: &Value, config: &Value, writer: &Writer<'_>, taking: Taking<'_>) -> Result<Value, Refusal> {
    if let Err(what) = ty.check(config, "", true) {
        let name = config.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let message =
            format!("failed to create typed patch object (/{name}; {API_VERSION}, Kind=EgressRouter): {what}");
        return Err(Refusal::internal(message));
    }
    let mut managers = read(live);
    let live = without_managers(live);
    if managers.is_empty() && live.get("spec").is_some() {
        let first = Writer { name: "before-first-apply", ..writer.clone() };
        managers = changed(ty, &json!({"metadata": {}}), &live, managers, &first);
    }
    let ignored = writer.endpoint.ignored();
    let this = manager(writer, "Apply");
    let last = managers.get(&this).cloned();
    let own = ty.fields(config).without(&ignored);
    managers.insert(this.clone(), Managed { set: own, time: last.as_ref().and_then(|last| last.time.clone()) });

    let merged = ty.merge(Some(&live), Some(config)).unwrap_or_default();
    let mut new = prune(ty, merged, &managers, last.as_ref().map(|last| &last.set));
    restore(&mut new, &live, writer.endpoint);
    let comparison = ty.compare(&live, &new).without(&ignored);
    let touched = comparison.modified.union(&comparison.added);
    let mut conflicts = Vec::new();
    for (other, managed) in managers.iter_mut().filter(|(other, _)| **other != this) {
        let conflict = managed.set.intersection(&touched);
        if !conflict.is_empty() {
            managed.set = managed.set.difference(&conflict);
            conflicts.push((other.clone(), conflict));
        }
        managed.set = managed.set.difference(&comparison.removed);
    }
    if let Taking::Of(own) = taking {
        conflicts = conflicts.into_iter().map(|(other, conflict)| (other, conflict.difference(own))).collect();
        conflicts.retain(|(_, conflict)| !conflict.is_empty());
        if !conflicts.is_empty() {
            return Err(refused(&conflicts));
        }
    }
    if let Some(managed) = managers.get_mut(&this) {
        managed.set = managed.set.difference(&Set::of(UNMANAGED));
    }
    managers.retain(|_, managed| !managed.set.is_empty());
    // An apply that changes nothing of the object has no time, even where it is a manager's first.
    if new != live
        && let Some(managed) = managers.get_mut(&this)
    {
        managed.time = Some(writer.now.to_owned());
    }
    store(&mut new, &managers);
    Ok(new)
}

/// Puts back what the endpoint cannot change.
fn restore(new: &mut Value, live: &Value, endpoint: Endpoint) {
    let Some(fields) = new.as_object_mut() else { return };
    if endpoint == Endpoint::Main {
        match live.get("status") {
            Some(status) => fields.insert("status".to_owned(), status.clone()),
            None => fields.remove("status"),
        };
    }
}

/// Takes out what this manager applied before, does not apply now, and nobody else owns.
fn prune(ty: &Type, merged: Value, managers: &Managers, last: Option<&Set>) -> Value {
    let Some(last) = last.filter(|last| !last.is_empty()) else { return merged };
    let named = |set: &Set| ty.with_named(set);
    let pruned = ty.remove(&merged, &named(last));
    let all = named(&ty.fields(&merged));
    let owned = managers.values().fold(Set::default(), |all, managed| all.union(&managed.set));
    let gone = all.difference(&named(&ty.fields(&pruned))).difference(&named(&owned));
    let pruned = ty.remove(&merged, &gone);
    let gone = all.difference(&named(&ty.fields(&pruned))).intersection(&named(last));
    ty.remove(&merged, &gone)
}

fn refused(conflicts: &[(Manager, Set)]) -> Refusal {
    let mut found: Vec<(String, Vec<String>)> = conflicts
        .iter()
        .map(|(manager, set)| {
            let mut who = format!("{:?}", manager.name);
            if !manager.subresource.is_empty() {
                who.push_str(&format!(" with subresource {:?}", manager.subresource));
            }
            if manager.operation == "Update" {
                who.push_str(&format!(" using {}", manager.version));
            }
            (who, set.shown())
        })
        .collect();
    found.sort();
    let count: usize = found.iter().map(|(_, fields)| fields.len()).sum();
    let text = match found.as_slice() {
        [(who, fields)] if count == 1 => {
            format!("Apply failed with 1 conflict: conflict with {who}: {}", fields.concat())
        }
        many => {
            let lists = many.iter().map(|(who, fields)| {
                let fields: Vec<String> = fields.iter().map(|field| format!("- {field}")).collect();
                format!("conflicts with {who}:\n{}", fields.join("\n"))
            });
            format!("Apply failed with {count} conflicts: {}", lists.collect::<Vec<_>>().join("\n"))
        }
    };
    let causes = found
        .iter()
        .flat_map(|(who, fields)| fields.iter().map(move |field| (format!("conflict with {who}"), field.clone())));
    Refusal::apply_conflict(text, causes.collect())
}

/// Whether two objects are the same but for the times of their managers.
pub(super) fn same_but_for_times(one: &Value, other: &Value) -> bool {
    let timeless = |object: &Value| {
        read(object).into_iter().map(|(manager, managed)| (manager, managed.set)).collect::<BTreeMap<_, _>>()
    };
    without_managers(one) == without_managers(other) && timeless(one) == timeless(other)
}
