//! When to try again what has failed.

use std::time::Duration;

use tokio::time::Instant;

/// Waits twice as long after each failure, between two bounds.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    next: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0, next: None }
    }

    /// Something failed at this moment.
    pub(super) fn failed(&mut self, now: Instant) {
        let wait = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        self.next = Some(now + wait);
    }

    /// It went well, or is not wanted any more.
    pub(super) fn settled(&mut self) {
        self.failures = 0;
        self.next = None;
    }

    /// Whether another try is due, or none failed.
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// Waits until another try is due; for ever when nothing has failed.
    pub(super) async fn due(&self) {
        match self.next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_longer_each_time_up_to_the_bound() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 5 * second);
        let start = Instant::now();
        assert!(backoff.allows(start));
        for wait in [1, 2, 4, 5, 5] {
            backoff.failed(start);
            assert!(!backoff.allows(start + wait * second - second / 10), "{wait}");
            assert!(backoff.allows(start + wait * second), "{wait}");
        }
        backoff.settled();
        assert!(backoff.allows(start));
        backoff.failed(start);
        assert!(backoff.allows(start + second));
    }
}
