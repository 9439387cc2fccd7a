//! Events as they are written, kept and forgotten.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, interval};

use super::{FIELDS, KIND, in_own_words};
use crate::api::delete::delete;
use crate::api::json::{self, kind};
use crate::api::negotiate::{BodyType, PatchType};
use crate::api::options::{DeleteOptions, WriteOptions};
use crate::api::resource::Resource;
use crate::api::status::{Cause, Refusal};
use crate::api::store::{Key, Store, Stored, Target, Write, WriteError};
use crate::api::write::{ATTEMPTS, Namespaces, check_name, generated, place, refuse_write};
use crate::api::{meta, patch, yaml};

/// Bytes of one event altogether: there are many, and whoever may tell of one may tell of many.
const MAX_EVENT: usize = 16 * 1024;
/// Bytes of one event's message, as in the original.
const MAX_MESSAGE: usize = 1024;
/// Bytes of its shorter texts, as in the original.
const MAX_WORD: usize = 128;

/// The events of a server.
#[derive(Clone, Copy)]
pub(in crate::api) struct Events<'a> {
    /// Where they are kept.
    pub(in crate::api) store: &'a Store,
    /// Which namespaces there are.
    pub(in crate::api) namespaces: &'a Namespaces,
    /// The namespace.
    pub(in crate::api) namespace: &'a str,
    /// In whose words.
    pub(in crate::api) resource: Resource,
    /// How many.
    pub(in crate::api) keeping: Keeping,
}

