//! What can go wrong on the way to an API.

use std::path::PathBuf;

use crate::agent::AgentError;

/// An error of the way to an API.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kubeconfig cannot be used.
    #[error("read the kubeconfig {}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// This is no pod of a cluster.
    #[error("find the cluster that this pod belongs to")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// A client cannot be made.
    #[error("set up a client of the API")]
    Client(#[source] Box<kube::Error>),
    /// The mirror of the object cannot be written.
    #[error("write {}", .path.display())]
    Mirror {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A signal handler could not be set up.
    #[error("set up signal handlers")]
    Signals(#[source] std::io::Error),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
}
