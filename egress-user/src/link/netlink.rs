//! A netlink connection inside a namespace.

use rtnetlink::Handle;

use super::error::LinkError;
use super::netns::Netns;
pub(super) use crate::netlink::reason;

/// Runs `work` with a netlink connection of the namespace.
///
/// # Errors
/// Those of `work`, and of entering the namespace.
pub(super) fn with<T, F>(netns: &Netns, work: F) -> Result<T, LinkError>
where
    T: Send,
    F: AsyncFnOnce(Handle) -> Result<T, LinkError> + Send,
{
    let failed = |source| LinkError::Request { netns: netns.label().to_owned(), source };
    netns.run(|| crate::netlink::with(failed, work))?
}
