//! `cargo xtask image`: the root of the container image, as the recipe in `deploy/container` copies it: one static binary.
//!
//! Static with the C library of the build machine, since nothing in the binary looks names up in a way that would need more than
//! that; so it needs no other target than the host's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::{build, setup, workspace};

/// Arguments of `cargo xtask image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the binary with checks, as tests run it
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub(crate) fn image(args: &Args) -> Result<ExitCode> {
    let root = assemble(args.debug)?;
    eprintln!("the image's root is {}", root.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds what the image holds, and returns its root.
pub(crate) fn assemble(debug: bool) -> Result<PathBuf> {
    build::datapath(&setup::ensure()?)?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    eprintln!("building a static egress-router for {target}");
    let mut cargo = workspace::host_cargo();
    // With a target, the flags are the binary's alone and not those of build scripts and macros, which cannot be static.
    cargo.args(["build", "--locked", "--package", "egress-user", "--target", &target]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    if !debug {
        cargo.arg("--release");
    }
    workspace::run(&mut cargo)?;
    let profile = if debug { "debug" } else { "release" };
    let built = workspace::target_dir().join(&target).join(profile).join("egress-router");
    is_static(&built)?;
    let root = workspace::target_dir().join("image");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    fs::copy(&built, root.join("egress-router")).with_context(|| format!("copy {}", built.display()))?;
    Ok(root)
}

/// Fails when the binary names an interpreter or a library: it would start only where the C library of the machine that built
/// it is.
fn is_static(binary: &Path) -> Result<()> {
    let bytes = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("parse {}", binary.display()))?;
    if let Some(interpreter) = file.section_by_name(".interp") {
        let interpreter = interpreter.data().context("read its interpreter's name")?;
        let interpreter = String::from_utf8_lossy(interpreter);
        bail!("{} is not static: it needs {}", binary.display(), interpreter.trim_end_matches('\0'));
    }
    let imports = file.imports().with_context(|| format!("read what {} imports", binary.display()))?;
    if let Some(import) = imports.first() {
        bail!("{} is not static: it needs {} of a library", binary.display(), String::from_utf8_lossy(import.name()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_libraries_is_not_shipped() {
        let refused = is_static(Path::new("/bin/sh")).expect_err("it is Debian's").to_string();
        assert!(refused.contains("ld-linux"), "{refused}");
    }
}
