//! `cargo xtask bench`: every way through the router, measured in one run, in turns.
//!
//! | module | what |
//! |---|---|
//! | [`rig`] | a lab for each path |
//! | [`workload`] | what is sent through them, one file a workload |
//! | [`record`] | the numbers, round by round |
//! | [`ratios`] | which are compared, and what they must be |
//! | [`report`], [`svg`] | what a reader gets |
//!
//! The machine is taken to be busy with other things. So everything that is measured runs on one processor, before all
//! other threads; each path has a short slice in turn; and what is reported are medians of several rounds, ratios being
//! taken within a round. The machine's own interfaces and settings are not touched.

mod ratios;
mod record;
mod report;
mod rig;
mod svg;
mod workload;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use egress_lab::Family;
use egress_lab::interrupt::Interrupt;
use egress_lab::kernel_nat::Uplink;
use egress_lab::processor::Core;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{build, setup, workspace};
use record::Record;
use rig::{Parts, Path, Rig, Rules, build_all};
use workload::sockets::{self, Load};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Three rounds instead of five, and fewer sizes of tables: within 3 minutes
    #[arg(long)]
    quick: bool,
    /// Only this workload; may be repeated
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<Workload>,
    /// How many rounds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    rounds: Option<u8>,
    /// Another egress-router, such as one of before a change, whose API is measured beside this one's
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// A kubeconfig, with a token, of a kube-apiserver that is measured beside this one's API; everything made there is
    /// in a namespace of its own, and goes at the end
    #[arg(long, value_name = "KUBECONFIG")]
    api_peer: Option<PathBuf>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Cost of a small UDP packet
    UdpSmall,
    /// The same where net1 is a veth, which takes XDP programs
    UdpSmallVeth,
    /// TCP connections in a second
    Crr,
    /// Request and response: TCP and UDP
    Rr,
    /// TCP throughput: one stream, eight streams
    Streams,
    /// Cost of a new flow
    NewFlows,
    /// Time of each program
    Programs,
    /// Memory of a flow
    Memory,
    /// The agent killed and started again under load
    Restart,
    /// Cost as the rules grow
    Rules,
    /// Cost as the flows grow
    Flows,
    /// All rules replaced under load
    Swap,
    /// The API: requests, a list of all, changes to many watchers
    Api,
}

impl Workload {
    /// Whether it is run with the rigs that most workloads share.
    fn is_shared(self) -> bool {
        !matches!(self, Self::UdpSmallVeth | Self::Rules | Self::Flows | Self::Swap | Self::Api)
    }

    /// The paths that it wants of those rigs.
    fn paths(self) -> &'static [Path] {
        match self {
            Self::UdpSmall => {
                &[Path::Tc, Path::TcSlow, Path::Nft, Path::Iptables, Path::Forward, Path::Redirect, Path::Floor]
            }
            Self::NewFlows => &[Path::Tc, Path::TcSlow, Path::Nft, Path::Iptables, Path::Floor],
            Self::Crr | Self::Rr | Self::Streams => &Path::BOTH_WAYS,
            Self::Memory => &[Path::Tc, Path::Nft],
            Self::Programs | Self::Restart => &[Path::Tc],
            Self::UdpSmallVeth => {
                &[Path::Tc, Path::Xdp, Path::Nft, Path::Iptables, Path::Forward, Path::Redirect, Path::Floor]
            }
            Self::Rules | Self::Flows | Self::Swap | Self::Api => &[],
        }
    }
}

/// Flows that the shared rigs' router has room for: all that the workloads open, and half as many again.
const SHARED_FLOWS: u32 = 1 << 18;

/// A run.
struct Bench {
    core: Core,
    rounds: usize,
    quick: bool,
    record: Record,
    progress: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Bench {
    /// Ends the run where somebody wants it to.
    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Acquire) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Lets others have the processor, between two measurements on it.
    fn breathe(&self) {
        std::thread::sleep(Duration::from_millis(2));
    }

    /// Does one thing, and says so.
    fn step(&mut self, name: &str, what: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.go_on()?;
        let started = Instant::now();
        self.progress.set_position(0);
        self.progress.set_prefix(name.to_owned());
        self.progress.set_message("");
        what(self).with_context(|| name.to_owned())?;
        let line = format!("  {name}: {:.1} s", started.elapsed().as_secs_f64());
        if self.progress.is_hidden() {
            eprintln!("{line}")
        } else {
            self.progress.println(line)
        }
        Ok(())
    }
}

