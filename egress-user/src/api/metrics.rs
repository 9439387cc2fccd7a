//! What is counted, in the text form of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use super::server::Counter;
use super::store::State;

/// Counters of a server.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Connections that were let in.
    pub(super) connections: Counter,
    /// Connections that were turned away because there were too many.
    pub(super) refused: Counter,
}

impl Metrics {
    /// Counts an answered request.
    pub(super) fn count(&self, verb: &'static str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((verb, code)).or_default() += 1;
    }

    /// Everything, as text.
    pub(super) fn text(&self, state: &State) -> String {
        let mut text = String::from(
            "# HELP egress_router_api_requests_total Requests by verb and status code.\n\
             # TYPE egress_router_api_requests_total counter\n",
        );
        for ((verb, code), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _infallible =
                writeln!(text, "egress_router_api_requests_total{{verb=\"{verb}\",code=\"{code}\"}} {count}");
        }
        let values = [
            ("connections_total", "counter", "Connections that were let in.", self.connections.get()),
            ("connections_refused_total", "counter", "Connections that were one too many.", self.refused.get()),
            ("objects", "gauge", "Routers in the store.", u64::try_from(state.len()).unwrap_or(u64::MAX)),
            ("newest_version", "gauge", "The newest resourceVersion.", state.newest()),
            ("oldest_version", "gauge", "The oldest resourceVersion that can be watched from.", state.floor()),
        ];
        for (name, ty, help, value) in values {
            let _infallible = write!(
                text,
                "# HELP egress_router_api_{name} {help}\n# TYPE egress_router_api_{name} {ty}\n\
                 egress_router_api_{name} {value}\n"
            );
        }
        text
    }
}
