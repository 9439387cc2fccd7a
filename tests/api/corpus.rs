//! The recorded requests and answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A line of the record.
#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    /// `area/name`.
    pub(crate) scenario: String,
    /// Number within it.
    pub(crate) step: u32,
    /// Who answered.
    server: String,
    /// What is asked.
    pub(crate) request: Option<Request>,
    /// What was answered.
    pub(crate) response: Option<Response>,
    /// Why it may differ from run to run.
    pub(crate) volatile: Option<String>,
    /// How the server was set up.
    pub(crate) server_option: Option<String>,
    request_as: Option<Value>,
}

/// A request of the record.
#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    /// Method.
    pub(crate) method: String,
    /// Path.
    pub(crate) path: String,
    /// Query, raw.
    pub(crate) query: Option<String>,
    /// Headers; null is one that is not sent.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Option<String>>,
    /// Who asks.
    pub(crate) user: Option<String>,
    body: Option<Box<RawValue>>,
    body_text: Option<String>,
    body_base64: Option<String>,
    body_repeat: Option<Repeat>,
}

#[derive(Debug, Deserialize)]
struct Repeat {
    before: String,
    unit: String,
    count: usize,
    after: String,
}

/// An answer of the record.
#[derive(Debug, Deserialize)]
pub(crate) struct Response {
    /// Status code.
    pub(crate) status: u16,
    /// Some of the headers.
    pub(crate) headers: BTreeMap<String, Value>,
    /// Body, JSON.
    pub(crate) body: Option<Value>,
    /// Body, raw.
    pub(crate) body_text: Option<String>,
    /// Length of the body, or that it is compressed.
    pub(crate) body_binary: Option<Value>,
    /// A body that is not in the record.
    pub(crate) body_omitted: Option<bool>,
    /// How JSON is laid out.
    pub(crate) framing: Option<String>,
    /// Events of a watch.
    pub(crate) events: Option<Vec<Event>>,
    /// Events of a watch that are not in the record.
    pub(crate) events_binary: Option<bool>,
    /// Who ended the watch.
    pub(crate) ended: Option<String>,
}

/// An event of a watch.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    /// The event.
    pub(crate) event: Value,
}

impl Request {
    /// The body as it is sent.
    pub(crate) fn body(&self) -> Option<Vec<u8>> {
        if let Some(body) = &self.body {
            return Some(spaced(body.get()).into_bytes());
        }
        if let Some(text) = &self.body_text {
            return Some(text.clone().into_bytes());
        }
        if let Some(repeat) = &self.body_repeat {
            let text = format!("{}{}{}", repeat.before, repeat.unit.repeat(repeat.count), repeat.after);
            return Some(text.into_bytes());
        }
        self.body_base64.as_deref().map(base64)
    }
}

/// JSON with a blank after each comma and colon: as it was sent when it was recorded, which refusals quote.
fn spaced(json: &str) -> String {
    let mut text = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for character in json.chars() {
        text.push(character);
        if !quoted && matches!(character, ',' | ':') {
            text.push(' ');
        }
        quoted ^= character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
    }
    text
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let digit = ALPHABET.iter().position(|other| *other == letter).unwrap();
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    bytes
}

/// Where the record is: beside the project.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/api-conformance")
}

/// The scenarios: the newer server's steps, and of the older one what the newer lacks.
pub(crate) fn scenarios() -> Vec<Vec<Line>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory())
        .unwrap_or_else(|error| panic!("the record of real answers is not at {}: {error}", directory().display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("kubectl"))
        .collect();
    files.sort();
    let mut scenarios: Vec<Vec<Line>> = Vec::new();
    for file in files {
        for text in std::fs::read_to_string(&file).unwrap().lines() {
            let line: Line = serde_json::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            if line.request_as.is_some() || (!line.server.starts_with('A') && line.server_option.is_none()) {
                continue;
            }
            match scenarios.last_mut() {
                Some(lines) if lines.first().is_some_and(|first| first.scenario == line.scenario) => lines.push(line),
                _ => scenarios.push(vec![line]),
            }
        }
    }
    scenarios
}
