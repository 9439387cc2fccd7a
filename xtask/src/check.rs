//! stub
use std::process::ExitCode;
/// stub
#[derive(clap::Args)]
pub(crate) struct Args {}
pub(crate) fn check(_: &Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
