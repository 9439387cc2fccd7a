//! `import-legacy`: the legacy image's environment as a specification.

use std::process::ExitCode;

use super::args::ImportLegacy;
use super::{BAD_SPEC, output};
use crate::spec::{LegacyEnvironment, from_legacy};

/// Prints the specification; fails as the legacy image would have.
pub(super) fn run(args: &ImportLegacy) -> anyhow::Result<ExitCode> {
    let environment =
        LegacyEnvironment { source: &args.source, gateway: &args.gateway, destination: &args.destination };
    match from_legacy(environment) {
        Ok(mut router) => {
            router.metadata.name.clone_from(&args.name);
            output::value(&router, output::Format::Yaml)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("egress-router: {error}");
            Ok(ExitCode::from(BAD_SPEC))
        }
    }
}
