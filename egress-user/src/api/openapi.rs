//! The OpenAPI document: what `kubectl explain` reads, and where clients see which parameters there are.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::resource::Resource;
use super::{GROUP, LIST_KIND, PLURAL, VERSION, events};
use crate::spec::{API_VERSION, KIND, open_api_schema};

const ROUTER: &str = "io.openshift.operator.network.v1.EgressRouter";
const ROUTER_LIST: &str = "io.openshift.operator.network.v1.EgressRouterList";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// Every query parameter with its type and what it does.
const PARAMETERS: [(&str, &str, &str); 18] = [
    ("allowWatchBookmarks", "boolean", "Events of type BOOKMARK are sent now and then."),
    ("continue", "string", "Where to go on: metadata.continue of the page before."),
    ("dryRun", "string", "All: everything is checked, nothing is stored."),
    ("fieldManager", "string", "Name of the actor who makes the change, at most 128 bytes."),
    ("fieldSelector", "string", "Selects objects by metadata.name and metadata.namespace."),
    ("fieldValidation", "string", "Ignore, Warn or Strict: what happens to unknown and duplicate fields."),
    ("force", "boolean", "Apply takes fields that other managers own."),
    ("gracePeriodSeconds", "integer", "Has no effect on this resource."),
    ("labelSelector", "string", "Selects objects by their labels."),
    ("limit", "integer", "Objects of one page, at most."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("pretty", "string", "true: the answer is indented."),
    ("propagationPolicy", "string", "Background, Foreground or Orphan: what becomes of what the object owns."),
    ("resourceVersion", "string", "The version to show, or to watch from."),
    ("resourceVersionMatch", "string", "Exact or NotOlderThan: how resourceVersion is meant."),
    ("sendInitialEvents", "boolean", "A watch begins with an ADDED event for every object."),
    ("timeoutSeconds", "integer", "How long a watch lasts."),
    ("watch", "boolean", "Events instead of a list."),
];

const LISTING: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const WRITING: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCHING: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const DELETING: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];

/// The document of a group and version, as paths name it; none for what is not here.
pub(super) fn document(group: &str) -> Option<Value> {
    let event = [Resource::CoreEvents, Resource::Events].into_iter().find(|resource| group == place(*resource));
    let (paths, schemas) = match event {
        Some(resource) => (event_paths(resource), event_schemas(resource)),
        None if group == place(Resource::Routers) => (paths(), schemas()),
        None => return None,
    };
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "egress-router", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

/// Where a resource's document is, below `/openapi/v3/`.
fn place(resource: Resource) -> String {
    let base = if resource.group().is_empty() { "api" } else { "apis" };
    format!("{base}/{}", resource.api_version())
}

/// `/openapi/v3`: where the documents are.
pub(super) fn index() -> Value {
    let places = [Resource::Routers, Resource::CoreEvents, Resource::Events].map(place);
    let entry = |path: String| {
        let url = format!("/openapi/v3/{path}?hash={}", hash());
        (path, json!({"serverRelativeURL": url}))
    };
    json!({"paths": places.into_iter().map(entry).collect::<Map<_, _>>()})
}

/// A text that changes with the documents.
pub(super) fn hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        for resource in [Resource::Routers, Resource::CoreEvents, Resource::Events] {
            document(&place(resource)).unwrap_or_default().to_string().hash(&mut hasher);
        }
        format!("{:016X}", hasher.finish())
    })
}

