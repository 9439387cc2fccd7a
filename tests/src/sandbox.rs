//! Running a program as on a kernel that lacks something.

use std::io;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, anyhow};

use crate::sys;

/// Runs a command for which the kernel has no `bpf` system call.
///
/// # Errors
/// When the system calls of a thread cannot be filtered, or the command not be started.
pub fn without_bpf(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null());
    // The filter holds for a thread and for what it starts, for ever: so it gets a thread that ends with it.
    let inside = || -> io::Result<Output> {
        sys::refuse_bpf()?;
        command.output()
    };
    let outcome = std::thread::scope(|scope| scope.spawn(inside).join());
    outcome.map_err(|_panic| anyhow!("the thread without BPF panicked"))?.context("run without BPF")
}
