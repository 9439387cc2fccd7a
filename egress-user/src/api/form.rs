//! Objects and lists as they go out: plain, as tables, as metadata alone.

use serde_json::{Map, Value, json};

use axum::body::Bytes;

use super::negotiate::{Accepted, Form};
use super::resource::Resource;
use super::status::Refusal;
use super::store::Stored;
use super::{json, meta};

/// What a table's row holds besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    /// Nothing.
    None,
    /// The object's metadata.
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    /// By the query's `includeObject`.
    ///
    /// # Errors
    /// 400 for a word that means nothing.
    pub(super) fn of(text: Option<&str>) -> Result<Self, Refusal> {
        match text.unwrap_or_default() {
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            "None" => Ok(Self::None),
            other => Err(Refusal::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            ))),
        }
    }
}

/// Metadata of a list.
#[derive(Clone, Debug, Default)]
pub(super) struct ListMeta {
    /// The version that it shows.
    pub(super) version: u64,
    /// Where it goes on.
    pub(super) token: Option<String>,
    /// How many there are besides, where that is known.
    pub(super) remaining: Option<usize>,
}

impl ListMeta {
    fn to_json(&self) -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".to_owned(), self.version.to_string().into());
        metadata.extend(self.token.as_ref().map(|token| ("continue".to_owned(), token.as_str().into())));
        metadata.extend(self.remaining.map(|count| ("remainingItemCount".to_owned(), count.into())));
        metadata
    }
}

/// One object in the accepted form.
///
/// # Errors
/// 500 where the form of a list is asked for.
pub(super) fn item(resource: Resource, object: Value, accepted: &Accepted, include: Include) -> Result<Value, Refusal> {
    match accepted.form {
        Form::Plain => Ok(object),
        Form::Table => {
            let version = meta::get(&object, "resourceVersion").cloned();
            let mut metadata = Map::new();
            metadata.extend(version.map(|version| ("resourceVersion".to_owned(), version)));
            let rows = vec![row(resource, object, accepted.version, include)];
            Ok(table(resource, metadata, rows, accepted.version))
        }
        Form::Metadata => Ok(metadata_of(object, accepted.version)),
        Form::MetadataList => Err(Refusal::internal("content is not a list")),
    }
}

/// A list in the accepted form.
///
/// # Errors
/// 406 where the form of an object is asked for.
pub(super) fn list(
    resource: Resource,
    items: &[Stored],
    list: &ListMeta,
    accepted: &Accepted,
    include: Include,
) -> Result<Value, Refusal> {
    let mut metadata = list.to_json();
    let objects = items.iter().map(|stored| resource.shown(stored));
    match accepted.form {
        Form::Plain => {
            metadata.entry("continue").or_insert_with(|| "".into());
            let (version, kind, items) = (resource.api_version(), resource.list_kind(), objects.collect::<Vec<_>>());
            Ok(json!({"apiVersion": version, "kind": kind, "metadata": metadata, "items": items}))
        }
        Form::Table => {
            let rows = objects.map(|object| row(resource, object, accepted.version, include)).collect();
            Ok(table(resource, metadata, rows, accepted.version))
        }
        Form::MetadataList => {
            let items: Vec<Value> = objects.map(|object| metadata_of(object, accepted.version)).collect();
            let items = if items.is_empty() { Value::Null } else { items.into() };
            let version = format!("meta.k8s.io/{}", accepted.version);
            Ok(
                json!({"kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": metadata, "items": items}),
            )
        }
        Form::Metadata => Err(refuse_list()),
    }
}

/// The same list, plain, in pieces of JSON: what objects were written to once is not copied for every list.
pub(super) fn pieces(resource: Resource, items: &[Stored], list: &ListMeta) -> Vec<Bytes> {
    let mut metadata = list.to_json();
    metadata.entry("continue").or_insert_with(|| "".into());
    let metadata = json::compact(&Value::Object(metadata));
    let (version, kind) = (resource.api_version(), resource.list_kind());
    let mut pieces = Vec::with_capacity(2 * items.len() + 2);
    pieces.push(Bytes::from(format!("{{\"apiVersion\":\"{version}\",\"items\":[")));
    for (index, stored) in items.iter().enumerate() {
        if index > 0 {
            pieces.push(Bytes::from_static(b","));
        }
        pieces.push(resource.text(stored));
    }
    pieces.push(Bytes::from(format!("],\"kind\":\"{kind}\",\"metadata\":{metadata}}}\n")));
    pieces
}

/// The refusal of a list as one object's metadata.
pub(super) fn refuse_list() -> Refusal {
    let what =
        "you requested PartialObjectMetadata, but the requested object is a list (*unstructured.UnstructuredList)";
    Refusal::not_acceptable(what)
}

fn metadata_of(mut object: Value, version: &str) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
}

fn row(resource: Resource, object: Value, version: &str, include: Include) -> Value {
    let cells = resource.cells(&object);
    match include {
        Include::None => json!({"cells": cells, "object": null}),
        Include::Metadata => json!({"cells": cells, "object": metadata_of(object, version)}),
        Include::Object => json!({"cells": cells, "object": object}),
    }
}

fn table(resource: Resource, metadata: Map<String, Value>, rows: Vec<Value>, version: &str) -> Value {
    let columns = resource.columns();
    let version = format!("meta.k8s.io/{version}");
    json!({"kind": "Table", "apiVersion": version, "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

/// A table without its columns, as every event but the first carries it.
pub(super) fn without_columns(mut table: Value) -> Value {
    if let Some(columns) = table.get_mut("columnDefinitions") {
        *columns = Value::Null;
    }
    table
}
