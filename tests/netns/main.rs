//! End to end: real sockets through client, router, node and outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod checksums;
mod connections;
mod detached;
mod edits;
mod fallback;
mod flows;
mod fragments;
mod icmp;
mod lab;
mod live;
mod mtu;
mod outside;
mod pod;
mod ports;
mod protocols;
mod return_path;
mod rig;
mod rules;
mod start;
mod surroundings;
mod wire;
