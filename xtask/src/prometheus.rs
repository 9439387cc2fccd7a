//! Prometheus and promtool, for the tests that scrape the agent and evaluate the alert rules.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{debian, workspace};

const PACKAGE: &str = "prometheus";

/// Makes sure that both are there: on the path, else unpacked where the tests look, `target/tools/prometheus`.
///
/// # Errors
/// When the package cannot be had.
pub(crate) fn ensure() -> Result<()> {
    let dir = workspace::target_dir().join("tools");
    let here = dir.join(PACKAGE).join("usr/bin");
    let found = |name: &str| workspace::on_path(name).is_some() || workspace::is_executable(&here.join(name));
    if found("promtool") && found("prometheus") {
        return Ok(());
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    debian::unpack(PACKAGE, &dir).context("the tests evaluate the alert rules with promtool")
}
