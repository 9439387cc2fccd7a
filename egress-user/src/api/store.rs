//! The store: what is answered is on the disk, every change has a version, and recent versions can be asked for again.
//!
//! Objects, and the changes of the last while, are held in memory and in one redb file. One thread writes: it takes
//! all writes that wait, puts them into one transaction, and answers when that is on the disk; so a killed process
//! loses nothing that was answered, and many writers share the cost of a flush. A write names the version that it is
//! based on and fails when another came first. Versions are numbered over all objects, without gaps in the history.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{oneshot, watch};

const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const NEWEST: &str = "newest";
const FLOOR: &str = "floor";

/// The version of a new store. Not 0 or 1, which clients use with meanings of their own.
const FIRST: u64 = 1000;
/// Writes that may wait; more are turned away.
const QUEUE: usize = 4096;
/// Writes that go into one transaction.
const BATCH: usize = 512;
/// Bytes of one object, as in the original.
const MAX_OBJECT: usize = 1_500_000;
/// Changes that are kept however young they are.
const MAX_CHANGES: usize = 100_000;

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
}

/// Why a write was not done.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Another write came first, or the object is there already, or is gone.
    Stale,
    /// The object is too large.
    TooLarge,
    /// More writes wait than can be served.
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
    /// The object after, if it still is. A deleted one is last seen in `last`.
    pub(super) after: Option<Stored>,
    /// For a deletion: the object's last state.
    pub(super) last: Option<Arc<Value>>,
    at: u64,
}

/// A change on the disk.
#[derive(Serialize, Deserialize)]
struct Record {
    key: Key,
    at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<(u64, Arc<Value>)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<Arc<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Arc<Value>>,
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
        self.history.push_back(change);
    }

    /// How many changes are too old to be kept.
    fn outdated(&self, oldest: u64) -> usize {
        let aged = self.history.partition_point(|change| change.at < oldest);
        aged.max(self.history.len().saturating_sub(MAX_CHANGES))
    }
}

/// The store of one server.
#[derive(Debug)]
pub(super) struct Store {
    state: Arc<RwLock<State>>,
    queue: SyncSender<Job>,
    newest: watch::Receiver<u64>,
}

struct Job {
    write: Write,
    done: oneshot::Sender<Result<Stored, WriteError>>,
}

impl Store {
    /// Opens the store in a directory, or makes a new one there. Changes are kept for `window`.
    ///
    /// # Errors
    /// When the disk refuses, another process has it open, or it is damaged.
    pub(super) fn open(directory: &Path, window: Duration) -> Result<Self, StoreError> {
        let made = std::fs::create_dir_all(directory);
        made.map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join("egressrouters.redb");
        let (database, state) = load(&path)?;
        let state = Arc::new(RwLock::new(state));
        let (queue, jobs) = sync_channel(QUEUE);
        let (announce, newest) = watch::channel(read(&state).newest);
        let writer = Writer { database, state: Arc::clone(&state), window, announce };
        // It ends when the store, and with it the queue, is dropped.
        std::thread::spawn(move || writer.run(&jobs));
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

fn load(path: &Path) -> Result<(Database, State), StoreError> {
    let open = |source: redb::Error| StoreError::Open { path: path.to_owned(), source: Box::new(source) };
    let record = |what: String, source| StoreError::Record { path: path.to_owned(), what, source };
    let database = Database::create(path).map_err(|error| open(error.into()))?;
    make_tables(&database).map_err(open)?;
    let mut state = State::default();
    let tables = database.begin_read().map_err(|error| open(error.into()))?;
    let counters = tables.open_table(COUNTERS).map_err(|error| open(error.into()))?;
    let counter = |name| -> Result<u64, redb::Error> { Ok(counters.get(name)?.map_or(FIRST, |value| value.value())) };
    state.newest = counter(NEWEST).map_err(open)?;
    state.floor = counter(FLOOR).map_err(open)?;
    let objects = tables.open_table(OBJECTS).map_err(|error| open(error.into()))?;
    for entry in objects.iter().map_err(|error| open(error.into()))? {
        let (key, stored) = entry.map_err(|error| open(error.into()))?;
        let (version, bytes) = stored.value();
        let value = serde_json::from_slice(bytes).map_err(|source| record(key.value().to_owned(), source))?;
        state.objects.insert(Key::from_record(key.value()), Stored { version, value: Arc::new(value) });
    }
    let history = tables.open_table(HISTORY).map_err(|error| open(error.into()))?;
    for entry in history.iter().map_err(|error| open(error.into()))? {
        let (version, bytes) = entry.map_err(|error| open(error.into()))?;
        let version = version.value();
        let read: Record =
            serde_json::from_slice(bytes.value()).map_err(|source| record(format!("change {version}"), source))?;
        state.history.push_back(Arc::new(Change {
            version,
            key: read.key,
            before: read.before.map(|(version, value)| Stored { version, value }),
            after: read.after.map(|value| Stored { version, value }),
            last: read.last,
            at: read.at,
        }));
    }
    Ok((database, state))
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(OBJECTS)?;
    transaction.open_table(HISTORY)?;
    transaction.open_table(COUNTERS)?;
    transaction.commit()?;
    Ok(())
}

/// The one that writes.
struct Writer {
    database: Database,
    state: Arc<RwLock<State>>,
    window: Duration,
    announce: watch::Sender<u64>,
}

impl Writer {
    fn run(&self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter().take(BATCH - 1)).collect();
            self.write(batch);
        }
    }

