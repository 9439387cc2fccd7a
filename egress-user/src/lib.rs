//! The user side of the egress router.
//!
//! Rooms, and what each may know. Dependencies point down only.
//!
//! | room | job | knows |
//! |---|---|---|
//! | [`cli`] | the command line, tables and json | everything below |
//! | [`api`] | the EgressRouter API on one machine, with a store | `spec`; http |
//! | [`source`] | a router that an API describes: its object to the agent, conditions back | kube; `agent` |
//! | [`agent`] | reconcile a spec file with the system, watch it, report | everything below |
//! | [`datapath`] | load, attach, pin and adopt the BPF programs; rules, flows, counters | aya; `compile`'s types |
//! | [`link`] | the external interface: macvlan, addresses, routes, sysctls, probe, announce | netlink; `compile`'s types; no BPF |
//! | [`status`] | conditions: what is said of a router, and since when | pure: no Linux |
//! | [`compile`] | spec to desired state: link plan and rule table | pure: no Linux |
//! | [`spec`] | `EgressRouter` types, defaulting, validation with source positions | pure: no Linux |

pub mod agent;
pub mod api;
pub mod cli;
pub mod compile;
pub mod datapath;
pub mod link;
mod netlink;
pub mod source;
pub mod spec;
pub mod status;
