//! Many writers, many watchers, a process that is killed again and again, clients that mean ill.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use egress_lab::wait::wait_for;
use serde_json::{Value, json};

use crate::server::Server;
use egress_lab::https::{self as client, Client, chunk, read_head, send};

/// The routers of the namespace that tests write to.
pub(crate) const PATH: &str = "/apis/network.operator.openshift.io/v1/namespaces/conf/egressrouters";
const WITHIN: Duration = Duration::from_secs(60);

/// A count for every run, or the whole one.
pub(crate) fn count(short: usize, full: usize) -> usize {
    if std::env::var_os("EGRESS_API_FULL").is_some() { full } else { short }
}

/// A router.
pub(crate) fn object(name: &str, fallback: &str) -> String {
    json!({
        "apiVersion": "network.operator.openshift.io/v1", "kind": "EgressRouter", "metadata": {"name": name},
        "spec": {"addresses": [], "redirect": {"fallbackIP": fallback}},
    })
    .to_string()
}

/// The version in an object.
pub(crate) fn version(object: &Value) -> u64 {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap().parse().unwrap()
}

/// Tells who runs the tests.
pub(crate) fn note(text: &str) {
    // Past the test harness, which would keep it for itself.
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// A watch that collects (type, name, version) in the background, reconnecting where it was cut.
struct Watcher {
    seen: Arc<Mutex<Vec<(String, String, u64)>>>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Watcher {
    fn from(client: Client, address: std::net::SocketAddr, from: u64, cut_after: usize) -> Self {
        let seen: Arc<Mutex<Vec<(String, String, u64)>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (all, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut at = from;
            while !ended.load(Ordering::Relaxed) {
                let _cut = follow(&client, address, &mut at, cut_after, &all, &ended);
            }
        });
        Self { seen, stop, thread }
    }

    fn seen(&self) -> Vec<(String, String, u64)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks it to end at its next event or reconnection.
    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn end(self) -> Vec<(String, String, u64)> {
        self.stop();
        self.thread.join().unwrap();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Follows one connection for so many events.
fn follow(
    client: &Client,
    address: std::net::SocketAddr,
    at: &mut u64,
    events: usize,
    seen: &Mutex<Vec<(String, String, u64)>>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let request = client::Request {
        method: "GET".to_owned(),
        target: format!("{PATH}?watch=true&resourceVersion={at}&timeoutSeconds=2"),
        headers: vec![("Authorization".to_owned(), "Bearer admin-token".to_owned())],
        body: None,
    };
    let mut connection = client.connect()?;
    send(&mut connection, address, &request)?;
    let head = read_head(&mut connection)?;
    assert_eq!(head.status, 200);
    let mut text = Vec::new();
    let mut taken = 0;
    while taken < events && !stop.load(Ordering::Relaxed) {
        let Some(chunk) = chunk(&mut connection)? else { return Ok(()) };
        text.extend(chunk);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).map_err(std::io::Error::other)?;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            assert_ne!(kind, "ERROR", "{event}");
            *at = version(&event["object"]);
            let name = event.pointer("/object/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            seen.lock().unwrap_or_else(PoisonError::into_inner).push((kind, name, *at));
            taken += 1;
        }
    }
    Ok(())
}

/// Writers that add to a counter by compare-and-swap never lose an addition; versions have no gaps; watchers that are cut
/// and reconnect see each change once, in order, and all of them.
#[test]
fn no_update_is_lost_and_every_watcher_sees_it_once() {
    let (writers, additions, watchers) = (6, count(15, 250), 4);
    let server = Server::start(&[]);
    let client = server.client();
    let first = version(&client.call("POST", PATH, Some(&object("counter", "10.0.0.1"))).unwrap().json().unwrap());
    let watching: Vec<Watcher> =
        (0..watchers).map(|index| Watcher::from(server.client(), server.address(), first, 7 + index * 5)).collect();
    let conflicts = AtomicU64::new(0);
    let versions: Mutex<Vec<u64>> = Mutex::default();
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (server, conflicts, versions) = (&server, &conflicts, &versions);
            scope.spawn(move || {
                let client = server.client();
                let mut done = 0;
                while done < additions {
                    let mut current = client.call("GET", &format!("{PATH}/counter"), None).unwrap().json().unwrap();
                    let count = current.pointer("/metadata/annotations/count").and_then(Value::as_str).unwrap_or("0");
                    let next = count.parse::<u64>().unwrap() + 1;
                    current["metadata"]["annotations"] = json!({"count": next.to_string(), "by": writer.to_string()});
                    let answer = client.call("PUT", &format!("{PATH}/counter"), Some(&current.to_string())).unwrap();
                    match answer.status {
                        200 => {
                            versions
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(version(&answer.json().unwrap()));
                            done += 1;
                        }
                        409 => drop(conflicts.fetch_add(1, Ordering::Relaxed)),
                        other => panic!("{other}: {:?}", answer.json().unwrap()),
                    }
                }
            });
        }
    });
    let last = client.call("GET", &format!("{PATH}/counter"), None).unwrap().json().unwrap();
    let total = writers * additions;
    assert_eq!(last.pointer("/metadata/annotations/count"), Some(&json!(total.to_string())));
    let mut versions = versions.into_inner().unwrap_or_else(PoisonError::into_inner);
    versions.sort_unstable();
    let expected: Vec<u64> = (first + 1..=first + total as u64).collect();
    assert_eq!(versions, expected, "a version for every write, and no other");
    for watcher in watching {
        wait_for("a watcher to see all", WITHIN, || (watcher.seen().len() >= total).then_some(())).unwrap();
        let seen: Vec<u64> = watcher.end().into_iter().map(|(_, _, version)| version).collect();
        assert_eq!(seen, expected);
    }
    note(&format!(
        "strength: {total} additions by {writers} writers, {} conflicts, {watchers} watchers",
        conflicts.into_inner()
    ));
}

