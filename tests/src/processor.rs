//! One processor for a measurement, and the processor time that it takes.
//!
//! On a machine that others use, time by the clock says little. A thread that holds one processor and does all the work
//! there, softirqs included, is charged for it, and for nothing else.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::sys;

/// A processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Core(usize);

impl Core {
    /// The last processor that this thread may use: the first ones get most of the interrupts.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn last() -> Result<Self> {
        let set = sched_getaffinity(Pid::from_raw(0)).context("ask which processors may be used")?;
        let allowed = (0..CpuSet::count()).rev().find(|core| set.is_set(*core).unwrap_or(false));
        allowed.map(Self).context("no processor may be used")
    }

    /// Two processors that this thread may use.
    ///
    /// # Errors
    /// When there is only one.
    pub fn two() -> Result<[Self; 2]> {
        let set = sched_getaffinity(Pid::from_raw(0)).context("ask which processors may be used")?;
        let mut allowed = (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).map(Self);
        let two = allowed.next().zip(allowed.next()).context("fewer than two processors may be used")?;
        Ok(two.into())
    }

    /// Binds the calling thread to the processor, before every ordinary thread. Only for threads that end soon: while this
    /// one runs, nothing else does there.
    ///
    /// # Errors
    /// When the kernel refuses, as it does to those who are not root.
    pub fn hold(self) -> Result<()> {
        self.stay()?;
        sys::run_first().context("run before other threads")
    }

    /// Binds the calling thread to the processor, among all others that run there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stay(self) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(self.0).with_context(|| format!("processor {}", self.0))?;
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("bind to processor {}", self.0))
    }

    /// Processor time of the kernel's thread for softirqs that were put off, on this processor.
    fn deferred(self) -> Duration {
        static PIDS: std::sync::OnceLock<Vec<(usize, PathBuf)>> = std::sync::OnceLock::new();
        let pids = PIDS.get_or_init(ksoftirqd);
        let found = pids.iter().find(|(core, _)| *core == self.0);
        let text = found.and_then(|(_, path)| fs::read_to_string(path).ok()).unwrap_or_default();
        let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        Duration::from_nanos(ns)
    }
}

/// Processor time since it was started: the calling thread's, and that of softirqs put off on its processor.
#[derive(Debug)]
pub struct Clock {
    core: Core,
    thread: Duration,
    deferred: Duration,
}

impl Clock {
    /// Starts it, on a thread that holds `core`.
    ///
    /// # Errors
    /// When the kernel has no such clock.
    pub fn start(core: Core) -> Result<Self> {
        let deferred = core.deferred();
        Ok(Self { core, deferred, thread: thread_time()? })
    }

    /// What was used since then.
    ///
    /// # Errors
    /// When the kernel has no such clock.
    pub fn used(&self) -> Result<Duration> {
        let thread = thread_time()?.saturating_sub(self.thread);
        Ok(thread + self.core.deferred().saturating_sub(self.deferred))
    }
}

fn thread_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the thread's clock")?;
    Ok(Duration::from(now))
}

/// The `ksoftirqd` of each processor, by the file with its times.
fn ksoftirqd() -> Vec<(usize, PathBuf)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            let core = name.trim().strip_prefix("ksoftirqd/")?.parse().ok()?;
            Some((core, process.path().join("schedstat")))
        })
        .collect()
}
