//! The object, between the API's form and the agent's files.

use std::path::Path;

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};

use super::SourceError;
use crate::spec::{API_VERSION, KIND};

/// The resource.
pub(super) fn resource() -> ApiResource {
    let (group, version) = API_VERSION.split_once('/').unwrap_or_default();
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, KIND))
}

/// The text that the agent reads: name and specification.
pub(super) fn mirrored(object: &DynamicObject) -> String {
    let metadata = json!({"name": object.metadata.name, "namespace": object.metadata.namespace});
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}).to_string()
}

/// The conditions that the object has.
pub(super) fn conditions(object: &DynamicObject) -> Value {
    object.data.pointer("/status/conditions").cloned().unwrap_or_default()
}

/// Writes the mirror in one step; the same text again is no write.
pub(super) fn write(file: &Path, text: &str) -> Result<(), SourceError> {
    if std::fs::read_to_string(file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let failed = |source| SourceError::Mirror { path: file.to_owned(), source };
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let new = file.with_extension("new");
    std::fs::write(&new, text).map_err(failed)?;
    std::fs::rename(&new, file).map_err(failed)
}
