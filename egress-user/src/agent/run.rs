//! The long-running agent.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::block_in_place;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use super::error::Chain;
use super::status::Status;
use super::watch::Watch;
use super::{AgentError, Applied, Router};
use crate::compile::{Desired, desired_from_file};
use crate::link;

/// What to leave behind at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// Everything goes on working.
    Keep,
    /// Everything is taken away.
    Remove,
}

/// What [`run`] follows.
#[derive(Clone, Debug)]
pub struct Options {
    /// The specification.
    pub file: PathBuf,
    /// Which router of it.
    pub router: Option<String>,
    /// What to leave behind.
    pub on_exit: OnExit,
    /// Where to write the status, whenever it changes.
    pub status_file: Option<PathBuf>,
    /// The file that names the router's namespace, when it was named by one that goes with it (not by a process).
    pub netns_file: Option<PathBuf>,
}

/// How often flows that are over are removed.
const SWEEP: Duration = Duration::from_secs(5);
/// How often the system is compared with what it should be.
const REPAIR: Duration = Duration::from_secs(10);
/// How often the agent looks whether the router's namespace was deleted under it.
const LOOK: Duration = Duration::from_secs(1);
/// An editor writes in several steps; one look after the last is enough.
const SETTLE: Duration = Duration::from_millis(50);

/// Follows the specification until a signal, or until somebody deletes the router's namespace. `desired` is what the file says now; `ready` is called once, when packets would
/// be translated.
///
/// # Errors
///
/// When the first apply fails. Later ones are logged: what was in force stays in force.
pub async fn run(
    mut router: Router,
    desired: Desired,
    options: Options,
    ready: impl FnOnce(),
) -> Result<(), AgentError> {
    let mut signals = Signals::new()?;
    let mut watch = Watch::new(&options.file)?;
    let applied = block_in_place(|| router.apply(&desired))?;
    let mut agent = Agent { router, desired, options, refused: None, drifted: None, status: None };
    let name = agent.options.netns_file.clone().and_then(Name::of);
    agent.succeeded(&applied);
    ready();

    let mut sweep = interval(SWEEP);
    let mut repair = interval(REPAIR);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = watch.changed() => {
                tokio::time::sleep(SETTLE).await;
                block_in_place(|| agent.reload());
            }
            _ = signals.hangup.recv() => block_in_place(|| agent.reload()),
            _ = signals.interrupt.recv() => break,
            _ = signals.terminate.recv() => break,
            _ = sweep.tick() => block_in_place(|| agent.sweep()),
            _ = repair.tick() => block_in_place(|| agent.repair()),
            _ = look.tick(), if name.is_some() => {
                if name.as_ref().is_some_and(Name::is_gone) {
                    // Held open by this process alone, it would go on answering for its addresses.
                    warn!("the router's namespace was deleted, and the router goes with it");
                    agent.options.on_exit = OnExit::Remove;
                    break;
                }
            }
        }
    }
    if agent.options.on_exit == OnExit::Remove {
        block_in_place(|| agent.router.delete())?;
        if let Some(file) = &agent.options.status_file {
            let _never_written = std::fs::remove_file(file);
        }
        info!("removed");
    } else {
        info!("ended; the datapath goes on");
    }
    Ok(())
}

struct Agent {
    router: Router,
    /// What is in force.
    desired: Desired,
    options: Options,
    /// Why the latest edit is not in force.
    refused: Option<String>,
    /// Why the system is not as it should be.
    drifted: Option<String>,
    /// What was written last.
    status: Option<Status>,
}

impl Agent {
    /// Reads the file again and applies it if it says something else. A file that cannot be applied changes nothing.
    fn reload(&mut self) {
        let (new, warnings) = match desired_from_file(&self.options.file, self.options.router.as_deref()) {
            Ok(read) => read,
            Err(refused) => return self.refuse("edit refused, the last good specification stays in force", &refused),
        };
        if new == self.desired {
            self.refused = None;
            return self.write_status();
        }
        for warning in warnings {
            warn!("{warning}");
        }
        if new.router != self.desired.router {
            let (now, ours) = (new.router, self.desired.router.clone());
            return self.refuse("edit refused", &AgentError::OtherRouter { now, ours });
        }
        match self.router.apply(&new) {
            Ok(applied) => {
                self.desired = new;
                self.refused = None;
                self.succeeded(&applied);
            }
            Err(failed) => self.refuse("edit not applied, the last good specification stays in force", &failed),
        }
    }

    fn sweep(&mut self) {
        match self.router.sweep() {
            Ok(swept) if swept.removed > 0 => debug!(live = swept.live, removed = swept.removed, "swept flows"),
            Ok(_) => {}
            Err(failed) => warn!("sweep: {}", Chain(&failed)),
        }
    }

    fn repair(&mut self) {
        match self.router.apply(&self.desired) {
            Ok(applied) if applied.is_unchanged() => {
                self.drifted = None;
                self.write_status();
            }
            Ok(applied) => {
                warn!("the system had drifted and was put right");
                self.succeeded(&applied);
            }
            Err(failed) => {
                let problem = format!("the system has drifted and could not be put right: {}", Chain(&failed));
                // Once, not with every attempt.
                if self.drifted.as_ref() != Some(&problem) {
                    error!("{problem}");
                }
                self.drifted = Some(problem);
                self.write_status();
            }
        }
    }

    fn succeeded(&mut self, applied: &Applied) {
        report(&self.desired, applied);
        announce(&self.router, applied);
        self.drifted = None;
        self.write_status();
    }

    /// Keeps what is in force.
    fn refuse(&mut self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let problem = format!("{what}: {}", Chain(error));
        error!("{problem}");
        self.refused = Some(problem);
        self.write_status();
    }

    fn write_status(&mut self) {
        let status = Status::new(&self.desired, self.refused.clone().or_else(|| self.drifted.clone()));
        if self.status.as_ref() == Some(&status) {
            return;
        }
        if let Some(file) = &self.options.status_file
            && let Err(failed) = status.write(file)
        {
            return warn!("{}", Chain(&failed));
        }
        self.status = Some(status);
    }
}

fn report(desired: &Desired, applied: &Applied) {
    for change in &applied.link {
        info!("{change}");
    }
    info!(
        router = %desired.router,
        rules = desired.rules.rules.len(),
        programs_changed = applied.programs,
        tables_changed = applied.tables,
        tables_took_ms = u64::try_from(applied.tables_took.as_millis()).unwrap_or(u64::MAX),
        "applied"
    );
}

/// Tells the network, in the background, when the link has changed.
fn announce(router: &Router, applied: &Applied) {
    if applied.link.is_empty() {
        return;
    }
    let place = router.place();
    let (netns, interface, addresses) =
        (place.router.clone(), place.external_interface.clone(), applied.addresses.clone());
    tokio::spawn(async move {
        if let Err(failed) = link::announce_rounds(netns, interface, addresses).await {
            warn!("announce: {}", Chain(&failed));
        }
    });
}

/// A file that is a namespace, by which the user knows it.
struct Name {
    path: PathBuf,
    inode: (u64, u64),
}

impl Name {
    fn of(path: PathBuf) -> Option<Self> {
        let inode = inode(&path)?;
        Some(Self { path, inode })
    }

    /// Whether the name is gone, or is another namespace's now.
    fn is_gone(&self) -> bool {
        inode(&self.path) != Some(self.inode)
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, AgentError> {
        let on = |kind| signal(kind).map_err(|source| AgentError::SetUp { what: "signal handlers", source });
        Ok(Self {
            hangup: on(SignalKind::hangup())?,
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
        })
    }
}
