//! The real `egress-router` binary, in the lab.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::wait::wait_for;
use crate::{Lab, netns};

/// Where the pins of every lab's router are, each in a directory of its own.
const BPFFS: &str = "/sys/fs/bpf";
/// How long the router may take to say that it is ready. Loading on a busy machine is slow; a hang is longer still.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to end when asked to, or killed: the kernel takes its time where namespaces come and go.
const END_WITHIN: Duration = Duration::from_secs(60);

/// A router for one lab: its binary, its spec file and its pins. Dropping it ends the agent and takes all away.
#[derive(Debug)]
pub struct Router {
    binary: PathBuf,
    files: TempDir,
    bpffs: PathBuf,
    netns: String,
    /// None: it adopts the external interface that is there.
    master_netns: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// A shell's script that starts the agent, if it is not started by itself.
    through: Option<String>,
    agent: Option<Agent>,
}

/// A running `egress-router run`.
#[derive(Debug)]
struct Agent {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Router {
    /// Writes `spec` to a file and chooses a place for the pins; starts nothing.
    ///
    /// # Errors
    /// When there is no binary (`cargo xtask build` makes it), or the file cannot be written.
    pub fn new(lab: &Lab, spec: &str) -> Result<Self> {
        Self::of(lab, spec, binary()?)
    }

    /// As [`new`](Self::new), of another binary than the one beside the running program, such as an optimised one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn of(lab: &Lab, spec: &str, binary: PathBuf) -> Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let files = tempfile::Builder::new().prefix("egress-lab").tempdir().context("make a directory for the spec")?;
        let router = Self {
            binary,
            files,
            bpffs: Path::new(BPFFS).join(netns::unique_name("router")),
            netns: lab.router.name().to_owned(),
            master_netns: Some(lab.node.name().to_owned()),
            arguments: Vec::new(),
            environment: Vec::new(),
            through: None,
            agent: None,
        };
        router.edit(spec)?;
        Ok(router)
    }

    /// Adds arguments to `run`, `apply` and `plan`, such as `--snat-ports 1000-1003`.
    #[must_use]
    pub fn with_arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Lets it use the external interface that is there.
    pub fn adopt(&mut self) {
        self.master_netns = None;
    }

    /// Gives the agent a variable of its environment, from its next start on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the agent by a shell's script, from its next start on: `exec "$@"` is what starts it.
    pub fn run_through(&mut self, script: &str) {
        self.through = Some(script.to_owned());
    }

    /// Those arguments.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The directory of its pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Puts it into another namespace than the lab's router, on the same node, with its pins in the same directory as
    /// `other`'s.
    #[must_use]
    pub fn beside(mut self, other: &Self, netns: &netns::Netns) -> Self {
        self.bpffs.clone_from(&other.bpffs);
        netns.name().clone_into(&mut self.netns);
        self
    }

    /// Puts it on the lab's second node.
    ///
    /// # Errors
    /// When the lab has none.
    pub fn on_second_node(mut self, lab: &Lab) -> Result<Self> {
        let second = lab.second.as_ref().context("the lab has no second node")?;
        second.router.name().clone_into(&mut self.netns);
        self.master_netns = Some(second.node.name().to_owned());
        Ok(self)
    }

