//! Delete: at once, or when the finalizers are gone.

use serde_json::{Value, json};

use super::meta;
use super::options::{DeleteOptions, Propagation};
use super::resource::Resource;
use super::status::Refusal;
use super::store::{Key, Store, Target, Write, WriteError};
use super::write::{ATTEMPTS, refuse_write};

/// What a delete left.
#[derive(Debug)]
pub(super) enum Deleted {
    /// Nothing; the object was this.
    Gone(Value),
    /// The object, which waits for its finalizers.
    Waiting(Value),
}

/// Deletes an object, or marks it for deletion while it has finalizers.
///
/// # Errors
/// 404, or 409 where a precondition does not hold.
pub(super) async fn delete(
    store: &Store,
    resource: Resource,
    key: &Key,
    options: &DeleteOptions,
) -> Result<Deleted, Refusal> {
    let name = &key.name;
    for _ in 0..ATTEMPTS {
        let live = store.state().get(key).cloned().ok_or_else(|| Refusal::not_found(resource, name))?;
        let before = live.versioned();
        check_preconditions(resource, &before, live.version, options)?;
        let finalizers = finalizers_after(&before, options.propagation);
        let (object, to) = if finalizers.is_empty() {
            (before.clone(), Target::Gone((*live.value).clone()))
        } else {
            let marked = marked(&before, &finalizers);
            let mut stripped = marked.clone();
            meta::set(&mut stripped, "resourceVersion", None);
            (marked, Target::Object(stripped))
        };
        let waits = matches!(to, Target::Object(_));
        if waits && (object == before || options.dry_run) {
            return Ok(Deleted::Waiting(object));
        }
        if options.dry_run {
            return Ok(Deleted::Gone(object));
        }
        match store.write(Write { key: key.clone(), based_on: Some(live.version), to }).await {
            Ok(stored) if waits => return Ok(Deleted::Waiting(stored.versioned())),
            Ok(_) => return Ok(Deleted::Gone(object)),
            Err(WriteError::Stale) => {}
            Err(error) => return Err(refuse_write(resource, name, error)),
        }
    }
    Err(Refusal::modified(resource, name))
}

fn check_preconditions(
    resource: Resource,
    object: &Value,
    version: u64,
    options: &DeleteOptions,
) -> Result<(), Refusal> {
    let name = meta::text(object, "name");
    let uid = meta::text(object, "uid");
    if let Some(wanted) = options.uid.as_ref().filter(|wanted| *wanted != uid) {
        let what = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been \
             deleted and then recreated"
        );
        return Err(Refusal::conflict(resource, resource.kind(), name, &what));
    }
    if let Some(wanted) = options.version.as_ref().filter(|wanted| **wanted != version.to_string()) {
        let what = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        );
        return Err(Refusal::conflict(resource, resource.kind(), name, &what));
    }
    Ok(())
}

/// The finalizers that a delete leaves.
fn finalizers_after(object: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let given = meta::finalizers(object);
    let has = |name: &str| given.iter().any(|finalizer| finalizer == name);
    let orphan = match propagation {
        Some(policy) => policy == Propagation::Orphan,
        None => has("orphan"),
    };
    let foreground = match propagation {
        Some(policy) => policy == Propagation::Foreground,
        None => has("foregroundDeletion"),
    };
    let mut kept: Vec<String> =
        given.into_iter().filter(|name| !matches!(name.as_str(), "orphan" | "foregroundDeletion")).collect();
    if orphan {
        kept.push("orphan".to_owned());
    }
    if foreground {
        kept.push("foregroundDeletion".to_owned());
    }
    kept
}

/// The object as it waits for its finalizers.
fn marked(before: &Value, finalizers: &[String]) -> Value {
    let mut object = before.clone();
    if meta::get(before, "deletionTimestamp").is_none() {
        let generation = meta::get(before, "generation").and_then(Value::as_i64).unwrap_or(0);
        meta::set(&mut object, "deletionTimestamp", Some(meta::now().into()));
        meta::set(&mut object, "deletionGracePeriodSeconds", Some(0.into()));
        meta::set(&mut object, "generation", Some((generation + 1).into()));
    }
    meta::set(&mut object, "finalizers", Some(json!(finalizers)));
    object
}
