//! The replay: every recorded request is sent again, and the answers are compared.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use egress_lab::wait::wait_for;
use serde_json::Value;

use crate::compare;
use crate::corpus::{self, Line};
use crate::excuses::EXCUSES;
use crate::placeholders::Bindings;
use crate::server::Server;
use egress_lab::https::{self as client, Client, chunk, is_chunked, read_head, send};

/// How long an event may take after what caused it.
const EVENT_WITHIN: Duration = Duration::from_secs(10);
/// How long a watch may take to end by itself, besides its own timeout.
const END_WITHIN: Duration = Duration::from_secs(40);
/// How long a watch must say no more than it should.
const QUIET: Duration = Duration::from_millis(150);

/// What became of a step.
struct Outcome {
    scenario: String,
    step: u32,
    difference: Option<String>,
}

#[test]
fn every_recorded_answer() {
    let scenarios = Mutex::new(corpus::scenarios().into_iter().collect::<VecDeque<_>>());
    let outcomes = Mutex::new(Vec::new());
    // Most of the time goes by waiting for watches to end.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let next = scenarios.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(lines) = next else { return };
                    let mut found = replay(&lines);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).append(&mut found);
                }
            });
        }
    });
    report(outcomes.into_inner().unwrap_or_else(PoisonError::into_inner));
}

fn report(mut outcomes: Vec<Outcome>) {
    outcomes.sort_by(|one, other| (&one.scenario, one.step).cmp(&(&other.scenario, other.step)));
    let excuse = |outcome: &Outcome| {
        EXCUSES.iter().find(|(scenario, step, _)| *scenario == outcome.scenario && *step == outcome.step)
    };
    let (mut equal, mut different, mut excused) = (0, 0, 0);
    let mut text = String::new();
    for outcome in &outcomes {
        let place = format!("{} {}", outcome.scenario, outcome.step);
        match (&outcome.difference, excuse(outcome)) {
            (None, None) => equal += 1,
            (Some(_), Some(_)) => excused += 1,
            (Some(difference), None) => {
                different += 1;
                text.push_str(&format!("{place}: {difference}\n"));
            }
            (None, Some((.., reason))) => {
                different += 1;
                text.push_str(&format!("{place}: equal, and excused ({reason})\n"));
            }
        }
    }
    let share = 100.0 * f64::from(equal) / f64::from(equal + different + excused);
    text.push_str(&format!(
        "conformance: {} steps, {equal} equal ({share:.2} %), {different} different, {excused} excused\n",
        outcomes.len()
    ));
    // Past the test harness, which would keep it for itself.
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    assert_eq!(different, 0, "see above");
    assert!(share >= 99.0, "{share:.2} % of the steps are equal");
}

/// A watch whose events come while later steps are done.
struct Watching {
    step: u32,
    place: usize,
    events: Arc<Mutex<Vec<Value>>>,
    reader: JoinHandle<()>,
}

fn replay(lines: &[Line]) -> Vec<Outcome> {
    let no_anonymous = lines.iter().any(|line| line.server_option.is_some());
    let mut arguments = vec!["--namespace", "conf", "--namespace", "conf-b"];
    if !no_anonymous {
        arguments.push("--anonymous");
    }
    let server = Server::start(&arguments);
    let client = server.client();
    let mut bindings = Bindings::default();
    let mut outcomes = Vec::new();
    let mut watches: Vec<Watching> = Vec::new();
    for (place, line) in lines.iter().enumerate() {
        let (Some(request), Some(recorded)) = (&line.request, &line.response) else { continue };
        let request = prepared(request, &bindings);
        let difference = if recorded.events.is_some() || recorded.events_binary.is_some() {
            match watch(&client, &server, &request, recorded, &mut bindings) {
                Ok((events, reader)) => {
                    let watching = Watching { step: line.step, place, events, reader };
                    if recorded.ended.as_deref() == Some("server") {
                        let end =
                            wait_for("the watch to end", END_WITHIN, || watching.reader.is_finished().then_some(()));
                        assert!(end.is_ok(), "{} {}: the watch does not end", line.scenario, line.step);
                    }
                    watches.push(watching);
                    continue;
                }
                Err(difference) => Some(difference),
            }
        } else {
            match client.send(&request) {
                Ok(real) if line.volatile.is_some() => {
                    (real.status != recorded.status).then(|| format!("status {} is {}", recorded.status, real.status))
                }
                Ok(real) => compare::difference(recorded, &real, &mut bindings),
                Err(error) => Some(format!("no answer: {error}")),
            }
        };
        outcomes.push(Outcome { scenario: line.scenario.clone(), step: line.step, difference });
    }
    for watching in watches {
        let line = &lines[watching.place];
        let binary = line.response.as_ref().is_some_and(|response| response.events_binary.is_some());
        let difference = if line.volatile.is_some() || binary { None } else { events(line, &watching, &mut bindings) };
        outcomes.push(Outcome { scenario: line.scenario.clone(), step: watching.step, difference });
    }
    if let (Some(unordered), Some(last)) = (bindings.unordered(), outcomes.last_mut()) {
        last.difference.get_or_insert(unordered);
    }
    outcomes
}

