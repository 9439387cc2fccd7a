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

use super::form::{self, Include, versioned};
use super::json::{Layout, encode};
use super::list::{self, ListOptions};
use super::negotiate::{Accepted, Encoding, Form};
use super::status::Refusal;
use super::store::{Change, Store, Stored};
use super::{meta, protobuf};
use crate::spec::{API_VERSION, KIND};

/// Changes that are looked at in one go.
const BATCH: usize = 64;
/// How often a watch that wants bookmarks gets one.
const BOOKMARK: Duration = Duration::from_secs(60);
/// How long before its end it gets the last.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// How long a watch lasts that says nothing, at least; up to as long again is added.
const DEFAULT: Duration = Duration::from_secs(1800);

/// A watch.
pub(super) struct Watch {
    store: Arc<Store>,
    namespace: Option<String>,
    options: ListOptions,
    accepted: Accepted,
    include: Include,
    newest: Receiver<u64>,
    /// The version whose event was the last.
    at: u64,
    pending: VecDeque<Bytes>,
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
        let store = Arc::clone(&self.store);
        let state = store.state();
        let namespace = self.namespace.clone();
        for (key, stored) in state.objects(namespace.as_deref()) {
            if self.options.selector.matches(&key.namespace, &key.name, &stored.value) {
                self.event("ADDED", versioned(stored));
            }
        }
        self.at = state.newest();
        if self.options.initial == Some(true) && self.options.bookmarks {
            self.bookmark(true);
        }
    }

    /// The events as they go out.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        unfold(self, |mut watch| async move { watch.next().await.map(|bytes| (Ok(bytes), watch)) })
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
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
                    self.bookmark(false);
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
            self.push(&json!({"type": "ERROR", "object": expired}));
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
            (None, Some(after)) => self.event("ADDED", versioned(&after)),
            (Some(_), Some(after)) => self.event("MODIFIED", versioned(&after)),
            (Some(before), None) => {
                // Of an object that is gone its last state, of one that left the selection its state before; both with
                // the version of the change.
                let value = change.last.clone().unwrap_or(before.value);
                self.event("DELETED", versioned(&Stored { version: change.version, value }));
            }
            (None, None) => {}
        }
    }

    fn event(&mut self, kind: &str, object: Value) {
        let table = self.accepted.form == Form::Table;
        // The form of a list fits no event.
        let Ok(mut object) = form::item(object, &self.accepted, self.include) else {
            self.over = true;
            return;
        };
        if table && self.columns_sent {
            object = form::without_columns(object);
        }
        self.columns_sent = true;
        self.push(&json!({"type": kind, "object": object}));
    }

    fn bookmark(&mut self, initial_end: bool) {
        let mut object = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {}});
        meta::set(&mut object, "resourceVersion", Some(self.at.to_string().into()));
        if initial_end {
            meta::set(&mut object, "annotations", Some(json!({"k8s.io/initial-events-end": "true"})));
        }
        self.event("BOOKMARK", object);
    }

    fn push(&mut self, event: &Value) {
        let bytes = match self.accepted.encoding {
            Encoding::Protobuf => protobuf::encode_event(event),
            _ => encode(event, Layout::Line),
        };
        self.pending.push_back(Bytes::from(bytes));
    }
}
