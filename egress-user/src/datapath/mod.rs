//! The datapath as user space sees it: load the BPF programs, attach them, fill their maps, read them back.
//!
//! One datapath belongs to one router namespace. Everything that has to outlive the process is pinned under
//! `<bpffs>/<namespace cookie>/v<layout>`: the maps, and one link for each hook. The cookie is the kernel's own number of the
//! namespace, never used twice while the machine is up, so two routers cannot meet under one path.
//!
//! Invariants:
//! - Programs are attached only after their tables are filled, and an unconfigured program drops: fail closed.
//! - The tables in force change by one 32-bit store ([`contract::map::ACTIVE`](egress_ebpf::contract::map::ACTIVE)); a
//!   packet sees the old ones or the new ones, never a mixture.
//! - An address keeps its index in `SOURCES` while it is in use: flows in the table name it by that index.
//! - Nothing here knows the specification, and of netlink only the clsact filters and what a device
//!   can do for XDP.

mod attach;
mod clsact;
mod device;
mod error;
mod events;
mod flows;
mod live;
mod load;
mod maps;
mod object;
mod pins;
mod read;
mod stale;
mod table;
mod tables;
mod tally;
mod test_run;
mod trace;
mod verified;
mod xdp;

pub use attach::{Attached, Hook};
pub use error::DatapathError;
pub use events::{Events, LoggingRow, Untold, Watched, arrived, rule_of, translated};
pub use flows::{FlowRow, Swept, monotonic_ns, number_of_protocol, protocol_name};
pub use live::{Traced, Tracer};
pub use load::{Datapath, Installed, ProgramRow, Suspended};
pub use pins::PinDir;
pub use read::{CounterRow, Reader, RuleRow};
pub use stale::Connection;
pub use table::{Entry, FlowTable, Table};
pub use tables::{Interface, Interfaces, Settings, Tables, protocol_number};
pub use tally::{PortUse, RuleId, RuleTotals, Tally, Traffic, Use};
pub use test_run::{Arrival, Departure};
pub use trace::{Answer, InForce, Question, trace};
