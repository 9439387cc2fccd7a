//! What the API says of itself: groups, versions, resources, health, version.

use serde_json::{Value, json};

use super::{GROUP, PLURAL, SINGULAR, VERSION, events};
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
    let own = json!({"name": GROUP, "versions": [versions()], "preferredVersion": versions()});
    let groups: Vec<Value> = std::iter::once(own).chain(OTHER_GROUPS.into_iter().map(other_group)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
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

/// A resource besides routers.
struct Other {
    group: &'static str,
    name: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    short: &'static [&'static str],
}

const EVENTS: Other = Other {
    group: "",
    name: "events",
    singular: "event",
    kind: events::KIND,
    namespaced: true,
    verbs: &VERBS,
    short: &["ev"],
};
const NAMESPACES: Other = Other {
    group: "",
    name: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    namespaced: false,
    verbs: &["get", "list"],
    short: &["ns"],
};
/// There are none, and `kubectl cluster-info` asks for them before it says anything.
const SERVICES: Other = Other {
    group: "",
    name: "services",
    singular: "service",
    kind: "Service",
    namespaced: true,
    verbs: &["list"],
    short: &["svc"],
};
const MAY_I: Other = Other {
    group: "authorization.k8s.io",
    name: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    kind: "SelfSubjectAccessReview",
    namespaced: false,
    verbs: &["create"],
    short: &[],
};
const WHO_AM_I: Other = Other {
    group: "authentication.k8s.io",
    name: "selfsubjectreviews",
    singular: "selfsubjectreview",
    kind: "SelfSubjectReview",
    ..MAY_I
};

/// What is served besides routers.
const OTHERS: [Other; 6] = [EVENTS, NAMESPACES, SERVICES, Other { group: events::GROUP, ..EVENTS }, MAY_I, WHO_AM_I];
/// The groups that those are in, besides the core group.
const OTHER_GROUPS: [&str; 3] = [events::GROUP, MAY_I.group, WHO_AM_I.group];

impl Other {
    fn plain(&self) -> Value {
        json!({
            "name": self.name, "singularName": self.singular, "namespaced": self.namespaced, "kind": self.kind,
            "verbs": self.verbs, "shortNames": self.short,
        })
    }

    fn aggregated(&self) -> Value {
        json!({
            "resource": self.name,
            "responseKind": {"group": self.group, "version": VERSION, "kind": self.kind},
            "scope": if self.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": self.singular, "verbs": self.verbs, "shortNames": self.short,
        })
    }
}

fn of_group(group: &str, resource: fn(&Other) -> Value) -> Vec<Value> {
    OTHERS.iter().filter(|other| other.group == group).map(resource).collect()
}

fn other_group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/{VERSION}"), "version": VERSION});
    json!({"name": name, "versions": [version.clone()], "preferredVersion": version})
}

/// `/api/v1`, and what is at another group or its version; none for a path that is neither.
pub(super) fn resources_of_others(path: &str) -> Option<Value> {
    let list = |group: &str, version: String| {
        let resources = of_group(group, Other::plain);
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
    };
    if path == "/api/v1" {
        return Some(list("", VERSION.to_owned()));
    }
    let rest = path.strip_prefix("/apis/")?;
    let (name, version) = rest.split_once('/').map_or((rest, None), |(name, version)| (name, Some(version)));
    let name = OTHER_GROUPS.into_iter().find(|group| *group == name)?;
    match version {
        Some(VERSION) => Some(list(name, format!("{name}/{VERSION}"))),
        Some(_) => None,
        None => {
            let mut group = other_group(name);
            if let Some(fields) = group.as_object_mut() {
                fields.insert("kind".to_owned(), "APIGroup".into());
                fields.insert("apiVersion".to_owned(), "v1".into());
            }
            Some(group)
        }
    }
}

/// The list of services.
pub(super) fn services(version: u64) -> Value {
    json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": []})
}

fn aggregated(items: Value) -> Value {
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

/// One group, all in one.
fn aggregated_group(name: &str, resources: Vec<Value>) -> Value {
    let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
    let versions = json!([{"version": VERSION, "freshness": "Current", "resources": resources}]);
    json!({"metadata": metadata, "versions": versions})
}

/// `/apis`, all in one.
pub(super) fn aggregated_groups() -> Value {
    let kind = json!({"group": GROUP, "version": VERSION, "kind": KIND});
    let routers = json!({
        "resource": PLURAL, "responseKind": kind, "scope": "Namespaced", "singularResource": SINGULAR, "verbs": VERBS,
        "subresources": [{"subresource": "status", "responseKind": kind, "verbs": STATUS_VERBS}],
    });
    let others = OTHER_GROUPS.into_iter().map(|name| aggregated_group(name, of_group(name, Other::aggregated)));
    aggregated(std::iter::once(aggregated_group(GROUP, vec![routers])).chain(others).collect())
}

/// `/api`, all in one.
pub(super) fn aggregated_core() -> Value {
    aggregated(json!([aggregated_group("", of_group("", Other::aggregated))]))
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
