//! `cargo xtask run`: the router in a lab, under traffic, with what happened shown.

mod poke;
mod rules;
pub(crate) mod table;

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use egress_lab::address::{ROUTER, SNAT, client};
use egress_lab::detector::Detector;
use egress_lab::interrupt::Interrupt;
use egress_lab::probe::{Outcome, Probe, Servers};
use egress_lab::router::Router;
use egress_lab::{Lab, Options};

use crate::{build, workspace};

/// The spec that the lab's addresses are made for.
const SPEC: &str = "examples/egress-router.yaml";
/// How long one probe may take. Through a lab on one machine it takes a millisecond; a first neighbour, a second.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

/// Arguments of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Send the traffic, report, and end: exit 1 when anything failed
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    workspace::require_root("run")?;
    build::everything()?;
    let spec = workspace::root().join(SPEC);
    let spec = fs::read_to_string(&spec).with_context(|| format!("read {}", spec.display()))?;
    // Before there are threads, which then hold the signals back too: Ctrl-C must not end us with the lab in place.
    let interrupt = if args.check { None } else { Some(Interrupt::hold()?) };

    eprintln!("building the lab");
    let lab = Lab::build(&Options::default())?;
    let detector = Detector::start(&lab, SNAT.both())?;
    let mut router = Router::new(&lab, &spec)?;
    eprintln!("starting egress-router on {SPEC}");
    router.start()?;

    let rules = rules::read(&router.report("rules")?)?;
    let probes = rules::probes(&rules, client(0), ROUTER, SNAT);
    let servers = Servers::start(&lab, &probes)?;
    let outcomes = probes.iter().map(|probe| servers.send(&lab, *probe, PROBE_WITHIN)).collect::<Vec<_>>();
    let mut tally = Tally::default();
    show_outcomes(&outcomes, &mut tally);
    for verb in ["rules", "flows", "drops"] {
        let shown = router.show(verb);
        print(&format!("\n{verb}\n{}", shown.as_deref().unwrap_or_default()));
        tally.add(&format!("egress-router {verb}"), shown.map(|_| ()));
    }
    print("");
    tally.add("traffic for every rule", covers(&probes));
    tally.add("no other packet at the outside", detector.assert_clean());
    if tally.failed > 0 {
        print(&format!("\nwhat egress-router said\n{}{}", router.stdout(), router.stderr()));
    }

    if let Some(interrupt) = interrupt {
        print(&poke::lines(&lab, &router, &probes));
        let signal = interrupt.wait()?;
        eprintln!("\n{signal}: removing the lab");
    }
    let clean_end = detector.assert_clean();
    drop(router);
    print(&format!("{} passed, {} failed", tally.passed, tally.failed));
    clean_end?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How the checks went.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn add(&mut self, what: &str, done: Result<()>) {
        match done {
            Ok(()) => {
                self.passed += 1;
                print(&format!("ok      {what}"));
            }
            Err(error) => {
                self.failed += 1;
                print(&format!("FAILED  {what}: {error:#}"));
            }
        }
    }
}

fn show_outcomes(outcomes: &[Outcome], tally: &mut Tally) {
    let mut rows = vec![["sent to", "arrived at", "as coming from", "ms", "verdict"].map(str::to_owned)];
    for outcome in outcomes {
        let verdict = outcome.verdict();
        if verdict.is_ok() {
            tally.passed += 1;
        } else {
            tally.failed += 1;
        }
        let (server, source) = match &outcome.seen {
            Ok(seen) => (table::endpoint(seen.server), table::endpoint(seen.source)),
            Err(_) => ("-".to_owned(), "-".to_owned()),
        };
        rows.push([
            format!("{} {}", table::endpoint(rules::shown(&outcome.probe)), outcome.probe.kind),
            server,
            source,
            format!("{:.1}", outcome.took.as_secs_f64() * 1e3),
            verdict.map_or_else(|reason| format!("FAILED: {reason}"), |()| "ok".to_owned()),
        ]);
    }
    print(&format!("\ntraffic\n{}", table::aligned(&rows)));
}

/// Checks that there was something to send: a router without rules would pass every check.
fn covers(probes: &[Probe]) -> Result<()> {
    anyhow::ensure!(!probes.is_empty(), "egress-router reports no rule");
    Ok(())
}

/// Results go to standard output, progress to standard error.
fn print(text: &str) {
    use std::io::Write as _;
    // A closed pipe is the reader's choice, and no reason to leave a lab behind.
    let _ = writeln!(std::io::stdout(), "{text}");
}
