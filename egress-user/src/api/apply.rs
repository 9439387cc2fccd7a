//! Server-side apply: a configuration, and the object that it makes of another or of nothing.

use serde_json::{Value, json};

use super::managed::{self, Endpoint, Writer};
use super::object::{self, FieldValidation};
use super::options::WriteOptions;
use super::resource::Resource;
use super::status::Refusal;
use super::write::{Place, Written, check_name, place, store_new};
use super::{meta, yaml};
use crate::spec::{API_VERSION, KIND};

/// Reads the configuration of an apply.
///
/// # Errors
/// 400.
pub(super) fn read(body: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>), Refusal> {
    let decoded = yaml::decode(body);
    let decoded = decoded
        .map_err(|what| Refusal::bad_request(format!("error decoding YAML: error converting YAML to JSON: {what}")))?;
    if !decoded.duplicates.is_empty() && validation == FieldValidation::Strict {
        let lines: Vec<String> = decoded.duplicates.iter().map(|what| format!("\n  {what}")).collect();
        return Err(Refusal::bad_request(format!(
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:{}",
            lines.concat()
        )));
    }
    let warnings = if validation == FieldValidation::Warn { decoded.duplicates } else { Vec::new() };
    match decoded.value {
        Value::Object(_) => Ok((decoded.value, warnings)),
        Value::Null => Ok((json!({}), warnings)),
        other => {
            let kind = super::json::kind(&other);
            Err(Refusal::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} into \
                 Go value of type map[string]interface {{}}"
            )))
        }
    }
}

/// The object after an apply, with its managers noted.
///
/// # Errors
/// A configuration that is of another object, or in conflict.
pub(super) fn applied(
    live: &Value,
    mut config: Value,
    name: &str,
    namespace: &str,
    endpoint: Endpoint,
    options: &WriteOptions,
) -> Result<Value, Refusal> {
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if version != API_VERSION || kind != KIND {
        let version = if version.is_empty() { "/" } else { &version };
        return Err(Refusal::bad_request(format!("invalid object type: {version}, Kind={kind}")));
    }
    if meta::get(&config, "managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Refusal::bad_request("metadata.managedFields must be nil"));
    }
    meta::set(&mut config, "managedFields", None);
    if meta::get(&config, "creationTimestamp").is_some_and(Value::is_null) {
        meta::set(&mut config, "creationTimestamp", None);
    }
    let given = meta::text(&config, "name").to_owned();
    if !given.is_empty() {
        check_name(&config, name)?;
    }
    let elsewhere = meta::text(&config, "namespace");
    if !elsewhere.is_empty() {
        place(&mut config, namespace)?;
    }
    let now = meta::now();
    let writer = Writer { name: &options.manager, endpoint, now: &now };
    let mut object = managed::apply(object::object_type(), live, &config, &writer, options.force)?;
    meta::set(&mut object, "name", Some(name.into()));
    object::default(&mut object);
    let mut unknown = Vec::new();
    meta::normalize(&mut object, &mut unknown).map_err(Refusal::bad_request)?;
    Ok(object)
}

/// An apply to what does not exist makes it.
///
/// # Errors
/// What the namespace, the store or the configuration itself has against it.
pub(super) async fn create(
    target: Place<'_>,
    name: &str,
    body: &[u8],
    options: &WriteOptions,
) -> Result<Written, Refusal> {
    let (config, mut warnings) = read(body, options.validation)?;
    let empty = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {}});
    let mut object = applied(&empty, config, name, target.namespace, Endpoint::Main, options)?;
    place(&mut object, target.namespace)?;
    let uid = meta::text(&object, "uid");
    if !uid.is_empty() {
        let what = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Refusal::conflict(Resource::Routers, super::PLURAL, name, &what));
    }
    target.namespaces.check(target.namespace)?;
    warnings.extend(meta::fold_owners(&mut object));
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    meta::set(&mut object, "resourceVersion", None);
    meta::set(&mut object, "uid", Some(uuid::Uuid::new_v4().to_string().into()));
    meta::set(&mut object, "creationTimestamp", Some(meta::now().into()));
    meta::set(&mut object, "generation", Some(1.into()));
    store_new(target, object, options, warnings).await
}
