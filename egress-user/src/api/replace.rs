//! A write to an object that is there: what may change, what the server keeps, what is checked.

use serde_json::Value;

use super::managed::{self, Endpoint, Writer};
use super::options::WriteOptions;
use super::resource::Resource;
use super::status::{Cause, Refusal};
use super::store::{Key, Stored, Target, Write, WriteError};
use super::write::{Place, Written, refuse_write};
use super::{meta, object};
use crate::spec::KIND;

/// Whether managers are still to be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noting {
    /// As of an update.
    Update,
    /// It has been done.
    Done,
}

/// A write to an object that is there.
pub(super) struct Replacement<'a> {
    /// Where.
    pub(super) target: Place<'a>,
    /// Of which object.
    pub(super) name: &'a str,
    /// Through which endpoint.
    pub(super) endpoint: Endpoint,
    /// As it was asked for.
    pub(super) options: &'a WriteOptions,
    /// What has been found on the way here.
    pub(super) warnings: Vec<String>,
}

impl Replacement<'_> {
    /// Checks the new object against the live one and stores it. None if another write came between.
    ///
    /// # Errors
    /// What the object or the store has against it.
    pub(super) async fn store(
        mut self,
        live: &Stored,
        object: Value,
        noting: Noting,
    ) -> Result<Option<Written>, Refusal> {
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
