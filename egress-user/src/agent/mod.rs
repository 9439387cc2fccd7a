//! The agent: makes the system what a specification asks for, and keeps it so.
//!
//! [`Router`] knows one router's place and puts a [`Desired`](crate::compile::Desired) state into effect there, all of it or
//! nothing. [`run`] does so again and again: for every edit of the file, for drift, until a signal.
//!
//! Order of an apply, and why:
//! 1. plan the link: whatever makes the wanted state impossible is found before anything is changed;
//! 2. load the programs, make the external interface: down, without addresses;
//! 3. fill the tables and switch to them, attach the programs: from here on every packet is looked at;
//! 4. claim addresses, routes and forwarding: from here on there are packets.
//!
//! A step that fails takes back what was done before it, last first. An apply that puts another interface in the old one's
//! place lets nothing pass meanwhile: the programs go with the interface that they are attached to.
//!
//! One process at a time works on a router: the namespace is locked.

mod backoff;
mod confine;
mod error;
mod existing;
mod fault;
mod flow_log;
mod health;
mod keep;
mod metrics;
mod pace;
mod privilege;
mod router;
mod run;
mod serve;
mod service;
mod status;
mod timeouts;
mod watch;

pub use confine::confine;
pub use error::AgentError;
pub use existing::ExistingFlows;
pub use privilege::{Capability, TO_CHANGE, TO_READ, check as check_privilege};
pub use router::{Applied, REPLY_MARK, Router, Setup};
pub use run::{OnExit, Options, run};
pub use status::Status;
pub use timeouts::conntrack_timeouts;
pub(crate) use watch::Watch as FileWatch;
