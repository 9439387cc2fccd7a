//! The API: how many requests a second, how long a list of all takes, how fast a change is with every watcher.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use egress_lab::https::{Connection, Request, chunk, read_body, read_head, send};
use egress_lab::wait_until;

use super::super::record::Subject;
use super::super::rig::Parts;
use super::Bench;
use super::api_server::Server;

/// The name of what is ours in the report.
const OURS: &str = "serve";
/// Connections that make requests.
const CLIENTS: usize = 8;
/// Requests of each kind, a round.
const READS: usize = 8000;
const WITHIN: Duration = Duration::from_secs(60);

/// Measures it; where there is another binary or a peer besides, all in turns.
pub(in super::super) fn run(bench: &mut Bench, parts: &Parts) -> Result<()> {
    let (objects, watchers) = if bench.quick { (2000, 200) } else { (10_000, 1000) };
    let mut servers = vec![Server::start(&parts.binary, OURS)?];
    if let Some(binary) = &parts.beside {
        servers.push(Server::start(binary, "serve, the other")?);
    }
    if let Some(kubeconfig) = &parts.api_peer {
        servers.push(Server::peer(kubeconfig, &parts.binary)?);
    }
    for round in 0..bench.rounds {
        let part = objects * round / bench.rounds..objects * (round + 1) / bench.rounds;
        for server in &servers {
            bench.go_on()?;
            measured(bench, server, "api-create", part.clone(), |index| {
                server.request("POST", &server.routers, Some(&object(&format!("r{index:05}"))))
            })?;
        }
    }
    for round in 0..bench.rounds {
        let label = format!("{{\"metadata\":{{\"labels\":{{\"round\":\"{round}\"}}}}}}");
        for server in &servers {
            bench.go_on()?;
            let one = |index: usize| format!("{}/r{:05}", server.routers, index % objects);
            measured(bench, server, "api-get", 0..READS, |index| server.request("GET", &one(index), None))?;
            measured(bench, server, "api-patch", 0..READS / 8, |index| {
                server.request("PATCH", &one(index), Some(&label))
            })?;
            let before = server.processor_time()?;
            let started = Instant::now();
            let list = server.call("GET", &server.routers, None)?;
            ensure!(list.status == 200, "list: {}", list.status);
            let workload = format!("api-list-{objects}");
            add(bench, server, &workload, "ms", started.elapsed().as_secs_f64() * 1e3);
            if let Some(spent) = server.spent_since(before)? {
                add(bench, server, &workload, "ms of processor", spent.as_secs_f64() * 1e3);
            }
        }
        bench.progress.inc(1);
    }
    fan_out(bench, &servers, watchers)?;
    if let Some(peer) = servers.iter().find(|server| server.is_peer()) {
        compare(bench, &peer.path);
    }
    Ok(())
}

/// Sets ours beside a peer's, figure by figure.
fn compare(bench: &mut Bench, peer: &str) {
    let ours: Vec<Subject> =
        bench.record.figures().map(|(subject, _)| subject.clone()).filter(|subject| subject.path == OURS).collect();
    for subject in ours {
        let theirs = Subject { path: peer.to_owned(), ..subject.clone() };
        let (mine, theirs) = (bench.record.of(&subject).to_vec(), bench.record.of(&theirs).to_vec());
        let name = format!("{}_vs_peer", subject.workload.replace('-', "_"));
        bench.record.ratio(name, &mine, &theirs);
    }
}

fn add(bench: &mut Bench, server: &Server, workload: &str, unit: &'static str, value: f64) {
    let path = server.path.clone();
    bench.record.add(Subject { workload: workload.to_owned(), uplink: "-", family: None, path, unit }, value);
}

/// Makes requests on some connections: how many a second, and what one costs the server, who shares the processors with
/// his clients.
fn measured(
    bench: &mut Bench,
    server: &Server,
    workload: &str,
    which: Range<usize>,
    request: impl Fn(usize) -> Request + Sync,
) -> Result<()> {
    let count = which.len() as f64;
    let before = server.processor_time()?;
    let took = in_parallel(server, which, request)?;
    add(bench, server, workload, "requests/s", count / took.as_secs_f64());
    if let Some(spent) = server.spent_since(before)? {
        add(bench, server, workload, "us of processor", spent.as_secs_f64() * 1e6 / count);
    }
    Ok(())
}

