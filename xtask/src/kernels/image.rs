//! The files that a guest has: an archive in cpio's "newc" format, which the kernel unpacks into its first file system.
//!
//! The programs are this host's, with the libraries that they name; nothing is cross-compiled.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::package::{Kernel, Module};
use super::{Built, guest};
use crate::{toolchain, workspace};

/// Programs that the lab starts.
const TOOLS: [&str; 5] = ["ip", "tc", "ethtool", "nft", "sleep"];
/// Directories that are there before anything is mounted.
const DIRECTORIES: [&str; 10] = ["bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp", "var"];

/// Makes a guest's image, beside its kernel.
///
/// # Errors
/// When a program or one of its libraries cannot be read.
pub(crate) fn make(kernel: &Kernel, modules: &[Module], built: &Built) -> Result<PathBuf> {
    let path = workspace::target_dir().join("kernels").join(format!("{}.cpio", kernel.release));
    let scratch = tempfile::tempdir().context("make a directory for stripped programs")?;
    // Not by its name: a build meanwhile may have put another there.
    let own = scratch.path().join("own");
    fs::copy("/proc/self/exe", &own).context("copy the running program")?;
    let mut programs = Vec::new();
    for (name, from) in [
        (guest::INIT, &own),
        (super::PACKET, &built.packet),
        (guest::NETNS, &built.netns),
        (guest::ROUTER, &built.router),
    ] {
        programs.push((name, stripped(from, &scratch.path().join(name))?));
    }
    for name in TOOLS {
        programs.push((name, workspace::on_path(name).with_context(|| format!("{name} is not on PATH"))?));
    }

    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), entries: 0, made: BTreeSet::new() };
    for directory in DIRECTORIES {
        archive.directories(&Path::new("/").join(directory).join("any"))?;
    }
    // The kernel opens the first for us, and Rust's runtime wants the second where that fails.
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    for (number, Module { name, bytes }) in modules.iter().enumerate() {
        archive.file(&format!("modules/{number:02}-{name}.ko"), 0o644, bytes)?;
    }
    let mut libraries = BTreeSet::new();
    for (name, program) in &programs {
        archive.file(&format!("bin/{name}"), 0o755, &read(program)?)?;
        libraries.extend(libraries_of(program)?);
    }
    for library in libraries {
        archive.directories(&library)?;
        archive.file(&library.to_string_lossy(), 0o755, &read(&library)?)?;
    }
    archive.finish().with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// A copy without debug information, which is most of a program and no use to a guest.
fn stripped(from: &Path, to: &Path) -> Result<PathBuf> {
    workspace::run(Command::new("strip").arg("-o").arg(to).arg(from))?;
    Ok(to.to_path_buf())
}

/// The shared libraries of a program, and the loader.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = toolchain::output(Command::new("ldd").env_remove("LD_LIBRARY_PATH").arg(program))?;
    let words = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(|word| PathBuf::from(word.trim_end_matches(':'))).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// A cpio archive that is being written.
struct Archive<W> {
    out: W,
    entries: u32,
    made: BTreeSet<PathBuf>,
}

/// What an entry is, in `st_mode`.
mod mode {
    pub(super) const DIRECTORY: u32 = 0o040_000;
    pub(super) const CHARACTERS: u32 = 0o020_000;
    pub(super) const REGULAR: u32 = 0o100_000;
}

impl<W: Write> Archive<W> {
    fn file(&mut self, path: &str, permissions: u32, bytes: &[u8]) -> Result<()> {
        self.entry(path, mode::REGULAR | permissions, (0, 0), bytes)
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(path, mode::CHARACTERS | 0o600, (major, minor), &[])
    }

    /// Makes the directories that lead to a file.
    fn directories(&mut self, file: &Path) -> Result<()> {
        let parents = file.ancestors().skip(1).filter(|path| path.parent().is_some()).collect::<Vec<_>>();
        for parent in parents.into_iter().rev() {
            if self.made.insert(parent.to_path_buf()) {
                self.entry(&parent.to_string_lossy(), mode::DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// The format: thirteen numbers of eight hexadecimal digits, the name, the content, the latter two padded to four bytes.
    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), bytes: &[u8]) -> Result<()> {
        self.entries += 1;
        let path = path.trim_start_matches('/');
        let size = u32::try_from(bytes.len()).with_context(|| format!("{path} is too large"))?;
        let name_size = u32::try_from(path.len() + 1).context("length of a name")?;
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend(format!("{field:08x}").bytes());
        }
        header.extend(path.bytes());
        header.push(0);
        pad(&mut header);
        self.out.write_all(&header)?;
        self.out.write_all(bytes)?;
        self.out.write_all(&vec![0; bytes.len().next_multiple_of(4) - bytes.len()])?;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out.flush()?)
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