/// An object, and what it is to hold; none deletes it.
type Asked = (String, Option<u64>);

/// What was answered is there after a kill at any moment; what is there was asked for; the store opens.
#[test]
fn nothing_that_was_answered_is_lost_by_kills() {
    let kills = count(12, 200);
    let mut server = Server::start(&[]);
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let mut number = 0_u64;
    let mut newest = 0;
    for round in 0..kills {
        let client = server.client();
        let answered: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3_u64)
            .map(|writer| {
                let (client, answered, asked, stop) =
                    (client.clone(), Arc::clone(&answered), Arc::clone(&asked), Arc::clone(&stop));
                let base = number + writer * 1_000_000;
                std::thread::spawn(move || {
                    for step in 1.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        // Each writer has objects of its own, so it knows what there has to be.
                        let name = format!("w{writer}-{}", step % 5);
                        let value = base + step;
                        let delete = step % 7 == 0;
                        let target = format!("{PATH}/{name}");
                        let change = (name.clone(), (!delete).then_some(value));
                        asked.lock().unwrap_or_else(PoisonError::into_inner).push(change.clone());
                        let done = if delete {
                            client.call("DELETE", &target, None)
                        } else {
                            let label = json!({"metadata": {"labels": {"n": value.to_string()}}}).to_string();
                            match client.call("PATCH", &target, Some(&label)) {
                                Ok(missing) if missing.status == 404 => {
                                    let mut new: Value = serde_json::from_str(&object(&name, "10.0.0.1")).unwrap();
                                    new["metadata"]["labels"] = json!({"n": value.to_string()});
                                    client.call("POST", PATH, Some(&new.to_string()))
                                }
                                other => other,
                            }
                        };
                        match done {
                            Ok(answer) if answer.status < 300 || answer.status == 404 => {
                                answered.lock().unwrap_or_else(PoisonError::into_inner).push(change);
                            }
                            Ok(answer) => panic!("{}: {:?}", answer.status, answer.json().unwrap()),
                            Err(_) => return,
                        }
                    }
                })
            })
            .collect();
        // Each round at another moment.
        std::thread::sleep(Duration::from_millis(20 + (round as u64 * 37) % 130));
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        number += 10_000_000;
        server.launch();
        let list = server.client().call("GET", PATH, None).unwrap().json().unwrap();
        let found: BTreeMap<String, u64> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| {
                let text = |path: &str| item.pointer(path).and_then(Value::as_str).unwrap().to_owned();
                (text("/metadata/name"), text("/metadata/labels/n").parse().unwrap())
            })
            .collect();
        for (name, value) in answered.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            match value {
                Some(value) => drop(expected.insert(name.clone(), *value)),
                None => drop(expected.remove(name)),
            }
        }
        // The last thing that each writer asked for may or may not have been done.
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for writer in 0..3 {
            let prefix = format!("w{writer}-");
            let Some((name, value)) = asked.iter().rev().find(|(name, _)| name.starts_with(&prefix)) else { continue };
            if found.get(name) == value.as_ref() {
                match value {
                    Some(value) => drop(expected.insert(name.clone(), *value)),
                    None => drop(expected.remove(name)),
                }
            }
        }
        assert_eq!(found, expected, "after kill {round}");
        let now = version(&list);
        assert!(now >= newest, "the newest version fell from {newest} to {now}");
        newest = now;
    }
    note(&format!("strength: {kills} kills, nothing lost, newest version {newest}"));
}

