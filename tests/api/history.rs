//! A history of concurrent writes and reads, checked against what one watch saw: each read must be explained by one moment
//! between its beginning and its end, and each change by one answered write.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use egress_lab::https::{Client, Connection, Request, Response};
use egress_lab::random::Random;
use serde_json::{Value, json};

use crate::server::Server;
use crate::strength::{PATH, count, note, object, version};

/// What a key holds: the number that a write gave it.
type State = BTreeMap<String, u64>;

/// What somebody did, or saw.
#[derive(Clone, Debug)]
enum Seen {
    /// A write was answered with this version.
    Wrote { key: String, number: u64, version: u64 },
    /// A delete was answered.
    Deleted { key: String },
    /// An object was there.
    Read { key: String, number: u64, version: u64 },
    /// An object was not there.
    Missed { key: String },
    /// A list of all.
    Listed { version: u64, state: State },
}

#[derive(Clone, Debug)]
struct Step {
    began: Instant,
    ended: Instant,
    seen: Seen,
}

/// One who writes and reads at random.
struct Actor<'s> {
    client: Client,
    connection: Connection,
    random: Random,
    /// Numbers are given once in the whole history.
    number: u64,
    history: &'s Mutex<Vec<Step>>,
}

impl Actor<'_> {
    fn call(&mut self, method: &str, target: &str, body: Option<&Value>) -> Response {
        let body = body.map(Value::to_string);
        self.client.exchange(&mut self.connection, &Request::new(method, target, body.as_deref())).unwrap()
    }

    fn act(&mut self) {
        let key = format!("k{}", self.random.below(4));
        let target = format!("{PATH}/{key}");
        self.number += 1;
        let number = self.number;
        let labels = json!({"n": number.to_string()});
        let began = Instant::now();
        let wrote = |answer: &Response| {
            let version = version(&answer.json().unwrap());
            Seen::Wrote { key: key.clone(), number, version }
        };
        let seen = match self.random.below(7) {
            0 => {
                let mut new: Value = serde_json::from_str(&object(&key, "10.0.0.1")).unwrap();
                new["metadata"]["labels"] = labels;
                let answer = self.call("POST", PATH, Some(&new));
                match answer.status {
                    201 => Some(wrote(&answer)),
                    409 => None,
                    other => panic!("create: {other}"),
                }
            }
            1 => {
                let live = self.call("GET", &target, None);
                let mut new = live.json().unwrap();
                if live.status == 200 {
                    new["metadata"]["labels"] = labels;
                    let answer = self.call("PUT", &target, Some(&new));
                    match answer.status {
                        200 => Some(wrote(&answer)),
                        404 | 409 => None,
                        other => panic!("replace: {other}"),
                    }
                } else {
                    None
                }
            }
            2 | 3 => {
                let answer = self.call("PATCH", &target, Some(&json!({"metadata": {"labels": labels}})));
                match answer.status {
                    200 => Some(wrote(&answer)),
                    404 => Some(Seen::Missed { key }),
                    other => panic!("patch: {other}"),
                }
            }
            4 => match self.call("DELETE", &target, None).status {
                200 => Some(Seen::Deleted { key }),
                404 => Some(Seen::Missed { key }),
                other => panic!("delete: {other}"),
            },
            5 => {
                let answer = self.call("GET", &target, None);
                match answer.status {
                    200 => {
                        let object = answer.json().unwrap();
                        Some(Seen::Read { key, number: number_of(&object), version: version(&object) })
                    }
                    404 => Some(Seen::Missed { key }),
                    other => panic!("get: {other}"),
                }
            }
            _ => {
                let list = self.call("GET", PATH, None).json().unwrap();
                let items = list["items"].as_array().unwrap();
                let state = items.iter().map(|item| (name_of(item), number_of(item))).collect();
                Some(Seen::Listed { version: version(&list), state })
            }
        };
        if let Some(seen) = seen {
            self.history.lock().unwrap().push(Step { began, ended: Instant::now(), seen });
        }
    }
}

fn name_of(object: &Value) -> String {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap().to_owned()
}

fn number_of(object: &Value) -> u64 {
    object.pointer("/metadata/labels/n").and_then(Value::as_str).unwrap().parse().unwrap()
}

/// A change, as the watch told it.
#[derive(Debug)]
struct Change {
    kind: String,
    key: String,
    number: u64,
}

/// The changes after a version, as one watch tells them.
fn log(client: &Client, from: u64) -> BTreeMap<u64, Change> {
    let target = format!("{PATH}?watch=true&resourceVersion={from}&timeoutSeconds=1");
    let answer = client.call("GET", &target, None).unwrap();
    let lines = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let event: Value = serde_json::from_slice(line).unwrap();
            let object = &event["object"];
            let kind = event["type"].as_str().unwrap().to_owned();
            (version(object), Change { kind, key: name_of(object), number: number_of(object) })
        })
        .collect()
}

