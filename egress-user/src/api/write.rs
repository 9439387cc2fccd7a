//! Create, update, patch, apply.

use serde_json::{Value, json};

use super::managed::{self, Endpoint, Writer};
use super::negotiate::PatchType;
use super::object::{self, FieldValidation, Oddities};
use super::options::WriteOptions;
use super::patch;
use super::resource::Resource;
use super::status::{Cause, Refusal};
use super::store::{Key, Store, Stored, Target, Write, WriteError};
use super::{meta, yaml};
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
async fn store_new(
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
    check_name(&object, name).map_err(|refusal| refusal.with_warnings(&warnings))?;
    place(&mut object, target.namespace).map_err(|refusal| refusal.with_warnings(&warnings))?;
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
    write.finish(&live, object, Noting::Update).await?.ok_or_else(|| Refusal::modified(Resource::Routers, name))
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
                return apply_new(target, name, body, options).await;
            }
            Err(refusal) => return Err(refusal),
        };
        let before = live.versioned();
        let (object, warnings, noting) = match ty {
            PatchType::Apply => {
                let (config, warnings) = read_config(body, options.validation)?;
                (applied(&before, config, name, target.namespace, endpoint, options)?, warnings, Noting::Done)
            }
            PatchType::Json | PatchType::Merge => {
                let (object, warnings) = patched(&before, ty, body, options.validation)?;
                (object, warnings, Noting::Update)
            }
        };
        let write = Replacement { target, name, endpoint, options, warnings };
        if let Some(written) = write.patched(&live, object, noting).await? {
            return Ok(written);
        }
    }
    Err(Refusal::modified(Resource::Routers, name))
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

/// Reads the configuration of an apply.
fn read_config(body: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>), Refusal> {
    let decoded = yaml::decode(body);
    let decoded = decoded
        .map_err(|what| Refusal::bad_request(format!("error decoding YAML: error converting YAML to JSON: {what}")))?;
    if !decoded.duplicates.is_empty() && validation == FieldValidation::Strict {
        let lines: Vec<String> = decoded.duplicates.iter().map(|what| format!("\n  {what}")).collect();
        return Err(Refusal::bad_request(format!(
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:{}",
            lines.concat()
        )));
    }
    let warnings = if validation == FieldValidation::Warn { decoded.duplicates } else { Vec::new() };
    match decoded.value {
        Value::Object(_) => Ok((decoded.value, warnings)),
        Value::Null => Ok((json!({}), warnings)),
        other => {
            let kind = super::json::kind(&other);
            Err(Refusal::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} into \
                 Go value of type map[string]interface {{}}"
            )))
        }
    }
}

/// The object after an apply, with its managers noted.
fn applied(
    live: &Value,
    mut config: Value,
    name: &str,
    namespace: &str,
    endpoint: Endpoint,
    options: &WriteOptions,
) -> Result<Value, Refusal> {
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if version != API_VERSION || kind != KIND {
        let version = if version.is_empty() { "/" } else { &version };
        return Err(Refusal::bad_request(format!("invalid object type: {version}, Kind={kind}")));
    }
    if meta::get(&config, "managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Refusal::bad_request("metadata.managedFields must be nil"));
    }
    meta::set(&mut config, "managedFields", None);
    if meta::get(&config, "creationTimestamp").is_some_and(Value::is_null) {
        meta::set(&mut config, "creationTimestamp", None);
    }
    let given = meta::text(&config, "name").to_owned();
    if !given.is_empty() {
        check_name(&config, name)?;
    }
    let elsewhere = meta::text(&config, "namespace");
    if !elsewhere.is_empty() {
        place(&mut config, namespace)?;
    }
    let now = meta::now();
    let writer = Writer { name: &options.manager, endpoint, now: &now };
    let mut object = managed::apply(object::object_type(), live, &config, &writer, options.force)?;
    meta::set(&mut object, "name", Some(name.into()));
    object::default(&mut object);
    let mut unknown = Vec::new();
    meta::normalize(&mut object, &mut unknown).map_err(Refusal::bad_request)?;
    Ok(object)
}

/// An apply to what does not exist makes it.
async fn apply_new(target: Place<'_>, name: &str, body: &[u8], options: &WriteOptions) -> Result<Written, Refusal> {
    let (config, mut warnings) = read_config(body, options.validation)?;
    let empty = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {}});
    let mut object = applied(&empty, config, name, target.namespace, Endpoint::Main, options)?;
    place(&mut object, target.namespace)?;
    let uid = meta::text(&object, "uid");
    if !uid.is_empty() {
        let what = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Refusal::conflict(Resource::Routers, super::PLURAL, name, &what));
    }
    target.namespaces.check(target.namespace)?;
    warnings.extend(meta::fold_owners(&mut object));
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    meta::set(&mut object, "resourceVersion", None);
    meta::set(&mut object, "uid", Some(uuid::Uuid::new_v4().to_string().into()));
    meta::set(&mut object, "creationTimestamp", Some(meta::now().into()));
    meta::set(&mut object, "generation", Some(1.into()));
    store_new(target, object, options, warnings).await
}

/// Whether managers are still to be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noting {
    /// As of an update.
    Update,
    /// It has been done.
    Done,
}

/// A write to an object that is there.
struct Replacement<'a> {
    target: Place<'a>,
    name: &'a str,
    endpoint: Endpoint,
    options: &'a WriteOptions,
    warnings: Vec<String>,
}

