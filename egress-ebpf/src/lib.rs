//! The datapath's side that both worlds share.
//!
//! The lib target of this package is built for the host and for BPF alike. It holds the *contract*: the bytes that user
//! space writes into maps and the kernel reads, and back ([`contract`]); and the *decisions*, as pure functions that a
//! unit test can call and the kernel program does call. The bin target, `egress-datapath`, holds the maps, the four
//! programs and everything unsafe.
//!
//! Architecture invariant: nothing here allocates, formats, panics, reads a clock or a random number; time and
//! randomness are arguments. Nothing here knows aya.
//!
//! | module | question it answers |
//! |---|---|
//! | [`addr`] | what is an address or a port, on the wire and in a map? |
//! | [`contract`] | which maps are there, with which keys and values? |
//! | [`verdict`] | what may become of a packet, and why was it dropped? |
//! | [`event`] | what is told of flows and drops, and how much? |
//! | [`checksum`] | how does a checksum follow a change? |
//! | [`crc32c`] | how does SCTP's checksum follow a change? |
//! | [`table`] | where in its table is a flow's entry? |
//! | [`ports`] | which source port does a flow get? |
//! | [`tcp`] | in which state is a connection? |
//! | [`sctp`] | and in which an association? |
//! | [`timeout`] | how long may a flow be idle? |
//! | [`source`] | which packets does the benchmark send? |
#![no_std]

pub mod addr;
pub mod checksum;
pub mod contract;
pub mod crc32c;
pub mod event;
pub mod ports;
pub mod sctp;
pub mod source;
pub mod table;
pub mod tcp;
pub mod timeout;
pub mod verdict;
