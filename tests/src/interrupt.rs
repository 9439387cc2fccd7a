//! Staying until somebody presses Ctrl-C, and still tidying up.

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

/// SIGINT, SIGTERM and SIGHUP, held back so that they end a wait and not the process.
#[derive(Debug)]
pub struct Interrupt(SigSet);

impl Interrupt {
    /// Holds the signals back in this thread and in those that it starts from now on. Child processes are not affected.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold() -> Result<Self> {
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect::<SigSet>();
        signals.thread_block().context("hold signals back")?;
        Ok(Self(signals))
    }

    /// Waits for one of them; one that came before counts.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self) -> Result<Signal> {
        self.0.wait().context("wait for a signal")
    }
}
