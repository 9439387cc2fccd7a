//! What runs inside a guest: this program, as the kernel's first process.
//!
//! Everything it says, and everything that the tests say, goes to the second serial port; the kernel has the first one for
//! itself. A line that begins with [`MARK`] is its own.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// This program's name in a guest.
pub(crate) const INIT: &str = "xtask";
/// The hidden verb that makes it the first process.
pub(crate) const VERB: &str = "guest";
/// Test program of the packet layer.
pub(crate) const PACKET: &str = "packet";
/// Test program of the netns layer.
pub(crate) const NETNS: &str = "netns";
/// The binary.
pub(crate) const ROUTER: &str = "egress-router";

/// Begins a line of the first process: `@begin NAME`, `@end ok`, `@end failed`, `@done`, `@error TEXT`.
pub(crate) const MARK: char = '@';

/// Name of the step that loads and measures the programs.
pub(crate) const VERIFIED: &str = "verified";

/// One program that is run.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    skipped: &'static [&'static str],
}

/// In this order: what tells most comes first.
pub(crate) const STEPS: [Step; 5] = [
    Step { name: VERIFIED, program: PACKET, arguments: &["verified::", "--nocapture"], skipped: &[] },
    Step { name: "packets", program: PACKET, arguments: &[], skipped: NOT_HERE },
    // One lab at a time.
    Step {
        name: "sockets",
        program: NETNS,
        arguments: &["--test-threads=1", "hooks::", "every_form_of_a_rule_leads_to"],
        skipped: &[],
    },
    // What needs a kernel that has SCTP.
    Step {
        name: "associations",
        program: NETNS,
        arguments: &["--test-threads=1", "--ignored", "associations::"],
        skipped: &[],
    },
    // What sets a machine's clock.
    Step { name: "clock", program: NETNS, arguments: &["--test-threads=1", "--ignored", "clock::"], skipped: &[] },
];

/// Packet tests that other kernels have nothing to tell by.
const NOT_HERE: &[&str] = &[
    // Ran already.
    "verified::",
    // Very many packets, in search of what no kernel changes: an emulated processor takes minutes for them.
    "any_bytes_get_a_declared",
    "every_sum_that_a_checksum_can_have",
    "scale::",
    "races::",
    // Of times longer ago than a guest was started: there is no clock for that.
    "an_expired_flow",
    "traffic_one_way_keeps_both_entries",
    "a_full_table_refuses_new_flows",
    "a_sweep_removes_what_has_expired",
    "the_port_of_an_expired_flow_is_free",
];

impl Step {
    /// As its program takes them.
    pub(crate) fn command_line(&self) -> impl Iterator<Item = &'static str> {
        self.arguments.iter().chain(self.skipped.iter().flat_map(|name| [&"--skip", name])).copied()
    }
}

/// Arguments of the hidden verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The one step that is to be run; all of them when absent.
    step: Option<String>,
}

/// Runs the verb.
pub(crate) fn guest(args: &Args) -> Result<ExitCode> {
    // Elsewhere this would mount over, and switch off, somebody's machine.
    anyhow::ensure!(std::process::id() == 1, "this is the first process of an emulated machine, and of no other");
    mount_all()?;
    let serial = OpenOptions::new().write(true).open("/dev/ttyS1").context("open the second serial port")?;
    if let Err(error) = run(&serial, args.step.as_deref()) {
        say(&serial, &format!("{MARK}error {error:#}"));
    }
    say(&serial, &format!("{MARK}done"));
    // A port that still holds bytes would lose them.
    let _ = nix::sys::termios::tcdrain(&serial);
    match reboot(RebootMode::RB_POWER_OFF) {
        Err(error) => Err(error).context("switch off"),
    }
}

fn mount_all() -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("bpf", "/sys/fs/bpf"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} on {at}"))?;
    }
    Ok(())
}

fn run(serial: &File, only: Option<&str>) -> Result<()> {
    load_modules(Path::new("/modules"))?;
    // As every distribution has it; without it the programs would be interpreted.
    fs::write("/proc/sys/net/core/bpf_jit_enable", "1").context("switch the BPF compiler on")?;
    for step in STEPS.iter().filter(|step| only.is_none_or(|name| step.name == name)) {
        say(serial, &format!("{MARK}begin {}", step.name));
        let output = || serial.try_clone().map(Stdio::from).context("share the serial port");
        let status = Command::new(Path::new("/bin").join(step.program))
            .args(step.command_line())
            .env_clear()
            .env("PATH", "/bin")
            // A million frames take an emulated processor longer than anybody waits.
            .env("EGRESS_FRAMES", "20000")
            .env("EGRESS_ROUTER_BIN", Path::new("/bin").join(ROUTER))
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?)
            .status()
            .with_context(|| format!("start {}", step.program))?;
        say(serial, &format!("{MARK}end {}", if status.success() { "ok" } else { "failed" }));
    }
    Ok(())
}

/// Loads every module, in the order of their names.
fn load_modules(dir: &Path) -> Result<()> {
    let mut paths = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("read {}", dir.display()))?;
    paths.sort();
    for path in paths {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("load {}", path.display()))?;
    }
    Ok(())
}

fn say(mut serial: &File, line: &str) {
    // There is nowhere to report to that this cannot be written.
    let _ = writeln!(serial, "{line}");
}