/// What a history must be explained by.
struct Explained {
    first: u64,
    log: BTreeMap<u64, Change>,
    /// What there was at each version.
    states: BTreeMap<u64, State>,
    /// When each version's write began and ended, where that is known.
    times: BTreeMap<u64, (Instant, Instant)>,
}

impl Explained {
    /// The versions that somebody may have seen who asked between two moments: no older than every write that had been
    /// answered, no newer than every write that had begun.
    fn window(&self, began: Instant, ended: Instant) -> std::ops::RangeInclusive<u64> {
        let oldest =
            self.times.iter().filter(|(_, (_, answered))| *answered < began).map(|(version, _)| *version).max();
        let too_new = self.times.iter().filter(|(_, (asked, _))| *asked > ended).map(|(version, _)| *version).min();
        let newest = *self.states.keys().next_back().unwrap();
        oldest.unwrap_or(self.first)..=too_new.map_or(newest, |version| version - 1)
    }

    fn check(&self, step: &Step) {
        let window = self.window(step.began, step.ended);
        let explained = match &step.seen {
            Seen::Wrote { key, number, version } => {
                let change = &self.log[version];
                change.kind != "DELETED" && change.key == *key && change.number == *number
            }
            Seen::Deleted { key } => window.clone().any(|version| {
                self.log.get(&version).is_some_and(|change| change.kind == "DELETED" && change.key == *key)
            }),
            Seen::Read { key, number, version } => {
                self.log[version].number == *number
                    && window.clone().any(|at| self.states[&at].get(key) == Some(number))
            }
            Seen::Missed { key } => window.clone().any(|version| !self.states[&version].contains_key(key)),
            Seen::Listed { version, state } => window.contains(version) && self.states[version] == *state,
        };
        assert!(explained, "{:?} is not explained by {window:?}", step.seen);
    }
}

#[test]
fn every_read_and_every_change_is_explained() {
    let (actors, steps) = (6, count(80, 1500));
    let seed = Random::seed();
    let server = Server::start(&[]);
    let client = server.client();
    let first = version(&client.call("GET", PATH, None).unwrap().json().unwrap());
    let history = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for actor in 0..actors {
            let (client, history) = (client.clone(), &history);
            scope.spawn(move || {
                let connection = client.connect().unwrap();
                let random = Random::new(seed + actor);
                let mut actor = Actor { client, connection, random, number: actor * 1_000_000, history };
                (0..steps).for_each(|_| actor.act());
            });
        }
    });
    let history = history.into_inner().unwrap();
    let log = log(&client, first);
    let newest = first + log.len() as u64;
    assert!(log.keys().copied().eq(first + 1..=newest), "versions without gaps; EGRESS_SEED={seed}");

    let mut states = BTreeMap::from([(first, State::new())]);
    let mut state = State::new();
    for (version, change) in &log {
        match change.kind.as_str() {
            "DELETED" => assert_eq!(state.remove(&change.key), Some(change.number), "the last state of what went"),
            "ADDED" => assert_eq!(state.insert(change.key.clone(), change.number), None, "new: {change:?}"),
            _ => assert!(state.insert(change.key.clone(), change.number).is_some(), "there before: {change:?}"),
        }
        states.insert(*version, state.clone());
    }
    // Each change is one answered write, and no write is answered without one.
    let writes = history.iter().filter_map(|step| match &step.seen {
        Seen::Wrote { version, .. } => Some((*version, (step.began, step.ended))),
        _ => None,
    });
    let times: BTreeMap<u64, (Instant, Instant)> = writes.collect();
    let deleted = history.iter().filter(|step| matches!(step.seen, Seen::Deleted { .. })).count();
    let gone = log.values().filter(|change| change.kind == "DELETED").count();
    assert_eq!((times.len() + deleted, deleted), (log.len(), gone), "EGRESS_SEED={seed}");
    // A write that was answered before another was asked for has the lower version.
    let mut answered_first: Option<Instant> = None;
    for (version, (began, ended)) in times.iter().rev() {
        assert!(
            answered_first.is_none_or(|answered| answered > *began),
            "{version} is out of order; EGRESS_SEED={seed}"
        );
        answered_first = Some(answered_first.map_or(*ended, |answered| answered.min(*ended)));
    }
    let explained = Explained { first, log, states, times };
    eprintln!("EGRESS_SEED={seed}");
    history.iter().for_each(|step| explained.check(step));
    note(&format!("strength: {} steps of {actors} actors explained by {} changes", history.len(), explained.log.len()));
}