/// Runs the verb.
pub(crate) fn bench(args: &Args) -> Result<ExitCode> {
    workspace::require_root("bench")?;
    setup::ensure_peers()?;
    let (binary, object) = build::for_bench()?;
    let mut bench = Bench {
        core: Core::last()?,
        rounds: args.rounds.map_or(if args.quick { 3 } else { 5 }, usize::from),
        quick: args.quick,
        record: Record::default(),
        progress: progress()?,
        stop: stopped_by_signals()?,
    };
    let wanted = Workload::value_variants().iter().copied();
    let wanted = wanted.filter(|workload| args.only.is_empty() || args.only.contains(workload)).collect::<Vec<_>>();
    let parts = Parts { binary, object, beside: args.beside.clone(), api_peer: args.api_peer.clone() };
    let done = measure(&mut bench, &parts, &wanted);
    bench.progress.finish_and_clear();
    let repeated = rig::repeated();
    if repeated > 0 {
        bench
            .record
            .remark(format!("{repeated} slices lost more than one packet in a thousand and were measured again"));
    }
    // What was measured before something failed is shown all the same, though not kept as a whole report.
    ratios::add(&mut bench.record);
    // A closed pipe is the reader's choice.
    let _ = writeln!(std::io::stdout(), "{}", report::table(&bench.record));
    done?;
    let dir = workspace::target_dir().join("bench");
    report::write(&bench.record, bench.rounds, &dir)?;
    eprintln!("the report is in {}", dir.display());
    Ok(ExitCode::SUCCESS)
}

fn measure(bench: &mut Bench, parts: &Parts, wanted: &[Workload]) -> Result<()> {
    let paths = wanted.iter().filter(|workload| workload.is_shared()).flat_map(|workload| workload.paths());
    let mut paths = paths.copied().collect::<Vec<_>>();
    paths.sort_unstable();
    paths.dedup();
    let rules = Rules::udp(9000, 4).after(&sockets::PORTS);
    let build = |uplink| {
        let (parts, rules) = (parts, &rules);
        move |path: &Path| Rig::build(parts, *path, uplink, rules, SHARED_FLOWS)
    };
    let mut rigs = Vec::new();
    bench.step("rigs", |bench| {
        rigs = build_all(bench, &paths, build(Uplink::Macvlan))?;
        Ok(())
    })?;
    for workload in wanted.iter().filter(|workload| workload.is_shared()) {
        run_shared(bench, *workload, &mut rigs)?;
    }
    drop(rigs);
    for workload in wanted.iter().filter(|workload| !workload.is_shared()) {
        match workload {
            Workload::UdpSmallVeth => bench.step("udp-small, veth", |bench| {
                let mut rigs = build_all(bench, workload.paths(), build(Uplink::Veth))?;
                workload::udp_small::run(bench, &mut rigs, Uplink::Veth)
            })?,
            Workload::Rules => {
                for_families(bench, "rules", |bench, family| workload::rules::run(bench, parts, family))?
            }
            Workload::Flows => {
                for_families(bench, "flows", |bench, family| workload::flows::run(bench, parts, family))?
            }
            Workload::Swap => bench.step("swap", |bench| workload::swap::run(bench, parts))?,
            Workload::Api => bench.step("api", |bench| workload::api::run(bench, parts))?,
            _ => {}
        }
    }
    Ok(())
}

/// Once for each family. In the quick form for the first one only.
fn for_families(bench: &mut Bench, name: &str, run: impl Fn(&mut Bench, Family) -> Result<()>) -> Result<()> {
    let families = if bench.quick { &Family::ALL[..1] } else { &Family::ALL };
    families.iter().try_for_each(|family| bench.step(&format!("{name}, {family}"), |bench| run(bench, *family)))
}

fn run_shared(bench: &mut Bench, workload: Workload, rigs: &mut [Rig]) -> Result<()> {
    match workload {
        Workload::UdpSmall => bench.step("udp-small", |bench| workload::udp_small::run(bench, rigs, Uplink::Macvlan)),
        Workload::Crr => bench.step("crr", |bench| sockets::run(bench, rigs, Load::Crr)),
        Workload::Rr => {
            bench.step("rr", |bench| sockets::run(bench, rigs, Load::Rr))?;
            bench.step("udp-rr", |bench| sockets::run(bench, rigs, Load::UdpRr))
        }
        Workload::Streams => [1, 8].into_iter().try_for_each(|streams| {
            bench.step(&format!("stream{streams}"), |bench| sockets::run(bench, rigs, Load::Stream(streams)))
        }),
        Workload::NewFlows => bench.step("new-flows", |bench| workload::new_flows::run(bench, rigs)),
        Workload::Programs => bench.step("programs", |bench| workload::programs::run(bench, rigs)),
        Workload::Memory => bench.step("memory", |bench| workload::memory::run(bench, rigs)),
        Workload::Restart => bench.step("restart", |bench| workload::restart::run(bench, rigs)),
        Workload::UdpSmallVeth | Workload::Rules | Workload::Flows | Workload::Swap | Workload::Api => Ok(()),
    }
}

/// Set once somebody presses Ctrl-C or asks us to end.
fn stopped_by_signals() -> Result<Arc<AtomicBool>> {
    // Before there are other threads, which then hold the signals back too.
    let interrupt = Interrupt::hold()?;
    let stop = Arc::new(AtomicBool::new(false));
    let stops = Arc::clone(&stop);
    let wait = move || {
        if let Ok(signal) = interrupt.wait() {
            eprintln!("\n{signal}: removing the rigs");
            stops.store(true, Ordering::Release);
        }
    };
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(wait).context("start a thread for signals")?;
    Ok(stop)
}

fn progress() -> Result<ProgressBar> {
    let bar = if workspace::interactive() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("  {spinner} {prefix} ({elapsed}): {pos} rounds {wide_msg:.dim}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    Ok(bar)
}