#[test]
fn many_objects_and_many_watchers() {
    let (objects, watchers) = (count(300, 10_000), count(60, 1000));
    let server = Server::start(&[]);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for part in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let client = server.client();
                for index in (part..objects).step_by(8) {
                    let answer = client.call("POST", PATH, Some(&object(&format!("r{index:05}"), "10.0.0.1"))).unwrap();
                    assert_eq!(answer.status, 201);
                }
            });
        }
    });
    let made = begun.elapsed();
    let client = server.client();
    let begun = Instant::now();
    let list = client.call("GET", PATH, None).unwrap().json().unwrap();
    let listed = begun.elapsed();
    assert_eq!(list["items"].as_array().unwrap().len(), objects);
    let mut paged = Vec::new();
    let mut token = String::new();
    loop {
        let page = client.call("GET", &format!("{PATH}?limit=200&continue={token}"), None).unwrap().json().unwrap();
        let names = page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone());
        paged.extend(names);
        token = page.pointer("/metadata/continue").and_then(Value::as_str).unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
    }
    let names: Vec<Value> =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect();
    assert_eq!(paged, names);

    let from = version(&list);
    let waiting: Vec<Watcher> =
        (0..watchers).map(|_| Watcher::from(server.client(), server.address(), from, usize::MAX)).collect();
    let begun = Instant::now();
    let changes = 5;
    for index in 0..changes {
        let label = json!({"metadata": {"labels": {"x": index.to_string()}}}).to_string();
        assert_eq!(client.call("PATCH", &format!("{PATH}/r00000"), Some(&label)).unwrap().status, 200);
    }
    for watcher in &waiting {
        wait_for("every watcher to see every change", WITHIN, || (watcher.seen().len() >= changes).then_some(()))
            .unwrap();
    }
    let fanned = begun.elapsed();
    // All at once: each takes as long as its watch lasts.
    waiting.iter().for_each(Watcher::stop);
    for watcher in waiting {
        let seen: Vec<u64> = watcher.end().into_iter().map(|(_, _, version)| version).collect();
        assert_eq!(seen, (from + 1..=from + changes as u64).collect::<Vec<_>>());
    }
    note(&format!(
        "strength: {objects} objects made in {made:.1?}, listed in {listed:.1?}; {changes} changes to {watchers} watchers in \
         {fanned:.1?}"
    ));
}

