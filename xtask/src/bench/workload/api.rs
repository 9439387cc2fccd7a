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

/// Measures it; where there is another binary besides, both in turns.
pub(in super::super) fn run(bench: &mut Bench, parts: &Parts) -> Result<()> {
    let (objects, watchers) = if bench.quick { (2000, 200) } else { (10_000, 1000) };
    let binaries = [("serve", Some(&parts.binary)), ("serve, the other", parts.beside.as_ref())];
    let mut servers = Vec::new();
    for (path, binary) in binaries {
        if let Some(binary) = binary {
            servers.push(Server::start(binary, path)?);
        }
    }
    for server in &servers {
        measured(bench, server, "api-create", objects, |index| {
            Request::new("POST", PATH, Some(&object(&format!("r{index:05}"))))
        })?;
    }
    for round in 0..bench.rounds {
        let label = format!("{{\"metadata\":{{\"labels\":{{\"round\":\"{round}\"}}}}}}");
        for server in &servers {
            bench.go_on()?;
            measured(bench, server, "api-get", READS, |index| {
                Request::new("GET", &format!("{PATH}/r{:05}", index % objects), None)
            })?;
            measured(bench, server, "api-patch", READS / 8, |index| {
                Request::new("PATCH", &format!("{PATH}/r{index:05}"), Some(&label))
            })?;
            let before = server.processor_time()?;
            let started = Instant::now();
            let list = server.client.call("GET", PATH, None)?;
            ensure!(list.status == 200, "list: {}", list.status);
            let workload = format!("api-list-{objects}");
            add(bench, server, &workload, "ms", started.elapsed().as_secs_f64() * 1e3);
            let spent = server.processor_time()?.saturating_sub(before);
            add(bench, server, &workload, "ms of processor", spent.as_secs_f64() * 1e3);
        }
        bench.progress.inc(1);
    }
    for server in &servers {
        fan_out(bench, server, watchers)?;
    }
    Ok(())
}

fn add(bench: &mut Bench, server: &Server, workload: &str, unit: &'static str, value: f64) {
    let path = server.path.to_owned();
    bench.record.add(Subject { workload: workload.to_owned(), uplink: "-", family: None, path, unit }, value);
}

/// Makes requests on some connections: how many a second, and what one costs the server, who shares the processors with
/// his clients.
fn measured(
    bench: &mut Bench,
    server: &Server,
    workload: &str,
    count: usize,
    request: impl Fn(usize) -> Request + Sync,
) -> Result<()> {
    let before = server.processor_time()?;
    let took = in_parallel(server, count, request)?;
    let spent = server.processor_time()?.saturating_sub(before);
    add(bench, server, workload, "requests/s", count as f64 / took.as_secs_f64());
    add(bench, server, workload, "us of processor", spent.as_secs_f64() * 1e6 / count as f64);
    Ok(())
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

/// How long a change takes to reach every one of many watchers, and what telling them costs.
fn fan_out(bench: &mut Bench, server: &Server, watchers: usize) -> Result<()> {
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
    let rounds = bench.rounds;
    std::thread::scope(|scope| {
        for mut connection in watching {
            let seen = &seen;
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
        let workload = format!("api-watch-{watchers}");
        for round in 1..=rounds {
            bench.go_on()?;
            let label = format!("{{\"metadata\":{{\"labels\":{{\"seen\":\"{round}\"}}}}}}");
            let before = server.processor_time()?;
            let started = Instant::now();
            server.client.call("PATCH", &format!("{PATH}/r00000"), Some(&label))?;
            wait_until("every watcher", WITHIN, || seen.load(Ordering::Relaxed) >= round * watchers)?;
            add(bench, server, &workload, "ms until all saw it", started.elapsed().as_secs_f64() * 1e3);
            let spent = server.processor_time()?.saturating_sub(before);
            add(bench, server, &workload, "us of processor each", spent.as_secs_f64() * 1e6 / watchers as f64);
        }
        Ok(())
    })
}

/// `egress-router serve`, ended when dropped.
struct Server {
    path: &'static str,
    process: Child,
    client: Client,
    address: SocketAddr,
    _directory: TempDir,
}

impl Server {
    fn start(binary: &std::path::Path, path: &'static str) -> Result<Self> {
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
        Ok(Self { path, process, client: Client::new(address)?, address, _directory: directory })
    }
}

impl Server {
    /// Processor time that it has had.
    fn processor_time(&self) -> Result<Duration> {
        let threads = format!("/proc/{}/task", self.process.id());
        let mut total = 0;
        for thread in std::fs::read_dir(&threads).with_context(|| format!("read {threads}"))? {
            // The threads that work stay for as long as the server does.
            let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            total += text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Duration::from_nanos(total))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}
