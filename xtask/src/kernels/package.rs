//! A kernel and its modules, out of Debian's package: downloaded and unpacked under `target/kernels`, never installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::{debian, setup, toolchain, workspace};

/// Modules that the tests' links, qdiscs, sockets and rules need; what these depend on comes with them.
const MODULES: [&str; 14] = [
    "veth",
    "macvlan",
    "cls_bpf",
    "sch_ingress",
    "sctp",
    "nf_tables",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nf_reject_ipv6",
    "nft_reject_inet",
];

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// Such as `6.1`.
    pub(crate) series: &'static str,
    /// Such as `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    root: PathBuf,
}

/// A module, ready to be loaded.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

const PREFIX: &str = "linux-image-";
/// Small, with everything that a virtual machine needs.
const FLAVOUR: &str = "-cloud-amd64";

/// The newest kernel of a series that is here, or else that Debian has.
///
/// # Errors
/// When no package source offers one, or it cannot be fetched; both name the package.
pub(crate) fn provide(series: &'static str) -> Result<Kernel> {
    let dir = workspace::target_dir().join("kernels");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let here = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?.flatten();
    let here = newest(series, here.filter_map(|entry| entry.file_name().into_string().ok()));
    let package = match here {
        Some(package) => package,
        None => fetch(series, &dir)?,
    };
    let release = package.strip_prefix(PREFIX).unwrap_or(&package).to_owned();
    let kernel = Kernel { series, release, root: dir.join(&package) };
    eprintln!("kernel {}: {}", kernel.release, kernel.root.display());
    Ok(kernel)
}

fn fetch(series: &str, dir: &Path) -> Result<String> {
    let offered = || -> Result<Option<String>> {
        let prefix = format!("{PREFIX}{series}");
        let names = toolchain::output(Command::new("apt-cache").env("LC_ALL", "C").args(["pkgnames", &prefix]))?;
        Ok(newest(series, names.lines().map(str::to_owned)))
    };
    let package = match offered()? {
        Some(package) => package,
        None => {
            setup::refresh_package_lists()?;
            offered()?.with_context(|| {
                format!(
                    "no package source offers {PREFIX}{series}*{FLAVOUR}. Is the network there? Debian 12 has it in its \
                     security archive: `deb http://security.debian.org/debian-security bookworm-security main`"
                )
            })?
        }
    };
    debian::unpack(&[&package], &dir.join(&package))?;
    Ok(package)
}

/// The package of a series with the highest version in its name.
fn newest(series: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let candidates = names.filter_map(|name| {
        let version = name.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR)?;
        // Not the empty package that depends on the newest, which has no more of a version than the series.
        version.strip_prefix(series)?.strip_prefix('.')?;
        let numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
        Some((numbers.collect::<Vec<_>>(), name))
    });
    candidates.max().map(|(_, name)| name)
}

impl Kernel {
    /// What the emulator boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The modules that a guest needs, each after those that it depends on.
    ///
    /// # Errors
    /// When the package has one neither as a file nor built in.
    pub(crate) fn modules(&self) -> Result<Vec<Module>> {
        let dir = self.root.join("lib/modules").join(&self.release);
        let mut files = BTreeMap::new();
        find_modules(&dir.join("kernel"), &mut files)?;
        let builtin = dir.join("modules.builtin");
        let builtin = fs::read_to_string(&builtin).with_context(|| format!("read {}", builtin.display()))?;
        let builtin = builtin.lines().map(|line| module_name(Path::new(line))).collect::<Vec<_>>();
        let mut modules = Vec::new();
        for name in MODULES {
            self.add(name, &files, &builtin, &mut modules)?;
        }
        Ok(modules)
    }

    fn add(
        &self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        builtin: &[String],
        modules: &mut Vec<Module>,
    ) -> Result<()> {
        if modules.iter().any(|module| module.name == name) || builtin.iter().any(|module| module == name) {
            return Ok(());
        }
        let path = files.get(name).with_context(|| format!("kernel {} has no module {name}", self.release))?;
        let bytes = read_module(path)?;
        for dependency in dependencies(&bytes).with_context(|| format!("read {}", path.display()))? {
            self.add(&dependency, files, builtin, modules)?;
        }
        modules.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

fn find_modules(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry.with_context(|| format!("read {}", dir.display()))?.path();
        if path.is_dir() {
            find_modules(&path, files)?;
        } else {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// A module's name, which has underscores where its file may have hyphens.
fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// Newer kernels' modules are compressed.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(path).with_context(|| format!("read {}", path.display())),
        Some("xz") => {
            let mut xz = Command::new("xz");
            xz.args(["--decompress", "--stdout"]).arg(path);
            let output = xz.output().with_context(|| format!("start `{}`", workspace::shown(&xz)))?;
            workspace::succeeded(&xz, output.status)?;
            Ok(output.stdout)
        }
        _ => bail!("{} is compressed in a way that is not known here", path.display()),
    }
}

/// What a module says it depends on.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("parse")?;
    let section = file.section_by_name(".modinfo").context("no .modinfo")?;
    let info = section.data().context("read .modinfo")?;
    let lines = info.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let depends = lines.filter_map(|line| line.strip_prefix("depends=").map(str::to_owned));
    Ok(depends
        .flat_map(|names| names.split(',').map(|name| name.replace('-', "_")).collect::<Vec<_>>())
        .filter(|name| !name.is_empty())
        .collect())
}