/// Memory of a process, in kB.
fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ill_meant_requests_get_clear_answers_and_bounded_memory() {
    let server = Server::start(&[]);
    let client = server.client();
    client.call("POST", PATH, Some(&object("a", "10.0.0.1"))).unwrap();
    let before = resident_kb(server.pid());

    // Connections that say nothing, and heads that never end.
    let mut idle = Vec::new();
    for _ in 0..count(300, 3000) {
        idle.push(TcpStream::connect(server.address()).unwrap());
    }
    let mut slow: Vec<_> = (0..50).map(|_| client.connect().unwrap()).collect();
    for connection in &mut slow {
        connection.get_mut().write_all(b"GET / HTTP/1.1\r\nX-Slow: ").unwrap();
        connection.get_mut().flush().unwrap();
    }
    assert_eq!(client.call("GET", PATH, None).unwrap().status, 200);

    // Bodies that are too large, too deep, or no text.
    let post = |body: Vec<u8>| {
        let headers = vec![
            ("Authorization".to_owned(), "Bearer admin-token".to_owned()),
            ("Content-Type".to_owned(), "application/json".to_owned()),
        ];
        let request = client::Request { method: "POST".to_owned(), target: PATH.to_owned(), headers, body: Some(body) };
        client.send(&request)
    };
    for unit in [&b"["[..], b"{\"a\":", b"[{\"a\":["] {
        let answer = post(unit.repeat(100_000)).unwrap();
        assert_eq!(answer.status, 400);
        assert!(answer.json().unwrap()["message"].as_str().unwrap().contains("exceeded max depth"));
    }
    // Who has written all of it before he reads finds his answer, and not a closed connection.
    for _ in 0..5 {
        assert_eq!(post(vec![b'x'; 20_000_000]).unwrap().status, 413);
    }
    // Who asks first is told before he has written.
    let mut asking = client::Request::new("POST", PATH, Some(""));
    asking.headers.extend(
        [("Expect", "100-continue"), ("Content-Length", "20000000")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    asking.body = None;
    assert_eq!(client.send(&asking).unwrap().status, 413);
    assert_eq!(post(vec![0xff; 1000]).unwrap().status, 400);
    let anchors = (0..60).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
        format!("{text}a{}: &a{} [*a{n},*a{n},*a{n},*a{n}]\n", n + 1, n + 1)
    });
    let yaml = client::Request {
        method: "PATCH".to_owned(),
        target: format!("{PATH}/a?fieldManager=m"),
        headers: vec![
            ("Authorization".to_owned(), "Bearer admin-token".to_owned()),
            ("Content-Type".to_owned(), "application/apply-patch+yaml".to_owned()),
        ],
        body: Some(anchors.into_bytes()),
    };
    assert_eq!(client.send(&yaml).unwrap().status, 400);

    // Paths and queries that are no text.
    for target in ["/%", "/%zz", "/%ff%fe", "/apis/%00", "/?%zz=%zz", "/\u{7f}"] {
        if let Ok(answer) = client.call("GET", target, None) {
            assert!((200..500).contains(&answer.status), "{target}: {}", answer.status);
        }
    }
    let long = client.call("GET", &format!("/{}", "a".repeat(200_000)), None);
    assert!(long.is_err() || (400..500).contains(&long.unwrap().status));
    // No TLS at all.
    let mut plain = TcpStream::connect(server.address()).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    plain.set_read_timeout(Some(WITHIN)).unwrap();
    let mut said = Vec::new();
    let _reset = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"), "plain text is not answered");

    assert_eq!(client.call("GET", &format!("{PATH}/a"), None).unwrap().status, 200);
    let after = resident_kb(server.pid());
    note(&format!("strength: {} kB resident before, {after} kB after, {} idle connections", before, idle.len()));
    assert!(after < before + 150_000, "memory grew from {before} kB to {after} kB");
}
