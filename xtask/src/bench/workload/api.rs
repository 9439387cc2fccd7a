//! The API: how many requests a second, how long a list of all takes, how fast a change is with every watcher.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use egress_lab::https::{Client, Connection, Request, chunk, read_body, read_head, send};
use egress_lab::wait::wait_for;
use egress_lab::wait_until;
use tempfile::TempDir;

use super::super::record::Subject;
use super::super::rig::Parts;
use super::Bench;

const PATH: &str = "/apis/network.operator.openshift.io/v1/namespaces/default/egressrouters";
/// Connections that make requests.
const CLIENTS: usize = 8;
/// Requests of each kind, a round.
const READS: usize = 8000;
const WITHIN: Duration = Duration::from_secs(60);

/// Measures it.
pub(in super::super) fn run(bench: &mut Bench, parts: &Parts) -> Result<()> {
    let (objects, watchers) = if bench.quick { (2000, 200) } else { (10_000, 1000) };
    let server = Server::start(&parts.binary)?;
    let made = in_parallel(&server, objects, |index| {
        let body = object(&format!("r{index:05}"));
        Request::new("POST", PATH, Some(&body))
    })?;
    add(bench, "api-create", "requests/s", objects as f64 / made.as_secs_f64());
    for round in 0..bench.rounds {
        bench.go_on()?;
        let took =
            in_parallel(&server, READS, |index| Request::new("GET", &format!("{PATH}/r{:05}", index % objects), None))?;
        add(bench, "api-get", "requests/s", READS as f64 / took.as_secs_f64());
        let label = format!("{{\"metadata\":{{\"labels\":{{\"round\":\"{round}\"}}}}}}");
        let patches = READS / 8;
        let took =
            in_parallel(&server, patches, |index| Request::new("PATCH", &format!("{PATH}/r{index:05}"), Some(&label)))?;
        add(bench, "api-patch", "requests/s", patches as f64 / took.as_secs_f64());
        let started = Instant::now();
        let list = server.client.call("GET", PATH, None)?;
        ensure!(list.status == 200, "list: {}", list.status);
        add(bench, &format!("api-list-{objects}"), "ms", started.elapsed().as_secs_f64() * 1e3);
        bench.progress.inc(1);
    }
    let took = fan_out(bench, &server, watchers)?;
    for seconds in took {
        add(bench, &format!("api-watch-{watchers}"), "ms until all saw it", seconds * 1e3);
    }
    Ok(())
}

fn add(bench: &mut Bench, workload: &str, unit: &'static str, value: f64) {
    let path = "serve".to_owned();
    bench.record.add(Subject { workload: workload.to_owned(), uplink: "-", family: None, path, unit }, value);
}

fn object(name: &str) -> String {
    format!(
        "{{\"apiVersion\":\"network.operator.openshift.io/v1\",\"kind\":\"EgressRouter\",\"metadata\":{{\"name\":\"{name}\"}},\
         \"spec\":{{\"addresses\":[{{\"ip\":\"192.0.2.9/24\"}}],\"redirect\":{{\"fallbackIP\":\"203.0.113.1\"}}}}}}"
    )
}

/// Makes requests on some connections, and says how long all took.
fn in_parallel(server: &Server, count: usize, request: impl Fn(usize) -> Request + Sync) -> Result<Duration> {
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut connection = server.client.connect()?;
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count {
                            return Ok(());
                        }
                        exchange(&mut connection, server.address, &request(index))?;
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_panicked| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(started.elapsed())
    })
}

fn exchange(connection: &mut Connection, address: SocketAddr, request: &Request) -> Result<()> {
    send(connection, address, request)?;
    let mut response = read_head(connection)?;
    read_body(connection, &mut response)?;
    if !(200..300).contains(&response.status) {
        bail!("{} {}: {}", request.method, request.target, response.status);
    }
    Ok(())
}

/// How long a change takes to reach every one of many watchers, round by round, in seconds.
fn fan_out(bench: &Bench, server: &Server, watchers: usize) -> Result<Vec<f64>> {
    let seen = AtomicUsize::new(0);
    let target = format!(
        "{PATH}?watch=true&fieldSelector=metadata.name%3Dr00000&sendInitialEvents=false&\
        resourceVersionMatch=NotOlderThan"
    );
    let mut watching = Vec::new();
    for _ in 0..watchers {
        let mut connection = server.client.connect()?;
        send(&mut connection, server.address, &Request::new("GET", &target, None))?;
        let head = read_head(&mut connection)?;
        ensure!(head.status == 200, "watch: {}", head.status);
        watching.push(connection);
    }
    std::thread::scope(|scope| {
        for mut connection in watching {
            let seen = &seen;
            let rounds = bench.rounds;
            scope.spawn(move || {
                // One event a round; then the connection is closed.
                for _ in 0..rounds {
                    match chunk(&mut connection) {
                        Ok(Some(_)) => seen.fetch_add(1, Ordering::Relaxed),
                        _ => return,
                    };
                }
            });
        }
        let mut took = Vec::new();
        for round in 1..=bench.rounds {
            bench.go_on()?;
            let label = format!("{{\"metadata\":{{\"labels\":{{\"seen\":\"{round}\"}}}}}}");
            let started = Instant::now();
            server.client.call("PATCH", &format!("{PATH}/r00000"), Some(&label))?;
            wait_until("every watcher", WITHIN, || seen.load(Ordering::Relaxed) >= round * watchers)?;
            took.push(started.elapsed().as_secs_f64());
        }
        Ok(took)
    })
}

/// `egress-router serve`, ended when dropped.
struct Server {
    process: Child,
    client: Client,
    address: SocketAddr,
    _directory: TempDir,
}

impl Server {
    fn start(binary: &std::path::Path) -> Result<Self> {
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
        Ok(Self { process, client: Client::new(address)?, address, _directory: directory })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}
