//! A router that an API describes: a cluster's, or our own [`serve`](crate::api).
//!
//! The object is mirrored to a file, which the agent follows as any other; the conditions that the agent writes to its status
//! file are written back to the object. So an API server that goes away takes nothing with it, not even for an agent that
//! starts meanwhile: the file is the last good word. An object that is deleted takes its router with it.
//!
//! Invariants:
//! - Only this room knows kube.
//! - The file holds what the API said last, whole: it is replaced in one step.
//! - Conditions are written when they are other than the object's, and never more often than once in a while. An event
//!   tells of each that turned.

mod error;
mod follow;
mod herald;
mod object;
mod run;

pub use error::SourceError;
pub use follow::{Access, Source};
pub use run::run;
