//! A netlink connection inside a namespace, for blocking callers.

use std::io;

use rtnetlink::Handle;

use super::error::LinkError;
use super::netns::Netns;

/// Runs `work` with a netlink connection of the namespace. The socket is opened inside it: that is what binds a
/// connection to a namespace, not where it is used later.
///
/// # Errors
/// Those of `work`, and of entering the namespace.
pub(super) fn with<T, F>(netns: &Netns, work: F) -> Result<T, LinkError>
where
    T: Send,
    F: AsyncFnOnce(Handle) -> Result<T, LinkError> + Send,
{
    let failed = |source| LinkError::Request { netns: netns.label().to_owned(), source };
    netns.run(|| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        runtime.block_on(async {
            let (connection, handle, _messages) = rtnetlink::new_connection().map_err(failed)?;
            let pump = tokio::spawn(connection);
            let result = work(handle).await;
            pump.abort();
            result
        })
    })?
}

/// The kernel's reason, where the error has one.
pub(super) fn reason(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
