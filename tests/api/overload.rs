//! More than the server takes at a time: what is over a limit is told to come again, and everything else is served.

use std::path::Path;
use std::time::Duration;

use egress_lab::https::{Client, Connection, Request, Response, chunk, read_body, read_head, send};
use egress_lab::wait::wait_for;
use egress_lab::wait_until;
use futures_util::TryStreamExt as _;
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::{WatchStreamExt as _, watcher};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::kube_rs;
use crate::kubectl::{Kubectl, manifest};
use crate::server::Server;
use crate::strength::{PATH, object};

const WITHIN: Duration = Duration::from_secs(60);
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const EVENTS: &str = "/api/v1/namespaces/conf/events";

/// The answer to what is over a limit: apimachinery's `NewTooManyRequests`.
fn assert_told_to_come_again(what: &str, answer: &Response) {
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, 429, "{what}: {text}");
    assert_eq!(answer.all("retry-after"), ["1"], "{what}");
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 429,
        "reason": "TooManyRequests", "message": "Too many requests, please try again later.",
        "details": {"retryAfterSeconds": 1},
    });
    assert_eq!(answer.json().unwrap(), status, "{what}");
}

/// A request that has been let in and whose body is still to come.
struct Unfinished {
    connection: Connection,
    body: String,
}

impl Unfinished {
    /// Begins to make a router.
    fn begin(server: &Server, name: &str) -> Self {
        let body = object(name, "10.0.0.1");
        let mut request = Request::new("POST", PATH, Some(""));
        request.body = None;
        // The server asks for the body when the request has its place.
        request.headers.push(("Expect".to_owned(), "100-continue".to_owned()));
        request.headers.push(("Content-Length".to_owned(), body.len().to_string()));
        let mut connection = server.client().connect().unwrap();
        send(&mut connection, server.address(), &request).unwrap();
        assert_eq!(read_head(&mut connection).unwrap().status, 100);
        Self { connection, body }
    }

    fn finish(mut self) {
        let stream = self.connection.get_mut();
        std::io::Write::write_all(stream, self.body.as_bytes()).unwrap();
        std::io::Write::flush(stream).unwrap();
        assert_eq!(read_head(&mut self.connection).unwrap().status, 201);
    }
}

/// A watch of the routers from now on; its answer so far.
fn watch(server: &Server, target: &str) -> (Connection, Response) {
    let mut connection = server.client().connect().unwrap();
    send(&mut connection, server.address(), &Request::new("GET", target, None)).unwrap();
    let head = read_head(&mut connection).unwrap();
    (connection, head)
}

