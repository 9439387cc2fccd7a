//! `cargo xtask test kernels`: the same object and the same tests on older kernels, each booted in an emulator.
//!
//! Debian's kernels are unpacked, never installed. What boots is a kernel with an image of our own in memory: this program
//! as the first process ([`guest`]), the tests, the binary, and the tools and modules that they need.
//!
//! | module | what |
//! |---|---|
//! | [`package`] | a kernel and its modules, out of Debian's package |
//! | [`image`] | the files that a guest has |
//! | [`guest`] | what runs inside, as the first process |
//! | [`emulator`] | the emulator |
//! | [`boot`] | a kernel in it, with a limit on its time |
//! | [`report`] | what a guest's lines say: tests and verified instructions |
//! | [`table`] | the committed table of verified instructions |

mod boot;
mod emulator;
pub(crate) mod guest;
mod image;
mod package;
mod report;
mod table;

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use self::emulator::Emulator;
use self::guest::{PACKET, STEPS};
use self::report::Report;
use crate::{setup, workspace};

/// Debian 12's own kernel, the oldest that is promised to work (clsact), and the newest that it has (tcx).
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Programs that were built for this host and run in the guests.
struct Built {
    packet: PathBuf,
    netns: PathBuf,
    router: PathBuf,
}

/// What the layer takes behind `--`.
struct Options {
    /// What is measured becomes the table of verified instructions.
    update: bool,
    /// How long one guest may take.
    limit: Duration,
    /// The one step that is run.
    step: Option<&'static str>,
}

impl Options {
    fn parse(extra: &[String]) -> Result<Self> {
        let mut options = Self { update: false, limit: boot::LIMIT, step: None };
        let mut words = extra.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match (word, words.clone().next()) {
                ("--update", _) => options.update = true,
                ("--limit", Some(seconds)) => {
                    words.next();
                    options.limit = Duration::from_secs(seconds.parse().with_context(|| format!("--limit {seconds}"))?);
                }
                ("--step", Some(name)) => {
                    words.next();
                    let names = STEPS.map(|step| step.name);
                    let step = names.into_iter().find(|known| *known == name);
                    options.step =
                        Some(step.with_context(|| format!("--step {name} is none of {}", names.join(", ")))?);
                }
                _ => bail!(
                    "the kernels layer takes --update, --limit SECONDS (for each kernel) and --step NAME, not {word}"
                ),
            }
        }
        Ok(options)
    }
}

/// Runs the layer.
pub(crate) fn test(extra: &[String]) -> Result<()> {
    let options = &Options::parse(extra)?;
    ensure!(cfg!(target_arch = "x86_64"), "the kernels layer boots Debian's kernels for x86-64, and this is none");
    setup::ensure_unpackers()?;
    let emulator = &Emulator::provide()?;
    let kernels = SERIES.map(package::provide).into_iter().collect::<Result<Vec<_>>>()?;
    let built = test_programs()?;

    let mut reports = vec![on_this_kernel(&built)?];
    let images = kernels
        .iter()
        .map(|kernel| {
            eprintln!("{}: making its image", kernel.release);
            image::make(kernel, &kernel.modules()?, &built)
        })
        .collect::<Result<Vec<_>>>()?;
    // Side by side: a guest waits a good part of its time, for namespaces to go and for clocks to tick.
    let guests = thread::scope(|scope| {
        let pairs = kernels.iter().zip(&images);
        let booted = pairs
            .map(|(kernel, image)| scope.spawn(move || boot::boot(emulator, kernel, image, options)))
            .collect::<Vec<_>>();
        booted.into_iter().map(|guest| guest.join().unwrap_or_else(|panic| resume_unwind(panic))).collect::<Vec<_>>()
    });
    reports.extend(guests.into_iter().collect::<Result<Vec<_>>>()?);
    let measured = reports.iter().map(|report| &report.verified).collect::<Vec<_>>();
    print(&format!("\nverified instructions\n{}", table::compared(&measured)?));
    if options.update {
        // A kernel that did not come that far would be a column lost.
        ensure!(measured.iter().all(|verified| !verified.is_empty()), "not every kernel was measured: the table stays");
        table::write(&measured)?;
    }
    let (mut passed, mut failed) = (0, 0);
    for report in &reports {
        print(&report.summary());
        passed += report.passed();
        // A table that is being replaced is not one to fail by.
        failed += if options.update { report.failed_but_for(guest::VERIFIED) } else { report.failed() };
    }
    print(&format!("{passed} passed, {failed} failed"));
    ensure!(failed == 0, "{failed} failed, on this kernel and {}", SERIES.join(" and "));
    Ok(())
}

/// Measures the programs here too. Everything else of this kernel is what the other layers are for.
fn on_this_kernel(built: &Built) -> Result<Report> {
    let mut report = Report::new("this kernel");
    let step = &STEPS[0];
    let output = Command::new(&built.packet)
        .args(step.command_line())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", built.packet.display()))?;
    report.begin(step.name);
    for line in [output.stdout, output.stderr].iter().flat_map(|text| text.split(|byte| *byte == b'\n')) {
        let line = String::from_utf8_lossy(line);
        report.line(&line);
        eprintln!("  here | {line}");
    }
    report.end(output.status.success());
    Ok(report)
}

/// Builds the test programs, and asks cargo where they are.
fn test_programs() -> Result<Built> {
    eprintln!("building the tests");
    let mut cargo = workspace::host_cargo();
    cargo.args(["test", "--locked", "--no-run", "--package", "egress-lab", "--test", PACKET, "--test", guest::NETNS]);
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = cargo.output().with_context(|| format!("start `{}`", workspace::shown(&cargo)))?;
    workspace::succeeded(&cargo, output.status)?;
    let executable = |name: &str| {
        let messages = output.stdout.split(|byte| *byte == b'\n');
        messages
            .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
            .filter(|message| message.pointer("/target/name").is_some_and(|built| built == name))
            .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
            .with_context(|| format!("cargo built no test program {name}"))
    };
    let router = workspace::target_dir().join("debug/egress-router");
    Ok(Built { packet: executable(PACKET)?, netns: executable(guest::NETNS)?, router })
}

/// Results go to standard output, progress to standard error.
fn print(text: &str) {
    use std::io::Write as _;
    // A closed pipe is the reader's choice.
    let _ = writeln!(std::io::stdout(), "{text}");
}