fn object(name: &str) -> String {
    format!(
        "{{\"apiVersion\":\"network.operator.openshift.io/v1\",\"kind\":\"EgressRouter\",\"metadata\":{{\"name\":\"{name}\"}},\
         \"spec\":{{\"addresses\":[{{\"ip\":\"192.0.2.9/24\"}}],\"redirect\":{{\"fallbackIP\":\"203.0.113.1\"}}}}}}"
    )
}

/// Makes requests on some connections, and says how long all took.
fn in_parallel(server: &Server, which: Range<usize>, request: impl Fn(usize) -> Request + Sync) -> Result<Duration> {
    let next = AtomicUsize::new(which.start);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut connection = server.connect()?;
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= which.end {
                            return Ok(());
                        }
                        exchange(&mut connection, server, &request(index))?;
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

fn exchange(connection: &mut Connection, server: &Server, request: &Request) -> Result<()> {
    send(connection, server.address, request)?;
    let mut response = read_head(connection)?;
    read_body(connection, &mut response)?;
    if !(200..300).contains(&response.status) {
        bail!("{} {}: {}", request.method, request.target, response.status);
    }
    Ok(())
}

/// How long a change takes to reach every one of many watchers, and what telling them costs.
fn fan_out(bench: &mut Bench, servers: &[Server], watchers: usize) -> Result<()> {
    let workload = format!("api-watch-{watchers}");
    let rounds = bench.rounds;
    let seen: Vec<AtomicUsize> = servers.iter().map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        for (server, seen) in servers.iter().zip(&seen) {
            for mut connection in watching(server, watchers)? {
                scope.spawn(move || {
                    // One event a round; then the connection is closed.
                    let mut told = 0;
                    while told < rounds
                        && let Ok(Some(text)) = chunk(&mut connection)
                    {
                        let events = text.iter().filter(|byte| **byte == b'\n').count();
                        told += events;
                        seen.fetch_add(events, Ordering::Relaxed);
                    }
                });
            }
        }
        for round in 1..=rounds {
            let label = format!("{{\"metadata\":{{\"labels\":{{\"seen\":\"{round}\"}}}}}}");
            for (server, seen) in servers.iter().zip(&seen) {
                bench.go_on()?;
                let before = server.processor_time()?;
                let started = Instant::now();
                server.call("PATCH", &format!("{}/r00000", server.routers), Some(&label))?;
                wait_until("every watcher", WITHIN, || seen.load(Ordering::Relaxed) >= round * watchers)?;
                add(bench, server, &workload, "ms until all saw it", started.elapsed().as_secs_f64() * 1e3);
                if let Some(spent) = server.spent_since(before)? {
                    let each = spent.as_secs_f64() * 1e6 / watchers as f64;
                    add(bench, server, &workload, "us of processor each", each);
                }
            }
        }
        Ok(())
    })
}

/// Watches of one router from now on.
fn watching(server: &Server, watchers: usize) -> Result<Vec<Connection>> {
    let page = server.call("GET", &format!("{}?limit=1", server.routers), None)?.json()?;
    let Some(version) = page.pointer("/metadata/resourceVersion").and_then(serde_json::Value::as_str) else {
        bail!("a list of {} without a version: {page}", server.path);
    };
    let target =
        format!("{}?watch=true&fieldSelector=metadata.name%3Dr00000&resourceVersion={version}", server.routers);
    let watch = |_| {
        let mut connection = server.connect()?;
        send(&mut connection, server.address, &server.request("GET", &target, None))?;
        let head = read_head(&mut connection)?;
        ensure!(head.status == 200, "watch: {}", head.status);
        Ok(connection)
    };
    (0..watchers).map(watch).collect()
}
