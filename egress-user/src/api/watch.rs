//! Watches: a stream of events, each once and in order.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::{Stream, unfold};
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use super::form::{self, Include};
use super::json::{Layout, encode};
use super::list::{self, ListOptions};
use super::negotiate::{Accepted, Encoding, Form};
use super::resource::Resource;
use super::status::Refusal;
use super::store::{Change, Store, Stored};
use super::{meta, protobuf};

/// Changes that are looked at in one go.
const BATCH: usize = 64;
/// How often a watch that wants bookmarks gets one.
const BOOKMARK: Duration = Duration::from_secs(60);
/// How long before its end it gets the last.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// How long a watch lasts that says nothing, at least; up to as long again is added.
const DEFAULT: Duration = Duration::from_secs(1800);

/// An event that has not gone out yet. It is written when the client takes it: many wait on a slow one.
enum Event {
    /// Something became of an object.
    Of(&'static str, Stored),
    /// All up to here has been said; and whether that was all that there was at the beginning.
    Bookmark(u64, bool),
    /// The watch cannot go on.
    Error(Value),
}

/// A watch.
pub(super) struct Watch {
    store: Arc<Store>,
    resource: Resource,
    namespace: Option<String>,
    options: ListOptions,
    accepted: Accepted,
    include: Include,
    newest: Receiver<u64>,
    /// The version whose event was the last.
    at: u64,
    pending: VecDeque<Event>,
    /// Whether the columns of a table have been sent.
    columns_sent: bool,
    over: bool,
    end: Instant,
    bookmark: Instant,
}

impl Watch {
    /// Begins a watch.
    ///
    /// # Errors
    /// 500 for a version that is none.
    pub(super) fn new(
        store: &Arc<Store>,
        resource: Resource,
        namespace: Option<String>,
        options: ListOptions,
        accepted: Accepted,
        include: Include,
    ) -> Result<Self, Refusal> {
        let from =
            if options.version.is_empty() { 0 } else { list::version(&options.version).map_err(Refusal::internal)? };
        let lasts = options.timeout_s.map_or_else(
            || DEFAULT + Duration::from_secs(u64::from(uuid::Uuid::new_v4().as_fields().1) % DEFAULT.as_secs()),
            Duration::from_secs,
        );
        let now = Instant::now();
        let end = now + lasts;
        let bookmark = (now + BOOKMARK).min(end.checked_sub(LAST_BOOKMARK).unwrap_or(end));
        let newest = store.subscribe();
        let mut watch = Self {
            store: Arc::clone(store),
            resource,
            namespace,
            options,
            accepted,
            include,
            newest,
            at: from,
            pending: VecDeque::new(),
            columns_sent: false,
            over: false,
            end,
            bookmark,
        };
        watch.begin(from);
        Ok(watch)
    }

    /// What is there already, where that is asked for.
    fn begin(&mut self, from: u64) {
        let initial = self.options.initial.unwrap_or(from == 0);
        if !initial {
            if from == 0 {
                self.at = self.store.state().newest();
            }
            return;
        }
        let state = self.store.state();
        for (key, stored) in state.objects(self.namespace.as_deref()) {
            if self.options.selector.matches(&key.namespace, &key.name, &stored.value) {
                self.pending.push_back(Event::Of("ADDED", stored.clone()));
            }
        }
        self.at = state.newest();
        if self.options.initial == Some(true) && self.options.bookmarks {
            self.pending.push_back(Event::Bookmark(self.at, true));
        }
    }

