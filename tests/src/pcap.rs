//! Frames as a file that tcpdump and Wireshark read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result};

use crate::capture::Frame;
use crate::netns;

/// Writes `frames` to a new file in the system's temporary directory, and returns its path.
///
/// # Errors
/// When the file cannot be written.
pub fn dump<'a>(label: &str, frames: impl IntoIterator<Item = &'a Frame>) -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("{}.pcap", netns::unique_name(label)));
    write(&path, frames)?;
    Ok(path)
}

/// Writes `frames` to `path` in the classic format: little endian, microseconds, Ethernet.
///
/// # Errors
/// When the file cannot be written.
pub fn write<'a>(path: &Path, frames: impl IntoIterator<Item = &'a Frame>) -> Result<()> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 0x0004_0000, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let since = frame.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
        let kept = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(frame.length).unwrap_or(u32::MAX);
        for word in [seconds, since.subsec_micros(), kept, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(&frame.bytes);
    }
    fs::write(path, file).with_context(|| format!("write {}", path.display()))
}
