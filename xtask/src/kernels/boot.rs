//! A kernel in the emulator, with a limit on its time.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Options;
use super::emulator::Emulator;
use super::guest::{self, MARK};
use super::package::Kernel;
use super::report::Report;
use crate::workspace;

/// How long a guest may take, if nothing else is said: several times what it takes on two processors with nothing else to do.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);
/// How many of the kernel's last lines are shown when a guest does not come to its end.
const TAIL_LINES: usize = 30;

/// Boots a kernel, shows what its guest says as it says it, and waits until it has switched itself off.
///
/// # Errors
/// When the emulator cannot be started. A guest that fails, or takes too long, is a failure in the report.
pub(crate) fn boot(emulator: &Emulator, kernel: &Kernel, image: &Path, options: &Options) -> Result<Report> {
    let limit = options.limit;
    eprintln!("{}: booting it, for at most {} s", kernel.release, limit.as_secs());
    let console = workspace::target_dir().join("kernels").join(format!("{}.log", kernel.release));
    // The last run's would be mistaken for this one's.
    fs::write(&console, "").with_context(|| format!("write {}", console.display()))?;
    let mut command = machine(emulator, kernel, image, &console, options);
    let mut child = command.spawn().with_context(|| format!("start `{}`", workspace::shown(&command)))?;
    let mut report = Report::new(&kernel.release);
    let outcome = follow(kernel, &mut child, limit, &mut report);
    // It has ended, or has had its time.
    let _ = child.kill();
    child.wait().context("wait for the emulator")?;
    if let Err(what) = outcome {
        eprintln!("{}: {what}; its kernel's last lines, of {}:", kernel.release, console.display());
        for line in tail(&console) {
            eprintln!("  {} ! {line}", kernel.series);
        }
        report.broke(&what);
    }
    Ok(report)
}

fn machine(emulator: &Emulator, kernel: &Kernel, image: &Path, console: &Path, options: &Options) -> Command {
    let mut command = emulator.command();
    command.args(["-accel", "tcg", "-smp", "2", "-m", "1024", "-display", "none", "-nodefaults", "-no-user-config"]);
    // A guest that panics restarts, which ends the emulator.
    command.arg("-no-reboot");
    command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(image);
    command.arg("-append").arg(format!(
        "console=ttyS0 panic=-1 oops=panic loglevel=5 mitigations=off tsc=reliable rdinit=/bin/{} -- {} {}",
        guest::INIT,
        guest::VERB,
        options.step.unwrap_or_default()
    ));
    command.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Reads the guest's lines to their end. Says what was wrong, if it did not come to its own.
fn follow(kernel: &Kernel, child: &mut Child, limit: Duration, report: &mut Report) -> Result<(), String> {
    let started = Instant::now();
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take().ok_or("the emulator has no output")?;
    // Ends with the emulator.
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut done = false;
    loop {
        match lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(line) => {
                let seconds = started.elapsed().as_secs();
                eprintln!("  {} {seconds:>3} s | {line}", kernel.series);
                done |= line == format!("{MARK}done");
                report.line(&line);
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!(
                    "the guest took more than {} s (-- --limit SECONDS gives it more)",
                    limit.as_secs()
                ));
            }
            Err(RecvTimeoutError::Disconnected) if done => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err("the guest ended before it was done".to_owned()),
        }
    }
}

fn tail(console: &Path) -> VecDeque<String> {
    let text = fs::read(console).unwrap_or_default();
    let lines = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect::<VecDeque<_>>();
    let skip = lines.len().saturating_sub(TAIL_LINES);
    lines.into_iter().skip(skip).collect()
}
