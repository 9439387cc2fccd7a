//! `cargo xtask build`: the BPF object with the BPF toolchain, then the binary for this host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _};

use crate::toolchain::{self, Toolchain};
use crate::{setup, workspace};

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the binary optimised
    #[arg(long)]
    release: bool,
    /// Build only the BPF object
    #[arg(long, conflicts_with = "release")]
    bpf_only: bool,
}

const TARGET: &str = "bpfel-unknown-none";

/// Runs the verb.
pub(crate) fn build(args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure()?;
    bpf_object(&toolchain, &DATAPATH, &workspace::bpf_object())?;
    if !args.bpf_only {
        binary(args.release)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything that running the router needs, in the debug profile.
pub(crate) fn everything() -> Result<()> {
    let toolchain = setup::ensure()?;
    bpf_object(&toolchain, &DATAPATH, &workspace::bpf_object())?;
    binary(false)
}

/// Everything that the benchmark needs: the router, optimised, and the benchmark's own programs. Returns the binary and the
/// object with the programs.
pub(crate) fn for_bench() -> Result<(PathBuf, PathBuf)> {
    let toolchain = setup::ensure()?;
    bpf_object(&toolchain, &DATAPATH, &workspace::bpf_object())?;
    let object = workspace::target_dir().join("bpf/egress-bench.o");
    bpf_object(&toolchain, &BENCH, &object)?;
    binary(true)?;
    Ok((workspace::target_dir().join("release/egress-router"), object))
}

/// The router with the C library in it. Returns the program.
pub(crate) fn linked_statically(release: bool) -> Result<PathBuf> {
    let toolchain = setup::ensure()?;
    bpf_object(&toolchain, &DATAPATH, &workspace::bpf_object())?;
    let host = toolchain::host()?;
    eprintln!("building egress-router for {host}, static");
    let mut cargo = workspace::host_cargo();
    // Named though it is the host: what is built for a host that is not named includes compiler plug-ins, which cannot be static.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").args(["build", "--locked", "--package", "egress-user"]);
    cargo.args(["--target", &host]);
    if release {
        cargo.arg("--release");
    }
    workspace::run(&mut cargo)?;
    let profile = if release { "release" } else { "debug" };
    Ok(workspace::target_dir().join(host).join(profile).join("egress-router"))
}

/// Builds `egress-router` for this host; its build script embeds the BPF object.
fn binary(release: bool) -> Result<()> {
    eprintln!("building egress-router");
    let mut cargo = workspace::host_cargo();
    cargo.args(["build", "--locked", "--package", "egress-user"]);
    if release {
        cargo.arg("--release");
    }
    workspace::run(&mut cargo)
}

/// A BPF object: a bin target of egress-ebpf, and the feature that it is built with.
struct Object {
    bin: &'static str,
    feature: &'static str,
}

/// The router's programs; egress-user's build script looks for them.
const DATAPATH: Object = Object { bin: "egress-datapath", feature: "program" };
/// The benchmark's.
const BENCH: Object = Object { bin: "egress-bench", feature: "bench-program" };

/// Builds a BPF object and puts it at `to`, touching that only when it changed.
fn bpf_object(toolchain: &Toolchain, object: &Object, to: &Path) -> Result<()> {
    eprintln!("building the BPF object {} with {}", object.bin, toolchain.compiler);
    // A target directory of its own: cargo locks one for the whole build, and the two toolchains share nothing.
    let target_dir = workspace::target_dir().join("bpf-build");
    let flags = [
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit arithmetic and jumps, which every kernel of ours has (5.1); and a copy of an address is a few words, not a
        // call of a loop.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        // BTF is made from debug information; the profile asks for it too, but `core` must have it as well.
        "-Cdebuginfo=2".to_owned(),
    ];
    let mut cargo = workspace::foreign_command(&toolchain.compiler.cargo);
    cargo
        .current_dir(workspace::root())
        .env("RUSTC", &toolchain.compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--locked", "--package", "egress-ebpf", "--bin", object.bin, "--features", object.feature])
        .args(["--profile", "bpf", "--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(&target_dir);
    workspace::run(&mut cargo)?;

    let built = target_dir.join(TARGET).join("bpf").join(object.bin);
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    all_symbols_defined(&built, &bytes)?;
    publish(&bytes, to)
}

/// Fails when the object calls something that it does not hold.
///
/// The linker lets that pass; the loader would then refuse the object on a user's machine, with far less to go by. It is
/// most often a compiler built-in (`__multi3`, `memcpy`) that BPF has no library for.
fn all_symbols_defined(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = object::File::parse(bytes).with_context(|| format!("parse {}", path.display()))?;
    let undefined = file
        .symbols()
        .filter(|symbol| symbol.is_undefined())
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| !name.is_empty())
        .collect::<Vec<_>>();
    if !undefined.is_empty() {
        bail!(
            "{} needs symbols that nothing defines: {}; find the code that the compiler turned into a call to them",
            path.display(),
            undefined.join(", ")
        );
    }
    Ok(())
}

/// Replaces `to` in one step, and only when the bytes differ, so that dependants are not rebuilt for nothing.
fn publish(object: &[u8], to: &Path) -> Result<()> {
    if fs::read(to).is_ok_and(|old| old == object) {
        return Ok(());
    }
    let dir = to.parent().with_context(|| format!("{} has no directory", to.display()))?;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let next = to.with_extension(format!("{}.part", std::process::id()));
    fs::write(&next, object).with_context(|| format!("write {}", next.display()))?;
    fs::rename(&next, to).with_context(|| format!("rename {} to {}", next.display(), to.display()))
}
