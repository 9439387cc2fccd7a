//! Objects and lists as they go out: plain, as tables, as metadata alone.

use serde_json::{Map, Value, json};

use super::crd::COLUMNS;
use super::negotiate::{Accepted, Form};
use super::status::Refusal;
use super::store::Stored;
use super::{LIST_KIND, meta};
use crate::spec::API_VERSION;

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

/// A stored object with its version in it.
pub(super) fn versioned(stored: &Stored) -> Value {
    let mut object = (*stored.value).clone();
    meta::set(&mut object, "resourceVersion", Some(stored.version.to_string().into()));
    object
}

/// One object in the accepted form.
///
/// # Errors
/// 500 where the form of a list is asked for.
pub(super) fn item(object: Value, accepted: &Accepted, include: Include) -> Result<Value, Refusal> {
    match accepted.form {
        Form::Plain => Ok(object),
        Form::Table => {
            let version = meta::get(&object, "resourceVersion").cloned();
            let mut metadata = Map::new();
            metadata.extend(version.map(|version| ("resourceVersion".to_owned(), version)));
            let rows = vec![row(object, accepted.version, include)];
            Ok(table(metadata, rows, accepted.version, true))
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
    items: Vec<Value>,
    list: &ListMeta,
    accepted: &Accepted,
    include: Include,
) -> Result<Value, Refusal> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), list.version.to_string().into());
    metadata.extend(list.token.as_ref().map(|token| ("continue".to_owned(), token.as_str().into())));
    metadata.extend(list.remaining.map(|count| ("remainingItemCount".to_owned(), count.into())));
    match accepted.form {
        Form::Plain => {
            metadata.entry("continue").or_insert_with(|| "".into());
            Ok(json!({"apiVersion": API_VERSION, "kind": LIST_KIND, "metadata": metadata, "items": items}))
        }
        Form::Table => {
            let rows = items.into_iter().map(|object| row(object, accepted.version, include)).collect();
            Ok(table(metadata, rows, accepted.version, true))
        }
        Form::MetadataList => {
            let items: Vec<Value> = items.into_iter().map(|object| metadata_of(object, accepted.version)).collect();
            let items = if items.is_empty() { Value::Null } else { items.into() };
            let version = format!("meta.k8s.io/{}", accepted.version);
            Ok(
                json!({"kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": metadata, "items": items}),
            )
        }
        Form::Metadata => Err(refuse_list()),
    }
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

fn row(object: Value, version: &str, include: Include) -> Value {
    let mut cells = vec![Value::from(meta::text(&object, "name"))];
    let first = object.pointer("/status/conditions/0");
    for field in ["type", "status"] {
        cells.push(first.and_then(|condition| condition.get(field)).cloned().unwrap_or_default());
    }
    match include {
        Include::None => json!({"cells": cells, "object": null}),
        Include::Metadata => json!({"cells": cells, "object": metadata_of(object, version)}),
        Include::Object => json!({"cells": cells, "object": object}),
    }
}

fn table(metadata: Map<String, Value>, rows: Vec<Value>, version: &str, columns: bool) -> Value {
    let columns = if columns { self::columns() } else { Value::Null };
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

fn columns() -> Value {
    let name = "Name must be unique within a namespace. Is required when creating resources, although some resources may \
        allow a client to request the generation of an appropriate name automatically. Name is primarily intended for \
        creation idempotence and configuration definition. Cannot be updated. More info: \
        https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
    let name = json!({"name": "Name", "type": "string", "format": "name", "description": name, "priority": 0});
    let others = COLUMNS.iter().map(|(column, path)| {
        let description = format!("Custom resource definition column (in JSONPath format): {path}");
        json!({"name": column, "type": "string", "format": "", "description": description, "priority": 0})
    });
    Value::Array(std::iter::once(name).chain(others).collect())
}
