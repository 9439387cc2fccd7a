//! Waiting for something to become true.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a predicate is asked.
const PERIOD: Duration = Duration::from_millis(2);

/// Asks `predicate` again and again until it holds.
///
/// # Errors
/// When it does not within `timeout`; the error names `what`.
pub fn wait_until(what: &str, timeout: Duration, mut predicate: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, timeout, || predicate().then_some(()))
}

/// As [`wait_until`], for a predicate that brings something back.
///
/// # Errors
/// When it brings nothing within `timeout`; the error names `what`.
pub fn wait_for<T>(what: &str, timeout: Duration, mut predicate: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = predicate() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} ms in vain for: {what}", timeout.as_millis());
        }
        std::thread::sleep(PERIOD);
    }
}

/// One try of something against the network: what came of it, and how long it took.
#[derive(Debug)]
pub struct Attempt<T> {
    /// What was got, or the socket's own error.
    pub result: std::io::Result<T>,
    /// From the first packet sent to the result.
    pub took: Duration,
}

impl<T> Attempt<T> {
    /// Tries it, with the clock running.
    pub fn of(what: impl FnOnce() -> std::io::Result<T>) -> Self {
        let started = Instant::now();
        let result = what();
        Self { result, took: started.elapsed() }
    }
}