    fn write(&self, batch: Vec<Job>) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut changes: Vec<Arc<Change>> = Vec::new();
        let mut answers = Vec::new();
        for job in batch {
            match self.change(&job.write, &changes, now.as_secs()) {
                Ok(change) => {
                    let change = Arc::new(change);
                    answers.push((job.done, Arc::clone(&change)));
                    changes.push(change);
                }
                // Whoever asked may be gone.
                Err(refused) => drop(job.done.send(Err(refused))),
            }
        }
        if changes.is_empty() {
            return;
        }
        let oldest = now.saturating_sub(self.window).as_secs();
        let outdated = read(&self.state).outdated(oldest);
        let committed = self.commit(&changes, outdated);
        if committed.is_ok() {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            changes.into_iter().for_each(|change| state.apply(change));
            let forgotten = state.history.drain(..outdated).next_back();
            state.floor = forgotten.map_or(state.floor, |last| last.version);
            // There is always one receiver, the store's.
            let _kept = self.announce.send_replace(state.newest);
        }
        for (done, change) in answers {
            let answer = match &committed {
                Ok(()) => {
                    let value =
                        change.after.as_ref().map(|stored| Arc::clone(&stored.value)).or_else(|| change.last.clone());
                    Ok(Stored { version: change.version, value: value.unwrap_or_default() })
                }
                Err(error) => Err(WriteError::Disk(error.to_string())),
            };
            drop(done.send(answer));
        }
    }

    /// What a write changes, after the changes before it in the batch.
    fn change(&self, write: &Write, earlier: &[Arc<Change>], at: u64) -> Result<Change, WriteError> {
        let state = read(&self.state);
        let current = match earlier.iter().rev().find(|change| change.key == write.key) {
            Some(change) => change.after.as_ref(),
            None => state.objects.get(&write.key),
        };
        if current.map(|stored| stored.version) != write.based_on {
            return Err(WriteError::Stale);
        }
        let version = earlier.last().map_or(state.newest, |change| change.version) + 1;
        let (after, last) = match &write.to {
            Target::Object(value) => (Some(Stored { version, value: Arc::new(value.clone()) }), None),
            Target::Gone(value) => (None, Some(Arc::new(value.clone()))),
        };
        let change = Change { version, key: write.key.clone(), before: current.cloned(), after, last, at };
        let size = |stored: &Stored| super::json::compact(&stored.value).len();
        if change.after.as_ref().is_some_and(|stored| size(stored) > MAX_OBJECT) {
            return Err(WriteError::TooLarge);
        }
        Ok(change)
    }

    fn commit(&self, changes: &[Arc<Change>], outdated: usize) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut history = transaction.open_table(HISTORY)?;
            let mut counters = transaction.open_table(COUNTERS)?;
            for change in changes {
                let key = change.key.record();
                match &change.after {
                    Some(stored) => {
                        let bytes = stored.value.to_string();
                        objects.insert(key.as_str(), (stored.version, bytes.as_bytes()))?;
                    }
                    None => {
                        objects.remove(key.as_str())?;
                    }
                }
                history.insert(change.version, encoded(change).as_slice())?;
                counters.insert(NEWEST, change.version)?;
            }
            let state = read(&self.state);
            for change in state.history.iter().take(outdated) {
                history.remove(change.version)?;
                counters.insert(FLOOR, change.version)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn encoded(change: &Change) -> Vec<u8> {
    let record = Record {
        key: change.key.clone(),
        at: change.at,
        before: change.before.as_ref().map(|stored| (stored.version, Arc::clone(&stored.value))),
        after: change.after.as_ref().map(|stored| Arc::clone(&stored.value)),
        last: change.last.clone(),
    };
    // Of maps with text for keys, and numbers: always JSON.
    serde_json::to_vec(&record).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(name: &str, based_on: Option<u64>, value: u64) -> Write {
        Write { key: Key::new("ns", name), based_on, to: Target::Object(json!({"n": value})) }
    }

    #[tokio::test]
    async fn keeps_what_it_answered() {
        let directory = tempfile::tempdir().unwrap();
        let window = Duration::from_secs(300);
        let store = Store::open(directory.path(), window).unwrap();
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
            match Store::open(directory.path(), window) {
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

    #[tokio::test]
    async fn forgets_what_is_old() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), Duration::ZERO).unwrap();
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
