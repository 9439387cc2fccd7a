//! Debian's packages as archives of files: downloaded and unpacked below `target`, never installed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::{progress, setup, workspace};

/// Puts what a package contains into `dir/PACKAGE`.
///
/// # Errors
/// When it cannot be fetched or unpacked; names the package.
pub(crate) fn unpack(package: &str, dir: &Path) -> Result<()> {
    let fetched = tempfile::tempdir_in(dir).with_context(|| format!("make a directory in {}", dir.display()))?;
    let download = |package: &str| {
        let mut apt = workspace::foreign_command(Path::new("apt-get"));
        // As root apt would fetch as a user that may not write here.
        apt.current_dir(&fetched).args(["-o", "APT::Sandbox::User=root", "download", package]);
        progress::run(&format!("download {package}"), &mut apt)
    };
    // Lists that are out of date name a version that the archive has no more.
    if download(package).is_err() {
        setup::refresh_package_lists()?;
        download(package)?;
    }
    let mut files = fs::read_dir(&fetched).context("read what was downloaded")?.flatten().map(|entry| entry.path());
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let file = file.with_context(|| format!("apt-get downloaded no {package}"))?;
    let unpacked = fetched.path().join("unpacked");
    let mut dpkg = workspace::foreign_command(Path::new("dpkg-deb"));
    progress::run(&format!("unpack {package}"), dpkg.arg("--extract").arg(file).arg(&unpacked))?;
    // In one step: what is there is whole.
    fs::rename(&unpacked, dir.join(package)).with_context(|| format!("put {package} into {}", dir.display()))?;
    Ok(())
}