impl Events<'_> {
    /// Makes one.
    ///
    /// # Errors
    /// What the event, or the store, has against it.
    pub(in crate::api) async fn create(
        self,
        body: &[u8],
        ty: BodyType,
        options: &WriteOptions,
    ) -> Result<Value, Refusal> {
        let mut event = self.read(decoded(body, ty)?)?;
        place(&mut event, self.namespace)?;
        self.namespaces.check(self.namespace)?;
        let prefix = meta::text(&event, "generateName").to_owned();
        if meta::text(&event, "name").is_empty() && !prefix.is_empty() {
            meta::set(&mut event, "name", Some(generated(&prefix).into()));
        }
        self.check(&event)?;
        meta::set(&mut event, "uid", Some(uuid::Uuid::new_v4().to_string().into()));
        meta::set(&mut event, "creationTimestamp", Some(meta::now().into()));
        meta::set(&mut event, "resourceVersion", None);
        let name = meta::text(&event, "name").to_owned();
        let key = Key::new(self.namespace, &name);
        if self.store.state().get(&key).is_some() {
            return Err(Refusal::already_exists(self.resource, &name, false));
        }
        if options.dry_run {
            return Ok(self.words(event));
        }
        self.make_room().await;
        match self.store.write(Write { key, based_on: None, to: Target::Object(event) }).await {
            Ok(stored) => Ok(self.resource.shown(&stored)),
            Err(WriteError::Stale) => Err(Refusal::already_exists(self.resource, &name, false)),
            Err(error) => Err(refuse_write(self.resource, &name, error)),
        }
    }

    /// Replaces one.
    ///
    /// # Errors
    /// As [`create`](Self::create), and 404 or 409.
    pub(in crate::api) async fn update(
        self,
        name: &str,
        body: &[u8],
        ty: BodyType,
        options: &WriteOptions,
    ) -> Result<Value, Refusal> {
        let event = decoded(body, ty)?;
        let live = self.find(name)?;
        let written = self.replace(name, &live, event, options).await?;
        written.ok_or_else(|| Refusal::modified(self.resource, name))
    }

    /// Patches one.
    ///
    /// # Errors
    /// As [`update`](Self::update), and 415 for an apply.
    pub(in crate::api) async fn patch(
        self,
        name: &str,
        ty: PatchType,
        body: &[u8],
        options: &WriteOptions,
    ) -> Result<Value, Refusal> {
        for _ in 0..ATTEMPTS {
            let live = self.find(name)?;
            let before = self.resource.shown(&live);
            let (event, _) = match ty {
                PatchType::Json => patch::json_patch(&before, body)?,
                PatchType::Merge => patch::merge_patch(&before, body)?,
                PatchType::Apply => {
                    let taken = "application/json-patch+json, application/merge-patch+json";
                    return Err(Refusal::unsupported_media_type(taken));
                }
            };
            if let Some(written) = self.replace(name, &live, event, options).await? {
                return Ok(written);
            }
        }
        Err(Refusal::modified(self.resource, name))
    }

    /// Stores another event in the place of a live one; none if a write came between.
    async fn replace(
        self,
        name: &str,
        live: &Stored,
        event: Value,
        options: &WriteOptions,
    ) -> Result<Option<Value>, Refusal> {
        let mut event = self.read(event)?;
        check_name(&event, name)?;
        place(&mut event, self.namespace)?;
        let based_on = meta::text(&event, "resourceVersion");
        if !based_on.is_empty() && based_on != live.version.to_string() {
            return Err(Refusal::modified(self.resource, name));
        }
        for field in ["uid", "creationTimestamp"] {
            meta::set(&mut event, field, meta::get(&live.value, field).cloned());
        }
        meta::set(&mut event, "resourceVersion", None);
        self.check(&event)?;
        if options.dry_run {
            return Ok(Some(self.words(event)));
        }
        let key = Key::new(self.namespace, name);
        match self.store.write(Write { key, based_on: Some(live.version), to: Target::Object(event) }).await {
            Ok(stored) => Ok(Some(self.resource.shown(&stored))),
            Err(WriteError::Stale) => Ok(None),
            Err(error) => Err(refuse_write(self.resource, name, error)),
        }
    }

    fn find(self, name: &str) -> Result<Stored, Refusal> {
        let found = self.store.state().get(&Key::new(self.namespace, name)).cloned();
        found.ok_or_else(|| Refusal::not_found(self.resource, name))
    }

    fn words(self, event: Value) -> Value {
        if self.resource == Resource::Events { in_own_words(event) } else { event }
    }

    /// An event of a request, in the core group's words. Unknown fields are left out.
    fn read(self, event: Value) -> Result<Value, Refusal> {
        let Value::Object(mut given) = event else {
            return Err(Refusal::bad_request(format!("an Event is an object, not a {}", kind(&event))));
        };
        let text = |name: &str| given.get(name).and_then(Value::as_str).unwrap_or_default();
        let (version, kind_given) = (text("apiVersion"), text("kind"));
        let version_fits = version == self.resource.api_version() || version.is_empty();
        if !version_fits || !matches!(kind_given, KIND | "") {
            let what = format!(
                "{kind_given} in version {version:?} cannot be handled as a {KIND} of {:?}",
                self.resource.api_version()
            );
            return Err(Refusal::bad_request(what));
        }
        let mut fields = Map::new();
        for (core, own, ty) in FIELDS {
            let name = if self.resource == Resource::Events { own } else { core };
            match given.remove(name) {
                None | Some(Value::Null) => {}
                Some(value) if ty.fits(&value) => {
                    fields.insert(core.to_owned(), value);
                }
                Some(other) => {
                    let what = format!("json: cannot unmarshal {} into Go struct field Event.{name}", kind(&other));
                    return Err(Refusal::bad_request(what));
                }
            }
        }
        fields.insert("kind".to_owned(), KIND.into());
        fields.insert("apiVersion".to_owned(), crate::api::VERSION.into());
        let mut event = Value::Object(fields);
        meta::normalize(&mut event, &mut Vec::new()).map_err(Refusal::bad_request)?;
        meta::set(&mut event, "managedFields", None);
        Ok(event)
    }

    /// Whether an event may be stored.
    fn check(self, event: &Value) -> Result<(), Refusal> {
        let mut causes = meta::check(event);
        let text = |place: &str| event.pointer(place).and_then(Value::as_str).unwrap_or_default();
        let about = text("/involvedObject/namespace");
        if about != self.namespace {
            let what = "does not match event.namespace";
            causes.push(Cause::invalid("involvedObject.namespace", &about.into(), what));
        }
        if text("/message").len() > MAX_MESSAGE {
            causes.push(Cause::too_long("message", MAX_MESSAGE));
        }
        for word in ["reason", "action", "reportingComponent", "reportingInstance", "type"] {
            if text(&format!("/{word}")).len() > MAX_WORD {
                causes.push(Cause::too_long(word, MAX_WORD));
            }
        }
        // Events of the newer kind say when, why and who.
        if !text("/eventTime").is_empty() {
            for word in ["reason", "action", "reportingComponent", "reportingInstance"] {
                if text(&format!("/{word}")).is_empty() {
                    causes.push(Cause::required(word, ""));
                }
            }
            if !matches!(text("/type"), "Normal" | "Warning") {
                causes.push(Cause::invalid("type", &text("/type").into(), "has invalid value"));
            }
        }
        if json::compact(event).len() > MAX_EVENT {
            return Err(Refusal::too_large(&format!("limit is {MAX_EVENT}")));
        }
        let name = meta::text(event, "name");
        if causes.is_empty() { Ok(()) } else { Err(Refusal::invalid_event(self.resource, name, &causes)) }
    }

    /// Lets the oldest go where there are too many. Those who make events at the same time may let too few go, which the
    /// next one makes up for.
    async fn make_room(self) {
        let mut oldest: Vec<(u64, Key)> = {
            let state = self.store.state();
            if state.len() < self.keeping.max {
                return;
            }
            state.objects(None).map(|(key, stored)| (stored.version, key.clone())).collect()
        };
        oldest.sort_unstable_by_key(|(version, _)| *version);
        let surplus = oldest.len() + 1 - self.keeping.max;
        for (_, key) in oldest.iter().take(surplus) {
            let _gone = delete(self.store, Resource::CoreEvents, key, &DeleteOptions::default()).await;
        }
    }
}

