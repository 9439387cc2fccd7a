//! The object of this API: what bodies are read to, what is checked before it is stored.

use std::sync::OnceLock;

use serde_json::Value;

use super::json::{self, kind};
use super::negotiate::BodyType;
use super::schema::Schema;
use super::status::{Cause, Refusal, unrecognized};
use super::typed::Type;
use super::{GROUP, meta, yaml};
use crate::spec::{API_VERSION, KIND, open_api_schema};

/// How unknown and doubled fields are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldValidation {
    /// In silence.
    Ignore,
    /// With a warning.
    Warn,
    /// With a refusal.
    Strict,
}

/// The schema of the object.
pub(super) fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| Schema::new(&open_api_schema()))
}

/// How the object merges.
pub(super) fn object_type() -> &'static Type {
    static TYPE: OnceLock<Type> = OnceLock::new();
    TYPE.get_or_init(|| Type::of_object(schema()))
}

/// What is odd about a body.
#[derive(Debug, Default)]
pub(super) struct Oddities {
    /// Fields that are given twice, as a warning says it.
    pub(super) doubled: Vec<String>,
    /// The same, as a refusal says it.
    pub(super) doubled_strict: Vec<String>,
    /// Paths of fields that nobody knows.
    pub(super) unknown: Vec<String>,
}

impl Oddities {
    /// For a JSON text.
    pub(super) fn of_json(duplicates: Vec<String>) -> Self {
        let doubled: Vec<String> = duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
        Self { doubled_strict: doubled.clone(), doubled, unknown: Vec::new() }
    }

    /// For a YAML text.
    pub(super) fn of_yaml(duplicates: Vec<String>) -> Self {
        let lines: Vec<String> = duplicates.iter().map(|what| format!("\n  {what}")).collect();
        let strict = (!lines.is_empty()).then(|| format!("yaml: unmarshal errors:{}", lines.concat()));
        Self { doubled: duplicates, doubled_strict: strict.into_iter().collect(), unknown: Vec::new() }
    }

    fn unknown(&self) -> Vec<String> {
        let mut unknown = self.unknown.clone();
        unknown.sort();
        unknown.iter().map(|path| format!("unknown field {path:?}")).collect()
    }

    /// The warnings about it.
    pub(super) fn warnings(&self, validation: FieldValidation) -> Vec<String> {
        match validation {
            FieldValidation::Warn => self.doubled.iter().cloned().chain(self.unknown()).collect(),
            FieldValidation::Ignore | FieldValidation::Strict => Vec::new(),
        }
    }

    /// The refusal of it.
    pub(super) fn refusal(&self, validation: FieldValidation) -> Option<String> {
        let all: Vec<String> = self.doubled_strict.iter().cloned().chain(self.unknown()).collect();
        (validation == FieldValidation::Strict && !all.is_empty())
            .then(|| format!("strict decoding error: {}", all.join(", ")))
    }
}

/// Reads the body of a create or an update: pruned and defaulted; with warnings.
///
/// # Errors
/// 400.
pub(super) fn read(body: &[u8], ty: BodyType, validation: FieldValidation) -> Result<(Value, Vec<String>), Refusal> {
    let (mut object, mut oddities, too_large) = match ty {
        BodyType::Json => {
            let decoded = json::decode(body);
            let decoded = decoded
                .map_err(|what| unrecognized(&format!("couldn't get version/kind; json parse error: {what}"), body))?;
            (decoded.value, Oddities::of_json(decoded.duplicates), decoded.too_large)
        }
        BodyType::Yaml => {
            let decoded = yaml::decode(body).map_err(|what| unrecognized(&what, body))?;
            (decoded.value, Oddities::of_yaml(decoded.duplicates), None)
        }
    };
    check_identity(&object, body)?;
    let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if version != API_VERSION {
        let what =
            format!("the API version in the data ({version}) does not match the expected API version ({API_VERSION})");
        // Another version of the group is read by no schema.
        let mut odd = Oddities::default();
        if version.strip_prefix(GROUP).is_some_and(|rest| rest.starts_with('/')) {
            let known = ["apiVersion", "kind", "metadata"];
            let fields = object.as_object().into_iter().flat_map(|fields| fields.keys());
            odd.unknown.extend(fields.filter(|name| !known.contains(&name.as_str())).cloned());
        }
        return Err(Refusal::bad_request(what).with_warnings(&odd.warnings(validation)));
    }
    let cannot =
        |what: &str| Refusal::bad_request(format!("{KIND} in version \"v1\" cannot be handled as a {KIND}: {what}"));
    if let Some(number) = too_large {
        return Err(cannot(&format!("json: cannot unmarshal number {number} into Go value of type float64")));
    }
    complete(&mut object, &mut oddities.unknown).map_err(|what| cannot(&what))?;
    if object.get("kind").and_then(Value::as_str) != Some(KIND) {
        // It is refused as what it is, whatever is in it.
        oddities.unknown.clear();
    }
    match oddities.refusal(validation) {
        Some(what) => Err(cannot(&what)),
        None => Ok((object, oddities.warnings(validation))),
    }
}

