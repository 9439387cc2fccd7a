//! `cargo xtask test`: one layer of tests, or all.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::{build, image, kernels, prometheus, setup, workspace};

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
    /// Random sequences through the BPF object, against a NAT written as plainly as possible
    Model,
    /// The same packets through the kernel's own NAT and through the router
    Differential,
    /// Real sockets in network namespaces
    Netns,
    /// The API against recorded answers of real API servers, with kubectl and kube-rs, and under load
    Api,
    /// The container image's root, built and run; not part of "all"
    Image,
    /// The programs and the tests on older kernels, emulated; takes no name of a test
    Kernels,
}

impl Layer {
    /// What is run when none is named.
    const ALL: [Self; 7] =
        [Self::Unit, Self::Packet, Self::Model, Self::Differential, Self::Netns, Self::Api, Self::Kernels];

    /// What the layer's tests need; what lacks it fails, and never passes by skipping.
    fn needs_system(self) -> bool {
        self != Self::Unit
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Packet => "packet",
            Self::Model => "model",
            Self::Differential => "differential",
            Self::Netns => "netns",
            Self::Api => "api",
            Self::Image => "image",
            Self::Kernels => "kernels",
        }
    }

    fn run(self, extra: &[String]) -> Result<()> {
        let tests: &[&str] = match self {
            Self::Unit => &["--workspace", "--lib", "--bins"],
            Self::Packet => &["--package", "egress-lab", "--test", "packet"],
            Self::Model => &["--package", "egress-lab", "--test", "model"],
            Self::Differential => &["--package", "egress-lab", "--test", "differential"],
            Self::Netns => &["--package", "egress-lab", "--test", "netns"],
            Self::Api => &["--package", "egress-lab", "--test", "api"],
            Self::Image => {
                image::assemble(true)?;
                &["--package", "egress-lab", "--test", "netns"]
            }
            Self::Kernels => return kernels::test(extra),
        };
        let mut cargo = workspace::host_cargo();
        cargo.args(["test", "--locked"]).args(tests).arg("--").args(extra);
        if self == Self::Image {
            cargo.args(["--ignored", "image"]);
        }
        if self == Self::Api {
            cargo.env("EGRESS_KUBECTL", setup::ensure_kubectl()?);
        }
        if self == Self::Netns && !extra.iter().any(|argument| argument.starts_with("--test-threads")) {
            // A lab is six namespaces with traffic: more of them than processors only makes each one's clocks late.
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
            cargo.arg(format!("--test-threads={threads}"));
        }
        workspace::run(&mut cargo)
    }
}

/// Runs the verb.
pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    let mut layers = args.layer.map_or_else(|| Layer::ALL.to_vec(), |layer| vec![layer]);
    if args.layer.is_none() && !args.extra.is_empty() {
        // Of the guests no part can be named.
        layers.retain(|layer| *layer != Layer::Kernels);
    }
    if layers.iter().any(|layer| layer.needs_system()) {
        workspace::require_root("test")?;
        build::everything()?;
    }
    if layers.contains(&Layer::Netns) {
        build::other_object()?;
        prometheus::ensure()?;
    }
    // Every layer is run, whatever the one before said: one run tells all that is wrong.
    let mut failed = Vec::new();
    for layer in &layers {
        eprintln!("testing: {}", layer.name());
        if let Err(error) = layer.run(&args.extra) {
            eprintln!("{error:#}");
            failed.push(layer.name());
        }
    }
    for layer in &layers {
        eprintln!("{}: {}", layer.name(), if failed.contains(&layer.name()) { "FAILED" } else { "ok" });
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
