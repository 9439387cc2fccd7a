//! Edits of the specification file.

use std::path::{Path, PathBuf};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::AgentError;

/// Tells when a file may have changed.
///
/// The file's directory is watched, not the file: editors rename a new file over the old one, and a mounted ConfigMap swaps
/// the symbolic link of a sibling directory.
pub(crate) struct Watch {
    changes: mpsc::Receiver<()>,
    _watcher: notify::RecommendedWatcher,
}

impl Watch {
    /// Starts watching.
    ///
    /// # Errors
    ///
    /// [`AgentError::Watch`] when the directory cannot be watched.
    pub(crate) fn new(file: &Path) -> Result<Self, AgentError> {
        // One pending change is as good as many.
        let (sender, changes) = mpsc::channel(1);
        let failed = |source| AgentError::Watch { path: file.to_owned(), source };
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the file is no change of it, and an error is worth a look at the file too.
            if event.map_or(true, |event| !event.kind.is_access()) {
                let _already_pending = sender.try_send(());
            }
        })
        .map_err(failed)?;
        watcher.watch(&directory(file), RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self { changes, _watcher: watcher })
    }

    /// Waits for the next change.
    pub(crate) async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watcher is gone, which only its drop does.
            std::future::pending::<()>().await;
        }
    }
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
