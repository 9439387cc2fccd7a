//! Where things are, and how to start programs without what `cargo run` leaves in the environment.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, bail};

/// The workspace's root.
///
/// Cargo's runtime variable wins over the compiled-in path, so that a moved checkout still works.
pub(crate) fn root() -> PathBuf {
    let xtask =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// `target/`, or what CARGO_TARGET_DIR names.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The BPF object: where `.cargo/config.toml` tells egress-user's build script to look.
pub(crate) fn bpf_object() -> PathBuf {
    env::var_os("EGRESS_BPF_OBJECT")
        .map_or_else(|| root().join("target/bpf/egress-datapath.o"), |path| root().join(path))
}

/// The host's cargo: the one that runs us.
pub(crate) fn host_cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    // Set for us by `cargo run`; they describe xtask, not what is built next.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_BIN_NAME" {
            command.env_remove(&name);
        }
    }
    command
}

/// Cargo's variables that say how to reach a registry or how to print; any other could change what is built.
const HARMLESS: [&str; 6] =
    ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_", "CARGO_BUILD_JOBS"];

/// A command that does not see the toolchain which runs xtask.
///
/// rustup's proxy exports RUSTUP_TOOLCHAIN, cargo exports CARGO, RUSTC and the package it runs, and puts its own
/// library directories before everyone's: each of them would turn another compiler into a mixture of two.
pub(crate) fn foreign_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let cargo = text.starts_with("CARGO") && !HARMLESS.iter().any(|prefix| text.starts_with(prefix));
        if cargo || text.starts_with("RUSTC") || text.starts_with("RUSTDOC") || text == "RUSTFLAGS" {
            command.env_remove(&name);
        }
    }
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
    command
}

/// Finds a program on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    // Debian leaves the sbin directories out of a user's PATH, and the network tools live there.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// Whether `file` is a regular file that somebody may execute.
pub(crate) fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a command to its end with our own output streams.
///
/// # Errors
/// When it cannot be started, or ends with anything but success; both name the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start `{}`", shown(command)))?;
    succeeded(command, status)
}

/// Turns an unsuccessful exit status into an error that names the command.
pub(crate) fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// A command as one would type it, without its environment.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether the lab may be built: only root may make network namespaces here.
///
/// # Errors
/// For any other user, with the command that works.
pub(crate) fn require_root(verb: &str) -> Result<()> {
    if !egress_lab::is_root() {
        bail!(
            "the lab makes network namespaces and loads BPF programs, which needs root; run:\n    \
             sudo -E env \"PATH=$PATH\" cargo xtask {verb}"
        );
    }
    Ok(())
}

/// Whether to draw spinners: on a terminal that is not a CI job's.
pub(crate) fn interactive() -> bool {
    use std::io::IsTerminal as _;
    std::io::stderr().is_terminal() && env::var_os("CI").is_none()
}
