//! The commands that touch the system.

use anyhow::Context as _;
use egress_ebpf::timeout;
use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::args::{self, Command, Target};
use super::output::{self, Format};
use super::rows::PlanRow;
use super::values::{self, LogLevel};
use crate::agent::{self, Applied, REPLY_MARK, Router, Setup, TO_CHANGE, TO_READ, check_privilege};
use crate::compile::{Desired, desired_from_file};
use crate::datapath::{CounterRow, Hook, PinDir, Reader, Settings};
use crate::link::{self, Netns, NetnsRef, Observed, Place};
use crate::spec::Diagnostic;

/// Runs a command.
///
/// # Errors
/// A `SpecError` when the specification is at fault; anything else is the system's.
pub(super) fn dispatch(command: Command, level: LogLevel) -> anyhow::Result<()> {
    start_log(level);
    match command {
        Command::Plan(args) => plan(&args),
        Command::Run(args) => run(&args),
        Command::Apply(args) => apply(&args),
        Command::Delete(args) => delete(&args),
        Command::Status(args) => status(&args),
        Command::Rules(args) => Ok(output::print(&reader(&args.target)?.rules()?, args.output.format)?),
        Command::Flows(args) => Ok(output::print(&reader(&args.target)?.flows()?, args.output.format)?),
        Command::Drops(args) => drops(&args),
        Command::Serve(args) => super::serve::run(&args),
        Command::Validate(_) | Command::Crd(_) | Command::Completions(_) => Ok(()),
    }
}

/// Lines for a person at a terminal, JSON for whatever else reads standard error.
fn start_log(level: LogLevel) {
    use std::io::IsTerminal as _;

    let level: tracing::Level = level.into();
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::from_level(level).into()).parse_lossy("");
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).with_target(false);
    if std::io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).init();
    }
}

fn plan(args: &args::Plan) -> anyhow::Result<()> {
    let desired = desired(&args.spec)?;
    check_privilege(TO_READ)?;
    let router = configured(&args.target, &args.master, &args.datapath)?;
    let link = router.plan(&desired)?;
    let installed = router.reader().and_then(|reader| Ok(reader.rules()?)).unwrap_or_default();
    let mut rows: Vec<PlanRow> = link.changes().map(PlanRow::link).collect();
    rows.extend(router.unattached()?.iter().map(|(program, interface)| PlanRow::program(program, interface)));
    rows.extend(PlanRow::rules(&installed, &desired.rules));
    if rows.is_empty() && args.output.format == Format::Table {
        return Ok(output::text("nothing to change\n")?);
    }
    Ok(output::print(&rows, args.output.format)?)
}

fn apply(args: &args::Apply) -> anyhow::Result<()> {
    let desired = desired(&args.spec)?;
    check_privilege(TO_CHANGE)?;
    let mut router = configured(&args.target, &args.master, &args.datapath)?;
    let applied = router.apply(&desired)?;
    output::text(&summary(&desired, &applied))?;
    if applied.link.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().context("set up the runtime")?;
    let place = router.place().clone();
    // Others may work on it from here on.
    drop(router);
    let announced = link::announce_rounds(place.router, place.external_interface, applied.addresses);
    runtime.block_on(announced).context("the specification is applied; announce its addresses")
}

fn summary(desired: &Desired, applied: &Applied) -> String {
    if applied.is_unchanged() {
        return format!("{}: nothing to change\n", desired.router);
    }
    let mut text = String::new();
    for change in &applied.link {
        text.push_str(&format!("{change}\n"));
    }
    if applied.programs {
        text.push_str("attach the programs\n");
    }
    if applied.tables {
        text.push_str(&format!("put {} rules in force\n", desired.rules.rules.len()));
    }
    text
}