/// Brings a read object into the form that is stored: metadata normalised, unknown fields pruned, defaults set.
///
/// # Errors
/// Go's message for metadata of the wrong type.
pub(super) fn complete(object: &mut Value, unknown: &mut Vec<String>) -> Result<(), String> {
    meta::normalize(object, unknown)?;
    let schema = schema();
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|name, value| match schema.field(name) {
            Some(_) if matches!(name.as_str(), "metadata" | "apiVersion" | "kind") => true,
            Some(field) => {
                field.prune(value, name, unknown);
                true
            }
            None => {
                unknown.push(name.clone());
                false
            }
        });
    }
    schema.drop_nulls(object);
    default(object);
    Ok(())
}

/// Sets defaults.
pub(super) fn default(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for name in ["spec", "status"] {
        if let (Some(value), Some(schema)) = (fields.get_mut(name), schema().field(name)) {
            schema.default(value);
        }
    }
}

fn check_identity(object: &Value, body: &[u8]) -> Result<(), Refusal> {
    let missing = || {
        let text = json_text(object, body);
        unrecognized(&format!("Object 'Kind' is missing in '{text}'"), body)
    };
    let fields = match object {
        Value::Object(fields) => fields,
        Value::Null => return Err(missing()),
        other => {
            let ty = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                \"json:\\\"kind,omitempty\\\"\" }";
            let what = format!("json: cannot unmarshal {} into Go value of type {ty}", kind(other));
            return Err(unrecognized(&format!("couldn't get version/kind; json parse error: {what}"), body));
        }
    };
    for name in ["apiVersion", "kind"] {
        match fields.get(name) {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(other) => {
                let what =
                    format!("json: cannot unmarshal {} into Go struct field .{name} of type string", kind(other));
                return Err(unrecognized(&format!("couldn't get version/kind; json parse error: {what}"), body));
            }
        }
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion").matches('/').count() > 1 {
        return Err(unrecognized(&format!("unexpected GroupVersion string: {}", text("apiVersion")), body));
    }
    if text("kind").is_empty() { Err(missing()) } else { Ok(()) }
}

/// The body as a message shows it: what came, and JSON where it was YAML.
fn json_text(object: &Value, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body).into_owned();
    if body.trim_ascii_start().starts_with(b"{") || body.is_empty() || json::decode(body).is_ok() {
        text
    } else {
        json::compact(object)
    }
}

/// What is wrong with an object that is to be stored, apart from its status.
pub(super) fn check(object: &Value) -> Vec<Cause> {
    let mut causes = meta::check(object);
    let mut found = Vec::new();
    match object.get("spec") {
        None => found.push(Cause::required("spec", "")),
        Some(spec) => {
            if let Some(schema) = schema().field("spec") {
                schema.validate(spec, "spec", "spec", &mut found);
            }
        }
    }
    // A branch of the schema may find what the schema itself finds.
    for cause in found {
        if !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    causes
}

/// What is wrong with the status.
pub(super) fn check_status(object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let (Some(status), Some(schema)) = (object.get("status"), schema().field("status")) {
        schema.validate(status, "status", "", &mut causes);
    }
    causes
}

/// The refusal of an object that calls itself something else.
pub(super) fn check_kind(object: &Value) -> Result<(), Refusal> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let name = meta::text(object, "name");
    if text("kind") != KIND {
        let cause = Cause::invalid("kind", &text("kind").into(), &format!("must be {KIND}"));
        return Err(Refusal::invalid(text("kind"), name, &[cause]));
    }
    if text("apiVersion") != API_VERSION {
        let cause = Cause::invalid("apiVersion", &text("apiVersion").into(), &format!("must be {API_VERSION}"));
        return Err(Refusal::invalid(KIND, name, &[cause]));
    }
    Ok(())
}
