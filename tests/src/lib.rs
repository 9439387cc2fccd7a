//! The lab: network namespaces wired as a router's surroundings are, real traffic through them, and a detector at the
//! far side that sees every frame which leaves the router.
//!
//! ```text
//!  client C            router R                node H             outside S            servers S1, S2
//!  10.128.0.1 (c0)     10.128.0.2 (eth0)       192.168.12.2       192.168.12.1 (s0)    203.0.113.26, .27
//!  10.128.0.11 ...                             (up0)              is the gateway       2001:db8:113::26, ::27
//!  fd00:10::1, ::11    fd00:10::2              fd00:12::2         fd00:12::1
//!      c0 ────veth──── eth0    net1 ─macvlan── up0 ─────veth───── s0   o1 ──────veth── eth0
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`netns`] | a namespace that is removed with all that runs in it |
//! | [`topology`] | the rig above, in its variants |
//! | [`second_node`] | another node on the same network, for routers that stand by |
//! | [`address`] | who has which address |
//! | [`tcp`], [`udp`], [`sctp`], [`icmp`] | clients and servers on real sockets, which tell whom they saw |
//! | [`wait`] | waiting for something to become true, with a limit |
//! | [`capture`] | every frame that passes an interface |
//! | [`inject`] | frames that no socket would send |
//! | [`random`] | random numbers that come again |
//! | [`frame`] | packets built from scratch, for sending and comparing |
//! | [`packet`], [`pcap`] | what a frame holds, and frames as a file |
//! | [`detector`] | the leak and checksum detector, made of a capture |
//! | [`probe`] | one packet through one rule, and what became of it |
//! | [`kernel_nat`] | nftables in the place of the router, for comparison |
//! | [`router`] | the real `egress-router` binary in the lab |
//! | [`load`] | connections, requests and streams by the thousand |
//! | [`source`] | packets by the million, and what each costs |
//! | [`bpf`] | time of programs, memory of tables |
//! | [`processor`] | a processor of one's own, and the time spent on it |
//! | [`sandbox`] | a program as on a kernel that lacks something |
//! | [`https`] | an HTTPS client by hand, for the API |
//! | [`interrupt`] | staying until Ctrl-C |
//!
//! Invariants: no fixed name on the system, so labs run side by side; nothing sleeps to wait for another; every wait has
//! a limit; what a crashed run left behind is removed when the next one starts.
//!
//! Everything returns `Result`, for `cargo xtask run` reports errors; tests unwrap.

pub mod address;
pub mod bpf;
pub mod capture;
pub mod detector;
pub mod endpoint;
pub mod frame;
pub mod https;
pub mod icmp;
pub mod inject;
pub mod interrupt;
pub mod kernel_nat;
pub mod load;
pub mod memory;
pub mod netns;
pub mod packet;
pub mod pcap;
pub mod probe;
pub mod processor;
pub mod random;
pub mod router;
pub mod sandbox;
pub mod sctp;
pub mod second_node;
pub mod source;
mod sys;
pub mod tcp;
pub mod topology;
pub mod udp;
pub mod wait;

pub use address::Family;
pub use netns::Netns;
pub use topology::{Lab, Options};
pub use wait::wait_until;

/// Whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
