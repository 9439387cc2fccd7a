//! What can go wrong while a specification is put into effect.

use std::path::PathBuf;

use thiserror::Error;

use super::privilege::Capability;
use crate::compile::RouterName;
use crate::datapath::DatapathError;
use crate::link::{Conflict, LinkError};

/// An error of the agent.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The external interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The datapath.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A step failed, and so did taking back what had been done before it.
    #[error("{failed}; and what had been done could not all be taken back: {}", list(not_undone))]
    NotUndone {
        /// Why the apply failed.
        failed: Box<AgentError>,
        /// What is left behind.
        not_undone: Vec<AgentError>,
    },
    /// Things that could not be taken away.
    #[error("could not take everything away: {}", list(.0))]
    Delete(Vec<AgentError>),
    /// The file now describes another router than the one that the agent runs.
    #[error("the file now describes {now}, this agent runs {ours}")]
    OtherRouter {
        /// The router in the file.
        now: RouterName,
        /// The router of the agent.
        ours: RouterName,
    },
    /// The process lacks capabilities.
    #[error(
        "not permitted: this needs {}, and the process lacks {}: run it as root, or give it what it lacks (setcap, `docker run --cap-add`, securityContext.capabilities.add)",
        names(needed),
        names(missing)
    )]
    Privilege {
        /// All that are needed.
        needed: &'static [Capability],
        /// Those of them that the process does not have.
        missing: Vec<Capability>,
    },
    /// The specification file cannot be watched.
    #[error("watch {}", path.display())]
    Watch {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: notify::Error,
    },
    /// The status file cannot be written.
    #[error("write status to {}", path.display())]
    Status {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The metrics cannot be served.
    #[error("serve metrics on {address}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A signal handler or the asynchronous runtime could not be set up.
    #[error("set up {what}")]
    SetUp {
        /// What.
        what: &'static str,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

impl AgentError {
    /// Whether the cluster's interface is missing, without which nothing is translated.
    pub(super) fn is_of_cluster(&self) -> bool {
        matches!(self, Self::Link(LinkError::NoClusterInterface { .. }))
    }

    /// Who has the addresses because of which it failed.
    pub(super) fn conflicts(&self) -> &[Conflict] {
        match self {
            Self::Link(error) => error.conflicts(),
            Self::NotUndone { failed, .. } => failed.conflicts(),
            _ => &[],
        }
    }
}

fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(Capability::to_string).collect::<Vec<_>>().join(", ")
}

fn list(errors: &[AgentError]) -> String {
    errors.iter().map(|error| format!("{:#}", Chain(error))).collect::<Vec<_>>().join("; ")
}

/// An error with its causes on one line.
pub(super) struct Chain<'a>(pub(super) &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(this) = cause {
            write!(f, ": {this}")?;
            cause = this.source();
        }
        Ok(())
    }
}
