//! The wall clock jumps, as it does when a machine first hears of the time. Sets the clock of the whole machine, so only an emulated
//! one runs this: `cargo xtask test kernels` runs what is ignored here.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use egress_lab::address::SERVER_1;
use egress_lab::udp::PacedStream;
use egress_lab::{Family, Options, wait_until};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use serde_json::Value;

use crate::live::LiveTcp;
use crate::rig::{Rig, Spec, TIMEOUT, anyone, at};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The clock as it was, with the time that has passed since.
struct Clock {
    was: SystemTime,
    since: Instant,
}

impl Clock {
    fn watch() -> Self {
        Self { was: SystemTime::now(), since: Instant::now() }
    }

    fn right(&self) -> SystemTime {
        self.was + self.since.elapsed()
    }

    fn set(time: SystemTime) {
        let time = TimeSpec::from_duration(time.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        clock_settime(ClockId::CLOCK_REALTIME, time).unwrap();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        Self::set(self.right());
    }
}

/// Seconds between a time that was written and now, by the wall clock.
fn ago(time: &Value) -> f64 {
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    jiff::Timestamp::now().duration_since(time).as_secs_f64()
}

#[test]
#[ignore = "sets the machine's clock: run on emulated ones"]
fn a_jump_of_the_wall_clock_ends_no_flow_and_nothing_is_told_anew() {
    let files = tempfile::tempdir().unwrap();
    let log = files.path().join("flows.jsonl");
    let spec = Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None);
    // So that no flow is over before it has been counted, however slow the machine is.
    let arguments = ["--flow-log", log.to_str().unwrap(), "--timeout", "udp=600", "--timeout", "udp-stream=600"];
    let mut rig = Rig::with(&Options::default(), &spec, &arguments);
    let _servers = Family::ALL
        .map(|family| (rig.tcp_server(at(SERVER_1, family, 8080)), rig.udp_server(at(SERVER_1, family, 7000))));
    let tcp = Family::ALL.map(|family| LiveTcp::start(&rig, family, 80));
    let udp = Family::ALL.map(|family| {
        let (socket, _) = rig.udp(anyone(family), 7000);
        PacedStream::start(socket, Duration::from_millis(20)).unwrap()
    });
    let conditions = |rig: &Rig| rig.router.report("status").unwrap()["conditions"].clone();
    let before = conditions(&rig);
    let opened = |client: &str| {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["event"] == "opened" && line["client"] == client)
    };

    let clock = Clock::watch();
    let jumps = [clock.right() + 400 * DAY, clock.right() - 30 * DAY, clock.right()];
    for (number, to) in jumps.into_iter().enumerate() {
        Clock::set(to);
        let answered = udp.iter().map(PacedStream::answered).collect::<Vec<_>>();
        tcp.iter().for_each(LiveTcp::wait);
        wait_until("the live streams to go on", TIMEOUT, || {
            udp.iter().zip(&answered).all(|(stream, before)| stream.answered() > before + 50)
        })
        .unwrap();
        // Longer than the agent's own rounds, in which it might find that all has expired.
        let jumped = Instant::now();
        wait_until("a sweep to pass", TIMEOUT, || jumped.elapsed() > Duration::from_secs(6)).unwrap();
        assert_eq!(rig.flows().len(), 4 + number * 2, "none ended, none is new but the two of each jump");
        assert_eq!(conditions(&rig), before, "no transition because of another hour");
        for family in Family::ALL {
            let (socket, _) = rig.udp(anyone(family), 7000);
            let client = socket.local().unwrap().to_string();
            wait_until("the new flow to be logged", TIMEOUT, || opened(&client).is_some()).unwrap();
            let line = opened(&client).unwrap();
            let ago = ago(&line["time"]);
            assert!((-1.0..60.0).contains(&ago), "opened {ago} seconds ago by the clock as it is now: {line}");
            // Keeps the flow until it has been counted.
            socket.exchange(b"and again", TIMEOUT).result.unwrap();
        }
        // An agent that starts at the other hour finds the same flows.
        rig.router.kill().unwrap();
        rig.router.start().unwrap();
    }
    drop(clock);
    for live in tcp {
        live.finish();
    }
    for stream in udp {
        let report = stream.finish().unwrap();
        assert!(report.is_perfect(), "{report:?}");
    }
}
