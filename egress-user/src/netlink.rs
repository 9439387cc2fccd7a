//! A netlink connection of the calling thread's namespace, for blocking callers.
//!
//! The socket is opened on that thread: this is what binds a connection to a namespace, not where it is used later.

use std::io;

use rtnetlink::{Error, Handle};

/// Runs `work` with a connection; `failed` names what could not be had for it.
///
/// # Errors
///
/// Those of `work`, and of opening the connection.
pub(crate) fn with<T, E>(
    failed: impl Fn(io::Error) -> E,
    work: impl AsyncFnOnce(Handle) -> Result<T, E>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(&failed)?;
    runtime.block_on(async {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(&failed)?;
        let pump = tokio::spawn(connection);
        let result = work(handle).await;
        pump.abort();
        result
    })
}

/// As [`with`], for who asks the kernel and nothing else.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn ask<T>(work: impl AsyncFnOnce(Handle) -> Result<T, Error>) -> io::Result<T> {
    with(|failed| failed, async |handle| work(handle).await.map_err(reason))
}

/// The kernel's reason, where the error has one.
pub(crate) fn reason(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
