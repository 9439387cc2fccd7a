//! When the flow table is swept.

use std::time::Duration;

use tokio::time::Instant;

/// How often, as long as that is nothing to the machine.
const SWEEP: Duration = Duration::from_secs(5);
/// The same, while the table is so full that flows have to give way.
const CROWDED_SWEEP: Duration = Duration::from_millis(250);
/// A sweep of a table of millions takes its time. The next one waits for so many times that: the machine is for packets.
const REST: u32 = 30;
/// The same, while flows have to give way: the longer they are left alone, the more of them there are.
const CROWDED_REST: u32 = 5;

/// Lets sweeps be as often as is good.
#[derive(Debug)]
pub(super) struct Pace {
    due: Instant,
}

impl Pace {
    /// The first sweep is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// Whether a sweep is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// A sweep is over, which took so long, and found the table crowded or not.
    pub(super) fn swept(&mut self, now: Instant, took: Duration, crowded: bool) {
        let rest = if crowded { CROWDED_SWEEP.max(took * CROWDED_REST) } else { SWEEP.max(took * REST) };
        self.due = now + rest;
    }

    /// How long until somebody is to look, at the table or at the rest.
    pub(super) fn next_look(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now).min(SWEEP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_a_sweep_takes_the_rarer_it_comes() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(pace.is_due(start));
        for (took, crowded, next) in [(10, false, 5000), (400, false, 12_000), (10, true, 250), (400, true, 2000)] {
            pace.swept(start, ms(took), crowded);
            assert!(!pace.is_due(start + ms(next - 1)), "{took} {crowded}");
            assert!(pace.is_due(start + ms(next)), "{took} {crowded}");
            assert_eq!(pace.next_look(start), ms(next).min(SWEEP), "the rest is looked at as often as ever");
        }
        assert_eq!(pace.next_look(start + ms(3000)), ms(0));
    }
}
