//! End to end: real sockets through client, router, node and outside.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics where it stands")]

mod agent;
mod bad_input;
mod checksums;
mod commands;
mod connections;
mod detached;
mod edits;
mod fallback;
mod flows;
mod fragments;
mod hooks;
mod icmp;
mod lab;
mod lifecycle;
mod live;
mod modes;
mod mtu;
mod outside;
mod pod;
mod ports;
mod protocols;
mod return_path;
mod rig;
mod rules;
mod specs;
mod start;
mod surroundings;
mod system;
mod timeouts;
mod wire;
