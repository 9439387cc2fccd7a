//! `--flow-log`: who talked to whom through the router, and what was dropped, as JSON lines. The audit trail that a shared source
//! address takes away.
//!
//! A task of its own follows the ring buffer: whatever else keeps the agent, lines are written as events come.

mod line;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use egress_ebpf::event::{Budget, Event, MAX_RATE};
use egress_ebpf::timeout::SECOND_NS;
use jiff::Timestamp;
use nix::libc;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::error::Chain;
use crate::datapath::{Events, Untold, Watched, monotonic_ns};
use line::{Clocks, Line, Reason};

/// How often lost lines are counted.
const COUNT: Duration = Duration::from_secs(1);

/// The log, as the agent holds it.
#[derive(Debug)]
pub(super) struct FlowLog {
    orders: UnboundedSender<Order>,
    lost: Arc<Lost>,
    task: JoinHandle<()>,
}

/// Lines that this process lost.
#[derive(Debug, Default)]
struct Lost {
    over_rate: AtomicU64,
    unwritten: AtomicU64,
}

/// Why events are not in the log, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unlogged {
    pub(super) over_rate: u64,
    pub(super) no_room: u64,
    pub(super) unwritten: u64,
}

enum Order {
    /// Follow this ring buffer from now on.
    Follow(Box<Events>),
    /// The agent ended these flows.
    Closed(Vec<Event>),
}

impl FlowLog {
    /// Begins to log to `file`, at most `rate` events a second of those that the agent ends itself.
    pub(super) fn start(file: &Path, rate: u32) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let lost = Arc::<Lost>::default();
        let writer = Writer::new(file, rate, Arc::clone(&lost));
        Self { orders, lost, task: tokio::spawn(follow(writer, received)) }
    }

    /// Follows a ring buffer instead of an earlier one.
    pub(super) fn follow(&self, events: Events) {
        let _ended = self.orders.send(Order::Follow(Box::new(events)));
    }

    /// Logs flows that the agent ended.
    pub(super) fn closed(&self, flows: Vec<Event>) {
        if !flows.is_empty() {
            let _ended = self.orders.send(Order::Closed(flows));
        }
    }

    /// What was lost on this side of the ring buffer, and on the other.
    pub(super) fn unlogged(&self, untold: Untold) -> Unlogged {
        Unlogged {
            over_rate: untold.over_rate + self.lost.over_rate.load(Ordering::Relaxed),
            no_room: untold.no_room,
            unwritten: self.lost.unwritten.load(Ordering::Relaxed),
        }
    }

    /// Writes what is left, and ends.
    pub(super) async fn finish(self) {
        drop(self.orders);
        let _panicked = self.task.await;
    }
}

async fn follow(mut writer: Writer, mut orders: UnboundedReceiver<Order>) {
    let mut source: Option<Watched> = None;
    let mut count = interval(COUNT);
    count.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            order = orders.recv() => {
                // What came before comes first.
                block_in_place(|| writer.drain(&mut source));
                match order {
                    Some(Order::Follow(events)) => source = writer.begin(*events),
                    Some(Order::Closed(flows)) => block_in_place(|| writer.closed(&flows)),
                    None => break,
                }
            }
            () = readable(&mut source) => block_in_place(|| writer.drain(&mut source)),
            _ = count.tick() => block_in_place(|| writer.count_lost(&mut source)),
        }
    }
    writer.count_lost(&mut source);
}

/// Waits until there are records.
async fn readable(source: &mut Option<Watched>) {
    match source {
        Some(source) => source.ready().await,
        None => std::future::pending().await,
    }
}

struct Writer {
    file: PathBuf,
    lost: Arc<Lost>,
    rate: u32,
    budget: Budget,
    /// What the programs had lost when this was told last.
    untold: Untold,
    /// What this process had.
    told: (u64, u64),
    failing: bool,
}

/// Records that are written at once.
const BATCH: usize = 1024;

impl Writer {
    fn new(file: &Path, rate: u32, lost: Arc<Lost>) -> Self {
        let (file, rate) = (file.to_owned(), rate.min(MAX_RATE));
        let (budget, untold) = (Budget::default(), Untold::default());
        Self { file, lost, rate, budget, untold, told: (0, 0), failing: false }
    }

    fn begin(&mut self, events: Events) -> Option<Watched> {
        // What was lost before is no news.
        self.untold = events.untold().unwrap_or_default();
        events.watched().inspect_err(|failed| warn!("follow the flow log: {failed}")).ok()
    }

    /// Writes the records that there are.
    fn drain(&mut self, source: &mut Option<Watched>) {
        let Some(source) = source else { return };
        loop {
            let events: Vec<Event> = std::iter::from_fn(|| source.events().take()).take(BATCH).collect();
            if events.is_empty() {
                return;
            }
            self.write(&events);
        }
    }

