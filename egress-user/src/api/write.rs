//! Create, update, patch.

use serde_json::Value;

use super::managed::{self, Endpoint, Writer};
use super::negotiate::PatchType;
use super::object::{self, FieldValidation, Oddities};
use super::options::WriteOptions;
use super::replace::{Noting, Replacement};
use super::resource::Resource;
use super::status::{Cause, Refusal};
use super::store::{Key, Store, Stored, Target, Write, WriteError};
use super::{apply, meta, patch};
use crate::spec::{API_VERSION, KIND};

/// How often a patch is tried again when another write came between.
pub(super) const ATTEMPTS: usize = 64;
/// Characters of a generated name before the random ones.
const PREFIX: usize = 58;

/// What a write left.
#[derive(Debug)]
pub(super) struct Written {
    /// 200 or 201.
    pub(super) code: u16,
    /// The object.
    pub(super) object: Value,
    /// Warnings on the way.
    pub(super) warnings: Vec<String>,
}

/// The refusal of a write that the store did not do.
pub(super) fn refuse_write(resource: Resource, name: &str, error: WriteError) -> Refusal {
    match error {
        WriteError::Stale => Refusal::modified(resource, name),
        WriteError::TooLarge => Refusal::internal("etcdserver: request is too large"),
        WriteError::Busy => Refusal::too_many_requests(),
        WriteError::Disk(what) => Refusal::internal(what),
    }
}

/// Which namespaces there are.
#[derive(Clone, Debug)]
pub(super) enum Namespaces {
    /// Every one that could be.
    Implicit,
    /// These.
    Only(Vec<String>),
}

impl Namespaces {
    /// Checks that objects can be made in a namespace.
    ///
    /// # Errors
    /// 404.
    pub(super) fn check(&self, name: &str) -> Result<(), Refusal> {
        let exists = match self {
            Self::Implicit => super::names::is_label(name),
            Self::Only(names) => names.iter().any(|one| one == name),
        };
        if exists { Ok(()) } else { Err(Refusal::not_found(Resource::Namespaces, name)) }
    }
}

/// Where writes go.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The store.
    pub(super) store: &'a Store,
    /// Which namespaces there are.
    pub(super) namespaces: &'a Namespaces,
    /// Namespace of the object.
    pub(super) namespace: &'a str,
}

/// Checks the namespace in a body against the path's, and fills it in.
pub(super) fn place(object: &mut Value, namespace: &str) -> Result<(), Refusal> {
    let given = meta::text(object, "namespace");
    if !given.is_empty() && given != namespace {
        let what = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Refusal::bad_request(what));
    }
    meta::set(object, "namespace", Some(namespace.into()));
    Ok(())
}

/// Checks the name in a body against the path's.
pub(super) fn check_name(object: &Value, name: &str) -> Result<(), Refusal> {
    match meta::text(object, "name") {
        "" => {
            let what =
                format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
            Err(Refusal::bad_request(what))
        }
        given if given != name => {
            let what = format!("the name of the object ({given}) does not match the name on the URL ({name})");
            Err(Refusal::bad_request(what))
        }
        _ => Ok(()),
    }
}

/// Makes a new object of a body that was read.
///
/// # Errors
/// What the store, the namespace or the object itself has against it.
pub(super) async fn create(
    target: Place<'_>,
    mut object: Value,
    options: &WriteOptions,
    mut warnings: Vec<String>,
) -> Result<Written, Refusal> {
    let refuse = |refusal: Refusal, warnings: &[String]| refusal.with_warnings(warnings);
    place(&mut object, target.namespace).map_err(|refusal| refuse(refusal, &warnings))?;
    target.namespaces.check(target.namespace).map_err(|refusal| refuse(refusal, &warnings))?;
    warnings.extend(meta::fold_owners(&mut object));
    let now = meta::now();
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta::set(&mut object, field, None);
    }
    meta::set(&mut object, "uid", Some(uuid::Uuid::new_v4().to_string().into()));
    meta::set(&mut object, "creationTimestamp", Some(now.clone().into()));
    meta::set(&mut object, "generation", Some(1.into()));
    let writer = Writer { name: &options.manager, endpoint: Endpoint::Main, now: &now };
    managed::update(object::object_type(), None, &mut object, &writer);
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    store_new(target, object, options, warnings).await
}

/// The common end of create and of an apply that creates.
pub(super) async fn store_new(
    target: Place<'_>,
    mut object: Value,
    options: &WriteOptions,
    mut warnings: Vec<String>,
) -> Result<Written, Refusal> {
    let generate = meta::text(&object, "generateName").to_owned();
    if meta::text(&object, "name").is_empty() && !generate.is_empty() {
        meta::set(&mut object, "name", Some(generated(&generate).into()));
    }
    let name = meta::text(&object, "name").to_owned();
    object::check_kind(&object).map_err(|refusal| refusal.with_warnings(&warnings))?;
    let causes = object::check(&object);
    if !causes.is_empty() {
        return Err(Refusal::invalid(KIND, &name, &causes).with_warnings(&warnings));
    }
    warnings.extend(meta::warnings(None, &object));
    match meta::text(&object, "resourceVersion").parse::<u64>() {
        Ok(0) | Err(_) => {}
        Ok(_) => return Err(Refusal::internal("resourceVersion should not be set on objects to be created")),
    }
    meta::set(&mut object, "resourceVersion", None);
    let key = Key::new(target.namespace, &name);
    if let Some(existing) = target.store.state().get(&key) {
        return Err(exists(&name, existing).with_warnings(&warnings));
    }
    if options.dry_run {
        return Ok(Written { code: 201, object, warnings });
    }
    let write = Write { key, based_on: None, to: Target::Object(object) };
    match target.store.write(write).await {
        Ok(stored) => Ok(Written { code: 201, object: stored.versioned(), warnings }),
        Err(WriteError::Stale) => {
            Err(Refusal::already_exists(Resource::Routers, &name, false).with_warnings(&warnings))
        }
        Err(error) => Err(refuse_write(Resource::Routers, &name, error).with_warnings(&warnings)),
    }
}

