//! What the API says of itself: groups, versions, resources, health, version.

use serde_json::{Value, json};

use super::{GROUP, PLURAL, SINGULAR, VERSION};
use crate::spec::{API_VERSION, KIND};

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const STATUS_VERBS: [&str; 3] = ["get", "patch", "update"];

/// The paths that `/` names.
const PATHS: [&str; 16] = [
    "/api",
    "/api/v1",
    "/apis",
    "/apis/",
    "/apis/network.operator.openshift.io",
    "/apis/network.operator.openshift.io/v1",
    "/healthz",
    "/healthz/ping",
    "/livez",
    "/livez/ping",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/readyz",
    "/readyz/ping",
    "/version",
];

/// `/`, and what an unknown path is answered with.
pub(super) fn paths() -> Value {
    json!({"paths": PATHS})
}

fn versions() -> Value {
    json!({"groupVersion": API_VERSION, "version": VERSION})
}

/// `/apis/GROUP`.
pub(super) fn group() -> Value {
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": GROUP,
        "versions": [versions()], "preferredVersion": versions(),
    })
}

/// `/apis`.
pub(super) fn groups() -> Value {
    json!({
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": GROUP, "versions": [versions()], "preferredVersion": versions()}],
    })
}

/// `/api`.
pub(super) fn core_versions(address: &str) -> Value {
    let addresses = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]);
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses})
}

/// `/apis/GROUP/VERSION`.
pub(super) fn resources() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION,
        "resources": [
            {
                "name": PLURAL, "singularName": SINGULAR, "namespaced": true, "kind": KIND, "verbs": VERBS,
                "storageVersionHash": "whcNhkpRCxc=",
            },
            {
                "name": format!("{PLURAL}/status"), "singularName": "", "namespaced": true, "kind": KIND,
                "verbs": STATUS_VERBS,
            },
        ],
    })
}

/// `/api/v1`.
pub(super) fn core_resources() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1",
        "resources": [
            {"name": "events", "singularName": "event", "namespaced": true, "kind": "Event", "verbs": ["get", "list"]},
            {
                "name": "namespaces", "singularName": "namespace", "namespaced": false, "kind": "Namespace",
                "verbs": ["get", "list"], "shortNames": ["ns"],
            },
        ],
    })
}

fn aggregated(items: Value) -> Value {
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

/// `/apis`, all in one.
pub(super) fn aggregated_groups() -> Value {
    let kind = json!({"group": GROUP, "version": VERSION, "kind": KIND});
    aggregated(json!([{
        "metadata": {"name": GROUP},
        "versions": [{
            "version": VERSION,
            "freshness": "Current",
            "resources": [{
                "resource": PLURAL, "responseKind": kind, "scope": "Namespaced", "singularResource": SINGULAR,
                "verbs": VERBS,
                "subresources": [{"subresource": "status", "responseKind": kind, "verbs": STATUS_VERBS}],
            }],
        }],
    }]))
}

/// `/api`, all in one.
pub(super) fn aggregated_core() -> Value {
    let resource = |name: &str, singular: &str, kind: &str, scope: &str, short: Value| {
        let kind = json!({"group": "", "version": "v1", "kind": kind});
        json!({
            "resource": name, "responseKind": kind, "scope": scope, "singularResource": singular,
            "verbs": ["get", "list"], "shortNames": short,
        })
    };
    aggregated(json!([{
        "metadata": {},
        "versions": [{
            "version": "v1",
            "freshness": "Current",
            "resources": [
                resource("events", "event", "Event", "Namespaced", json!(["ev"])),
                resource("namespaces", "namespace", "Namespace", "Cluster", json!(["ns"])),
            ],
        }],
    }]))
}

/// `/version`: the version of Kubernetes whose ways these are, with our own beside it.
pub(super) fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": concat!("v1.36.4+egress-router-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

/// A probe's answer: `ok`, or one line a check.
pub(super) fn health(probe: &str, verbose: bool, exclude: &[String]) -> String {
    if !verbose {
        return "ok".to_owned();
    }
    let excluded = |check: &str| exclude.iter().any(|name| name == check);
    let line = |check: &str| format!("[+]{check} {}ok\n", if excluded(check) { "excluded: " } else { "" });
    format!("{}{}{probe} check passed\n", line("ping"), line("store"))
}

/// A namespace.
pub(super) fn namespace(name: &str) -> Value {
    json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

/// A list of the core group.
pub(super) fn core_list(kind: &str, items: Vec<Value>, version: u64) -> Value {
    json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": items})
}
