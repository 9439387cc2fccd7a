//! The emulator: the system's own, else Debian's, unpacked below `target` with all that it depends on.
//!
//! It is not installed where it is missing, for its package may push out others of the same family that somebody needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{debian, workspace};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// Where to find it.
#[derive(Debug)]
pub(crate) enum Emulator {
    /// On the path.
    Installed(PathBuf),
    /// Below this directory, as it would be below `/`.
    Unpacked(PathBuf),
}

impl Emulator {
    /// Finds it, or fetches it.
    ///
    /// # Errors
    /// When it cannot be had, or does not start; with what it said.
    pub(crate) fn provide() -> Result<Self> {
        let root = workspace::target_dir().join("tools/qemu");
        let emulator = match workspace::on_path(PROGRAM) {
            Some(program) => Self::Installed(program),
            None if root.exists() => Self::Unpacked(root),
            None => {
                let packages = debian::missing_with_dependencies(PACKAGE)?;
                debian::unpack(&packages, &root).context("the kernels layer boots other kernels in an emulator")?;
                Self::Unpacked(root)
            }
        };
        let mut command = emulator.command();
        command.arg("--version");
        let output = command.output().with_context(|| format!("start `{}`", workspace::shown(&command)))?;
        let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            let place = emulator.place();
            bail!(
                "the emulator does not start: {}\nWithout {place}, `cargo xtask test kernels` fetches it anew",
                complaint.trim()
            );
        }
        eprintln!("emulator: {}, {}", said.lines().next().unwrap_or_default(), emulator.place());
        Ok(emulator)
    }

    /// Starts it, with its own arguments to follow. It ends with the thread that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = ends_with_us();
        match self {
            Self::Installed(program) => {
                command.arg(program);
            }
            Self::Unpacked(root) => {
                command.env("LD_LIBRARY_PATH", library_path(root)).arg(root.join("usr/bin").join(PROGRAM));
                for data in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.join(data));
                }
            }
        }
        command
    }

    fn place(&self) -> std::path::Display<'_> {
        match self {
            Self::Installed(path) | Self::Unpacked(path) => path.display(),
        }
    }
}

/// Starts a program, which is to follow, so that the kernel kills it when the thread that started it is no more: an emulator
/// would otherwise go on for minutes after this program was killed.
fn ends_with_us() -> Command {
    let mut command = workspace::foreign_command(Path::new("setpriv"));
    command.args(["--pdeathsig", "KILL", "--"]);
    command
}

fn library_path(root: &Path) -> String {
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| root.join(dir).display().to_string()).join(":")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;

    use super::ends_with_us;

    #[test]
    fn what_is_started_ends_with_its_starter() {
        let starter = std::thread::spawn(|| {
            let mut command = ends_with_us();
            command.args(["sh", "-c", "echo; exec sleep 600"]);
            let mut child = command.stdout(Stdio::piped()).spawn().expect("sh starts");
            // Only now is the wish known to the kernel.
            child.stdout.take().expect("an output").read_exact(&mut [0]).expect("a line");
            child
        });
        let status = starter.join().expect("the thread ends").wait().expect("it can be waited for");
        assert_eq!(status.signal(), Some(9), "{status}");
    }
}