/// `/openapi/v2`: the same in Swagger's form.
pub(super) fn swagger() -> Value {
    let schemas = json!({"definitions": schemas()}).to_string().replace("#/components/schemas/", "#/definitions/");
    let mut document: Value = serde_json::from_str(&schemas).unwrap_or_default();
    if let Some(fields) = document.as_object_mut() {
        fields.insert("swagger".to_owned(), "2.0".into());
        fields.insert("info".to_owned(), json!({"title": "egress-router", "version": env!("CARGO_PKG_VERSION")}));
        fields.insert("paths".to_owned(), json!({}));
    }
    document
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn kind(kind: &str) -> Value {
    json!({"group": GROUP, "version": VERSION, "kind": kind})
}

fn event_kind(resource: Resource) -> Value {
    json!({"group": resource.group(), "version": VERSION, "kind": resource.kind()})
}

fn event_schema(resource: Resource) -> String {
    let group = if resource == Resource::Events { "events" } else { "core" };
    format!("io.k8s.api.{group}.v1.Event")
}

fn event_schemas(resource: Resource) -> Value {
    let meta = schemas().get(META).cloned().unwrap_or_default();
    let mut properties = events::properties(resource);
    properties.insert(
        "metadata".to_owned(),
        json!({"description": "Name and what the server keeps.", "allOf": [reference(META)]}),
    );
    let event = json!({
        "type": "object", "description": "What happened to an object, told by who saw it; kept for an hour.",
        "properties": properties, "x-kubernetes-group-version-kind": [event_kind(resource)],
    });
    json!({META: meta, event_schema(resource): event})
}

fn event_paths(resource: Resource) -> Value {
    let path = format!("/{}/namespaces/{{namespace}}/{}", place(resource), resource.plural());
    let write = |action: &str| {
        json!({
            "description": format!("{action} {}", resource.kind()),
            "parameters": parameters(WRITING),
            "responses": {"200": {"description": "OK"}, "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": event_kind(resource),
        })
    };
    json!({
        path.clone(): {"post": write("post")},
        format!("{path}/{{name}}"): {"put": write("put"), "patch": write("patch")},
    })
}

fn schemas() -> Value {
    let mut router = open_api_schema();
    let described = json!({"description": "Name, labels and what the server keeps.", "allOf": [reference(META)]});
    if let Some(metadata) = router.pointer_mut("/properties/metadata") {
        *metadata = described;
    }
    if let Some(fields) = router.as_object_mut() {
        fields.insert("x-kubernetes-group-version-kind".to_owned(), json!([kind(KIND)]));
    }
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        ROUTER: router,
        ROUTER_LIST: {
            "type": "object",
            "description": format!("A list of {KIND}."),
            "required": ["items"],
            "properties": {
                "apiVersion": text("Always the API's version."),
                "kind": text("Always the list's kind."),
                "metadata": {"description": "Version and pages of the list.", "allOf": [reference(LIST_META)]},
                "items": {"type": "array", "description": "The routers.", "items": reference(ROUTER)},
            },
            "x-kubernetes-group-version-kind": [kind(LIST_KIND)],
        },
        META: {
            "type": "object",
            "description": "What every object has.",
            "properties": {
                "name": text("Name, unique in its namespace."),
                "generateName": text("Beginning of a name that the server makes."),
                "namespace": text("Namespace."),
                "uid": text("Set by the server, unique for all time."),
                "resourceVersion": text("Set by the server with every change."),
                "generation": {"type": "integer", "format": "int64", "description": "Counts changes of the spec."},
                "creationTimestamp": {"type": "string", "format": "date-time", "description": "When it was made."},
                "deletionTimestamp": {"type": "string", "format": "date-time", "description": "When it was deleted."},
                "deletionGracePeriodSeconds": {"type": "integer", "format": "int64", "description": "Always 0."},
                "labels": {"type": "object", "description": "For selectors.", "additionalProperties": {"type": "string"}},
                "annotations": {
                    "type": "object", "description": "For tools.", "additionalProperties": {"type": "string"},
                },
                "finalizers": {
                    "type": "array", "description": "What has to be done before it goes.",
                    "items": {"type": "string"}, "x-kubernetes-list-type": "set",
                },
                "ownerReferences": {
                    "type": "array", "description": "What it belongs to.", "items": {"type": "object"},
                    "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"],
                },
                "managedFields": {
                    "type": "array", "description": "Who manages which field.", "items": {"type": "object"},
                    "x-kubernetes-list-type": "atomic",
                },
            },
        },
        LIST_META: {
            "type": "object",
            "description": "Version and pages of a list.",
            "properties": {
                "resourceVersion": text("The version that the list shows."),
                "continue": text("Where the next page begins."),
                "remainingItemCount": {"type": "integer", "format": "int64", "description": "Objects on later pages."},
            },
        },
        STATUS: {"type": "object", "description": "How a request went."},
        DELETE: {"type": "object", "description": "Options of a delete."},
        PATCH: {"type": "object", "description": "A patch."},
    })
}

