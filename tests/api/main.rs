//! The API against what real API servers answered, with the clients that people use, and under load.
//!
//! Every test serves on a port and in a directory of its own. What takes long is shortened by default; set
//! `EGRESS_API_FULL=1` for the whole of it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics where it stands")]

mod compare;
mod conformance;
mod corpus;
mod events;
mod excuses;
mod history;
mod hostile;
mod kube_rs;
mod kubectl;
mod overload;
mod placeholders;
mod routers;
mod server;
mod session;
mod strength;
