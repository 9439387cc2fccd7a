//! The store's file, and the one thread that writes it.

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::{Change, Job, Key, MAX_CHANGED_BYTES, State, StoreError, Stored, Target, Write, WriteError, read};

const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const NEWEST: &str = "newest";
const FLOOR: &str = "floor";

/// The version of a new store. Not 0 or 1, which clients use with meanings of their own.
pub(super) const FIRST: u64 = 1000;
/// Writes that go into one transaction.
const BATCH: usize = 512;
/// Bytes of one object, as in the original.
const MAX_OBJECT: usize = 1_500_000;

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

/// Opens the file and reads what it has.
pub(super) fn load(path: &Path) -> Result<(Database, State), StoreError> {
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
        state.objects.insert(Key::from_record(key.value()), Stored::new(version, Arc::new(value)));
    }
    let history = tables.open_table(HISTORY).map_err(|error| open(error.into()))?;
    for entry in history.iter().map_err(|error| open(error.into()))? {
        let (version, bytes) = entry.map_err(|error| open(error.into()))?;
        let version = version.value();
        let read: Record =
            serde_json::from_slice(bytes.value()).map_err(|source| record(format!("change {version}"), source))?;
        state.remember(Arc::new(Change {
            version,
            key: read.key,
            before: read.before.map(|(version, value)| Stored::new(version, value)),
            after: read.after.map(|value| Stored::new(version, value)),
            last: read.last.map(|value| Stored::new(version, value)),
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
pub(super) struct Writer {
    database: Database,
    state: Arc<RwLock<State>>,
    window: Duration,
    announce: watch::Sender<u64>,
}

impl Writer {
    pub(super) fn new(
        database: Database,
        state: Arc<RwLock<State>>,
        window: Duration,
        announce: watch::Sender<u64>,
    ) -> Self {
        Self { database, state, window, announce }
    }

    /// Writes until the queue is closed.
    pub(super) fn run(&self, jobs: &Receiver<Job>) {
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
            match self.change(job.write, &changes, now.as_secs()) {
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
        let outdated = read(&self.state).outdated(oldest, MAX_CHANGED_BYTES);
        let committed = self.commit(&changes, outdated);
        if committed.is_ok() {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            changes.into_iter().for_each(|change| state.apply(change));
            state.forget(outdated);
            // There is always one receiver, the store's.
            let _kept = self.announce.send_replace(state.newest);
        }
        for (done, change) in answers {
            let answer = match &committed {
                Ok(()) => {
                    let left = change.after.as_ref().or(change.last.as_ref()).cloned();
                    Ok(left.unwrap_or_else(|| Stored::new(change.version, Arc::default())))
                }
                Err(error) => Err(WriteError::Disk(error.to_string())),
            };
            drop(done.send(answer));
        }
    }

    /// What a write changes, after the changes before it in the batch.
    fn change(&self, write: Write, earlier: &[Arc<Change>], at: u64) -> Result<Change, WriteError> {
        let state = read(&self.state);
        let current = match earlier.iter().rev().find(|change| change.key == write.key) {
            Some(change) => change.after.as_ref(),
            None => state.objects.get(&write.key),
        };
        if current.map(|stored| stored.version) != write.based_on {
            return Err(WriteError::Stale);
        }
        let version = earlier.last().map_or(state.newest, |change| change.version) + 1;
        let before = current.cloned();
        let (after, last) = match write.to {
            Target::Object(value) => (Some(Stored::new(version, Arc::new(value))), None),
            Target::Gone(value) => (None, Some(Stored::new(version, Arc::new(value)))),
        };
        if after.as_ref().is_some_and(|stored| stored.text().len() > MAX_OBJECT) {
            return Err(WriteError::TooLarge);
        }
        Ok(Change { version, key: write.key, before, after, last, at })
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
        last: change.last.as_ref().map(|stored| Arc::clone(&stored.value)),
    };
    // Of maps with text for keys, and numbers: always JSON.
    serde_json::to_vec(&record).unwrap_or_default()
}
