//! End to end: real sockets through client, router, node and outside.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics where it stands")]

mod agent;
mod bad_input;
mod commands;
mod lab;
mod lifecycle;
mod modes;
mod specs;
mod system;