    /// The events as they go out.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        unfold(self, |mut watch| async move { watch.next().await.map(|bytes| (Ok(bytes), watch)) })
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return self.written(event);
            }
            if self.over {
                return None;
            }
            if self.catch_up() {
                continue;
            }
            let wants_bookmarks = self.options.bookmarks;
            tokio::select! {
                changed = self.newest.changed() => if changed.is_err() {
                    return None;
                },
                () = sleep_until(self.end) => return None,
                () = sleep_until(self.bookmark), if wants_bookmarks => {
                    self.pending.push_back(Event::Bookmark(self.at, false));
                    let last = self.end.checked_sub(LAST_BOOKMARK).unwrap_or(self.end);
                    let next = Instant::now() + BOOKMARK;
                    self.bookmark = if Instant::now() >= last { self.end } else { next.min(last) };
                }
            }
        }
    }

    /// Takes in the next changes; false if there are none.
    fn catch_up(&mut self) -> bool {
        let seen = *self.newest.borrow_and_update();
        if seen <= self.at && self.store.state().newest() <= self.at {
            return false;
        }
        let (changes, floor) = {
            let state = self.store.state();
            (state.changes_after(self.at, BATCH), state.floor())
        };
        let Some(changes) = changes else {
            let message = format!("too old resource version: {} ({floor})", self.at);
            let expired = Refusal::expired(message).to_json();
            self.pending.push_back(Event::Error(expired));
            self.over = true;
            return true;
        };
        for change in &changes {
            self.change(change);
            self.at = change.version;
        }
        !changes.is_empty()
    }

    fn change(&mut self, change: &Change) {
        if self.namespace.as_ref().is_some_and(|namespace| *namespace != change.key.namespace) {
            return;
        }
        let selector = &self.options.selector;
        let selected = |stored: Option<&Stored>| {
            stored.filter(|stored| selector.matches(&change.key.namespace, &change.key.name, &stored.value)).cloned()
        };
        let (before, after) = (selected(change.before.as_ref()), selected(change.after.as_ref()));
        match (before, after) {
            (None, Some(after)) => self.pending.push_back(Event::Of("ADDED", after)),
            (Some(_), Some(after)) => self.pending.push_back(Event::Of("MODIFIED", after)),
            (Some(before), None) => {
                // Of an object that is gone its last state, of one that left the selection its state before; both with
                // the version of the change.
                let last = change.last.clone().unwrap_or_else(|| Stored::new(change.version, before.value));
                self.pending.push_back(Event::Of("DELETED", last));
            }
            (None, None) => {}
        }
    }

    /// An event as it goes out; none where it fits no form that was asked for, which ends the watch.
    fn written(&mut self, event: Event) -> Option<Bytes> {
        let (kind, object) = match event {
            Event::Of(kind, stored) if self.accepted.is_plain_json() => {
                let text = self.resource.text(&stored);
                return Some([format!("{{\"type\":\"{kind}\",\"object\":").as_bytes(), &text, b"}\n"].concat().into());
            }
            Event::Of(kind, stored) => (kind, self.shown(self.resource.shown(&stored))?),
            Event::Bookmark(at, initial_end) => {
                let object = self.bookmark(at, initial_end);
                ("BOOKMARK", self.shown(object)?)
            }
            Event::Error(status) => ("ERROR", status),
        };
        let event = json!({"type": kind, "object": object});
        Some(match self.accepted.encoding {
            Encoding::Protobuf => protobuf::encode_event(&event).into(),
            _ => encode(&event, Layout::Line).into(),
        })
    }

    fn shown(&mut self, object: Value) -> Option<Value> {
        // The form of a list fits no event.
        let Ok(mut object) = form::item(self.resource, object, &self.accepted, self.include) else {
            self.over = true;
            return None;
        };
        if self.accepted.form == Form::Table && self.columns_sent {
            object = form::without_columns(object);
        }
        self.columns_sent = true;
        Some(object)
    }

    fn bookmark(&self, at: u64, initial_end: bool) -> Value {
        let (version, kind) = (self.resource.api_version(), self.resource.kind());
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {}});
        meta::set(&mut object, "resourceVersion", Some(at.to_string().into()));
        if initial_end {
            meta::set(&mut object, "annotations", Some(json!({"k8s.io/initial-events-end": "true"})));
        }
        object
    }
}