    /// Writes flows that the agent ended, as many as may be.
    fn closed(&mut self, flows: &[Event]) {
        let now_s = u32::try_from(monotonic_ns() / SECOND_NS).unwrap_or(u32::MAX);
        let paid: Vec<Event> = flows.iter().filter(|_| self.budget.pay(now_s, self.rate)).copied().collect();
        self.lost.over_rate.store(self.budget.over_rate, Ordering::Relaxed);
        for batch in paid.chunks(BATCH) {
            self.write(batch);
        }
    }

    fn write(&mut self, events: &[Event]) {
        let clocks = Clocks { now: Timestamp::now(), now_ns: monotonic_ns() };
        let lines: Vec<Line> = events.iter().filter_map(|event| Line::of(event, clocks)).collect();
        self.append(&lines);
    }

    /// Tells what was lost since this was told last.
    fn count_lost(&mut self, source: &mut Option<Watched>) {
        let untold = match source.as_mut().map(|source| source.events().untold()) {
            Some(Ok(untold)) => untold,
            Some(Err(failed)) => return warn!("count what the flow log lost: {}", Chain(&failed)),
            None => self.untold,
        };
        let (over_rate, unwritten) =
            (self.lost.over_rate.load(Ordering::Relaxed), self.lost.unwritten.load(Ordering::Relaxed));
        let news = [
            (Reason::Rate, untold.over_rate + over_rate - self.untold.over_rate - self.told.0),
            (Reason::Buffer, untold.no_room - self.untold.no_room),
            (Reason::File, unwritten - self.told.1),
        ];
        let now = Timestamp::now();
        let lines: Vec<Line> = news
            .into_iter()
            .filter(|(_, lost)| *lost > 0)
            .map(|(reason, lost)| Line::lost(reason, lost, now))
            .collect();
        // Lost lines about lost lines are told again.
        if self.append(&lines) {
            (self.untold, self.told) = (untold, (over_rate, unwritten));
        }
    }

    /// Appends lines. The file is opened each time: whoever moves it away finds a new one in its place.
    fn append(&mut self, lines: &[Line]) -> bool {
        if lines.is_empty() {
            return true;
        }
        let written = self.try_append(lines);
        if let Err(failed) = &written {
            let events = lines.iter().filter(|line| !line.is_about_loss()).count();
            self.lost.unwritten.fetch_add(u64::try_from(events).unwrap_or(u64::MAX), Ordering::Relaxed);
            // Once, not with every attempt.
            if !self.failing {
                warn!("write the flow log {}: {failed}", self.file.display());
            }
        }
        self.failing = written.is_err();
        !self.failing
    }

    fn try_append(&self, lines: &[Line]) -> io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        // A named pipe that nobody reads would hold this up, and with it the agent's end.
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).custom_flags(libc::O_NONBLOCK).open(&self.file)?;
        let before = file.metadata()?.len();
        // A disk that is full takes a part of a line: whoever reads is not to meet it.
        file.write_all(&text).inspect_err(|_full| {
            let _cannot = file.set_len(before);
        })
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use egress_ebpf::event::Kind;
    use serde_json::Value;

    use super::*;

    fn closed() -> Event {
        Event { kind: Kind::Closed as u8, known: 3, ..Event::zeroed() }
    }

    fn lines(file: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn writer(file: &Path, rate: u32) -> Writer {
        Writer::new(file, rate, Arc::default())
    }

    #[test]
    fn a_file_that_is_moved_away_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flows");
        let mut writer = writer(&file, 100);
        writer.closed(&[closed(), closed()]);
        assert_eq!(lines(&file).len(), 2);
        std::fs::rename(&file, dir.path().join("flows.1")).unwrap();
        writer.closed(&[closed()]);
        assert_eq!(lines(&file).len(), 1);
    }

    #[test]
    fn what_is_not_written_is_counted_and_told_later() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("later");
        let file = folder.join("flows");
        let mut writer = writer(&file, 10);
        writer.closed(&[closed(); 60]);
        writer.count_lost(&mut None);
        writer.count_lost(&mut None);
        assert_eq!(lines(&file), [] as [Value; 0]);
        std::fs::create_dir(&folder).unwrap();
        writer.count_lost(&mut None);
        writer.count_lost(&mut None);
        let told: Vec<_> =
            lines(&file).iter().map(|line| (line["reason"].clone(), line["events"].as_u64().unwrap())).collect();
        assert_eq!(told, [("rate".into(), 10), ("file".into(), 50)], "five seconds' worth may come at once");
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flows");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut writer = writer(&file, 10);
        writer.closed(&[closed()]);
        assert_eq!(writer.lost.unwritten.load(Ordering::Relaxed), 1);
    }

    /// A full device takes some bytes of a line, and no more.
    #[test]
    fn no_line_is_cut_in_two() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flows");
        std::os::unix::fs::symlink("/dev/full", &file).unwrap();
        let mut writer = writer(&file, 10);
        writer.closed(&[closed()]);
        assert_eq!(writer.lost.unwritten.load(Ordering::Relaxed), 1);
        std::fs::remove_file(&file).unwrap();
        writer.closed(&[closed()]);
        assert_eq!(lines(&file).len(), 1);
    }
}