/// How many requests of a verb were answered with 429.
fn refused(client: &Client, verb: &str) -> u64 {
    let metrics = String::from_utf8(client.call("GET", "/metrics", None).unwrap().body).unwrap();
    let name = format!("egress_router_api_requests_total{{verb=\"{verb}\",code=\"429\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn requests_over_the_limit_are_told_to_come_again() {
    let server = Server::start(&["--max-requests-inflight", "3"]);
    let client = server.client();
    assert_eq!(client.call("POST", PATH, Some(&object("a", "10.0.0.1"))).unwrap().status, 201);
    for round in 0..2 {
        let unfinished: Vec<Unfinished> =
            (0..3).map(|index| Unfinished::begin(&server, &format!("r{round}-{index}"))).collect();
        let (one, merge, new) = (format!("{PATH}/a"), "{\"metadata\":{}}", object("b", "10.0.0.1"));
        for (method, target, body) in [
            ("GET", PATH, None),
            ("GET", one.as_str(), None),
            ("GET", "/api/v1/namespaces", None),
            ("GET", EVENTS, None),
            ("POST", PATH, Some(new.as_str())),
            ("PUT", &one, Some(&new)),
            ("PATCH", &one, Some(merge)),
            ("DELETE", &one, None),
            ("DELETE", PATH, None),
            ("POST", REVIEWS, Some("{}")),
        ] {
            let answer = client.call(method, target, body).unwrap();
            assert_told_to_come_again(&format!("{method} {target}"), &answer);
        }
        // Who looks after the server, and who watches, does not stand in this queue.
        for target in ["/healthz", "/livez", "/readyz", "/version", "/metrics", "/apis", "/openapi/v2"] {
            assert_eq!(client.call("GET", target, None).unwrap().status, 200, "{target}");
        }
        let (_watching, head) = watch(&server, &format!("{PATH}?watch=true&timeoutSeconds=60"));
        assert_eq!(head.status, 200);
        unfinished.into_iter().for_each(Unfinished::finish);
        let names = client.call("GET", PATH, None).unwrap().json().unwrap();
        assert_eq!(names["items"].as_array().unwrap().len(), 4 + round * 3, "nothing that was refused was done");
    }
    assert_eq!((refused(&client, "list"), refused(&client, "deletecollection")), (6, 2));
    // One that goes away leaves its place.
    drop((0..3).map(|index| Unfinished::begin(&server, &format!("gone-{index}"))).collect::<Vec<_>>());
    wait_until("places to be free", WITHIN, || client.call("GET", PATH, None).unwrap().status == 200).unwrap();
}

#[test]
fn watches_over_the_limit_are_told_to_come_again() {
    let server = Server::start(&["--max-watches", "2"]);
    let client = server.client();
    let from_now = format!("{PATH}?watch=true&timeoutSeconds=600&resourceVersion=1000");
    let mut watching: Vec<Connection> = (0..2)
        .map(|_| {
            let (connection, head) = watch(&server, &from_now);
            assert_eq!(head.status, 200);
            connection
        })
        .collect();
    let old = PATH.replace("/v1/", "/v1/watch/");
    for target in [from_now.as_str(), &old, &format!("{EVENTS}?watch=true")] {
        let (mut connection, mut answer) = watch(&server, target);
        read_body(&mut connection, &mut answer).unwrap();
        assert_told_to_come_again(target, &answer);
    }
    // Plain requests go on, and so do the watches that there are.
    assert_eq!(client.call("POST", PATH, Some(&object("a", "10.0.0.1"))).unwrap().status, 201);
    assert_eq!(client.call("GET", &format!("{PATH}/a"), None).unwrap().status, 200);
    for connection in &mut watching {
        let event = String::from_utf8(chunk(connection).unwrap().unwrap()).unwrap();
        assert!(event.starts_with("{\"type\":\"ADDED\""), "{event}");
    }
    watching.truncate(1);
    wait_until("a place for a watch", WITHIN, || watch(&server, &from_now).1.status == 200).unwrap();
}

/// A thread of another process that does not run until this is dropped.
struct Paused(Pid);

impl Paused {
    /// Pauses the thread of a process that has a name.
    fn new(process: u32, name: &str) -> Self {
        let named =
            |thread: &Path| std::fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let thread = threads.map(|thread| thread.unwrap().path()).find(|thread| named(thread)).unwrap();
        let thread = Pid::from_raw(thread.file_name().unwrap().to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Self(thread)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

/// A disk that stands still holds up the writes that wait for it, and no more than the limit: not the readers, and not the
/// writers after them, who are told at once. That the clients of those that wait have gone makes no room.
#[test]
fn writes_over_the_limit_are_told_to_come_again() {
    let server = Server::start(&["--max-requests-inflight", "4"]);
    let client = server.client();
    assert_eq!(client.call("POST", PATH, Some(&object("a", "10.0.0.1"))).unwrap().status, 201);
    let disk = Paused::new(server.pid(), "egressrouters");
    let mut begun = 0;
    let give_up_soon = |body: &str| {
        let mut connection = client.connect().unwrap();
        connection.get_ref().sock.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        send(&mut connection, server.address(), &Request::new("POST", PATH, Some(body))).unwrap();
        read_head(&mut connection).ok().map(|head| head.status)
    };
    wait_until("the queue of writes to be full", WITHIN, || {
        // Room for requests, so that 429 is about the writes.
        let room = client.call("GET", PATH, None).unwrap().status == 200;
        begun += 1;
        room && give_up_soon(&object(&format!("r{begun}"), "10.0.0.1")) == Some(429)
    })
    .unwrap();
    let (one, new) = (format!("{PATH}/a"), object("b", "10.0.0.1"));
    let label = json!({"metadata": {"labels": {"x": "y"}}}).to_string();
    for (method, target, body) in [
        ("POST", PATH, Some(new.as_str())),
        ("PATCH", &one, Some(&label)),
        ("DELETE", &one, None),
        ("DELETE", PATH, None),
    ] {
        assert_told_to_come_again(&format!("{method} {target}"), &client.call(method, target, body).unwrap());
    }
    let read = client.call("GET", &one, None).unwrap();
    assert_eq!((read.status, &read.json().unwrap()["metadata"]["labels"]), (200, &json!(null)));
    // Events have a file of their own.
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "conf"}}).to_string();
    assert_eq!(client.call("POST", EVENTS, Some(&event)).unwrap().status, 201);

    drop(disk);
    let made = wait_for("a write to be taken", WITHIN, || {
        let answer = client.call("POST", PATH, Some(&new)).unwrap();
        (answer.status != 429).then_some(answer)
    });
    assert_eq!(made.unwrap().status, 201);
    let list = client.call("GET", PATH, None).unwrap().json().unwrap();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2 + 4, "the four that waited were done: {names:?}");
}

