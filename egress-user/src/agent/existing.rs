//! What becomes of live flows whose rule an edit has changed.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::datapath::Connection;

/// What becomes of live flows whose rule changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExistingFlows {
    /// They go on to their old destination, until they end.
    #[default]
    Keep,
    /// They go on for this long, then are cut.
    Drain(Duration),
    /// They are cut at once.
    Cut,
}

/// Flows that were found stale, and when. What is told apart is the flow, not the edit: edits that follow one another give
/// no flow more time.
#[derive(Debug, Default)]
pub(super) struct Draining {
    since: HashMap<Connection, Instant>,
}

impl Draining {
    /// Takes over which flows are stale now; returns those whose time is up.
    pub(super) fn due(&mut self, stale: Vec<Connection>, grace: Duration, now: Instant) -> Vec<Connection> {
        let since: HashMap<Connection, Instant> =
            stale.into_iter().map(|one| (one, self.since.get(&one).copied().unwrap_or(now))).collect();
        let (due, left): (Vec<_>, Vec<_>) = since.into_iter().partition(|(_, since)| now >= *since + grace);
        self.since = left.into_iter().collect();
        due.into_iter().map(|(connection, _)| connection).collect()
    }

    /// Whether flows are going on that will be cut.
    pub(super) fn is_under_way(&self) -> bool {
        !self.since.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(port: u16) -> Connection {
        let end = |port| std::net::SocketAddr::from(([192, 0, 2, 1], port));
        Connection { protocol: 6, client: end(port), router: end(80), source: end(port), destination: end(8080) }
    }

    #[test]
    fn each_flow_has_its_own_time() {
        let grace = Duration::from_secs(10);
        let start = Instant::now();
        let mut draining = Draining::default();
        assert_eq!(draining.due(vec![connection(1)], grace, start), []);
        assert_eq!(draining.due(vec![connection(1), connection(2)], grace, start + grace / 2), []);
        assert!(draining.is_under_way());
        assert_eq!(draining.due(vec![connection(1), connection(2)], grace, start + grace), [connection(1)]);
        // An edit that brings its rule back, and one that takes it away again.
        assert_eq!(draining.due(vec![], grace, start + grace), []);
        assert!(!draining.is_under_way());
        assert_eq!(draining.due(vec![connection(2)], grace, start + grace * 2), []);
        assert_eq!(draining.due(vec![connection(3)], Duration::ZERO, start), [connection(3)]);
    }
}
