//! `--flow-log`: who talked to whom through the router, as JSON lines. The audit trail that a shared source address takes away.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::datapath::{FlowEvent, FlowEventKind};

/// Most lines of one look, so that a storm of flows does not fill a disk in minutes: 5,000 in the five seconds between two.
const LINES: usize = 5000;

/// Where flows are logged, and how many were not.
#[derive(Debug)]
pub(super) struct FlowLog {
    file: PathBuf,
    /// Lines that were not written: too many at a time, or the file could not take them.
    pub(super) lost: u64,
    failing: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: Timestamp,
    event: &'static str,
    protocol: &'a str,
    client: SocketAddr,
    router: SocketAddr,
    source: SocketAddr,
    destination: SocketAddr,
    /// Index in the specification; null for the fallback.
    rule: Option<u32>,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    duration_s: f64,
    request_packets: u64,
    request_bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
}

impl FlowLog {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), lost: 0, failing: false }
    }

    /// Appends what happened. `now` and `now_ns` are one moment, by two clocks.
    ///
    /// The file is opened each time: whoever moves it away finds a new one in its place.
    ///
    /// # Errors
    ///
    /// The first of several failures in a row.
    pub(super) fn write(&mut self, events: &[FlowEvent], now: Timestamp, now_ns: u64) -> io::Result<()> {
        let taken = events.len().min(LINES);
        self.lost += count(events.len() - taken);
        let written = self.append(events.get(..taken).unwrap_or_default(), now, now_ns);
        if written.is_err() {
            self.lost += count(taken);
        }
        let first = !self.failing;
        self.failing = written.is_err();
        if first { written } else { Ok(()) }
    }

    fn append(&self, events: &[FlowEvent], now: Timestamp, now_ns: u64) -> io::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for event in events {
            serde_json::to_writer(&mut text, &line(event, now, now_ns))?;
            text.push(b'\n');
        }
        OpenOptions::new().create(true).append(true).open(&self.file)?.write_all(&text)
    }
}

fn line(event: &FlowEvent, now: Timestamp, now_ns: u64) -> Line<'_> {
    let flow = &event.flow;
    let at = |ns: u64| {
        let ago = SignedDuration::from_nanos(i64::try_from(now_ns.saturating_sub(ns)).unwrap_or(i64::MAX));
        let time = now.checked_sub(ago).unwrap_or(now);
        // What the clock of the programs can tell.
        Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
    };
    let (event_name, time, end) = match event.kind {
        FlowEventKind::Opened => ("opened", at(event.began_ns), None),
        FlowEventKind::Closed => {
            let lasted = SignedDuration::from_nanos(
                i64::try_from(event.last_ns.saturating_sub(event.began_ns)).unwrap_or(i64::MAX),
            );
            let end = End {
                duration_s: lasted.as_secs_f64(),
                request_packets: flow.request_packets,
                request_bytes: flow.request_bytes,
                reply_packets: flow.reply_packets,
                reply_bytes: flow.reply_bytes,
            };
            ("closed", at(event.last_ns), Some(end))
        }
    };
    Line {
        time,
        event: event_name,
        protocol: &flow.protocol,
        client: flow.client,
        router: flow.router,
        source: flow.source,
        destination: flow.destination,
        rule: flow.rule,
        end,
    }
}

fn count(lines: usize) -> u64 {
    u64::try_from(lines).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::FlowRow;

    fn event(kind: FlowEventKind) -> FlowEvent {
        let flow = FlowRow { protocol: "TCP".into(), rule: Some(3), request_packets: 7, ..FlowRow::default() };
        FlowEvent { kind, flow, began_ns: 10_000_000_000, last_ns: 12_500_000_000 }
    }

    fn lines(file: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_say_when_and_how_much() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flows");
        let mut log = FlowLog::new(&file);
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let events = [event(FlowEventKind::Opened), event(FlowEventKind::Closed)];
        log.write(&events, now, 20_000_000_000).unwrap();
        let found = lines(&file);
        assert_eq!((&found[0]["event"], &found[0]["time"]), (&"opened".into(), &"2026-01-01T00:00:50Z".into()));
        assert!(found[0].get("durationS").is_none());
        assert_eq!((&found[1]["event"], &found[1]["time"]), (&"closed".into(), &"2026-01-01T00:00:52.5Z".into()));
        assert_eq!((&found[1]["durationS"], &found[1]["requestPackets"]), (&2.5.into(), &7.into()));
        // Rotated.
        std::fs::rename(&file, dir.path().join("flows.1")).unwrap();
        log.write(&events[..1], now, 20_000_000_000).unwrap();
        assert_eq!(lines(&file).len(), 1);
    }

    #[test]
    fn what_is_not_written_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let many = vec![event(FlowEventKind::Opened); LINES + 7];
        let mut log = FlowLog::new(&dir.path().join("flows"));
        log.write(&many, now, 0).unwrap();
        assert_eq!(log.lost, 7);
        let mut log = FlowLog::new(&dir.path().join("missing/flows"));
        assert!(log.write(&many[..3], now, 0).is_err());
        assert!(log.write(&many[..3], now, 0).is_ok(), "told once");
        assert_eq!(log.lost, 6);
    }
}
