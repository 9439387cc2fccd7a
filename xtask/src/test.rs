//! `cargo xtask test`: one layer of tests, or all.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::ValueEnum;

use crate::{build, workspace};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The layer to run; all of them when absent
    layer: Option<Layer>,
    /// Arguments for the test programs, such as a part of a test's name
    #[arg(last = true)]
    extra: Vec<String>,
}

/// A layer of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layer {
    /// Pure logic: needs neither root nor a BPF toolchain
    Unit,
    /// The BPF object under BPF_PROG_TEST_RUN
    Packet,
    /// Real sockets in network namespaces
    Netns,
}

impl Layer {
    /// What the layer's tests need; what lacks it fails, and never passes by skipping.
    fn needs_system(self) -> bool {
        self != Self::Unit
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Packet => "packet",
            Self::Netns => "netns",
        }
    }

    fn command(self, extra: &[String]) -> Command {
        let mut cargo = workspace::host_cargo();
        cargo.args(["test", "--locked"]);
        match self {
            Self::Unit => cargo.args(["--workspace", "--lib", "--bins"]),
            Self::Packet => cargo.args(["--package", "egress-lab", "--test", "packet"]),
            Self::Netns => cargo.args(["--package", "egress-lab", "--test", "netns"]),
        };
        cargo.arg("--").args(extra);
        if self == Self::Netns && !extra.iter().any(|argument| argument.starts_with("--test-threads")) {
            // A lab is six namespaces with traffic: more of them than processors only makes each one's clocks late.
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
            cargo.arg(format!("--test-threads={threads}"));
        }
        cargo
    }
}

/// Runs the verb.
pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    let layers = args.layer.map_or_else(|| Layer::value_variants().to_vec(), |layer| vec![layer]);
    if layers.iter().any(|layer| layer.needs_system()) {
        workspace::require_root("test")?;
        build::everything()?;
    }
    // Every layer is run, whatever the one before said: one run tells all that is wrong.
    let mut failed = Vec::new();
    for layer in &layers {
        eprintln!("testing: {}", layer.name());
        if let Err(error) = workspace::run(&mut layer.command(&args.extra)) {
            eprintln!("{error:#}");
            failed.push(layer.name());
        }
    }
    for layer in &layers {
        eprintln!("{}: {}", layer.name(), if failed.contains(&layer.name()) { "FAILED" } else { "ok" });
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
