//! The store: what is answered is on the disk, every change has a version, and recent versions can be asked for again.
//!
//! Objects, and the changes of the last while, are held in memory and in one redb file. One thread writes: it takes
//! all writes that wait, puts them into one transaction, and answers when that is on the disk; so a killed process
//! loses nothing that was answered, and many writers share the cost of a flush. A write names the version that it is
//! based on and fails when another came first. Versions are numbered over all objects, without gaps in the history.

mod disk;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use self::disk::{Writer, load};
use super::{json, meta};

/// Changes that are kept at most, however young they are.
const MAX_CHANGES: usize = 100_000;
/// Bytes of objects that changes are kept for at most: an object that is large is not kept a hundred thousand times.
const MAX_CHANGED_BYTES: usize = 64 * 1024 * 1024;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made.
    #[error("make {}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be opened or read.
    #[error("open {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record cannot be read.
    #[error("read {what} in {}", .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Which record.
        what: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// There is no thread that would write.
    #[error("start the thread that writes {}", .path.display())]
    Writer {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

/// Why a write was not done.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Another write came first, or the object is there already, or is gone.
    Stale,
    /// The object is too large.
    TooLarge,
    /// As many writes wait as may. Those of clients that went away meanwhile are among them.
    Busy,
    /// The disk refused.
    Disk(String),
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    /// Namespace.
    pub(super) namespace: String,
    /// Name.
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The bytes that keys are ordered by: those of `namespace/name`.
    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.namespace.bytes().chain([b'/']).chain(self.name.bytes())
    }

    fn record(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn from_record(record: &str) -> Self {
        let (namespace, name) = record.split_once('/').unwrap_or(("", record));
        Self::new(namespace, name)
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// An object as it is stored: without its version, which stands beside it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The version that it was written with.
    pub(super) version: u64,
    /// The object.
    pub(super) value: Arc<Value>,
    text: Arc<OnceLock<Bytes>>,
}

impl Stored {
    pub(super) fn new(version: u64, value: Arc<Value>) -> Self {
        Self { version, value, text: Arc::default() }
    }

    /// The object with its version in it.
    pub(super) fn versioned(&self) -> Value {
        let mut object = (*self.value).clone();
        meta::set(&mut object, "resourceVersion", Some(self.version.to_string().into()));
        object
    }

    /// The same as JSON, on one line without its end. It is written once, for all who ask: reads, lists and watches.
    pub(super) fn text(&self) -> Bytes {
        self.text.get_or_init(|| json::compact(&self.versioned()).into()).clone()
    }
}

/// One change.
#[derive(Debug)]
pub(super) struct Change {
    /// The version that it made.
    pub(super) version: u64,
    /// What changed.
    pub(super) key: Key,
    /// The object before, if it was there.
    pub(super) before: Option<Stored>,
    /// The object after, if it still is.
    pub(super) after: Option<Stored>,
    /// For a deletion: the object's last state, with the version of the deletion.
    pub(super) last: Option<Stored>,
    at: u64,
}

impl Change {
    /// Bytes of the object that it left.
    fn size(&self) -> usize {
        self.after.as_ref().or(self.last.as_ref()).map_or(0, |stored| stored.text().len())
    }
}

/// What a write does.
#[derive(Debug)]
pub(super) struct Write {
    /// To which object.
    pub(super) key: Key,
    /// The version that it is based on; none for an object that must not be there.
    pub(super) based_on: Option<u64>,
    /// What is to be stored, or the last state of what is to be deleted.
    pub(super) to: Target,
}

/// What is left after a write.
#[derive(Debug)]
pub(super) enum Target {
    /// This object.
    Object(Value),
    /// Nothing; the object was last this.
    Gone(Value),
}

/// What everything is at one moment.
#[derive(Debug, Default)]
pub(super) struct State {
    objects: BTreeMap<Key, Stored>,
    history: VecDeque<Arc<Change>>,
    /// Bytes of the objects in the history.
    changed_bytes: usize,
    newest: u64,
    floor: u64,
}

impl State {
    /// The newest version.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The oldest version whose successors are known.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// An object.
    pub(super) fn get(&self, key: &Key) -> Option<&Stored> {
        self.objects.get(key)
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The namespaces that have objects.
    pub(super) fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.objects.keys().map(|key| key.namespace.clone()).collect();
        names.dedup();
        names
    }

    /// The objects of one namespace or of all, in order.
    pub(super) fn objects<'s>(&'s self, namespace: Option<&'s str>) -> impl Iterator<Item = (&'s Key, &'s Stored)> {
        let from = Key::new(namespace.unwrap_or_default(), "");
        self.objects.range(from..).take_while(move |(key, _)| namespace.is_none_or(|name| key.namespace == name))
    }

    /// The objects as they were at an earlier version, which must not be below the [floor](Self::floor).
    pub(super) fn objects_at(&self, version: u64, namespace: Option<&str>) -> BTreeMap<Key, Stored> {
        let mut objects: BTreeMap<Key, Stored> =
            self.objects(namespace).map(|(key, stored)| (key.clone(), stored.clone())).collect();
        let undone = self.history.iter().rev().take_while(|change| change.version > version);
        for change in undone.filter(|change| namespace.is_none_or(|name| change.key.namespace == name)) {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    /// The changes after a version, at most `limit` of them; none if they are no longer known.
    pub(super) fn changes_after(&self, version: u64, limit: usize) -> Option<Vec<Arc<Change>>> {
        if version < self.floor {
            return None;
        }
        let start = self.history.partition_point(|change| change.version <= version);
        Some(self.history.iter().skip(start).take(limit).cloned().collect())
    }

    fn apply(&mut self, change: Arc<Change>) {
        match &change.after {
            Some(stored) => self.objects.insert(change.key.clone(), stored.clone()),
            None => self.objects.remove(&change.key),
        };
        self.newest = change.version;
        self.remember(change);
    }

    fn remember(&mut self, change: Arc<Change>) {
        self.changed_bytes += change.size();
        self.history.push_back(change);
    }

    /// How many changes are too old to be kept, or too much.
    fn outdated(&self, oldest: u64, max_bytes: usize) -> usize {
        let aged = self.history.partition_point(|change| change.at < oldest);
        let mut outdated = aged.max(self.history.len().saturating_sub(MAX_CHANGES));
        let mut bytes =
            self.changed_bytes - self.history.iter().take(outdated).map(|change| change.size()).sum::<usize>();
        while bytes > max_bytes
            && let Some(change) = self.history.get(outdated)
        {
            bytes -= change.size();
            outdated += 1;
        }
        outdated
    }

    /// Forgets the oldest changes.
    fn forget(&mut self, outdated: usize) {
        for change in self.history.drain(..outdated) {
            self.changed_bytes -= change.size();
            self.floor = change.version;
        }
    }
}

/// The store of one server.
#[derive(Debug)]
pub(super) struct Store {
    state: Arc<RwLock<State>>,
    queue: SyncSender<Job>,
    newest: watch::Receiver<u64>,
}

/// A write that waits.
struct Job {
    write: Write,
    done: oneshot::Sender<Result<Stored, WriteError>>,
}

impl Store {
    /// Opens the store in a file, or makes a new one there. Changes are kept for `window`; `waiting` writes may wait.
    ///
    /// # Errors
    /// When the disk refuses, another process has it open, or it is damaged.
    pub(super) fn open(file: &Path, window: Duration, waiting: usize) -> Result<Self, StoreError> {
        let directory = file.parent().unwrap_or(file);
        let made = std::fs::create_dir_all(directory);
        made.map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let (database, state) = load(file)?;
        let state = Arc::new(RwLock::new(state));
        let (queue, jobs) = sync_channel(waiting);
        let (announce, newest) = watch::channel(read(&state).newest);
        let writer = Writer::new(database, Arc::clone(&state), window, announce);
        // It ends when the store, and with it the queue, is dropped.
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let writer = std::thread::Builder::new().name(name).spawn(move || writer.run(&jobs));
        writer.map_err(|source| StoreError::Writer { path: file.to_owned(), source })?;
        Ok(Self { state, queue, newest })
    }

    /// Everything as it is now. Not to be held across a wait.
    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        read(&self.state)
    }

    /// Tells of every new version.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    /// Writes; returns when the change is on the disk.
    ///
    /// # Errors
    /// [`WriteError`]; nothing has changed then.
    pub(super) async fn write(&self, write: Write) -> Result<Stored, WriteError> {
        let (done, answer) = oneshot::channel();
        match self.queue.try_send(Job { write, done }) {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(WriteError::Disk("the store has been closed".to_owned()))),
            Err(TrySendError::Full(_)) => Err(WriteError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(WriteError::Disk("the store has been closed".to_owned())),
        }
    }
}

fn read(state: &RwLock<State>) -> RwLockReadGuard<'_, State> {
    // A panic while it was held cannot leave it half changed: changes are applied after they are complete.
    state.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::disk::FIRST;
    use super::*;

    fn write(name: &str, based_on: Option<u64>, value: u64) -> Write {
        Write { key: Key::new("ns", name), based_on, to: Target::Object(json!({"n": value})) }
    }

    #[tokio::test]
    async fn keeps_what_it_answered() {
        let directory = tempfile::tempdir().unwrap();
        let window = Duration::from_secs(300);
        let file = directory.path().join("objects.redb");
        let store = Store::open(&file, window, 64).unwrap();
        let a = store.write(write("a", None, 1)).await.unwrap();
        assert_eq!(a.version, FIRST + 1);
        assert!(matches!(store.write(write("a", None, 2)).await, Err(WriteError::Stale)));
        assert!(matches!(store.write(write("a", Some(7), 2)).await, Err(WriteError::Stale)));
        let a = store.write(write("a", Some(a.version), 2)).await.unwrap();
        let gone = Write { key: Key::new("ns", "a"), based_on: Some(a.version), to: Target::Gone(json!({"n": 2})) };
        store.write(write("b", None, 3)).await.unwrap();
        store.write(gone).await.unwrap();
        drop(store);

        // The writer lets go of the file when it has seen the end of the queue.
        let begun = std::time::Instant::now();
        let store = loop {
            match Store::open(&file, window, 64) {
                Ok(store) => break store,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
            }
        };
        let state = store.state();
        assert_eq!((state.newest(), state.floor(), state.len()), (FIRST + 4, FIRST, 1));
        assert_eq!(*state.get(&Key::new("ns", "b")).unwrap().value, json!({"n": 3}));
        let versions: Vec<u64> =
            state.changes_after(FIRST + 1, 9).unwrap().iter().map(|change| change.version).collect();
        assert_eq!(versions, [FIRST + 2, FIRST + 3, FIRST + 4]);
        let then = state.objects_at(FIRST + 2, Some("ns"));
        assert_eq!(then.values().map(|stored| stored.version).collect::<Vec<_>>(), [FIRST + 2]);
    }

    #[test]
    fn forgets_what_is_much() {
        let mut state = State::default();
        for version in 11..=20 {
            let stored = Stored::new(version, Arc::new(json!({"text": "x".repeat(1000)})));
            let key = Key::new("ns", "a");
            state.apply(Arc::new(Change { version, key, before: None, after: Some(stored), last: None, at: 7 }));
        }
        let one = state.changed_bytes / 10;
        assert!(one > 1000);
        assert_eq!(state.outdated(7, one * 10), 0);
        assert_eq!(state.outdated(8, one * 10), 10, "by age");
        assert_eq!(state.outdated(7, one * 4), 6);
        state.forget(6);
        assert_eq!((state.floor(), state.changed_bytes / one, state.outdated(7, one * 4)), (16, 4, 0));
        assert!(state.changes_after(15, 9).is_none() && state.changes_after(16, 9).unwrap().len() == 4);
    }

    #[tokio::test]
    async fn forgets_what_is_old() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("objects.redb"), Duration::ZERO, 64).unwrap();
        let mut version = None;
        for value in 0..3 {
            version = Some(store.write(write("a", version, value)).await.unwrap().version);
            // Seconds are what changes are dated in.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let state = store.state();
        assert!(state.floor() > FIRST && state.changes_after(FIRST, 9).is_none());
        assert_eq!(state.changes_after(state.floor(), 9).map(|changes| changes.len()), Some(1));
    }
}
