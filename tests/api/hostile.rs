//! Requests that nobody's client sends: every parameter with every odd value, on every path and verb. Whatever is asked, it
//! is answered, and never as a fault of the server's own.

use egress_lab::https::{Client, Request};
use egress_lab::random::Random;
use serde_json::{Value, json};

use crate::server::Server;
use crate::strength::{PATH, count, note, object};

const PARAMETERS: [&str; 20] = [
    "allowWatchBookmarks",
    "continue",
    "dryRun",
    "fieldManager",
    "fieldSelector",
    "fieldValidation",
    "force",
    "gracePeriodSeconds",
    "includeObject",
    "labelSelector",
    "limit",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
    "export",
];

const VALUES: [&str; 34] = [
    "",
    "0",
    "1",
    "-1",
    "true",
    "false",
    "All",
    "Strict",
    "Exact",
    "NotOlderThan",
    "Foreground",
    "Orphan",
    "metadata.name%3Da",
    "metadata.name%3D%3D%3D",
    "a%20in%20(b,c",
    "%21%21a",
    "x%3E5,y%3C",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e9",
    "%00",
    "%ff%fe",
    "%",
    "%zz",
    "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiLi4vLi4ifQ",
    "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MTAwMCwic3RhcnQiOiJhIn0",
    "bnVsbA",
    "%F0%9F%98%80",
    "a%0D%0Ab",
    "Metadata",
    "1000",
    "1001",
    "Warn",
];

const MEDIA: [&str; 9] = [
    "application/json",
    "application/json;as=Table;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    "application/vnd.kubernetes.protobuf",
    "application/yaml",
    "*/*",
    "text/html",
    ";;;,q=,=",
];

const BODY_TYPES: [&str; 7] = [
    "application/json",
    "application/yaml",
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/vnd.kubernetes.protobuf",
    "text/plain; charset=\"",
];

fn bodies() -> Vec<String> {
    let mut bodies: Vec<String> = [
        "",
        "null",
        "{}",
        "[]",
        "[{}]",
        "5",
        "\"a\"",
        "{\"metadata\":5}",
        "{\"metadata\":{\"name\":{}}}",
        "{\"kind\":\"DeleteOptions\",\"preconditions\":{\"uid\":\"x\"}}",
        "{\"propagationPolicy\":\"x\",\"gracePeriodSeconds\":-1}",
        "[{\"op\":\"add\",\"path\":\"/metadata/labels/-\",\"value\":1}]",
        "[{\"op\":\"copy\",\"from\":\"\",\"path\":\"/metadata/annotations\"}]",
        "[{\"op\":\"remove\",\"path\":\"\"}]",
        "[{\"op\":\"replace\",\"path\":\"\",\"value\":null}]",
        "[{\"op\":\"move\",\"from\":\"/spec\",\"path\":\"/spec/a\"}]",
        "{\"metadata\":{\"managedFields\":[{\"manager\":\"x\",\"operation\":\"Apply\",\"fieldsV1\":{\"k:{\\\"a\":{}}}]}}",
        "{\"metadata\":{\"managedFields\":[{\"fieldsV1\":{\"f:\":5},\"operation\":\"Update\"}]}}",
        "a: &a [*a]",
        "a: !!binary x\n---\nb: 1",
        "? {}\n: 1",
        "{\"spec\":{\"addresses\":[{\"ip\":1e400}]}}",
        "{\"status\":{\"conditions\":[{\"type\":\"Available\"},{\"type\":\"Available\"}]}}",
        "{\"metadata\":{\"annotations\":{\"kubectl.kubernetes.io/last-applied-configuration\":\"{[\"}}}",
        "{\"metadata\":{\"deletionTimestamp\":\"never\",\"finalizers\":[\"a\",\"a\",null]}}",
    ]
    .map(str::to_owned)
    .to_vec();
    bodies.push(object("a", "10.0.0.1"));
    bodies.push(object("a", "not an address"));
    let deep = (0..390).fold("1".to_owned(), |inner, _| format!("{{\"a\":{inner}}}"));
    bodies.push(deep);
    bodies
}

