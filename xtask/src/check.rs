//! `cargo xtask check`: formatting, lints and documentation, with every warning an error.

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace;

/// Arguments of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Args {}

const DENY: [&str; 3] = ["--", "-D", "warnings"];

/// Runs the verb.
pub(crate) fn check(Args {}: &Args) -> Result<ExitCode> {
    eprintln!("checking the formatting");
    workspace::run(workspace::host_cargo().args(["fmt", "--all", "--check"]))?;

    eprintln!("checking the host's code");
    let mut clippy = workspace::host_cargo();
    clippy.args(["clippy", "--locked", "--workspace", "--all-targets"]).args(DENY);
    workspace::run(&mut clippy)?;

    // The BPF programs compile for the host as well, though nothing could run them: their lints need no BPF toolchain.
    // The profile is the BPF one because only it aborts on panic, as a program without the standard library must.
    eprintln!("checking the BPF programs");
    let mut clippy = workspace::host_cargo();
    clippy.args(["clippy", "--locked", "--package", "egress-ebpf", "--bin", "egress-datapath"]);
    clippy.args(["--features", "program", "--profile", "bpf"]).args(DENY);
    // Their atomic operations are unstable, as in the build.
    clippy.env("RUSTC_BOOTSTRAP", "1");
    workspace::run(&mut clippy)?;

    eprintln!("checking the documentation");
    let mut doc = workspace::host_cargo();
    doc.args(["doc", "--locked", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    workspace::run(&mut doc)?;
    Ok(ExitCode::SUCCESS)
}