#[test]
fn kubectl_comes_again() {
    let server = Server::start(&["--namespace", "conf", "--max-requests-inflight", "1"]);
    let client = server.client();
    let unfinished = Unfinished::begin(&server, "first");
    let kubectl = Kubectl::new(&server);
    let apply = std::thread::scope(|scope| {
        let apply = scope.spawn(|| kubectl.run(&["apply", "-f", "-"], &manifest("")));
        wait_until("kubectl to be told to come again", WITHIN, || refused(&client, "get") > 0).unwrap();
        unfinished.finish();
        apply.join().unwrap()
    });
    assert!(apply.ok && apply.stdout.contains("created"), "{apply:?}");
}

#[tokio::test]
async fn a_watcher_of_kube_rs_comes_again() {
    let server = Server::start(&["--max-watches", "1"]);
    let client = server.client();
    let (held, head) = watch(&server, &format!("{PATH}?watch=true&timeoutSeconds=600"));
    assert_eq!(head.status, 200);
    let api: Api<DynamicObject> = Api::namespaced_with(kube_rs::client(&server).await, "conf", &kube_rs::resource());
    let objects = watcher::watcher(api, watcher::Config::default()).default_backoff().applied_objects();
    let follower = tokio::spawn(async move {
        let mut objects = std::pin::pin!(objects);
        loop {
            // What could not be had is tried again when the stream is asked again.
            if let Ok(object) = objects.try_next().await {
                return object.unwrap().metadata.name.unwrap();
            }
        }
    });
    let told = tokio::task::spawn_blocking({
        let client = client.clone();
        move || wait_until("the watcher to be told to come again", WITHIN, || refused(&client, "watch") > 0)
    });
    told.await.unwrap().unwrap();
    drop(held);
    assert_eq!(client.call("POST", PATH, Some(&object("a", "10.0.0.1"))).unwrap().status, 201);
    assert_eq!(tokio::time::timeout(WITHIN, follower).await.unwrap().unwrap(), "a");
}

#[test]
fn a_limit_has_bounds() {
    for limit in ["--max-requests-inflight", "--max-watches"] {
        for value in ["0", "65537", "many"] {
            let mut serve = std::process::Command::new(egress_lab::router::binary().unwrap());
            let said = serve.args(["serve", "--data", "/nonexistent", limit, value]).output().unwrap();
            let text = String::from_utf8_lossy(&said.stderr).into_owned();
            assert_eq!(said.status.code(), Some(2), "{text}");
            assert!(text.contains(&format!("invalid value '{value}' for '{limit} <COUNT>'")), "{text}");
        }
    }
}
