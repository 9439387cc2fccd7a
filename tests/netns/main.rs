//! End to end: real sockets through client, router, node and outside.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics where it stands")]

mod accelerated;
mod adopt;
mod agent;
mod associations;
mod bad_input;
mod checksums;
mod clock;
mod commands;
mod confined;
mod connections;
mod deployed;
mod detached;
mod edits;
mod existing;
mod eyes;
mod fallback;
mod flow_log;
mod flows;
mod fragments;
mod healing;
mod hooks;
mod icmp;
mod image;
mod lab;
mod lifecycle;
mod live;
mod metrics;
mod modes;
mod mtu;
mod outside;
mod pod;
mod ports;
mod protocols;
mod return_path;
mod rig;
mod rules;
mod soak;
mod specs;
mod standby;
mod start;
mod surroundings;
mod system;
mod timeouts;
mod wire;
