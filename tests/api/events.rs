//! Events: by hand, in the words of both groups, and as kubectl shows them.

use std::io::{BufRead as _, BufReader};

use egress_lab::https::{Client, Request, Response};
use serde_json::{Value, json};

use crate::kubectl::{Kubectl, manifest};
use crate::server::Server;

const CORE: &str = "/api/v1/namespaces/conf/events";
const OWN: &str = "/apis/events.k8s.io/v1/namespaces/conf/events";

/// An event of the newer kind, as kube-rs makes them.
fn event(name: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name, "namespace": "conf"},
        "eventTime": "2026-01-02T03:04:05.000000Z", "reason": "MasterDown", "note": "up0 is down", "type": "Warning",
        "action": "Degraded", "reportingController": "egress-router", "reportingInstance": "here",
        "regarding": {"apiVersion": "network.operator.openshift.io/v1", "kind": "EgressRouter", "namespace": "conf", "name": "a"},
    })
}

/// The same event as of another token.
fn call_as(client: &Client, token: &str, method: &str, target: &str, body: Option<&Value>) -> Response {
    let body = body.map(Value::to_string);
    let mut request = Request::new(method, target, body.as_deref());
    request.headers.retain(|(name, _)| name != "Authorization");
    request.headers.push(("Authorization".to_owned(), format!("Bearer {token}")));
    client.send(&request).unwrap()
}

#[test]
fn events_in_the_words_of_both_groups() {
    let server = Server::start(&["--namespace", "conf"]);
    let client = server.client();
    let call = |method: &str, target: &str, body: Option<&Value>| call_as(&client, "admin-token", method, target, body);
    let made = call("POST", OWN, Some(&event("a.1")));
    assert_eq!(made.status, 201, "{:?}", made.json());
    assert_eq!(made.json().unwrap()["note"], "up0 is down");
    let core = call("GET", &format!("{CORE}/a.1"), None).json().unwrap();
    assert_eq!((&core["message"], &core["apiVersion"]), (&json!("up0 is down"), &json!("v1")));
    assert_eq!(core["involvedObject"]["name"], "a");
    assert_eq!(call("POST", OWN, Some(&event("a.1"))).status, 409);

    // Once more: a series.
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-02T03:05:05.000000Z"}});
    let patched = call("PATCH", &format!("{OWN}/a.1"), Some(&series));
    assert_eq!(patched.json().unwrap()["series"]["count"], 2);
    let list = call("GET", "/api/v1/events?fieldSelector=involvedObject.name%3Da,type%3DWarning", None).json().unwrap();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("EventList"), 1));
    assert_eq!(list["items"][0]["series"]["count"], 2);
    let none = call("GET", &format!("{OWN}?fieldSelector=regarding.name%3Db"), None).json().unwrap();
    assert_eq!(none["items"].as_array().unwrap().len(), 0);
    let watched = call("GET", &format!("{CORE}?watch=1&timeoutSeconds=1"), None);
    let first: Value = serde_json::from_slice(watched.body.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((&first["type"], &first["object"]["reason"]), (&json!("ADDED"), &json!("MasterDown")));

    // What is wrong with one is said.
    let refused = |change: &dyn Fn(&mut Value), code: u16, what: &str| {
        let mut event = event("b");
        change(&mut event);
        let answer = call("POST", OWN, Some(&event));
        let said = answer.json().unwrap();
        assert!(answer.status == code && said.to_string().contains(what), "{}: {said}", answer.status);
    };
    refused(&|event| event["note"] = "x".repeat(1025).into(), 422, "Too long");
    refused(&|event| event["regarding"]["namespace"] = "other".into(), 422, "does not match");
    refused(&|event| event["reason"] = "".into(), 422, "reason: Required value");
    refused(&|event| event["type"] = "Bad".into(), 422, "invalid value");
    refused(&|event| event["related"] = json!({"name": "x".repeat(20_000)}), 413, "limit is 16384");
    refused(&|event| event["note"] = 5.into(), 400, "cannot unmarshal number");
    refused(&|event| event["apiVersion"] = "v1".into(), 400, "cannot be handled");
    refused(&|event| event["metadata"]["name"] = "A b".into(), 422, "metadata.name");
    assert_eq!(call("POST", "/api/v1/namespaces/none/events", Some(&json!({"metadata": {"name": "x"}}))).status, 404);
    assert_eq!(call("PATCH", &format!("{OWN}/none"), Some(&series)).status, 404);

    // Who may look may look; who may tell may tell.
    assert_eq!(call_as(&client, "viewer-token", "GET", CORE, None).status, 200);
    assert_eq!(call_as(&client, "viewer-token", "POST", OWN, Some(&event("c"))).status, 403);
    assert_eq!(call_as(&client, "nobody-token", "GET", CORE, None).status, 403);
    assert_eq!(call("DELETE", &format!("{CORE}/a.1"), None).status, 200);
    assert_eq!(call("GET", &format!("{OWN}/a.1"), None).status, 404);
}

#[test]
fn kubectl_shows_events() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    kubectl.says(&["create", "-f", "-"], &manifest(""), "created");
    let watch = &["get", "events", "--watch-only"];
    let mut watching = kubectl.command(watch).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map_while(Result::ok);
    let uid = kubectl.ok(&["get", "egressrouter", "a", "-o", "jsonpath={.metadata.uid}"]);
    let mut event = event("a.1");
    event["regarding"]["uid"] = uid.into();
    // A watch begins at some moment: one of many events is seen.
    let mut number = 0;
    let shown = loop {
        number += 1;
        event["metadata"]["name"] = format!("a.{number}").into();
        kubectl.says(&["create", "-f", "-"], &event.to_string(), "created");
        if number >= 3 {
            break lines.by_ref().find(|line| line.contains("MasterDown"));
        }
    };
    assert!(shown.is_some());
    watching.kill().unwrap();
    watching.wait().unwrap();
    kubectl.says(&["get", "events"], "", "LAST SEEN");
    kubectl.says(&["get", "ev", "-o", "wide"], "", "egressrouter/a");
    kubectl.says(&["get", "events.events.k8s.io", "a.1", "-o", "yaml"], "", "note: up0 is down");
    let described = kubectl.ok(&["describe", "egressrouter", "a"]);
    let line = described.lines().find(|line| line.contains("MasterDown")).unwrap_or_else(|| panic!("{described}"));
    assert!(line.contains("Warning") && line.contains("up0 is down"), "{line}");
    kubectl.says(&["events", "--for", "egressrouter/a"], "", "MasterDown");
    kubectl.says(&["events", "--types=Normal"], "", "");
    kubectl.says(&["delete", "events", "--all"], "", "deleted");
    kubectl.says(&["describe", "egressrouter", "a"], "", "<none>");
    kubectl.says(&["explain", "events.involvedObject"], "", "FIELD: involvedObject");
    kubectl.says(&["explain", "--api-version=events.k8s.io/v1", "events.note"], "", "FIELD: note");
}
