//! Finding a Rust that can build for BPF, and the linker for it.
//!
//! The BPF target has no ready-made `core`: the compiler must bring the library's source, and cargo must be let use
//! `-Z build-std`, which RUSTC_BOOTSTRAP=1 allows on a stable compiler. The linker reads LLVM bitcode, so its LLVM must
//! not be older than the compiler's.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// The oldest compiler that builds the object: the workspace's `rust-version`.
pub(crate) const OLDEST_RUST: (u32, u32) = (1, 95);
/// The LLVM that bpf-linker is built with.
pub(crate) const LLVM: u32 = 22;
/// The bpf-linker that is known to emit BTF which the loader reads.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// Where Debian's LLVM lives.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// What builds the BPF object.
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

/// A Rust compiler and its cargo that can build `core` for BPF.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    version: (u32, u32),
    llvm: u32,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version;
        write!(f, "{} {major}.{minor}, LLVM {}", self.rustc.display(), self.llvm)
    }
}

/// The first compiler that can do it: Debian's, then rustup's nightly, then rustup's stable.
///
/// # Errors
/// When there is none; the error says for each one that was looked at what it lacks.
pub(crate) fn find_compiler() -> Result<Compiler> {
    let mut lacking = Vec::new();
    let candidates = std::iter::once(Ok(PathBuf::from("/usr/bin"))).chain(["nightly", "stable"].map(rustup_bin));
    for bin in candidates {
        match bin.and_then(|bin| examine(&bin)) {
            Ok(compiler) => return Ok(compiler),
            Err(reason) => lacking.push(format!("{reason:#}")),
        }
    }
    bail!("no Rust here can build for BPF ({})", lacking.join("; "))
}

/// The directory of a rustup toolchain's own binaries, past rustup's proxies.
fn rustup_bin(toolchain: &str) -> Result<PathBuf> {
    let rustup = workspace::on_path("rustup").with_context(|| format!("no rustup to ask for {toolchain}"))?;
    let mut command = workspace::foreign_command(&rustup);
    // `rustup which` would otherwise try to download a toolchain that is not there.
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["which", "--toolchain", toolchain, "rustc"]);
    let found = command.output().with_context(|| format!("start `{}`", workspace::shown(&command)))?;
    if !found.status.success() {
        bail!("rustup has no {toolchain}");
    }
    let rustc = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    rustc.parent().map(Path::to_path_buf).with_context(|| format!("{} has no directory", rustc.display()))
}

/// Checks that the compiler in `bin` has all that BPF needs.
fn examine(bin: &Path) -> Result<Compiler> {
    let (rustc, cargo) = (bin.join("rustc"), bin.join("cargo"));
    for program in [&rustc, &cargo] {
        if !workspace::is_executable(program) {
            bail!("no {}", program.display());
        }
    }
    let verbose = output(workspace::foreign_command(&rustc).arg("-vV"))?;
    let version = field(&verbose, "release: ").with_context(|| format!("{} tells no version", rustc.display()))?;
    let llvm = field(&verbose, "LLVM version: ").with_context(|| format!("{} tells no LLVM", rustc.display()))?.0;
    if version < OLDEST_RUST {
        bail!("{} is {}.{}, {}.{} is needed", rustc.display(), version.0, version.1, OLDEST_RUST.0, OLDEST_RUST.1);
    }
    if llvm > LLVM {
        bail!("{} has LLVM {llvm}, newer than the linker's {LLVM}", rustc.display());
    }
    let sysroot = output(workspace::foreign_command(&rustc).args(["--print", "sysroot"]))?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.exists() {
        bail!("{} has no library source at {}", rustc.display(), core.display());
    }
    Ok(Compiler { rustc, cargo, version, llvm })
}

/// Major and minor after `label` in the output of `rustc -vV`.
fn field(verbose: &str, label: &str) -> Option<(u32, u32)> {
    let text = verbose.lines().find_map(|line| line.strip_prefix(label))?;
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where set-up puts its own bpf-linker.
pub(crate) fn tools_dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join(format!("bpf-linker-{LINKER_VERSION}-llvm{LLVM}")))
}

/// Where set-up puts what it makes: a user's cache, which outlives `cargo clean` and serves every checkout.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set")?;
    Ok(cache.join("egress-router"))
}

/// A bpf-linker of the right version: set-up's own, else one on PATH or where cargo installs.
///
/// # Errors
/// When there is none, with what the ones that were found lack.
pub(crate) fn find_linker() -> Result<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let candidates = [
        Some(tools_dir()?.join("bin/bpf-linker")),
        workspace::on_path("bpf-linker"),
        cargo_home.map(|home| home.join("bin/bpf-linker")),
    ];
    let mut lacking = Vec::new();
    for linker in candidates.into_iter().flatten().filter(|file| workspace::is_executable(file)) {
        match output(workspace::foreign_command(&linker).arg("--version")) {
            Ok(version) if version.trim().strip_prefix("bpf-linker ") == Some(LINKER_VERSION) => return Ok(linker),
            Ok(version) => lacking.push(format!("{} is {:?}", linker.display(), version.trim())),
            Err(error) => lacking.push(format!("{error:#}")),
        }
    }
    if lacking.is_empty() {
        bail!("no bpf-linker {LINKER_VERSION}");
    }
    bail!("no bpf-linker {LINKER_VERSION} ({})", lacking.join("; "))
}

/// The target that the host's cargo builds for when none is named.
///
/// # Errors
/// When cargo does not tell.
pub(crate) fn host() -> Result<String> {
    let verbose = output(workspace::host_cargo().arg("-vV"))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: ")).context("cargo tells no host")?;
    Ok(host.to_owned())
}

/// Standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start `{}`", workspace::shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", workspace::shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
