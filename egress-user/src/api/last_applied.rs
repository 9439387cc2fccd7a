//! The annotation in which `kubectl apply` notes what it applied, and how an apply on the server's side takes over from it.
//!
//! As kube-apiserver does, and for kubectl's own manager only: fields that the annotation has, and that are still as it
//! says, are kubectl's already; and an annotation that is there is kept up to date.

use serde_json::Value;

use super::fields::Set;
use super::typed::Type;
use super::{json, meta};

/// kubectl's name when it applies on the server's side.
pub(super) const MANAGER: &str = "kubectl";

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Bytes that annotations may have; a longer note is left empty.
const MAX: usize = 256 * 1024;

fn annotation(object: &Value) -> Option<&str> {
    meta::get(object, "annotations")?.get(ANNOTATION)?.as_str()
}

/// The fields that were applied last and have not changed since.
pub(super) fn fields(ty: &Type, live: &Value) -> Set {
    let noted = annotation(live).and_then(|text| json::decode(text.as_bytes()).ok()).map(|decoded| decoded.value);
    let Some(noted) = noted.filter(|noted| ty.check(noted, "", false).is_ok()) else { return Set::default() };
    let comparison = ty.compare(&noted, live);
    ty.fields(&noted).difference(&comparison.modified).difference(&comparison.added).difference(&comparison.removed)
}

/// Brings the annotation up to date, where there is one.
pub(super) fn note(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let mut text = format!("{}\n", json::compact(&config));
    if text.len() > MAX {
        text.clear();
    }
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.insert(ANNOTATION.to_owned(), text.into());
    }
}