impl Replacement<'_> {
    /// The end of a patch: a patch that names no other version is never in conflict. None asks for another attempt.
    async fn patched(self, live: &Stored, mut object: Value, noting: Noting) -> Result<Option<Written>, Refusal> {
        check_name(&object, self.name).map_err(|refusal| refusal.with_warnings(&self.warnings))?;
        place(&mut object, self.target.namespace).map_err(|refusal| refusal.with_warnings(&self.warnings))?;
        self.finish(live, object, noting).await
    }

    /// Checks the new object against the live one and stores it. None if another write came between.
    async fn finish(mut self, live: &Stored, object: Value, noting: Noting) -> Result<Option<Written>, Refusal> {
        let warnings = std::mem::take(&mut self.warnings);
        self.checked(live, object, noting, warnings.clone()).await.map_err(|refusal| refusal.with_warnings(&warnings))
    }

    async fn checked(
        self,
        live: &Stored,
        mut object: Value,
        noting: Noting,
        mut warnings: Vec<String>,
    ) -> Result<Option<Written>, Refusal> {
        let before = live.versioned();
        warnings.extend(meta::fold_owners(&mut object));
        if noting == Noting::Update {
            let now = meta::now();
            let writer = Writer { name: &self.options.manager, endpoint: self.endpoint, now: &now };
            managed::update(object::object_type(), Some(&before), &mut object, &writer);
        }
        self.check_version(&object, live)?;
        let object = self.prepared(&before, object);
        object::check_kind(&object)?;
        // Metadata is checked at several places of the original, and each adds what it finds to the causes.
        let mut causes = Vec::new();
        for _ in 0..2 {
            causes.extend(meta::check_update(&before, &object));
            if self.endpoint == Endpoint::Main {
                causes.extend(meta::check(&object));
            }
        }
        match self.endpoint {
            Endpoint::Main => causes.extend(object::check(&object)),
            Endpoint::Status => causes.extend(object::check_status(&object)),
        }
        if !causes.is_empty() {
            return Err(Refusal::invalid(KIND, self.name, &causes));
        }
        if self.endpoint == Endpoint::Main {
            warnings.extend(meta::warnings(Some(&before), &object));
        }
        if managed::same_but_for_times(&before, &object) {
            return Ok(Some(Written { code: 200, object: before, warnings }));
        }
        let ends = meta::get(&object, "deletionTimestamp").is_some() && meta::finalizers(&object).is_empty();
        if self.options.dry_run {
            return Ok(Some(Written { code: 200, object, warnings }));
        }
        let key = Key::new(self.target.namespace, self.name);
        let mut stripped = object.clone();
        meta::set(&mut stripped, "resourceVersion", None);
        let to = if ends { Target::Gone((*live.value).clone()) } else { Target::Object(stripped) };
        match self.target.store.write(Write { key, based_on: Some(live.version), to }).await {
            // What is gone is shown as it was stored last.
            Ok(_) if ends => Ok(Some(Written { code: 200, object, warnings })),
            Ok(stored) => Ok(Some(Written { code: 200, object: stored.versioned(), warnings })),
            Err(WriteError::Stale) => Ok(None),
            Err(error) => Err(refuse_write(Resource::Routers, self.name, error)),
        }
    }

    fn check_version(&self, object: &Value, live: &Stored) -> Result<(), Refusal> {
        let text = meta::text(object, "resourceVersion");
        let version = if text.is_empty() { Ok(0) } else { text.parse::<u64>() };
        match version {
            Err(_) => Err(Refusal::internal(format!("strconv.ParseUint: parsing {text:?}: invalid syntax"))),
            Ok(0) => {
                let what = "must be specified for an update";
                let cause = Cause::invalid("metadata.resourceVersion", &0.into(), what);
                Err(Refusal::invalid(super::PLURAL, self.name, &[cause]))
            }
            Ok(version) if version != live.version => Err(Refusal::modified(Resource::Routers, self.name)),
            Ok(_) => Ok(()),
        }
    }

    /// What this endpoint may change of the object, and what the server keeps.
    fn prepared(&self, before: &Value, mut object: Value) -> Value {
        if self.endpoint == Endpoint::Status {
            let managers = meta::get(&object, "managedFields").cloned();
            let status = object.get("status").cloned();
            let kind = ["apiVersion", "kind"].map(|name| (name, object.get(name).cloned()));
            let mut new = before.clone();
            meta::set(&mut new, "managedFields", managers);
            if let Some(fields) = new.as_object_mut() {
                fields.remove("status");
                fields.extend(status.map(|status| ("status".to_owned(), status)));
                for (name, value) in kind {
                    fields.extend(value.map(|value| (name.to_owned(), value)));
                }
            }
            return new;
        }
        if meta::text(&object, "uid").is_empty() {
            meta::set(&mut object, "uid", meta::get(before, "uid").cloned());
        }
        meta::set(&mut object, "creationTimestamp", meta::get(before, "creationTimestamp").cloned());
        meta::set(&mut object, "selfLink", None);
        if let Some(time) = meta::get(before, "deletionTimestamp") {
            meta::set(&mut object, "deletionTimestamp", Some(time.clone()));
        }
        if meta::get(&object, "deletionGracePeriodSeconds").is_none() {
            let seconds = meta::get(before, "deletionGracePeriodSeconds").cloned();
            meta::set(&mut object, "deletionGracePeriodSeconds", seconds);
        }
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
            fields.extend(before.get("status").map(|status| ("status".to_owned(), status.clone())));
        }
        let generation = meta::get(before, "generation").and_then(Value::as_i64).unwrap_or(0);
        let changed = before.get("spec") != object.get("spec");
        meta::set(&mut object, "generation", Some((generation + i64::from(changed)).into()));
        object
    }
}
