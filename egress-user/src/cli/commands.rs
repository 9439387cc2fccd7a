//! The commands that touch the system.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use egress_ebpf::event::Logging;
use egress_ebpf::timeout;
use serde::Serialize;

use super::args::{self, Command, Target};
use super::log::Log;
use super::output::{self, Format};
use super::rows::{CountedRule, PlanRow};
use super::top::Look;
use super::values::{self, LogLevel};
use crate::agent::{self, Applied, ExistingFlows, REPLY_MARK, Router, Setup, TO_CHANGE, TO_READ, check_privilege};
use crate::compile::{Desired, Protocol, RouterName, desired_from_file};
use crate::datapath::{CounterRow, Hook, LoggingRow, PinDir, ProgramRow, Reader, Settings, Tally};
use crate::link::{self, Netns, NetnsRef, Observed, Place};
use crate::source::{self, Access, Source};
use crate::spec::Diagnostic;
use crate::status::Conditions;

/// Runs a command.
///
/// # Errors
/// A `SpecError` when the specification is at fault; anything else is the system's.
pub(super) fn dispatch(command: Command, level: LogLevel) -> anyhow::Result<()> {
    let log = Log::start(level);
    match command {
        Command::Plan(args) => plan(&args),
        Command::Run(args) => run(&args, log),
        Command::Apply(args) => apply(&args),
        Command::Delete(args) => delete(&args),
        Command::Status(args) => status(&args),
        Command::Rules(args) => rules(&args),
        Command::Flows(args) => {
            let flows = super::flows::select(reader(&args.target)?.flows()?, &args.filter);
            Ok(output::print(&flows, args.output.format)?)
        }
        Command::Top(args) => super::top::run(&args),
        Command::Trace(args) => super::trace::run(&args),
        Command::Drops(args) => drops(&args),
        Command::Serve(args) => super::serve::run(&args),
        Command::Validate(_)
        | Command::ImportLegacy(_)
        | Command::Man(_)
        | Command::Crd(_)
        | Command::Completions(_) => Ok(()),
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
    let existing_flows = args.datapath.existing_flows;
    if let values::ExistingFlows::Drain { .. } = existing_flows {
        anyhow::bail!("`apply` does not wait, so it cannot drain flows: use --existing-flows keep or cut, or `run`");
    }
    let applied = router.apply(&desired)?;
    output::text(&summary(&desired, &applied))?;
    if existing_flows == values::ExistingFlows::Cut {
        let stale = router.sweep(true)?.stale;
        router
            .cut(&stale, &mut Vec::new())
            .context("the specification is applied; end flows of rules that have changed")?;
    }
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

fn run(args: &args::Run, log: Log) -> anyhow::Result<()> {
    let followed =
        args.spec.file.as_deref().map(|file| followed_file(file, args.spec.router.as_deref())).transpose()?;
    check_privilege(TO_CHANGE)?;
    // Opened while it may be: process 1 is out of sight once capabilities are given up.
    let place = Place { standby: args.standby, ..place(&args.target, Some(&args.master))? };
    let start = || started(args, &place);
    let ready = || {
        let _reader_gone = output::text("ready\n");
    };
    if args.confine == values::Confine::On {
        let (router, _) = start()?;
        let mut writable = router.make_room()?;
        for file in [&args.status_file, &args.flow_log].into_iter().flatten() {
            let folder = folder(file);
            std::fs::create_dir_all(&folder).with_context(|| format!("make the folder of {}", file.display()))?;
            writable.push(folder);
        }
        if args.spec.api.is_some() {
            std::fs::create_dir_all(&args.spec.mirror)
                .with_context(|| format!("make {}", args.spec.mirror.display()))?;
            writable.push(args.spec.mirror.clone());
        }
        // Before there is any other thread.
        agent::confine(&writable);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("set up the runtime")?;
    if let (Some(desired), Some(file)) = (followed, &args.spec.file) {
        let (router, options) = start()?;
        let options = agent::Options { file: file.clone(), ..options };
        return runtime.block_on(async {
            tokio::spawn(log.follow_signals());
            Ok(agent::run(router, desired, options, ready).await?)
        });
    }
    let access = args.spec.api.as_ref().context("give --spec or --api")?;
    let name = router_name(args.spec.router.as_deref().unwrap_or_default());
    runtime.block_on(async {
        tokio::spawn(log.follow_signals());
        let source = Source::new(access, name, &args.spec.mirror).await?;
        let start = || {
            let (router, options) = start()?;
            let status_file = Some(source.status().to_owned());
            Ok((router, agent::Options { file: source.spec().to_owned(), router: None, status_file, ..options }))
        };
        source::run(&source, start, ready).await
    })
}

fn followed_file(file: &std::path::Path, router: Option<&str>) -> anyhow::Result<Desired> {
    let (desired, warnings) = desired_from_file(file, router)?;
    warn(&warnings);
    Ok(desired)
}

/// The router of `run`, and how its agent works.
fn started(args: &args::Run, place: &Place) -> anyhow::Result<(Router, agent::Options)> {
    let mut settings = settings(&args.datapath, &place.router)?;
    if let (Some(metrics), None) = (args.metrics, &args.target.netns) {
        // Served where clients come in.
        settings.local_ports.push((Protocol::Tcp, metrics.port()));
    }
    if args.flow_log.is_some() {
        settings.logging = Logging { one_in: args.flow_log_sample, rate: args.flow_log_rate };
    }
    let (bpffs, hook) = (args.target.bpffs.clone(), hook(&args.datapath));
    let router = Router::new(Setup { place: place.clone(), bpffs, hook, settings })?;
    let options = agent::Options {
        file: std::path::PathBuf::new(),
        router: args.spec.router.clone(),
        standby: args.standby,
        on_exit: on_exit(args.on_exit),
        status_file: args.status_file.clone(),
        flow_log: args.flow_log.clone(),
        metrics: args.metrics,
        existing_flows: existing_flows(&args.datapath),
        gone: None,
        netns_file: netns_file(&args.target),
    };
    Ok((router, options))
}

fn on_exit(given: values::OnExit) -> agent::OnExit {
    match given {
        values::OnExit::Keep => agent::OnExit::Keep,
        values::OnExit::Remove => agent::OnExit::Remove,
    }
}

fn existing_flows(datapath: &args::Datapath) -> ExistingFlows {
    match datapath.existing_flows {
        values::ExistingFlows::Keep => ExistingFlows::Keep,
        values::ExistingFlows::Drain { seconds } => ExistingFlows::Drain(Duration::from_secs(seconds.get().into())),
        values::ExistingFlows::Cut => ExistingFlows::Cut,
    }
}

fn netns_file(target: &Target) -> Option<std::path::PathBuf> {
    target.netns.as_ref().map(|netns| netns.path().to_owned()).filter(|path| !is_of_a_process(path))
}

/// `NAMESPACE/NAME`, or a name of the default namespace.
fn router_name(text: &str) -> RouterName {
    let (namespace, name) = text.split_once('/').unwrap_or((crate::spec::DEFAULT_NAMESPACE, text));
    RouterName { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Runs a router of the API that this process serves, until a signal.
///
/// # Errors
/// When the router cannot be made, or the agent cannot begin.
pub(super) fn run_served(served: &super::serve::Served<'_>) -> anyhow::Result<()> {
    check_privilege(TO_CHANGE)?;
    let (target, args) = (&served.target, served.args);
    let start = |source: &Source| -> anyhow::Result<_> {
        let settings = settings(&args.datapath, &router_netns(target)?)?;
        let router = router(target, Some(&args.master), hook(&args.datapath), settings)?;
        let options = agent::Options {
            file: source.spec().to_owned(),
            router: None,
            standby: false,
            on_exit: on_exit(args.on_exit),
            status_file: Some(source.status().to_owned()),
            flow_log: None,
            metrics: None,
            existing_flows: existing_flows(&args.datapath),
            gone: None,
            netns_file: netns_file(target),
        };
        Ok((router, options))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("set up the runtime")?;
    runtime.block_on(async {
        let access = Access::Kubeconfig(served.kubeconfig.clone());
        let source = Source::new(&access, router_name(&served.router), &served.directory).await?;
        let ready = || tracing::info!(router = served.router, "ready");
        source::run(&source, || start(&source), ready).await
    })
}

/// The folder that a file is in.
fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Such a path goes with the process, and the namespace may well stay.
fn is_of_a_process(path: &Path) -> bool {
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
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    installed: bool,
    /// The agent that is at work, if there is one and it can be seen.
    agent: Option<u32>,
    conditions: Conditions,
    link: Observed,
    programs: Vec<ProgramRow>,
    snat_addresses: Vec<std::net::IpAddr>,
    rules: usize,
    flows: usize,
    port_searches: Vec<u64>,
    /// What is told of flows and drops, and how much of it was lost; nothing without a flow log.
    flow_log: Option<LoggingRow>,
    counters: Vec<CounterRow>,
}

fn status(args: &args::Show) -> anyhow::Result<()> {
    check_privilege(TO_READ)?;
    let router = router(&args.target, None, Hook::Auto, Settings::default())?;
    let conditions = router.conditions()?;
    let reader = match router.reader() {
        Ok(reader) => Some(reader),
        // Nothing is to be there.
        Err(_none) if router.stands_by() => None,
        Err(failed) => return Err(failed.into()),
    };
    let mut status = Status {
        installed: reader.is_some(),
        agent: router.place().router.holder(),
        conditions,
        link: link::observe(router.place())?,
        programs: router.programs()?,
        ..Status::default()
    };
    if let Some(reader) = reader {
        status.snat_addresses = reader.snat_addresses()?;
        status.rules = reader.rules()?.len();
        status.flows = reader.flows()?.len();
        status.port_searches = reader.port_tries()?;
        status.flow_log = reader.logging()?;
        status.counters = reader.counters()?;
    }
    if args.output.format == Format::Table {
        let rows: Vec<_> = status.conditions.iter().cloned().collect();
        output::print(&rows, Format::Table)?;
        output::text("\n")?;
    }
    Ok(output::value(&status, args.output.format)?)
}

fn rules(args: &args::Rules) -> anyhow::Result<()> {
    let reader = reader(&args.target)?;
    let rules = reader.rules()?;
    if !args.counts {
        return Ok(output::print(&rules, args.output.format)?);
    }
    let mut tally = Tally::default();
    reader.tally(&mut tally)?;
    let rows: Vec<CountedRule> = rules.into_iter().map(|rule| CountedRule::new(rule, &tally)).collect();
    Ok(output::print(&rows, args.output.format)?)
}

fn drops(args: &args::Drops) -> anyhow::Result<()> {
    let reader = reader(&args.target)?;
    let look = || -> anyhow::Result<Vec<CounterRow>> {
        let mut counters = reader.counters()?;
        counters.retain(|counter| counter.dropped || counter.outcome == "rejected");
        Ok(counters)
    };
    let mut before = look()?;
    let Some(seconds) = args.watch else {
        return Ok(output::print(&before, args.output.format)?);
    };
    loop {
        std::thread::sleep(Duration::from_secs(seconds.into()));
        let now = look()?;
        let meanwhile = since(&now, &before);
        if !meanwhile.is_empty() {
            output::print(&meanwhile, args.output.format)?;
        }
        if !output::is_read() {
            return Ok(());
        }
        before = now;
    }
}

/// What was counted between two looks.
fn since(now: &[CounterRow], before: &[CounterRow]) -> Vec<CounterRow> {
    let earlier = |row: &CounterRow| before.iter().find(|old| (old.hook, old.outcome) == (row.hook, row.outcome));
    let row = |row: &CounterRow| {
        let (packets, bytes) = earlier(row).map_or((0, 0), |old| (old.packets, old.bytes));
        CounterRow {
            packets: row.packets.saturating_sub(packets),
            bytes: row.bytes.saturating_sub(bytes),
            ..row.clone()
        }
    };
    now.iter().map(row).filter(|row| row.packets > 0).collect()
}

/// The tables of an installed router, and the addresses that clients know it by.
pub(super) fn installed(target: &Target) -> anyhow::Result<(Reader, Vec<IpAddr>)> {
    let router = router(target, None, Hook::Auto, Settings::default())?;
    let observed = router.observe()?;
    let addresses = observed.cluster.addresses.iter().map(|held| held.net.addr()).collect();
    Ok((router.reader()?, addresses))
}

/// Where an installed router is pinned.
pub(super) fn pins(target: &Target) -> anyhow::Result<PinDir> {
    Ok(router(target, None, Hook::Auto, Settings::default())?.pins().clone())
}

/// One look at a router, for `top`.
pub(super) fn look(target: &Target) -> anyhow::Result<Look> {
    check_privilege(TO_READ)?;
    let router = router(target, None, Hook::Auto, Settings::default())?;
    let reader = router.reader()?;
    Ok(Look {
        rules: reader.rules()?,
        flows: reader.flows()?,
        counters: reader.counters()?,
        conditions: router.conditions()?,
        tally: Box::new(move |tally| Ok(reader.tally(tally)?)),
    })
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
    let place = place(target, master)?;
    Ok(Router::new(Setup { place, bpffs: target.bpffs.clone(), hook, settings })?)
}

/// Opens the namespaces. Without `master`, the router's stands for it.
fn place(target: &Target, master: Option<&args::Master>) -> anyhow::Result<Place> {
    let router = router_netns(target)?;
    let namespace = match master {
        Some(args::Master { adopt: true, .. }) => router.clone(),
        Some(args::Master { master_netns: Some(netns), .. }) => NetnsRef::Path(netns.path().to_owned()).open()?,
        Some(args::Master { master_netns: None, .. }) => Netns::host().context("give --master-netns")?,
        None => router.clone(),
    };
    Ok(Place {
        router,
        master: namespace,
        cluster_interface: target.cluster_interface.clone(),
        external_interface: target.external_interface.clone(),
        adopt: master.is_some_and(|args| args.adopt),
        reply_mark: Some(REPLY_MARK),
        standby: false,
    })
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
        values::Hook::Tc => Hook::Tc,
        values::Hook::Xdp => Hook::Xdp,
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