fn prepared(request: &corpus::Request, bindings: &Bindings) -> client::Request {
    let mut headers = vec![
        ("Accept".to_owned(), Some("application/json".to_owned())),
        ("User-Agent".to_owned(), Some("conformance/1.0".to_owned())),
    ];
    let body = request.body().map(|body| match String::from_utf8(body) {
        Ok(text) => bindings.fill(&text).into_bytes(),
        Err(bytes) => bytes.into_bytes(),
    });
    if body.is_some() {
        headers.push(("Content-Type".to_owned(), Some("application/json".to_owned())));
    }
    let token = match request.user.as_deref() {
        None => Some("admin-token"),
        Some("none") => None,
        Some("bad-token") => Some("bad-token"),
        Some("nobody") => Some("nobody-token"),
        Some("viewer") => Some("viewer-token"),
        Some("writer") => Some("writer-token"),
        Some(other) => panic!("who is {other}?"),
    };
    headers.extend(token.map(|token| ("Authorization".to_owned(), Some(format!("Bearer {token}")))));
    for (name, value) in &request.headers {
        headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        headers.push((name.clone(), value.as_ref().map(|value| bindings.fill(value))));
    }
    let query = request.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    client::Request {
        method: request.method.clone(),
        target: bindings.fill(&format!("{}{query}", request.path)),
        headers: headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        body,
    }
}

type Events = (Arc<Mutex<Vec<Value>>>, JoinHandle<()>);

/// Begins a watch: its head is compared at once, its events are collected.
fn watch(
    client: &Client,
    server: &Server,
    request: &client::Request,
    recorded: &corpus::Response,
    bindings: &mut Bindings,
) -> Result<Events, String> {
    let mut connection = client.connect().map_err(|error| error.to_string())?;
    send(&mut connection, server.address(), request).map_err(|error| error.to_string())?;
    let head = read_head(&mut connection).map_err(|error| format!("no answer: {error}"))?;
    let bare = corpus::Response { body_omitted: Some(true), ..bare(recorded) };
    if let Some(difference) = compare::difference(&bare, &head, bindings) {
        return Err(difference);
    }
    let events = Arc::new(Mutex::new(Vec::new()));
    let collected = Arc::clone(&events);
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = if is_chunked(&head) { chunk(&mut connection) } else { Ok(None) } {
            text.extend(chunk);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let event = serde_json::from_slice(&line).unwrap_or(Value::Null);
                collected.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        }
    });
    Ok((events, reader))
}

fn bare(recorded: &corpus::Response) -> corpus::Response {
    corpus::Response {
        status: recorded.status,
        headers: recorded.headers.clone(),
        body: None,
        body_text: None,
        body_binary: None,
        body_omitted: None,
        framing: None,
        events: None,
        events_binary: None,
        ended: None,
    }
}

/// Compares the events of a watch.
fn events(line: &Line, watching: &Watching, bindings: &mut Bindings) -> Option<String> {
    let recorded = line.response.as_ref().and_then(|response| response.events.as_deref()).unwrap_or_default();
    let real = || watching.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let _late = wait_for("events", EVENT_WITHIN, || (real().len() >= recorded.len()).then_some(()));
    if !watching.reader.is_finished() {
        std::thread::sleep(QUIET);
    }
    let real = real();
    if recorded.len() != real.len() {
        return Some(format!("{} events are {}: {}", recorded.len(), real.len(), Value::Array(real)));
    }
    // What is there at the beginning comes in no fixed order.
    recorded.iter().zip(&real).enumerate().find_map(|(index, (recorded, real))| {
        compare::values(&recorded.event, real, bindings).map(|difference| format!("event {index}{difference}"))
    })
}
