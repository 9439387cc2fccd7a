//! The BPF object that was embedded at build time.

use super::DatapathError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.o"));

/// The object file.
///
/// # Errors
///
/// [`DatapathError::NoObject`] when this binary was built without one.
pub(super) fn bytes() -> Result<&'static [u8], DatapathError> {
    if OBJECT.is_empty() { Err(DatapathError::NoObject) } else { Ok(OBJECT) }
}
