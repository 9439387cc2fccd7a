//! `man`: manual pages, one for the whole and one for each command.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::args::{self, Cli};
use super::output;

const NAME: &str = "egress-router";

/// Prints the page of the whole, or writes all pages into a folder.
pub(super) fn run(args: &args::Man) -> anyhow::Result<ExitCode> {
    match &args.directory {
        None => output::text(&page(Cli::command())?)?,
        Some(directory) => {
            for (name, text) in pages()? {
                write(&directory.join(format!("{name}.1")), &text)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// Every page with its name.
fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let whole = Cli::command();
    let mut pages = vec![(NAME.to_owned(), page(whole.clone())?)];
    for command in whole.get_subcommands() {
        let name = format!("{NAME}-{}", command.get_name());
        // clap names commands in 'static text.
        let named = command.clone().name(name.clone().leak() as &'static str).display_name(name.clone());
        pages.push((name, page(named)?));
    }
    Ok(pages)
}

fn page(command: Command) -> anyhow::Result<String> {
    let mut text = Vec::new();
    Man::new(command).render(&mut text).context("make the page")?;
    Ok(String::from_utf8(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_arguments() {
        let pages = pages().unwrap();
        let text = |name: &str| &pages.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}")).1;
        assert_eq!(pages.len(), Cli::command().get_subcommands().count() + 1);
        assert!(text("egress-router").contains("egress\\-router\\-run(1)"), "{}", text("egress-router"));
        for (page, argument) in [("run", "existing\\-flows"), ("flows", "sort"), ("trace", "from"), ("drops", "watch")]
        {
            assert!(text(&format!("egress-router-{page}")).contains(argument), "{page}");
        }
    }
}
