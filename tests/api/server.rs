//! `egress-router serve`, as a process.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use egress_lab::router::binary;
use egress_lab::wait::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use egress_lab::https::Client;

/// Who has which token in tests.
const TOKENS: &str = "admin-token,admin,1,\"system:masters\"\n\
    nobody-token,nobody,2\n\
    viewer-token,viewer,3,\"egress-router:view:conf\"\n\
    writer-token,writer,4,\"egress-router:edit:conf\"\n";

/// How long it may take to end when asked to.
const END_WITHIN: Duration = Duration::from_secs(20);

/// A server in a directory of its own. Dropping it ends the process.
pub(crate) struct Server {
    directory: TempDir,
    arguments: Vec<String>,
    process: Option<Child>,
    address: SocketAddr,
}

impl Server {
    /// Starts one, with arguments besides.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("egress-api").tempdir().unwrap();
        std::fs::write(directory.path().join("tokens.csv"), TOKENS).unwrap();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { directory, arguments, process: None, address };
        server.launch();
        server
    }

    /// Starts the process, at the address that it had.
    pub(crate) fn launch(&mut self) {
        let mut process = Command::new(binary().unwrap())
            .arg("serve")
            .arg("--data")
            .arg(self.data())
            .arg("--token-file")
            .arg(self.directory.path().join("tokens.csv"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--listen", &self.address.to_string(), "--log-level", "warn"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said =
            BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok).find(|line| line == "ready");
        self.process = Some(process);
        assert!(said.is_some(), "egress-router serve ended before it was ready");
        let kubeconfig = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let url = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("server: https://")).unwrap();
        self.address = url.parse().unwrap();
    }

    /// Kills the process, as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it keeps what it has.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A directory that goes with it.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// A client.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Routers that it runs are taken away; one that does not end is killed.
            let asked = i32::try_from(process.id()).map(Pid::from_raw);
            let _gone = asked.map(|pid| kill(pid, Signal::SIGTERM));
            if wait_for("the server to end", END_WITHIN, || process.try_wait().ok().flatten()).is_err() {
                let _gone = process.kill();
            }
            let _gone = process.wait();
        }
    }
}
