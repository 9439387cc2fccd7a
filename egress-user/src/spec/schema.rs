//! The schema of the object, from the types: structural, as a CustomResourceDefinition takes it.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::EgressRouter;

/// The OpenAPI v3 schema of an `EgressRouter`, with the documentation of the types as its descriptions.
pub fn open_api_schema() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<EgressRouter>();
    Structural.transform(&mut schema);
    for key in ["$schema", "title", "components"] {
        schema.remove(key);
    }
    let mut schema = schema.to_value();
    // API servers describe metadata themselves, and refuse a definition that says more than that it is there.
    if let Some(metadata) = schema.pointer_mut("/properties/metadata") {
        *metadata = json!({"type": "object"});
    }
    schema
}

/// A host's address of either family.
pub(super) fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]})
}

/// A port of a transport protocol.
pub(super) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535})
}

/// A time that may be null, and may not be left out.
pub(super) fn nullable_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time", "nullable": true})
}

/// An object whose fields are the server's business.
pub(super) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

/// For a default that is no part of the schema.
pub(super) fn always<T>(_: &T) -> bool {
    true
}

/// Puts what JSON Schema says in several ways into the one way of a structural schema.
struct Structural;

impl Transform for Structural {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        // An optional field may be absent; where it may be null as well, its own schema says so.
        if schema.get("nullable") == Some(&Value::Bool(true)) && schema.get("format") != Some(&"date-time".into()) {
            schema.remove("nullable");
        }
        // An enum whose variants are documented comes as a choice of constants.
        let choices = schema.get("oneOf").and_then(Value::as_array).map(|choices| {
            choices.iter().map(|choice| choice.pointer("/enum/0").or_else(|| choice.get("const")).cloned()).collect()
        });
        if let Some(Some(names)) = choices.filter(|_| schema.get("properties").is_none()) {
            schema.remove("oneOf");
            schema.insert("type".to_owned(), "string".into());
            schema.insert("enum".to_owned(), Value::Array(names));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema without what is for people, and with `required` in a fixed order.
    fn bare(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let keep = |key: &String, value: &Value| key != "description" || value.is_object();
                fields
                    .iter()
                    .filter(|(key, value)| keep(key, value))
                    .map(|(key, value)| (key.clone(), if key == "required" { sorted(value) } else { bare(value) }))
                    .collect()
            }
            Value::Array(items) => items.iter().map(bare).collect(),
            other => other.clone(),
        }
    }

    fn sorted(names: &Value) -> Value {
        let mut names: Vec<String> = serde_json::from_value(names.clone()).unwrap();
        names.sort();
        names.into()
    }

    /// The original's schema (openshift/api, networkoperator/v1, as generated), without descriptions.
    #[test]
    fn equals_the_original() {
        let original: Value = serde_json::from_str(include_str!("tests/original-schema.json")).unwrap();
        assert_eq!(bare(&open_api_schema()), bare(&original), "{:#}", open_api_schema());
    }

    #[test]
    fn describes_its_fields() {
        let schema = open_api_schema();
        let described = schema.pointer("/properties/spec/properties/redirect/properties/fallbackIP/description");
        assert_eq!(described, Some(&"Destination of everything else.".into()));
        assert_eq!(schema.pointer("/properties/metadata"), Some(&json!({"type": "object"})));
    }
}
