//! Prometheus and promtool, for the tests that scrape the agent and evaluate the alert rules.

use anyhow::{Context as _, Result};

use crate::{debian, workspace};

const PACKAGE: &str = "prometheus";

/// Makes sure that both are there: on the path, else unpacked where the tests look, `target/tools/prometheus`.
///
/// # Errors
/// When the package cannot be had.
pub(crate) fn ensure() -> Result<()> {
    let root = workspace::target_dir().join("tools").join(PACKAGE);
    let here = |name: &str| root.join("usr/bin").join(name);
    let found = |name: &str| workspace::on_path(name).is_some() || workspace::is_executable(&here(name));
    if found("promtool") && found("prometheus") {
        return Ok(());
    }
    debian::unpack(&[PACKAGE], &root).context("the tests evaluate the alert rules with promtool")
}