fn decoded(body: &[u8], ty: BodyType) -> Result<Value, Refusal> {
    let value = match ty {
        BodyType::Json => json::decode(body).map(|decoded| decoded.value),
        BodyType::Yaml => yaml::decode(body).map(|decoded| decoded.value),
    };
    value.map_err(|what| Refusal::bad_request(format!("couldn't get version/kind; json parse error: {what}")))
}

/// How many events are kept, and how long.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct Keeping {
    /// So many; those that were written the longest ago make room.
    pub(in crate::api) max: usize,
    /// For so long after an event was written last, or after the server began.
    pub(in crate::api) ttl: Duration,
    /// How often the old ones are looked for.
    pub(in crate::api) sweep: Duration,
}

/// As long as in the original.
pub(in crate::api) const KEEPING: Keeping =
    Keeping { max: 10_000, ttl: Duration::from_secs(3600), sweep: Duration::from_secs(60) };

/// Lets events go that nobody has written again for their time, for as long as this is awaited.
pub(in crate::api) async fn forget_old(store: Arc<Store>, keeping: Keeping) {
    // Versions rise with time: what is not above the newest of an hour ago was not written since.
    let mut newest: VecDeque<(Instant, u64)> = VecDeque::new();
    let mut often = interval(keeping.sweep);
    loop {
        let now = often.tick().await;
        newest.push_back((now, store.state().newest()));
        let mut outlived = None;
        while let Some((_, version)) = newest.pop_front_if(|(then, _)| *then + keeping.ttl <= now) {
            outlived = Some(version);
        }
        let Some(outlived) = outlived else { continue };
        let old: Vec<Key> = {
            let state = store.state();
            state.objects(None).filter(|(_, stored)| stored.version <= outlived).map(|(key, _)| key.clone()).collect()
        };
        for key in old {
            let _gone = delete(&store, Resource::CoreEvents, &key, &DeleteOptions::default()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("events.redb"), Duration::from_secs(300), 64).unwrap();
        (directory, Arc::new(store))
    }

    async fn write(store: &Store, name: &str) {
        let live = store.state().get(&Key::new("ns", name)).map(|stored| stored.version);
        let to = Target::Object(json!({"metadata": {"name": name}}));
        store.write(Write { key: Key::new("ns", name), based_on: live, to }).await.unwrap();
    }

    #[tokio::test]
    async fn the_old_go_and_those_that_happen_again_stay() {
        let (_directory, store) = store();
        write(&store, "once").await;
        let keeping = Keeping { max: 10, ttl: Duration::from_secs(1), sweep: Duration::from_millis(20) };
        let sweeper = tokio::spawn(forget_old(Arc::clone(&store), keeping));
        let there = |name: &str| store.state().get(&Key::new("ns", name)).is_some();
        let begun = Instant::now();
        while there("once") {
            // Written over and over: never old.
            write(&store, "again").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(begun.elapsed() < Duration::from_secs(20), "the old one stays");
        }
        assert!(begun.elapsed() >= keeping.ttl && there("again"));
        sweeper.abort();
    }

    #[tokio::test]
    async fn the_oldest_make_room() {
        let (_directory, store) = store();
        let keeping = Keeping { max: 10, ..KEEPING };
        let namespaces = Namespaces::Implicit;
        let events =
            Events { store: &store, namespaces: &namespaces, namespace: "ns", resource: Resource::CoreEvents, keeping };
        let options =
            crate::api::options::of_write(&Default::default(), None, crate::api::options::Verb::Create).unwrap();
        for index in 0..15 {
            let name = format!("e{index:02}");
            let event = json!({"metadata": {"name": name}, "involvedObject": {"namespace": "ns"}}).to_string();
            events.create(event.as_bytes(), BodyType::Json, &options).await.unwrap();
        }
        let state = store.state();
        let left: Vec<&str> = state.objects(None).map(|(key, _)| key.name.as_str()).collect();
        assert_eq!(left, ["e05", "e06", "e07", "e08", "e09", "e10", "e11", "e12", "e13", "e14"]);
    }
}
