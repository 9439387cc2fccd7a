//! The one room that writes to standard output: tables for people, JSON and YAML for programs.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

/// Form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table, to read and to paste.
    #[default]
    Table,
    /// JSON, an array of objects.
    Json,
    /// YAML, a list of mappings.
    Yaml,
}

/// Something of which a table shows one row a piece. JSON and YAML show what `Serialize` gives.
pub trait Row: Serialize {
    /// Titles of the columns.
    const HEADER: &'static [&'static str];

    /// Text of each column; as many as there are titles.
    fn cells(&self) -> Vec<String>;
}

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A value has no JSON form.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
    /// A value has no YAML form.
    #[error("write YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
    /// Standard output takes no more.
    #[error("write to standard output")]
    Write(#[from] io::Error),
}

/// Prints rows.
///
/// # Errors
/// [`OutputError`], but not when the reader went away: `| head` is no failure.
pub fn print<R: Row>(rows: &[R], format: Format) -> Result<(), OutputError> {
    text(&render(rows, format)?)
}

/// Prints one value: as JSON, or as YAML, which is also what `table` means for a thing without rows.
///
/// # Errors
/// As [`print()`].
pub fn value<T: Serialize>(value: &T, format: Format) -> Result<(), OutputError> {
    text(&match format {
        Format::Json => json(value)?,
        Format::Yaml | Format::Table => serde_saphyr::to_string(value)?,
    })
}

/// Prints text as it is.
///
/// # Errors
/// As [`print()`].
pub fn text(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Whether anybody still reads standard output: whoever prints again and again ends when not.
pub fn is_read() -> bool {
    let out = io::stdout();
    let mut watched = [PollFd::new(out.as_fd(), PollFlags::empty())];
    // A pipe without a reader is in error; what cannot be asked is read.
    let asked = poll(&mut watched, PollTimeout::ZERO);
    let [watched] = watched;
    asked.is_err() || !watched.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

fn render<R: Row>(rows: &[R], format: Format) -> Result<String, OutputError> {
    Ok(match format {
        Format::Table => table(rows),
        Format::Json => json(&rows)?,
        Format::Yaml => serde_saphyr::to_string(&rows)?,
    })
}

fn json<T: Serialize>(value: &T) -> Result<String, OutputError> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A Markdown table, so that it pastes into an issue as one.
fn table<R: Row>(rows: &[R]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(R::HEADER.iter().copied());
    for row in rows {
        table.add_row(row.cells());
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Port {
        port: u16,
        host: &'static str,
    }

    impl Row for Port {
        const HEADER: &'static [&'static str] = &["PORT", "HOST"];

        fn cells(&self) -> Vec<String> {
            vec![self.port.to_string(), self.host.to_owned()]
        }
    }

    const ROWS: [Port; 2] = [Port { port: 80, host: "192.0.2.1" }, Port { port: 8080, host: "2001:db8::1" }];

    #[test]
    fn each_format() {
        let table = "| PORT | HOST        |\n|------|-------------|\n| 80   | 192.0.2.1   |\n| 8080 | 2001:db8::1 |\n";
        assert_eq!(render(&ROWS, Format::Table).unwrap(), table);
        let json: serde_json::Value = serde_json::from_str(&render(&ROWS, Format::Json).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!([{"port": 80, "host": "192.0.2.1"}, {"port": 8080, "host": "2001:db8::1"}]));
        assert!(render(&ROWS, Format::Yaml).unwrap().contains("- port: 80\n"));
    }

    #[test]
    fn no_rows() {
        assert_eq!(render::<Port>(&[], Format::Json).unwrap(), "[]\n");
        assert!(render::<Port>(&[], Format::Table).unwrap().starts_with("| PORT | HOST |\n"));
    }
}
