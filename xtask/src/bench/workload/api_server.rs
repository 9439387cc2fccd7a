//! The servers of the API that are measured: ours, each in a process of its own, and a peer that somebody else runs.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use egress_lab::https::{Client, Connection, Request, Response};
use egress_lab::wait::wait_for;
use egress_lab::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setup;

const WITHIN: Duration = Duration::from_secs(60);
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEFINITION: &str = "egressrouters.network.operator.openshift.io";
const NAMESPACES: &str = "/api/v1/namespaces";

/// A server. What is ours ends when dropped; of a peer, what was made there goes.
pub(super) struct Server {
    /// Its name in the report.
    pub(super) path: String,
    /// Where it is.
    pub(super) address: SocketAddr,
    /// The path of the routers that are measured with.
    pub(super) routers: String,
    client: Client,
    token: String,
    run: Run,
}

/// Who runs it.
enum Run {
    Ours { process: Child, _directory: TempDir },
    Theirs { namespace: String, defined: bool },
}

impl Server {
    /// Starts one of ours.
    pub(super) fn start(binary: &Path, path: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("egress-bench").tempdir().context("make a directory")?;
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("tokens"), "admin-token,admin,1,\"system:masters\"\n").context("write the tokens")?;
        let process = Command::new(binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--log-level", "warn"])
            .arg("--data")
            .arg(file("data"))
            .arg("--token-file")
            .arg(file("tokens"))
            .arg("--kubeconfig")
            .arg(file("kubeconfig"))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let address = wait_for("the API to listen", WITHIN, || {
            let kubeconfig = std::fs::read_to_string(file("kubeconfig")).ok()?;
            let url = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("server: https://"))?;
            url.parse::<SocketAddr>().ok()
        })?;
        Ok(Self {
            path: path.to_owned(),
            address,
            routers: routers("default"),
            client: Client::new(address)?,
            token: "admin-token".to_owned(),
            run: Run::Ours { process, _directory: directory },
        })
    }

    /// A peer, which learns of the object by `binary` if it does not know it, and gets a namespace to be measured in.
    pub(super) fn peer(kubeconfig: &Path, binary: &Path) -> Result<Self> {
        let (address, token) = read_kubeconfig(kubeconfig)?;
        let namespace = format!("egress-bench-{}", std::process::id());
        let mut peer = Self {
            path: String::new(),
            address,
            routers: routers(&namespace),
            client: Client::new(address)?,
            token,
            run: Run::Theirs { namespace: namespace.clone(), defined: false },
        };
        let version = peer.call("GET", "/version", None)?;
        ensure!(version.status == 200, "GET /version of {}: {}", kubeconfig.display(), version.status);
        let version = version.json()?.get("gitVersion").and_then(Value::as_str).unwrap_or("of no version").to_owned();
        peer.path = format!("peer {version}");
        let definition = Command::new(binary).args(["crd", "-o", "json"]).output().context("print the definition")?;
        let definition = String::from_utf8(definition.stdout).context("read the definition")?;
        let defined = peer.make(DEFINITIONS, &definition)?;
        peer.run = Run::Theirs { namespace: namespace.clone(), defined };
        peer.make(NAMESPACES, &json!({"metadata": {"name": namespace}}).to_string())?;
        let known = || peer.call("GET", &peer.routers, None).is_ok_and(|list| list.status == 200);
        wait_until("the peer to know the definition", WITHIN, known)?;
        Ok(peer)
    }

    /// Whether somebody else runs it.
    pub(super) fn is_peer(&self) -> bool {
        matches!(self.run, Run::Theirs { .. })
    }

    /// A request that it takes.
    pub(super) fn request(&self, method: &str, target: &str, body: Option<&str>) -> Request {
        Request::by(&self.token, method, target, body)
    }

    /// A new connection.
    pub(super) fn connect(&self) -> Result<Connection> {
        self.client.connect().with_context(|| format!("connect to {}", self.address))
    }

    /// A request on a connection of its own.
    pub(super) fn call(&self, method: &str, target: &str, body: Option<&str>) -> Result<Response> {
        let sent = self.client.send(&self.request(method, target, body));
        sent.with_context(|| format!("{method} {target} at {}", self.address))
    }

    /// Makes an object, unless it is there: whether it was made.
    fn make(&self, target: &str, object: &str) -> Result<bool> {
        let made = self.call("POST", target, Some(object))?;
        match made.status {
            201 => Ok(true),
            409 => Ok(false),
            status => bail!("POST {target} at {}: {status} {}", self.address, String::from_utf8_lossy(&made.body)),
        }
    }

    /// Processor time that it has had; none is known of a peer.
    pub(super) fn processor_time(&self) -> Result<Option<Duration>> {
        let Run::Ours { process, .. } = &self.run else { return Ok(None) };
        let threads = format!("/proc/{}/task", process.id());
        let mut total = 0;
        for thread in std::fs::read_dir(&threads).with_context(|| format!("read {threads}"))? {
            // The threads that work stay for as long as the server does.
            let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            total += text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Some(Duration::from_nanos(total)))
    }

    /// Processor time that it has had since it had had as much as `before`.
    pub(super) fn spent_since(&self, before: Option<Duration>) -> Result<Option<Duration>> {
        Ok(before.zip(self.processor_time()?).map(|(before, now)| now.saturating_sub(before)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &mut self.run {
            Run::Ours { process, .. } => {
                let _gone = process.kill();
                let _gone = process.wait();
            }
            Run::Theirs { namespace, defined } => {
                let mut made = vec![self.routers.clone(), format!("{NAMESPACES}/{namespace}")];
                if *defined {
                    made.push(format!("{DEFINITIONS}/{DEFINITION}"));
                }
                for target in made {
                    if let Err(error) = self.client.send(&Request::by(&self.token, "DELETE", &target, None)) {
                        eprintln!("{target} is left at {}: {error}", self.address);
                    }
                }
            }
        }
    }
}

/// The path of a namespace's routers.
fn routers(namespace: &str) -> String {
    format!("/apis/network.operator.openshift.io/v1/namespaces/{namespace}/egressrouters")
}

/// The server and the token of a kubeconfig's current context.
fn read_kubeconfig(kubeconfig: &Path) -> Result<(SocketAddr, String)> {
    let said = Command::new(setup::ensure_kubectl()?)
        .args(["config", "view", "--raw", "--minify", "--flatten", "-o", "json", "--kubeconfig"])
        .arg(kubeconfig)
        .output()
        .context("start kubectl")?;
    let shown = kubeconfig.display();
    ensure!(said.status.success(), "read {shown}: {}", String::from_utf8_lossy(&said.stderr).trim());
    let config: Value = serde_json::from_slice(&said.stdout).with_context(|| format!("read {shown}"))?;
    let text = |path: &str| config.pointer(path).and_then(Value::as_str);
    let server = text("/clusters/0/cluster/server").and_then(|server| server.strip_prefix("https://"));
    let server = server.with_context(|| format!("{shown} names no server by https://"))?.trim_end_matches('/');
    let with_port = if server.rsplit(']').next().is_some_and(|rest| rest.contains(':')) {
        server.to_owned()
    } else {
        format!("{server}:443")
    };
    let address = with_port.to_socket_addrs().with_context(|| format!("find {server} of {shown}"))?.next();
    let address = address.with_context(|| format!("{server} of {shown} has no address"))?;
    let token = text("/users/0/user/token").with_context(|| {
        format!("the user of {shown} has no token, by which a peer is measured: make one with `kubectl create token`")
    })?;
    Ok((address, token.to_owned()))
}
