//! The committed table of verified instructions: a row a program, a column a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::report::Verified;
use crate::workspace;

const HEAD: &str = "\
# Instructions that each kernel's verifier walks, by program; it refuses a program at a million. More than a tenth over a
# number here fails the packet and kernels layers. Written by `cargo xtask test kernels -- --update`.
";

fn path() -> PathBuf {
    workspace::root().join("tests/fixtures/verified-instructions.txt")
}

/// What was measured, each number with the change since the table was written.
///
/// # Errors
/// When there is no table.
pub(crate) fn compared(measured: &[&Verified]) -> Result<String> {
    let before = read()?;
    let measured = merged(measured);
    let cell = |series: &str, program: &str, count: u32| match before.get(series).and_then(|column| column.get(program))
    {
        Some(old) => format!("{count} ({:+.1} %)", (f64::from(count) / f64::from(*old) - 1.0) * 100.0),
        None => format!("{count} (new)"),
    };
    Ok(rows(&measured, cell))
}

/// Replaces the table. A kernel that was not measured is no column of it any more.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(measured: &[&Verified]) -> Result<()> {
    let text = format!("{HEAD}{}", rows(&merged(measured), |_, _, count| count.to_string()));
    fs::write(path(), text).with_context(|| format!("write {}", path().display()))
}

fn read() -> Result<Verified> {
    let text = fs::read_to_string(path()).with_context(|| format!("read {}", path().display()))?;
    let mut lines = text.lines().filter(|line| !line.starts_with('#')).map(str::split_whitespace);
    let series = lines.next().into_iter().flatten().skip(1).collect::<Vec<_>>();
    let mut table = Verified::new();
    for mut line in lines {
        let Some(program) = line.next() else { continue };
        for (series, count) in series.iter().zip(line) {
            let count = count.parse().with_context(|| format!("{}: {program}: {count}", path().display()))?;
            table.entry((*series).to_owned()).or_default().insert(program.to_owned(), count);
        }
    }
    Ok(table)
}

fn merged(measured: &[&Verified]) -> Verified {
    measured
        .iter()
        .flat_map(|verified| verified.iter())
        .map(|(series, column)| (series.clone(), column.clone()))
        .collect()
}

/// Aligned text, kernels from old to new.
fn rows(table: &Verified, cell: impl Fn(&str, &str, u32) -> String) -> String {
    let mut columns = table.iter().collect::<Vec<_>>();
    columns.sort_by_key(|(series, _)| series.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>());
    let programs = columns.iter().flat_map(|(_, column)| column.keys()).collect::<BTreeSet<_>>();
    let mut lines = vec![
        std::iter::once("program".to_owned())
            .chain(columns.iter().map(|(name, _)| (*name).clone()))
            .collect::<Vec<_>>(),
    ];
    for program in programs {
        let cells = columns.iter().map(|(series, column): &(&String, &BTreeMap<String, u32>)| {
            column.get(program).map_or_else(|| "-".to_owned(), |count| cell(series, program, *count))
        });
        lines.push(std::iter::once(program.clone()).chain(cells).collect());
    }
    let mut text = String::new();
    for line in lines {
        let padded = line.iter().map(|word| format!("{word:<18}")).collect::<Vec<_>>();
        text += padded.join("").trim_end();
        text += "\n";
    }
    text
}
