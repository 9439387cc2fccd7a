//! Traffic that goes on while something happens to the router, and of which nothing may be lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use egress_lab::address::client;
use egress_lab::endpoint::Seen;
use egress_lab::tcp::TcpConnection;
use egress_lab::udp::{PacedStream, Report};
use egress_lab::{Family, wait_until};

use crate::rig::{Rig, TIMEOUT, at};

/// A live connection and a live stream of datagrams for each family, by the rules for ports 80 and 7000.
#[derive(Debug)]
pub(crate) struct Live {
    tcp: [LiveTcp; 2],
    udp: [LiveUdp; 2],
}

impl Live {
    /// Opens them.
    pub(crate) fn start(rig: &Rig) -> Self {
        let tcp = Family::ALL.map(|family| LiveTcp::start(rig, family, 80));
        Self { tcp, udp: Family::ALL.map(|family| LiveUdp::start(rig, family, 7000)) }
    }

    /// Waits for each to go on after this was called.
    pub(crate) fn wait(&self) {
        self.tcp.iter().for_each(LiveTcp::wait);
        self.udp.iter().for_each(LiveUdp::wait);
    }

    /// Ends them. Panics if a connection broke at any time, or a datagram was lost.
    pub(crate) fn finish(self) {
        for live in self.tcp {
            live.finish();
        }
        for live in self.udp {
            live.finish();
        }
    }
}

/// A connection over which numbered messages go and come back, one after the other.
#[derive(Debug)]
pub(crate) struct LiveTcp {
    seen: Seen,
    stop: Arc<AtomicBool>,
    exchanged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl LiveTcp {
    /// Opens it through a rule.
    pub(crate) fn start(rig: &Rig, family: Family, port: u16) -> Self {
        let (connection, seen) = rig.tcp(at(client(0), family, 0), port);
        let (stop, exchanged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (their_stop, their_exchanged) = (Arc::clone(&stop), Arc::clone(&exchanged));
        let thread = std::thread::spawn(move || exchange(connection, &their_stop, &their_exchanged));
        Self { seen, stop, exchanged, thread: Some(thread) }
    }

    /// Waits for one more message to come back after this was called.
    pub(crate) fn wait(&self) {
        // The one under way may have gone through before.
        let target = self.exchanged.load(Ordering::Acquire) + 2;
        wait_until("the live connection to go on", TIMEOUT, || {
            self.exchanged.load(Ordering::Acquire) >= target
                || self.thread.as_ref().is_some_and(JoinHandle::is_finished)
        })
        .unwrap();
        assert!(self.exchanged.load(Ordering::Acquire) >= target, "the live connection broke");
    }

    /// Ends it. Panics if it broke at any time. Returns whom the server saw.
    pub(crate) fn finish(mut self) -> Seen {
        self.wait();
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        self.seen
    }
}

fn exchange(mut connection: TcpConnection, stop: &AtomicBool, exchanged: &AtomicU64) {
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        connection.exchange(&number.to_be_bytes()).unwrap();
        number += 1;
        exchanged.store(number, Ordering::Release);
        // A pace, not a wait: back to back it would only take the processor from everybody else.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Numbered datagrams, a thousand a second.
#[derive(Debug)]
pub(crate) struct LiveUdp {
    seen: Seen,
    stream: PacedStream,
}

impl LiveUdp {
    /// Opens it through a rule.
    pub(crate) fn start(rig: &Rig, family: Family, port: u16) -> Self {
        let (socket, seen) = rig.udp(at(client(0), family, 0), port);
        let stream = PacedStream::start(socket, Duration::from_millis(1)).unwrap();
        Self { seen, stream }
    }

    /// Waits for more datagrams to come back after this was called.
    pub(crate) fn wait(&self) {
        let target = self.stream.answered() + 20;
        wait_until("the live stream to go on", TIMEOUT, || self.stream.answered() >= target).unwrap();
    }

    /// Ends it. Panics if one datagram was lost, doubled or refused, or went elsewhere than the first. Returns whom the
    /// server saw.
    pub(crate) fn finish(self) -> Seen {
        let seen = self.seen;
        let report = self.report();
        assert!(report.is_perfect(), "{report:?}");
        seen
    }

    /// Ends it, and says what became of it. Panics if one datagram was doubled, or went elsewhere than the first.
    pub(crate) fn report(self) -> Report {
        self.wait();
        let report = self.stream.finish().unwrap();
        assert_eq!(report.doubled, 0, "{report:?}");
        assert_eq!(report.answered.keys().collect::<Vec<_>>(), [&self.seen]);
        report
    }
}
