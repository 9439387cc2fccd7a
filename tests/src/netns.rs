//! A network namespace that is removed with all that runs in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_until;

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// What every name of ours begins with; the process id follows.
const PREFIX: &str = "er-";

/// A network namespace with a name of its own, visible to `ip netns`.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace named `er-<pid>-<number>-<label>`, with its loopback up.
    ///
    /// # Errors
    /// When we are not root, or `ip` is missing.
    pub fn new(label: &str) -> Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let name = unique_name(label);
        ip(["netns", "add", &name])?;
        let path = Path::new(NAMES).join(&name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                remove(&name);
                return Err(error).with_context(|| format!("open {}", path.display()));
            }
        };
        let netns = Self { name, file };
        netns.ip(["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The name by which `ip netns` and `--netns` know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `what` in the namespace, on a thread that ends with it. A panic goes on in the caller.
    pub fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter(&self.file, &self.name);
            what()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a thread in the namespace. The thread keeps the namespace's inside alive, though not its name.
    ///
    /// # Errors
    /// When the namespace cannot be held open for the thread, or no thread can be had.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let file = self.file.try_clone().context("hold the namespace open")?;
        let (label, namespace) = (name.to_owned(), self.name.clone());
        thread::Builder::new()
            .name(label)
            .spawn(move || {
                enter(&file, &namespace);
                drop(file);
                what()
            })
            .with_context(|| format!("start thread {name}"))
    }

    /// Runs `ip -n <this> ARGS` and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with the arguments and what it said.
    pub fn ip<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(args);
        output(&mut command)
    }

    /// Runs one `ip` command a line, all in one process.
    ///
    /// # Errors
    /// At the first line that fails, with what `ip` said of it.
    pub fn ip_lines(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        feed(&mut command, lines).with_context(|| format!("lines of ip:\n{lines}"))
    }

    /// A command that will run in the namespace, as by `ip netns exec`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Gives rules to `nft` in the namespace.
    ///
    /// # Errors
    /// When nft is missing or refuses them.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        feed(&mut command, rules).with_context(|| format!("rules of nft:\n{rules}"))
    }

    /// Runs a program in the namespace that reads `input`, and must succeed.
    ///
    /// # Errors
    /// When it is missing or fails, with what it said.
    pub fn feed(&self, program: &str, input: &str) -> Result<()> {
        feed(&mut self.command(program), input)
    }

    /// The link-layer address of an interface.
    ///
    /// # Errors
    /// When there is no such interface, or it has none.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        let text = self.ip(["-o", "link", "show", "dev", device])?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether").skip(1);
        let octets = words.next().into_iter().flat_map(|mac| mac.split(':'));
        let octets = octets.map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<Vec<_>, _>>();
        let octets = octets.with_context(|| format!("read the address of {device} in {text:?}"))?;
        octets.try_into().ok().with_context(|| format!("{device} has no Ethernet address: {text:?}"))
    }

    /// Sets `net.*` parameters, each `key=value` with dots or slashes.
    ///
    /// # Errors
    /// When the kernel has no such parameter or refuses the value.
    pub fn sysctl<'a>(&self, settings: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let settings = settings.into_iter().collect::<Vec<_>>();
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.run(|| {
            settings.iter().try_for_each(|setting| {
                let (key, value) = setting.split_once('=').with_context(|| format!("{setting} has no ="))?;
                let path = Path::new("/proc/sys").join(key.replace('.', "/"));
                fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
            })
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Puts the calling thread into a namespace.
fn enter(file: &File, name: &str) {
    if let Err(error) = setns(file, CloneFlags::CLONE_NEWNET) {
        // Going on would be in the machine's own namespace, the one thing that a lab must never do.
        panic!("enter network namespace {name}: {error}");
    }
}

/// A name that no other namespace, directory or process of this machine has.
pub(crate) fn unique_name(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether `name` is one of ours and its process is gone.
pub(crate) fn is_left_over(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Removes what runs of processes that are no more left behind.
fn sweep() {
    let names = fs::read_dir(NAMES).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if is_left_over(&name) {
            remove(&name);
        }
    }
}

/// Ends what runs in the namespace, and removes its name. Runs in destructors, so it says what fails and goes on.
fn remove(name: &str) {
    let inside = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    // Never ourselves: a process whose first thread entered the namespace would be listed too.
    let own = std::process::id().to_string();
    let pids =
        inside.lines().filter(|line| *line != own).filter_map(|line| line.parse::<i32>().ok()).collect::<Vec<_>>();
    for pid in &pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let ended = wait_until("processes of the namespace to end", Duration::from_secs(2), || {
        pids.iter().all(|pid| has_ended(*pid))
    });
    if let Err(error) = ended.and_then(|()| ip(["netns", "delete", name]).map(|_| ())) {
        eprintln!("lab: remove namespace {name}: {error:#}");
    }
}

/// Whether the process is gone, or a zombie that its parent has yet to collect.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Runs `ip ARGS` in our own namespace.
pub(crate) fn ip<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<String> {
    output(Command::new("ip").args(args))
}

/// Standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that reads `input` and must succeed.
fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that fails early closes its end; what it says of that is the better error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
