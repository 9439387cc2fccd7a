//! Long steps show that they live: a spinner with the latest line on a terminal, every line elsewhere.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::workspace;

/// How many of the last lines are shown when a step fails behind a spinner.
const TAIL_LINES: usize = 25;

/// Runs `command`, which does `what`, to its end.
///
/// # Errors
/// When it cannot be started or fails; the error carries the last lines of its output.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    let interactive = workspace::interactive();
    let spinner = if interactive { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    spinner.set_style(ProgressStyle::with_template("  {spinner} {prefix} ({elapsed}) {wide_msg:.dim}")?);
    spinner.set_prefix(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    if !interactive {
        eprintln!("  {what}: {}", workspace::shown(command));
    }

    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", workspace::shown(command)))?;
    let (sender, lines) = mpsc::channel();
    let readers = [
        child.stdout.take().map(|stream| forward(stream, sender.clone())),
        child.stderr.take().map(|stream| forward(stream, sender.clone())),
    ];
    drop(sender);

    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    for line in lines {
        if interactive {
            spinner.set_message(line.clone());
        } else {
            eprintln!("    {line}");
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    let status = child.wait().with_context(|| format!("wait for `{}`", workspace::shown(command)))?;
    spinner.finish_and_clear();
    if !status.success() {
        let tail = if interactive { format!(":\n{}", Vec::from(tail).join("\n")) } else { String::new() };
        bail!("{what}: `{}` ended with {status}{tail}", workspace::shown(command));
    }
    eprintln!("  {what}: done in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Sends every line of `stream` on; output that is not UTF-8 is shown as well as it can be.
fn forward(stream: impl Read + Send + 'static, lines: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    })
}
