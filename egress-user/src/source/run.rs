//! The agent of a router that an API describes.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info};

use super::follow::Seen;
use super::{Source, SourceError};
use crate::agent::{self, FileWatch, Options, Router};
use crate::compile::desired_from_file;

/// Runs the router for as long as its object is there, again whenever it is there again, until a signal. `start` makes a
/// router and says how the agent is to work; `ready` is called when packets would be translated.
///
/// # Errors
///
/// When the router cannot be made or the agent cannot begin, or the mirror cannot be kept.
pub async fn run<E: From<SourceError>>(
    source: &Source,
    mut start: impl FnMut() -> Result<(Router, Options), E>,
    mut ready: impl FnMut(),
) -> Result<(), E> {
    let (sender, mut seen) = watch::channel(Seen::Nothing);
    let follower = source.follow(&sender);
    let agents = async {
        let mut terminate = signal(SignalKind::terminate()).map_err(SourceError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SourceError::Signals)?;
        loop {
            tokio::select! {
                there = wait(source, &mut seen) => there?,
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
            let desired = match desired_from_file(source.spec(), None) {
                Ok((desired, _)) => desired,
                Err(invalid) => {
                    error!("{}: {invalid}", source.name());
                    source.refuse(&invalid.to_string()).await;
                    tokio::select! {
                        edited = edit(source) => edited?,
                        _ = terminate.recv() => return Ok(()),
                        _ = interrupt.recv() => return Ok(()),
                    }
                    continue;
                }
            };
            let (router, options) = start()?;
            let gone = gone(seen.clone());
            agent::run(router, desired, Options { gone: Some(gone), ..options }, &mut ready)
                .await
                .map_err(SourceError::from)?;
            if *seen.borrow() != Seen::Gone {
                // A signal, or the namespace is no more.
                return Ok(());
            }
            info!("{}: the object was deleted, and the router with it", source.name());
        }
    };
    tokio::select! {
        followed = follower => Ok(followed?),
        ended = agents => ended,
    }
}

/// Waits until there is a specification: of the API, or left from before where the API does not answer.
async fn wait(source: &Source, seen: &mut watch::Receiver<Seen>) -> Result<(), SourceError> {
    let mut told = false;
    loop {
        let there = match *seen.borrow_and_update() {
            Seen::There => true,
            Seen::Nothing => source.spec().exists(),
            Seen::Gone => {
                // Nor is it to be found by an agent that starts later. Whoever followed it has ended.
                let _not_there = std::fs::remove_file(source.spec());
                false
            }
        };
        if there {
            return Ok(());
        }
        if !told {
            info!("waiting for EgressRouter {}", source.name());
            told = true;
        }
        if seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for the next edit.
async fn edit(source: &Source) -> Result<(), SourceError> {
    FileWatch::new(source.spec())?.changed().await;
    Ok(())
}

/// Tells the agent when its object is no more.
fn gone(mut seen: watch::Receiver<Seen>) -> watch::Receiver<bool> {
    let (sender, gone) = watch::channel(false);
    tokio::spawn(async move {
        while seen.changed().await.is_ok() {
            if *seen.borrow() == Seen::Gone {
                let _was_false = sender.send_replace(true);
                return;
            }
        }
    });
    gone
}
