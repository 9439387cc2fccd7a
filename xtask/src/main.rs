//! Every chore of the project is `cargo xtask <verb>`.
//!
//! One file a verb; [`workspace`], [`toolchain`] and [`progress`] are what the verbs share.
//! The tasks know the binary only by its command line, and the system only by the lab crate.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod check;
mod debian;
#[cfg(test)]
mod documents;
mod image;
mod kernels;
mod progress;
mod prometheus;
mod run;
mod setup;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every chore of egress-router.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install what building the BPF object and running the lab need
    Setup(setup::Args),
    /// Build the BPF object and the `egress-router` binary
    Build(build::Args),
    /// Assemble the root of the container image: one static binary
    Image(image::Args),
    /// Run the router in a lab of network namespaces, under traffic, and show what happens
    Run(run::Args),
    /// Run the tests: one layer of them, or all
    Test(test::Args),
    /// Measure the router against its peers
    Bench(bench::Args),
    /// Formatting, lints and documentation
    Check(check::Args),
    /// First process of an emulated machine
    #[command(hide = true)]
    Guest(kernels::guest::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::setup(&args),
        Verb::Build(args) => build::build(&args),
        Verb::Image(args) => image::image(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Test(args) => test::test(&args),
        Verb::Bench(args) => bench::bench(&args),
        Verb::Check(args) => check::check(&args),
        Verb::Guest(args) => kernels::guest::guest(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
