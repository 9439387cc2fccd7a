//! Traffic without an end: connections at an even pace, and streams that live as long as the soak.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use egress_lab::address::client;
use egress_lab::tcp::TcpConnection;
use egress_lab::udp::Report;
use egress_lab::{Family, wait_until};

use crate::live::LiveUdp;
use crate::rig::{Rig, TIMEOUT, at, router};

const CONNECTIONS_A_SECOND: u32 = 50;
/// So that one that waits, because of a fault, does not keep the others.
const WORKERS: u32 = 5;

/// For how long a datagram and its answer may be under way, where each processor has much to do.
const FLIGHT: Duration = Duration::from_millis(500);

/// What a fault may take while it lasts. Whatever is lost besides is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    NewFlows,
    Packets,
    /// Packets, and connections too: what the programs do not see the kernel answers with a reset.
    Connections,
}

/// When something could be lost: from before a fault until the router was whole again.
#[derive(Debug)]
struct Window {
    fault: &'static str,
    takes: Takes,
    from: Instant,
    to: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Windows(Mutex<Vec<Window>>);

impl Windows {
    pub(super) fn add(&self, fault: &'static str, takes: Takes, from: Instant) {
        let window = Window { fault, takes, from, to: Instant::now() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(window);
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What was done before and after this time, for whoever has to find out what happened then.
    fn around(&self, at: Instant) -> String {
        let windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = |to: Instant| {
            at.saturating_duration_since(to).as_secs_f64() - to.saturating_duration_since(at).as_secs_f64()
        };
        let tell =
            |window: &Window| format!("{}: {:.3} to {:.3}", window.fault, seconds(window.from), seconds(window.to));
        let near = windows.iter().filter(|window| seconds(window.from).abs() < 30.0).map(tell);
        format!("seconds since faults began and ended: {}", near.collect::<Vec<_>>().join(", "))
    }

    /// Whether what happened between these times may have been taken by a fault.
    fn explain(&self, from: Instant, to: Instant, excused: &[Takes]) -> bool {
        let windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.iter().any(|window| excused.contains(&window.takes) && from <= window.to && window.from <= to)
    }
}

/// A connection that failed.
#[derive(Debug)]
struct Failed {
    from: Instant,
    to: Instant,
    error: std::io::Error,
}

/// Connections that are opened, used and closed at their pace until they are told to stop. What could not be made in time is
/// made up for.
#[derive(Debug)]
pub(super) struct Connections {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Made>>,
}

/// What a worker made.
#[derive(Debug, Default)]
struct Made {
    all: u32,
    failed: Vec<Failed>,
}

impl Made {
    /// Panics if something failed that no fault took. Returns how many there were, and how many failed.
    fn judge(all: &[Self], windows: &Windows, excused: &[Takes]) -> (u32, usize) {
        for Failed { from, to, error } in all.iter().flat_map(|made| &made.failed) {
            let taken = windows.explain(*from, *to, excused);
            let around = windows.around(*to);
            assert!(taken, "a connection failed that no fault took, after {:?}: {error}; {around}", *to - *from);
        }
        (all.iter().map(|made| made.all).sum(), all.iter().map(|made| made.failed.len()).sum())
    }
}

impl Connections {
    pub(super) fn start(rig: &Rig) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = |number| {
            let stop = Arc::clone(&stop);
            rig.client.spawn("connections", move || connect(number, &stop)).unwrap()
        };
        Self { workers: (0..WORKERS).map(worker).collect(), stop }
    }

    /// Ends them. Panics if one failed that no fault took. Returns how many there were, and how many failed.
    pub(super) fn finish(self, windows: &Windows) -> (u32, usize) {
        self.stop.store(true, Ordering::Release);
        let made: Vec<Made> = self.workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        Made::judge(&made, windows, &[Takes::NewFlows, Takes::Packets, Takes::Connections])
    }
}

fn open(number: u8, family: Family) -> std::io::Result<TcpConnection> {
    TcpConnection::open_here(at(client(number), family, 0), router(family, 80), TIMEOUT)
}

fn connect(worker: u32, stop: &AtomicBool) -> Made {
    let period = Duration::from_secs(1) * WORKERS / CONNECTIONS_A_SECOND;
    let mut due = Instant::now() + period * worker / WORKERS;
    let mut made = Made::default();
    while !stop.load(Ordering::Acquire) {
        // A pace, not a wait.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += period;
        let family = Family::ALL[usize::from(made.all % 2 == 0)];
        let from = Instant::now();
        let exchanged = open(1, family).and_then(|mut connection| connection.exchange(b"once more"));
        made.all += 1;
        made.failed.extend(exchanged.err().map(|error| Failed { from, to: Instant::now(), error }));
    }
    made
}

/// A connection that lives until it is told to stop. One that breaks has a successor.
fn live(family: Family, stop: &AtomicBool, exchanged: &AtomicU64) -> Made {
    let mut made = Made::default();
    while !stop.load(Ordering::Acquire) {
        let mut from = Instant::now();
        made.all += 1;
        let broken = open(0, family).and_then(|mut connection| {
            while !stop.load(Ordering::Acquire) {
                from = Instant::now();
                connection.exchange(&exchanged.fetch_add(1, Ordering::AcqRel).to_be_bytes())?;
                // A pace, not a wait.
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        made.failed.extend(broken.err().map(|error| Failed { from, to: Instant::now(), error }));
    }
    made
}

/// Streams that begin with the soak and end with it.
#[derive(Debug)]
pub(super) struct Streams {
    stop: Arc<AtomicBool>,
    exchanged: [Arc<AtomicU64>; 2],
    tcp: [JoinHandle<Made>; 2],
    udp: [LiveUdp; 2],
}

/// What became of the streams.
#[derive(Debug)]
pub(super) struct Ended {
    /// Messages over the connections and back.
    pub(super) exchanged: u64,
    /// Connections that broke.
    pub(super) broken: usize,
    /// Datagrams sent, and those that were lost.
    pub(super) sent: u64,
    pub(super) lost: usize,
}

impl Streams {
    pub(super) const COUNT: u32 = 4;

    pub(super) fn start(rig: &Rig) -> Self {
        let (stop, exchanged) = (Arc::<AtomicBool>::default(), [(); 2].map(|()| Arc::<AtomicU64>::default()));
        let tcp = [0, 1].map(|index| {
            let (stop, exchanged) = (Arc::clone(&stop), Arc::clone(&exchanged[index]));
            rig.client.spawn("live connection", move || live(Family::ALL[index], &stop, &exchanged)).unwrap()
        });
        let streams = Self { stop, exchanged, tcp, udp: Family::ALL.map(|family| LiveUdp::start(rig, family, 7000)) };
        streams.wait();
        streams
    }

    /// Waits for each to go on.
    pub(super) fn wait(&self) {
        for exchanged in &self.exchanged {
            // The one under way may have gone through before.
            let target = exchanged.load(Ordering::Acquire) + 2;
            let goes_on = || exchanged.load(Ordering::Acquire) >= target;
            wait_until("a live connection to go on", TIMEOUT, goes_on).unwrap();
        }
        self.udp.iter().for_each(LiveUdp::wait);
    }

    /// Ends them. Panics if a connection broke, or a datagram was lost, that no fault took.
    pub(super) fn finish(self, windows: &Windows) -> Ended {
        self.wait();
        self.stop.store(true, Ordering::Release);
        let (_, broken) = Made::judge(&self.tcp.map(|thread| thread.join().unwrap()), windows, &[Takes::Connections]);
        let reports = self.udp.map(LiveUdp::report);
        for Report { lost, errors, .. } in &reports {
            let taken = |from: Instant, to: Instant| windows.explain(from, to, &[Takes::Packets, Takes::Connections]);
            if let Some((number, at)) = lost.iter().find(|(_, at)| !taken(**at, **at + FLIGHT)) {
                panic!("datagram {number} was lost, which no fault took; {}", windows.around(*at));
            }
            if let Some((at, error)) = errors.iter().find(|(at, _)| !taken(*at - FLIGHT, *at)) {
                panic!("an error that no fault made: {error}; {}", windows.around(*at));
            }
        }
        Ended {
            exchanged: self.exchanged.iter().map(|exchanged| exchanged.load(Ordering::Acquire)).sum(),
            broken,
            sent: reports.iter().map(|report| report.sent).sum(),
            lost: reports.iter().map(|report| report.lost.len()).sum(),
        }
    }
}