fn paths() -> Vec<String> {
    let namespaced = ["", "/a", "/a/status", "/a/scale", "/a/status/x", "/", "/%2e%2e", "/A%20b"];
    let mut paths: Vec<String> = namespaced.iter().map(|rest| format!("{PATH}{rest}")).collect();
    paths.extend(["", "/a"].map(|rest| format!("/api/v1/namespaces/conf/events{rest}")));
    paths.extend(["", "/a"].map(|rest| format!("/apis/events.k8s.io/v1/namespaces/conf/events{rest}")));
    paths.extend(
        [
            "/apis/network.operator.openshift.io/v1/egressrouters",
            "/apis/network.operator.openshift.io/v1/watch/egressrouters",
            "/apis/network.operator.openshift.io/v1/watch/namespaces/conf/egressrouters/a",
            "/apis/network.operator.openshift.io/v1/namespaces//egressrouters",
            "/api/v1/namespaces",
            "/api/v1/namespaces/conf",
            "/api/v1/events",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            "/openapi/v3/apis/network.operator.openshift.io/v1",
            "/openapi/v2",
            "/version",
            "/metrics",
            "/",
        ]
        .map(str::to_owned),
    );
    paths
}

/// Versions that are no numbers are a fault of the server's in the original, and are answered as there.
fn is_the_originals_own(message: &str) -> bool {
    [
        "strconv.ParseUint",
        "failed to create typed patch object",
        "resourceVersion should not be set",
        "content is not a list",
    ]
    .iter()
    .any(|known| message.contains(known))
}

#[test]
fn whatever_is_asked_is_answered() {
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let server = Server::start(&[]);
    let client: Client = server.client();
    client.call("POST", PATH, Some(&object("a", "10.0.0.1"))).unwrap();
    let (paths, bodies) = (paths(), bodies());
    let requests = count(500, 30_000);
    let mut codes: std::collections::BTreeMap<u16, usize> = std::collections::BTreeMap::new();
    for _ in 0..requests {
        let pick = |random: &mut Random, of: &[&str]| of[random.below(of.len())].to_owned();
        let method =
            pick(&mut random, &["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "X"]);
        let mut target = paths[random.below(paths.len())].clone();
        let names: Vec<&str> = (0..random.below(4)).map(|_| PARAMETERS[random.below(PARAMETERS.len())]).collect();
        let mut query: Vec<String> =
            names.iter().map(|name| format!("{name}={}", pick(&mut random, &VALUES))).collect();
        // Nobody waits for a watch that says nothing.
        query.retain(|pair| !pair.starts_with("timeoutSeconds="));
        query.push("timeoutSeconds=1".to_owned());
        target.push_str(&format!("?{}", query.join("&")));
        let mut headers = vec![
            ("Authorization".to_owned(), "Bearer admin-token".to_owned()),
            ("Accept".to_owned(), pick(&mut random, &MEDIA)),
            ("Content-Type".to_owned(), pick(&mut random, &BODY_TYPES)),
        ];
        if random.chance(4) {
            headers.push(("Accept-Encoding".to_owned(), "gzip".to_owned()));
        }
        let body = random.chance(2).then(|| bodies[random.below(bodies.len())].clone().into_bytes());
        let request = Request { method, target, headers, body };
        // On a connection of its own: one whose body is not wanted is closed.
        let answer = client.send(&request);
        let answer = answer.unwrap_or_else(|error| panic!("EGRESS_SEED={seed}: {request:?}: {error}"));
        *codes.entry(answer.status).or_default() += 1;
        // An answer to HEAD has no text; GET goes the same way.
        if answer.status >= 500 && request.method != "HEAD" {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let message = serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|status| Some(status["message"].as_str()?.to_owned()));
            let message = message.unwrap_or(text);
            assert!(
                answer.status == 504 || is_the_originals_own(&message),
                "EGRESS_SEED={seed}: {} {} {:?}: {} {message}",
                request.method,
                request.target,
                request.body.as_deref().map(String::from_utf8_lossy),
                answer.status
            );
        }
        if request.method == "DELETE" && client.call("GET", &format!("{PATH}/a"), None).unwrap().status == 404 {
            client.call("POST", PATH, Some(&object("a", "10.0.0.1"))).unwrap();
        }
    }
    // What is left is still an object, and the server its old self.
    let last =
        client.call("PATCH", &format!("{PATH}/a"), Some(&json!({"metadata": {"labels": {"x": "y"}}}).to_string()));
    assert!(matches!(last.unwrap().status, 200 | 422));
    note(&format!("hostile: {requests} requests, answers by code: {codes:?}"));
}