fn parameters(names: &[&str]) -> Value {
    let wanted = PARAMETERS.iter().filter(|(name, ..)| names.contains(name) || *name == "pretty");
    wanted
        .map(|(name, ty, description)| {
            json!({"name": name, "in": "query", "description": description, "schema": {"type": ty, "uniqueItems": true}})
        })
        .collect()
}

fn paths() -> Value {
    let base = format!("/apis/{API_VERSION}");
    let place = |name: &str| {
        let description = format!("The {name}.");
        json!({"name": name, "in": "path", "required": true, "description": description, "schema": {"type": "string"}})
    };
    let path = |places: &[&str], operations: Vec<(&str, Value)>| {
        let mut path: Map<String, Value> =
            operations.into_iter().map(|(method, operation)| (method.to_owned(), operation)).collect();
        path.insert("parameters".to_owned(), places.iter().map(|name| place(name)).collect());
        Value::Object(path)
    };
    let read = |id: &str, action: &str, names: &[&str], answer: &str| operation(id, action, names, answer, &[]);
    let write =
        |id: &str, action: &str| operation(id, action, WRITING, ROUTER, &["application/json", "application/yaml"]);
    let patch = |id: &str| {
        let types = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
        operation(id, "patch", PATCHING, ROUTER, &types)
    };
    let namespaced = format!("{base}/namespaces/{{namespace}}/{PLURAL}");
    json!({
        format!("{base}/{PLURAL}"): path(&[], vec![
            ("get", read("listEgressRouterForAllNamespaces", "list", LISTING, ROUTER_LIST)),
        ]),
        namespaced.clone(): path(&["namespace"], vec![
            ("get", read("listNamespacedEgressRouter", "list", LISTING, ROUTER_LIST)),
            ("post", write("createNamespacedEgressRouter", "post")),
            ("delete", read("deleteCollectionNamespacedEgressRouter", "deletecollection", DELETING, STATUS)),
        ]),
        format!("{namespaced}/{{name}}"): path(&["namespace", "name"], vec![
            ("get", read("readNamespacedEgressRouter", "get", &["resourceVersion"], ROUTER)),
            ("put", write("replaceNamespacedEgressRouter", "put")),
            ("patch", patch("patchNamespacedEgressRouter")),
            ("delete", read("deleteNamespacedEgressRouter", "delete", DELETING, STATUS)),
        ]),
        format!("{namespaced}/{{name}}/status"): path(&["namespace", "name"], vec![
            ("get", read("readNamespacedEgressRouterStatus", "get", &["resourceVersion"], ROUTER)),
            ("put", write("replaceNamespacedEgressRouterStatus", "put")),
            ("patch", patch("patchNamespacedEgressRouterStatus")),
        ]),
    })
}

fn operation(id: &str, action: &str, names: &[&str], answer: &str, bodies: &[&str]) -> Value {
    let content = |types: &[&str], schema: &str| -> Value {
        types.iter().map(|ty| ((*ty).to_owned(), json!({"schema": reference(schema)}))).collect::<Map<_, _>>().into()
    };
    let mut operation = json!({
        "operationId": id,
        "description": format!("{action} {KIND}"),
        "tags": [format!("{GROUP}_{VERSION}")],
        "parameters": parameters(names),
        "responses": {
            "200": {"description": "OK", "content": content(&["application/json", "application/yaml"], answer)},
            "401": {"description": "Unauthorized"},
        },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind(KIND),
    });
    if let Some(fields) = operation.as_object_mut().filter(|_| !bodies.is_empty()) {
        let schema = if action == "patch" { PATCH } else { ROUTER };
        fields.insert("requestBody".to_owned(), json!({"required": true, "content": content(bodies, schema)}));
    }
    operation
}