fn exists(name: &str, existing: &Stored) -> Refusal {
    Refusal::already_exists(Resource::Routers, name, meta::get(&existing.value, "deletionTimestamp").is_some())
}

/// A name of a prefix and five characters that are not easily mixed up.
pub(super) fn generated(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let cut = prefix.char_indices().nth(PREFIX).map_or(prefix.len(), |(at, _)| at);
    let random = uuid::Uuid::new_v4();
    let letters = random.as_bytes().iter().take(5);
    let letters = letters.filter_map(|byte| ALPHABET.get(usize::from(*byte) % ALPHABET.len()));
    let mut name = prefix.get(..cut).unwrap_or_default().to_owned();
    name.extend(letters.map(|letter| char::from(*letter)));
    name
}

/// Replaces an object, or its status, by a body that was read.
///
/// # Errors
/// What the store or the object itself has against it.
pub(super) async fn update(
    target: Place<'_>,
    name: &str,
    endpoint: Endpoint,
    mut object: Value,
    options: &WriteOptions,
    warnings: Vec<String>,
) -> Result<Written, Refusal> {
    belongs(&mut object, target, name).map_err(|refusal| refusal.with_warnings(&warnings))?;
    let live = find(target, name)?;
    let uid = meta::text(&object, "uid").to_owned();
    if !uid.is_empty() && uid != meta::text(&live.value, "uid") {
        let what = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{}/{}/{}/{name}, ResourceVersion: 0, \
             AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            super::GROUP,
            super::PLURAL,
            target.namespace,
            meta::text(&live.value, "uid")
        );
        return Err(Refusal::conflict(Resource::Routers, super::PLURAL, name, &what));
    }
    let write = Replacement { target, name, endpoint, options, warnings };
    write.store(&live, object, Noting::Update).await?.ok_or_else(|| Refusal::modified(Resource::Routers, name))
}

/// Changes an object, or its status, by a patch.
///
/// # Errors
/// What the store, the patch or the patched object has against it.
pub(super) async fn patch(
    target: Place<'_>,
    name: &str,
    endpoint: Endpoint,
    ty: PatchType,
    body: &[u8],
    options: &WriteOptions,
) -> Result<Written, Refusal> {
    for _ in 0..ATTEMPTS {
        let live = match find(target, name) {
            Ok(live) => live,
            Err(_) if ty == PatchType::Apply && endpoint == Endpoint::Main => {
                return apply::create(target, name, body, options).await;
            }
            Err(refusal) => return Err(refusal),
        };
        let before = live.versioned();
        let (mut object, warnings, noting) = match ty {
            PatchType::Apply => {
                let (config, warnings) = apply::read(body, options.validation)?;
                (apply::applied(&before, config, name, target.namespace, endpoint, options)?, warnings, Noting::Done)
            }
            PatchType::Json | PatchType::Merge => {
                let (object, warnings) = patched(&before, ty, body, options.validation)?;
                (object, warnings, Noting::Update)
            }
        };
        belongs(&mut object, target, name).map_err(|refusal| refusal.with_warnings(&warnings))?;
        let write = Replacement { target, name, endpoint, options, warnings };
        if let Some(written) = write.store(&live, object, noting).await? {
            return Ok(written);
        }
    }
    Err(Refusal::modified(Resource::Routers, name))
}

/// Checks that an object is the one of the path.
fn belongs(object: &mut Value, target: Place<'_>, name: &str) -> Result<(), Refusal> {
    check_name(object, name)?;
    place(object, target.namespace)
}

fn find(target: Place<'_>, name: &str) -> Result<Stored, Refusal> {
    let key = Key::new(target.namespace, name);
    target.store.state().get(&key).cloned().ok_or_else(|| Refusal::not_found(Resource::Routers, name))
}

/// The object after a patch, read again as a body is.
fn patched(
    before: &Value,
    ty: PatchType,
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Refusal> {
    let (mut object, duplicates) = match ty {
        PatchType::Json => patch::json_patch(before, body)?,
        PatchType::Merge | PatchType::Apply => patch::merge_patch(before, body)?,
    };
    let text = patch::shown(before, &object);
    let refuse = |what: &str| Refusal::invalid_patch(&Cause::invalid("patch", &text.as_str().into(), what));
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    if kind.is_empty() {
        return Err(refuse(&format!("Object 'Kind' is missing in '{text}'")));
    }
    let mut oddities = Oddities::of_json(duplicates);
    if object.get("apiVersion").and_then(Value::as_str) != Some(API_VERSION) {
        oddities.unknown.extend(object.get("spec").map(|_| "spec".to_owned()));
        let warnings = oddities.warnings(validation);
        return Err(object::check_kind(&object).err().unwrap_or_else(|| refuse("")).with_warnings(&warnings));
    }
    object::complete(&mut object, &mut oddities.unknown).map_err(|what| refuse(&what))?;
    match oddities.refusal(validation) {
        Some(what) => Err(refuse(&what)),
        None => Ok((object, oddities.warnings(validation))),
    }
}
