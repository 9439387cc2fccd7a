//! Debian's packages as archives of files: downloaded and unpacked below `target`, never installed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{progress, setup, toolchain, workspace};

/// Puts what packages contain into a new directory, all into one tree.
///
/// # Errors
/// When one cannot be fetched or unpacked; names the packages.
pub(crate) fn unpack<S: AsRef<OsStr>>(packages: &[S], into: &Path) -> Result<()> {
    let names = packages.iter().map(|package| package.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let dir = into.parent().with_context(|| format!("{} is no place for {names}", into.display()))?;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let fetched = tempfile::tempdir_in(dir).with_context(|| format!("make a directory in {}", dir.display()))?;
    let download = || {
        let mut apt = workspace::foreign_command(Path::new("apt-get"));
        // As root apt would fetch as a user that may not write here.
        apt.current_dir(&fetched).args(["-o", "APT::Sandbox::User=root", "download"]).args(packages);
        progress::run(&format!("download {names}"), &mut apt)
    };
    // Lists that are out of date name a version that the archive has no more.
    if download().is_err() {
        setup::refresh_package_lists()?;
        download()?;
    }
    let files = fs::read_dir(&fetched).context("read what was downloaded")?.flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect::<Vec<_>>();
    ensure!(files.len() == packages.len(), "apt-get downloaded {} files for {names}", files.len());
    let unpacked = fetched.path().join("unpacked");
    eprintln!("  unpack {names}");
    for file in files {
        let mut dpkg = workspace::foreign_command(Path::new("dpkg-deb"));
        workspace::run(dpkg.arg("--extract").arg(file).arg(&unpacked))?;
    }
    // In one step: what is there is whole.
    fs::rename(&unpacked, into).with_context(|| format!("put {names} into {}", into.display()))?;
    Ok(())
}

/// The package and those that it depends on, as far as this system has them not.
///
/// What apt would install is another question, with no answer where the package and one that is here exclude each other.
///
/// # Errors
/// When no package source offers it.
pub(crate) fn missing_with_dependencies(package: &str) -> Result<Vec<String>> {
    let listing = || {
        let mut apt = Command::new("apt-cache");
        let other = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
        apt.env("LC_ALL", "C").args(["depends", "--recurse"]).args(other.map(|kind| format!("--no-{kind}")));
        toolchain::output(apt.arg(package)).with_context(|| format!("ask what {package} depends on"))
    };
    let listed = match listing() {
        Ok(listed) => listed,
        Err(_) => {
            setup::refresh_package_lists()?;
            listing()?
        }
    };
    let mut dpkg = Command::new("dpkg-query");
    let here = toolchain::output(dpkg.args(["--show", "--showformat", "${db:Status-Abbrev} ${Package}\n"]))?;
    let here = here.lines().filter_map(|line| line.strip_prefix("ii ")).map(str::trim).collect();
    Ok(missing(package, &dependencies(&listed), &here))
}

/// Of each package what it depends on: groups, of which one package each will do.
type Dependencies<'a> = BTreeMap<&'a str, Vec<Vec<&'a str>>>;

/// The lines are `NAME`, `  Depends: NAME`, and ` |Depends: NAME` where the next line's will do as well. Names in angle
/// brackets are others' names.
fn dependencies(listed: &str) -> Dependencies<'_> {
    let mut all = Dependencies::new();
    let (mut package, mut group) = ("", Vec::new());
    for line in listed.lines() {
        if !line.starts_with(' ') {
            package = line;
            all.entry(package).or_default();
        } else if let Some((kind, name)) = line.trim().split_once("epends: ") {
            group.push(name);
            if !kind.starts_with('|') {
                all.entry(package).or_default().push(std::mem::take(&mut group));
            }
        }
    }
    all
}

fn missing(package: &str, dependencies: &Dependencies<'_>, here: &BTreeSet<&str>) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![package];
    while let Some(package) = waiting.pop() {
        if here.contains(package) || found.iter().any(|name| name == package) {
            continue;
        }
        found.push(package.to_owned());
        let groups = dependencies.get(package).into_iter().flatten();
        let unmet = groups.filter(|group| !group.iter().any(|name| here.contains(name)));
        waiting.extend(unmet.filter_map(|group| group.iter().find(|name| !name.starts_with('<'))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{dependencies, missing};

    #[test]
    fn what_is_here_and_what_only_would_do_as_well_is_not_fetched() {
        let listed = "emulator\n  PreDepends: base\n  Depends: library\n |Depends: one\n  Depends: other\n  Depends: here\n\
                      base\nlibrary\n  Depends: emulator\n  Depends: <virtual>\n    provider\n\
                      one\nother\nhere\n  Depends: deep\nprovider\ndeep\n<virtual>\n";
        let dependencies = dependencies(listed);
        let with = |here: &[&str]| {
            let mut names = missing("emulator", &dependencies, &here.iter().copied().collect());
            names.sort();
            names
        };
        assert_eq!(with(&["here", "base"]), ["emulator", "library", "one"]);
        assert_eq!(with(&["here", "other"]), ["base", "emulator", "library"]);
        assert_eq!(with(&["emulator"]), [""; 0]);
    }
}
