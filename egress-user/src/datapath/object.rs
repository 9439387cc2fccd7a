//! The BPF object that was embedded at build time.

use std::borrow::Cow;

use super::DatapathError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.o"));

/// The object file.
///
/// # Errors
///
/// [`DatapathError::NoObject`] when this binary was built without one.
pub(super) fn bytes() -> Result<Cow<'static, [u8]>, DatapathError> {
    // For tests of upgrades, and in no build that is released: the programs of another build.
    #[cfg(debug_assertions)]
    if let Some(path) = std::env::var_os("EGRESS_DATAPATH_OBJECT").map(std::path::PathBuf::from) {
        return std::fs::read(&path).map(Cow::Owned).map_err(|source| DatapathError::Object { path, source });
    }
    if OBJECT.is_empty() { Err(DatapathError::NoObject) } else { Ok(Cow::Borrowed(OBJECT)) }
}
