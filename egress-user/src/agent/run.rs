//! The long-running agent.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{info, warn};

use super::keep::{Keeper, ROUND};
use super::serve::Served;
use super::watch::Watch;
use super::{AgentError, ExistingFlows, Router, service};
use crate::compile::Desired;
use crate::link;
use crate::status::ConditionType;

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
    /// Whether to have the addresses only while no other router answers for them.
    pub standby: bool,
    /// What to leave behind.
    pub on_exit: OnExit,
    /// Where to write the status, whenever it changes.
    pub status_file: Option<PathBuf>,
    /// What becomes of live flows whose rule changes.
    pub existing_flows: ExistingFlows,
    /// Where to log flows.
    pub flow_log: Option<PathBuf>,
    /// Where to serve metrics and health.
    pub metrics: Option<SocketAddr>,
    /// Becomes true when the router is not wanted any more: it is taken away then.
    pub gone: Option<watch::Receiver<bool>>,
    /// The file that names the router's namespace, when it was named by one that goes with it (not by a process).
    pub netns_file: Option<PathBuf>,
}

/// How often the system is compared with what it should be, though nobody tells of a change.
const REPAIR: Duration = Duration::from_secs(10);
/// How often the agent looks whether the router's namespace was deleted under it, and whether the programs are attached.
const LOOK: Duration = Duration::from_secs(1);
/// An editor writes in several steps; one look after the last is enough.
const SETTLE: Duration = Duration::from_millis(50);
/// Changes of the network come in swarms; the agent looks at most this often.
const PAUSE: Duration = Duration::from_millis(200);

/// Follows the specification until a signal, or until somebody deletes the router's namespace. `desired` is what the file
/// says now; `ready` is called once, when packets would be translated: with [`Options::standby`] that may be much later.
///
/// # Errors
///
/// When the first apply fails. Later ones are told: what was in force stays in force. Who stands by tells of them all.
pub async fn run(router: Router, desired: Desired, options: Options, ready: impl FnOnce()) -> Result<(), AgentError> {
    let mut signals = Signals::new()?;
    let mut edits = Watch::new(&options.file)?;
    let mut served = Served::on(options.metrics).await?;
    let name = options.netns_file.clone().and_then(Name::of);
    let mut keeper = Keeper::new(router, desired, options);
    block_in_place(|| keeper.start())?;
    let mut master = keeper.master.clone();
    let mut network = block_in_place(|| link::Watch::new(keeper.router.place(), &master))?;
    // Who stands by serves, too.
    service::ready();
    let mut ready = Some(ready);

    let every = |period| {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut repair, mut look) = (every(REPAIR), every(LOOK));
    let mut next_sweep = Instant::now();
    let mut rounds = every(ROUND);
    let mut watchdog = service::watchdog();
    let mut last = Instant::now();
    let mut gone = keeper.options.gone.clone();
    loop {
        if keeper.master != master {
            master.clone_from(&keeper.master);
            network = block_in_place(|| link::Watch::new(keeper.router.place(), &master))?;
        }
        if keeper.in_force
            && let Some(ready) = ready.take()
        {
            ready();
        }
        served.beat(keeper.conditions.holds(ConditionType::Available));
        tokio::select! {
            scrape = served.scrape() => {
                // Who has asked may have gone.
                let _unsent = scrape.send(block_in_place(|| keeper.figures()));
            }
            () = edits.changed() => {
                sleep(SETTLE).await;
                block_in_place(|| keeper.reload());
            }
            () = keeper.retry_edit.due() => block_in_place(|| keeper.reload()),
            _ = signals.hangup.recv() => block_in_place(|| keeper.reload()),
            () = is_true(&mut gone) => {
                keeper.options.on_exit = OnExit::Remove;
                break;
            }
            _ = signals.interrupt.recv() => break,
            _ = signals.terminate.recv() => break,
            // Asked for when it is time, so that the greatest of what comes meanwhile stands for all.
            news = async { sleep_until(last + PAUSE).await; network.changed().await }, if keeper.in_force => {
                block_in_place(|| keeper.network_changed(news));
                last = Instant::now();
            }
            () = keeper.retry_repair.due(), if keeper.in_force => block_in_place(|| keeper.mend()),
            _ = rounds.tick(), if keeper.is_standby() => block_in_place(|| keeper.round()),
            _ = watchdog.tick() => service::alive(),
            () = sleep_until(next_sweep), if keeper.in_force => {
                next_sweep = Instant::now() + block_in_place(|| keeper.sweep());
            }
            _ = repair.tick(), if keeper.in_force => block_in_place(|| keeper.mend()),
            _ = look.tick() => {
                if name.as_ref().is_some_and(Name::is_gone) {
                    // Held open by this process alone, it would go on answering for its addresses.
                    warn!("the router's namespace was deleted, and the router goes with it");
                    keeper.options.on_exit = OnExit::Remove;
                    break;
                }
                if keeper.in_force {
                    block_in_place(|| keeper.guard());
                }
            }
        }
    }
    service::stopping();
    if keeper.options.on_exit == OnExit::Remove {
        let removed = block_in_place(|| keeper.remove());
        keeper.finish_log().await;
        removed?;
        info!("removed");
    } else {
        keeper.finish_log().await;
        info!("{}", if keeper.in_force { "ended; the datapath goes on" } else { "ended, as it stood by" });
    }
    Ok(())
}

/// Waits until it is true; without it, for ever.
async fn is_true(gone: &mut Option<watch::Receiver<bool>>) {
    if let Some(gone) = gone
        && gone.wait_for(|gone| *gone).await.is_ok()
    {
        return;
    }
    std::future::pending().await
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
