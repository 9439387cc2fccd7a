//! `cargo xtask package`: the program as it is shipped, one file that needs a kernel and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::{build, toolchain, workspace};

/// Arguments of `cargo xtask package`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build it as for tests: sooner done, slower and larger
    #[arg(long)]
    debug: bool,
}

const PROGRAM: &str = "egress-router";
/// What it is tried with: the smallest thing that reads a file and decides.
const SPEC: &str = "examples/egress-router.yaml";

/// Runs the verb.
pub(crate) fn package(args: &Args) -> Result<ExitCode> {
    workspace::require_root("package")?;
    let built = build::linked_statically(!args.debug)?;
    stands_alone(&built)?;
    runs_alone(&built)?;
    let dir = workspace::target_dir().join("package");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let shipped = dir.join(PROGRAM);
    fs::copy(&built, &shipped).with_context(|| format!("copy {} to {}", built.display(), shipped.display()))?;
    eprintln!("{}: {} KiB, static", shipped.display(), shipped.metadata()?.len() >> 10);
    Ok(ExitCode::SUCCESS)
}

/// Whether the program names neither an interpreter nor a library: with one of these it starts only where the C library of
/// the machine that built it is.
fn stands_alone(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("parse {}", program.display()))?;
    if let Some(interpreter) = file.section_by_name(".interp") {
        let interpreter = interpreter.data().context("read its interpreter's name")?;
        bail!(
            "{} needs {}: it is not static",
            program.display(),
            String::from_utf8_lossy(interpreter).trim_end_matches('\0')
        );
    }
    let libraries = file.imports().with_context(|| format!("read what {} imports", program.display()))?;
    if let Some(import) = libraries.first() {
        bail!("{} needs {} of a library", program.display(), String::from_utf8_lossy(import.name()));
    }
    Ok(())
}

/// Runs the program where there is no other file than its specification.
fn runs_alone(program: &Path) -> Result<()> {
    let root = tempfile::tempdir().context("make an empty root")?;
    let place = |from: PathBuf, name: &str| {
        let to = root.path().join(name);
        fs::copy(&from, &to).map(|_| ()).with_context(|| format!("copy {} to {}", from.display(), to.display()))
    };
    place(program.to_path_buf(), PROGRAM)?;
    place(workspace::root().join(SPEC), "spec.yaml")?;
    let mut chroot = Command::new("chroot");
    toolchain::output(chroot.arg(root.path()).args([&format!("/{PROGRAM}"), "validate", "/spec.yaml"]))
        .context("start the program where there is nothing else")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_libraries_is_not_shipped() {
        let shell = Path::new("/bin/sh");
        let refused = stands_alone(shell).expect_err("it is Debian's").to_string();
        assert!(refused.contains("ld-linux"), "{refused}");
        assert!(egress_lab::is_root(), "changing the root needs root");
        runs_alone(shell).expect_err("its interpreter is not there");
    }
}
