//! JSON patch (RFC 6902) and merge patch (RFC 7396).

use serde_json::Value;

use super::json::{self, compact, kind};
use super::status::Refusal;

/// Operations that one JSON patch may have.
const MAX_OPERATIONS: usize = 10_000;

/// Fields that the patch's text gives twice.
pub(super) type Duplicates = Vec<String>;

/// Applies a JSON patch.
///
/// # Errors
/// A patch that cannot be read, or does not fit.
pub(super) fn json_patch(object: &Value, patch: &[u8]) -> Result<(Value, Duplicates), Refusal> {
    let decoded = json::decode(patch).map_err(|what| Refusal::bad_request(format!("error decoding patch: {what}")))?;
    let operations = match decoded.value {
        Value::Array(operations) => operations,
        Value::Null => Vec::new(),
        other => {
            let what = format!("json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp", kind(&other));
            return Err(Refusal::bad_request(format!("error decoding patch: {what}")));
        }
    };
    if operations.len() > MAX_OPERATIONS {
        let what =
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", operations.len());
        return Err(Refusal::too_large(&what));
    }
    let mut patched = object.clone();
    for operation in operations {
        check_operation(&operation)?;
        let read = serde_json::from_value::<json_patch::PatchOperation>(operation);
        let operation = read.map_err(|_unfit| Refusal::unprocessable())?;
        json_patch::patch(&mut patched, &[operation]).map_err(|_unfit| Refusal::unprocessable())?;
    }
    Ok((patched, decoded.duplicates))
}

fn check_operation(operation: &Value) -> Result<(), Refusal> {
    let refuse = |what: &str| Err(Refusal::bad_request(format!("invalid operation {}: {what}", compact(operation))));
    match operation.get("op").and_then(Value::as_str) {
        Some("add" | "remove" | "replace" | "move" | "copy" | "test") => {}
        _ => return refuse("unsupported operation"),
    }
    if operation.get("path").is_none() {
        return refuse("failed to decode 'path': operation missing path field: missing value");
    }
    Ok(())
}

/// Applies a merge patch.
///
/// # Errors
/// A patch that cannot be read.
pub(super) fn merge_patch(object: &Value, patch: &[u8]) -> Result<(Value, Duplicates), Refusal> {
    let decoded = json::decode(patch).map_err(|what| Refusal::bad_request(format!("error decoding patch: {what}")))?;
    match &decoded.value {
        Value::Object(_) => {}
        Value::Null => return Err(Refusal::bad_request("Invalid JSON Patch")),
        other => {
            let what =
                format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", kind(other));
            return Err(Refusal::bad_request(format!("error decoding patch: {what}")));
        }
    }
    let mut patched = object.clone();
    json_patch::merge(&mut patched, &decoded.value);
    Ok((patched, decoded.duplicates))
}

/// The patched object's text, new fields behind the ones that were there, for messages.
pub(super) fn shown(before: &Value, after: &Value) -> String {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let kept = before.keys().filter(|name| after.contains_key(*name));
            let added = after.keys().filter(|name| !before.contains_key(*name));
            let fields = kept.chain(added).filter_map(|name| {
                let value = after.get(name)?;
                let shown = before.get(name).map_or_else(|| compact(value), |old| shown(old, value));
                Some(format!("{}:{shown}", compact(&name.as_str().into())))
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        _ => compact(after),
    }
}