    /// Starts `run` and waits until it says `ready`.
    ///
    /// # Errors
    /// When it ends first or is not ready in time; the error holds what it said.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        wait_for("egress-router to be ready or to end", READY_WITHIN, || {
            (self.is_ready() || self.has_ended()).then_some(())
        })
        .with_context(|| self.said())?;
        if !self.is_ready() {
            bail!("egress-router ended before it was ready; {}", self.said());
        }
        Ok(())
    }

    /// Starts `run` and returns at once.
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        if self.agent.is_some() {
            bail!("egress-router runs already");
        }
        let mut command = self.command("run");
        command.arg("--spec").arg(self.spec()).args(&self.arguments);
        if let Some(script) = &self.through {
            let mut shell = Command::new("sh");
            shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
            command = shell;
        }
        let mut child = command
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = [
            child.stdout.take().map(|stream| collect(stream, Arc::clone(&stdout))),
            child.stderr.take().map(|stream| collect(stream, Arc::clone(&stderr))),
        ];
        self.agent = Some(Agent { child, stdout, stderr, readers: readers.into_iter().flatten().collect() });
        Ok(())
    }

    /// Whether the agent said that packets would be translated.
    pub fn is_ready(&self) -> bool {
        self.stdout().lines().any(says_ready)
    }

    /// What the agent wrote to its standard output.
    pub fn stdout(&self) -> String {
        self.agent.as_ref().map(|agent| text(&agent.stdout)).unwrap_or_default()
    }

    /// What the agent wrote to its standard error.
    pub fn stderr(&self) -> String {
        self.agent.as_ref().map(|agent| text(&agent.stderr)).unwrap_or_default()
    }

    /// The agent's process id, while it was not ended by us.
    pub fn pid(&self) -> Option<u32> {
        self.agent.as_ref().map(|agent| agent.child.id())
    }

    /// Asks the agent to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// When none runs, or it does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Kills the agent (SIGKILL); the datapath stays as it is.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait()
    }

    /// Sends the agent a signal.
    ///
    /// # Errors
    /// When none runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("no egress-router runs")?;
        let pid = Pid::from_raw(i32::try_from(pid).context("process id")?);
        kill(pid, signal).with_context(|| format!("send {signal} to egress-router"))
    }

    /// Waits until the agent has ended by itself or by a signal.
    ///
    /// # Errors
    /// When none runs, or it does not end in time; the error holds what it said.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let said = self.said();
        let mut agent = self.agent.take().context("no egress-router runs")?;
        let waited = wait_for("egress-router to end", END_WITHIN, || agent.child.try_wait().ok().flatten());
        if waited.is_err() {
            agent.end();
        }
        let status = waited.with_context(|| said)?;
        agent.end();
        Ok(status)
    }

    /// The path of the spec file.
    pub fn spec(&self) -> PathBuf {
        self.files.path().join("egress-router.yaml")
    }

    /// Replaces the spec file in one step, as editors and Kubernetes do.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn edit(&self, spec: &str) -> Result<()> {
        let next = self.files.path().join(".next");
        fs::write(&next, spec).with_context(|| format!("write {}", next.display()))?;
        fs::rename(&next, self.spec()).with_context(|| format!("replace {}", self.spec().display()))
    }

    /// Runs `apply` once.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn apply(&self) -> Result<String> {
        let mut command = self.command("apply");
        netns::output(command.arg("--spec").arg(self.spec()).args(&self.arguments))
    }

    /// Runs `plan`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn plan(&self) -> Result<String> {
        let mut command = self.command("plan");
        netns::output(command.arg("--spec").arg(self.spec()).args(&self.arguments))
    }

    /// Runs `delete`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn delete(&self) -> Result<String> {
        netns::output(&mut self.command("delete"))
    }

    /// What `status`, `rules`, `flows` or `drops` reports, as JSON.
    ///
    /// # Errors
    /// When it fails, or prints something else than JSON.
    pub fn report(&self, verb: &str) -> Result<Value> {
        let mut command = self.reader(verb);
        let text = netns::output(command.args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("{verb} -o json printed {text:?}"))
    }

    /// What `status`, `rules`, `flows` or `drops` shows to people.
    ///
    /// # Errors
    /// When it fails.
    pub fn show(&self, verb: &str) -> Result<String> {
        netns::output(&mut self.reader(verb))
    }

    /// `egress-router VERB`, with where this router is.
    pub fn command(&self, verb: impl AsRef<OsStr>) -> Command {
        let mut command = self.reader(verb);
        match &self.master_netns {
            Some(netns) => command.args(["--master-netns", netns]),
            None => command.arg("--adopt"),
        };
        command
    }

    /// `egress-router VERB`, for verbs that only read.
    pub fn reader(&self, verb: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(verb).args(["--netns", &self.netns]).arg("--bpffs").arg(&self.bpffs);
        command
    }

    /// Where one of its tables or links is pinned.
    ///
    /// # Errors
    /// When it is not.
    pub fn pin(&self, name: &str) -> Result<PathBuf> {
        // The router's own directories in between are named by the namespace and the layout.
        let below = |dir: &Path| {
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let layouts = below(&self.bpffs).into_iter().flat_map(|router| below(&router));
        let pin = layouts.map(|layout| layout.join(name)).find(|pin| pin.exists());
        pin.with_context(|| format!("nothing is pinned as {name} under {}", self.bpffs.display()))
    }

    fn has_ended(&mut self) -> bool {
        self.agent.as_mut().is_none_or(|agent| !matches!(agent.child.try_wait(), Ok(None)))
    }

    fn said(&self) -> String {
        format!("it said:\n{}{}", self.stdout(), self.stderr())
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.end();
        }
        if self.bpffs.exists()
            && let Err(error) = self.delete()
        {
            eprintln!("lab: take the router away: {error:#}");
            let _ = fs::remove_dir_all(&self.bpffs);
        }
    }
}

impl Agent {
    /// Kills the process if it still runs, and collects what it leaves.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// The line itself, or the same as the message of a JSON log.
fn says_ready(line: &str) -> bool {
    let message = |value: Value| {
        let found = value.get("message").or_else(|| value.pointer("/fields/message"));
        found.and_then(Value::as_str).map(str::to_owned)
    };
    line.trim() == "ready" || serde_json::from_str(line).ok().and_then(message).as_deref() == Some("ready")
}

/// Appends what `stream` brings to `to`, until it ends.
fn collect(stream: impl Read + Send + 'static, to: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(std::io::Result::ok) {
            let mut text = to.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
        }
    })
}

fn text(of: &Mutex<String>) -> String {
    of.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What EGRESS_ROUTER_BIN names, else the binary that was built beside the program which runs now.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EGRESS_ROUTER_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("find the running program")?;
    // Tests are in target/debug/deps, xtask in target/debug.
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("egress-router"));
    beside.into_iter().find(|path| path.is_file()).with_context(|| {
        format!("no egress-router beside {}: `cargo xtask build` makes it, or set EGRESS_ROUTER_BIN", own.display())
    })
}

/// Ends agents and removes pins whose lab's process is no more.
fn sweep() {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let cmdline = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut arguments = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        // Only a lab's own agent is told to pin there, and the name says which lab.
        let pins = arguments.find_map(|argument| argument.strip_prefix(BPFFS)?.strip_prefix('/').map(str::to_owned));
        if pins.is_some_and(|name| netns::is_left_over(&name)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let names = fs::read_dir(BPFFS).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if netns::is_left_over(&name) {
            let _ = fs::remove_dir_all(Path::new(BPFFS).join(name));
        }
    }
}
