//! What is said of a router: Kubernetes' conditions, and the faults that they come from.
//!
//! [`judge()`] turns a [`Picture`], what is known at a moment, into the three conditions of an `EgressRouter`'s status:
//! `Available` (packets get through), `Progressing` (it is on its way somewhere) and `Degraded` (something is not as the
//! specification wants it). [`Conditions::update`] takes them over, and remembers since when each is so.
//!
//! Invariants:
//! - A condition's transition time changes with its status and with nothing else.
//! - Messages hold no figure that moves by itself: a status that is written again says something new.
//! - Deliberately absent: Linux, clocks, files. Who calls brings the time.

mod condition;
mod fault;
mod judge;

pub use condition::{Condition, ConditionStatus, ConditionType, Conditions, Verdict};
pub use fault::{Fault, Reason};
pub use judge::{Activity, InForce, Picture, judge};