fn run(args: &args::Run) -> anyhow::Result<()> {
    let desired = desired(&args.spec)?;
    check_privilege(TO_CHANGE)?;
    let router = configured(&args.target, &args.master, &args.datapath)?;
    let options = agent::Options {
        file: args.spec.file.clone(),
        router: args.spec.router.clone(),
        on_exit: match args.on_exit {
            values::OnExit::Keep => agent::OnExit::Keep,
            values::OnExit::Remove => agent::OnExit::Remove,
        },
        status_file: args.status_file.clone(),
        netns_file: args
            .target
            .netns
            .as_ref()
            .map(|netns| netns.path().to_owned())
            .filter(|path| !is_of_a_process(path)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("set up the runtime")?;
    runtime.block_on(agent::run(router, desired, options, || {
        let _reader_gone = output::text("ready\n");
        // Not under systemd is fine.
        let _no_manager = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }))?;
    Ok(())
}

/// Such a path goes with the process, and the namespace may well stay.
fn is_of_a_process(path: &std::path::Path) -> bool {
    path.starts_with("/proc")
}

fn delete(args: &args::Delete) -> anyhow::Result<()> {
    check_privilege(TO_CHANGE)?;
    // Where the master is does not matter for taking the link away, so it need not be visible.
    let master = args.master.master_netns.is_some().then_some(&args.master);
    let mut router = router(&args.target, master, Hook::Auto, Settings::default())?;
    let found = router.delete()?;
    Ok(output::text(if found { "deleted\n" } else { "nothing to delete\n" })?)
}

/// What `status` shows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    installed: bool,
    link: Observed,
    snat_addresses: Vec<std::net::IpAddr>,
    rules: usize,
    flows: usize,
    port_searches: Vec<u64>,
    counters: Vec<CounterRow>,
}

fn status(args: &args::Show) -> anyhow::Result<()> {
    check_privilege(TO_READ)?;
    let router = router(&args.target, None, Hook::Auto, Settings::default())?;
    let reader = router.reader()?;
    let status = Status {
        installed: true,
        link: link::observe(router.place())?,
        snat_addresses: reader.snat_addresses()?,
        rules: reader.rules()?.len(),
        flows: reader.flows()?.len(),
        port_searches: reader.port_tries()?,
        counters: reader.counters()?,
    };
    Ok(output::value(&status, args.output.format)?)
}

fn drops(args: &args::Show) -> anyhow::Result<()> {
    let mut counters = reader(&args.target)?.counters()?;
    counters.retain(|counter| counter.dropped || counter.outcome == "rejected");
    Ok(output::print(&counters, args.output.format)?)
}

fn desired(spec: &args::Spec) -> anyhow::Result<Desired> {
    let (desired, warnings) = desired_from_file(&spec.file, spec.router.as_deref())?;
    warn(&warnings);
    Ok(desired)
}

fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

fn reader(target: &Target) -> anyhow::Result<Reader> {
    check_privilege(TO_READ)?;
    let cookie = router_netns(target)?.cookie()?;
    Ok(Reader::open(&PinDir::new(&target.bpffs, cookie))?)
}

fn router(target: &Target, master: Option<&args::Master>, hook: Hook, settings: Settings) -> anyhow::Result<Router> {
    let router = router_netns(target)?;
    let master = match master {
        Some(args::Master { master_netns: Some(netns) }) => NetnsRef::Path(netns.path().to_owned()).open()?,
        Some(args::Master { master_netns: None }) => Netns::host().context("give --master-netns")?,
        None => router.clone(),
    };
    let place = Place {
        router,
        master,
        cluster_interface: target.cluster_interface.clone(),
        external_interface: target.external_interface.clone(),
        reply_mark: Some(REPLY_MARK),
    };
    Ok(Router::new(Setup { place, bpffs: target.bpffs.clone(), hook, settings })?)
}

/// A router with the settings of the command line.
fn configured(target: &Target, master: &args::Master, datapath: &args::Datapath) -> anyhow::Result<Router> {
    let settings = settings(datapath, &router_netns(target)?)?;
    router(target, Some(master), hook(datapath), settings)
}

fn router_netns(target: &Target) -> anyhow::Result<Netns> {
    let netns = target.netns.as_ref().map_or(NetnsRef::Own, |netns| NetnsRef::Path(netns.path().to_owned()));
    Ok(netns.open()?)
}

fn hook(datapath: &args::Datapath) -> Hook {
    match datapath.hook {
        values::Hook::Auto => Hook::Auto,
        values::Hook::Tcx => Hook::Tcx,
        values::Hook::Clsact => Hook::Clsact,
    }
}

fn settings(datapath: &args::Datapath, netns: &Netns) -> anyhow::Result<Settings> {
    Ok(Settings {
        flows: datapath.flows,
        snat_ports: datapath.snat_ports.map(|range| (range.first().get(), range.last().get())),
        local_ports: datapath.local_ports.iter().map(|port| (port.protocol, port.port.get())).collect(),
        timeouts_s: timeouts(&datapath.timeouts, netns)?,
        redirect: datapath.fast_path == values::FastPath::On,
        ..Settings::default()
    })
}

/// The defaults, then connection tracking's settings if asked for, then what is given by name.
fn timeouts(given: &[values::Timeout], netns: &Netns) -> anyhow::Result<[u32; timeout::CLASSES]> {
    let mut table = timeout::defaults_s();
    if given.contains(&values::Timeout::Auto) {
        agent::conntrack_timeouts(netns, &mut table)?;
    }
    for timeout in given {
        if let values::Timeout::Of { class, seconds } = timeout
            && let Some(limit) = table.get_mut(*class as usize)
        {
            *limit = seconds.get();
        }
    }
    Ok(table)
}
