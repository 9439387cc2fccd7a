//! The structural schema at work: prune, default and validate, with the words of kube-apiserver.

use serde_json::{Map, Value};

use super::status::Cause;

/// A node of the schema.
#[derive(Debug, Default)]
pub(super) struct Schema {
    kind: Option<Kind>,
    format: Option<Format>,
    nullable: bool,
    default: Option<Value>,
    choices: Vec<Value>,
    minimum: Option<i64>,
    maximum: Option<i64>,
    /// Fields of an object, in the order of their names.
    pub(super) fields: Vec<(String, Schema)>,
    required: Vec<String>,
    items: Option<Box<Schema>>,
    /// Keys that tell the items of a list from each other.
    pub(super) list_keys: Vec<String>,
    one_of: Vec<Schema>,
    any_of: Vec<Schema>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Object,
    Array,
    String,
    Integer,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Ipv4,
    Ipv6,
    DateTime,
    Int32,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::DateTime => "date-time",
            Self::Int32 => "int32",
        }
    }

    fn holds(self, text: &str) -> bool {
        match self {
            Self::Ipv4 => is_ipv4(text),
            Self::Ipv6 => text.contains(':') && text.parse::<std::net::Ipv6Addr>().is_ok(),
            Self::DateTime => is_time(text),
            Self::Int32 => true,
        }
    }
}

/// Four decimal numbers; leading zeros are let through, as govalidator does.
fn is_ipv4(text: &str) -> bool {
    let octet = |part: &str| {
        !part.is_empty()
            && part.len() <= 3
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && part.parse::<u16>().is_ok_and(|number| number < 256)
    };
    text.split('.').count() == 4 && text.split('.').all(octet)
}

/// RFC 3339, letters in either case.
fn is_time(text: &str) -> bool {
    let shape = text.len() >= 20 && matches!(text.as_bytes().get(10), Some(b'T' | b't'));
    shape && text.to_ascii_uppercase().parse::<jiff::Timestamp>().is_ok()
}

impl Schema {
    /// Reads a schema that this program made.
    pub(super) fn new(schema: &Value) -> Self {
        let sub = |key: &str| -> Vec<Self> {
            schema.get(key).and_then(Value::as_array).into_iter().flatten().map(Self::new).collect()
        };
        let texts = |key: &str| -> Vec<String> {
            let items = schema.get(key).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            kind: match schema.get("type").and_then(Value::as_str) {
                Some("object") => Some(Kind::Object),
                Some("array") => Some(Kind::Array),
                Some("string") => Some(Kind::String),
                Some("integer") => Some(Kind::Integer),
                _ => None,
            },
            format: match schema.get("format").and_then(Value::as_str) {
                Some("ipv4") => Some(Format::Ipv4),
                Some("ipv6") => Some(Format::Ipv6),
                Some("date-time") => Some(Format::DateTime),
                Some("int32") => Some(Format::Int32),
                _ => None,
            },
            nullable: schema.get("nullable") == Some(&Value::Bool(true)),
            default: schema.get("default").cloned(),
            choices: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            minimum: schema.get("minimum").and_then(Value::as_i64),
            maximum: schema.get("maximum").and_then(Value::as_i64),
            fields: schema
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), Self::new(schema)))
                .collect(),
            required: texts("required"),
            items: schema.get("items").map(|items| Box::new(Self::new(items))),
            list_keys: texts("x-kubernetes-list-map-keys"),
            one_of: sub("oneOf"),
            any_of: sub("anyOf"),
        }
    }

    /// The schema of a field.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, schema)| schema)
    }

    /// The schema of a list's items.
    pub(super) fn items(&self) -> Option<&Self> {
        self.items.as_deref()
    }

    /// Whether it is a list at all.
    pub(super) fn is_list(&self) -> bool {
        self.kind == Some(Kind::Array)
    }

    /// Whether it is an object.
    pub(super) fn is_object(&self) -> bool {
        self.kind == Some(Kind::Object)
    }

    /// The name of a scalar's type.
    pub(super) fn scalar_name(&self) -> &'static str {
        self.kind.map_or("", Kind::name)
    }

    /// Takes away what the schema does not know; names the fields.
    pub(super) fn prune(&self, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
        match value {
            Value::Object(fields) if self.is_object() => {
                fields.retain(|name, value| match self.field(name) {
                    Some(schema) => {
                        schema.prune(value, &below(path, name), unknown);
                        true
                    }
                    None => {
                        unknown.push(below(path, name));
                        false
                    }
                });
            }
            Value::Array(items) => {
                if let Some(schema) = self.items() {
                    for (index, item) in items.iter_mut().enumerate() {
                        schema.prune(item, &format!("{path}[{index}]"), unknown);
                    }
                }
            }
            _ => {}
        }
    }

    /// Takes away nulls where there can be none and nothing else is to be had.
    pub(super) fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, schema) in &self.fields {
                    if schema.default.is_none() && !schema.nullable && fields.get(name).is_some_and(Value::is_null) {
                        fields.remove(name);
                    }
                    if let Some(value) = fields.get_mut(name) {
                        schema.drop_nulls(value);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = self.items() {
                    items.iter_mut().for_each(|item| schema.drop_nulls(item));
                }
            }
            _ => {}
        }
    }

    /// Puts defaults where nothing, or an impossible null, is.
    pub(super) fn default(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => self.default_fields(fields),
            Value::Array(items) => {
                if let Some(schema) = self.items() {
                    items.iter_mut().for_each(|item| schema.default(item));
                }
            }
            _ => {}
        }
    }

    fn default_fields(&self, fields: &mut Map<String, Value>) {
        for (name, schema) in &self.fields {
            let null = fields.get(name).is_some_and(Value::is_null) && !schema.nullable;
            if let Some(default) = schema.default.as_ref().filter(|_| null || !fields.contains_key(name)) {
                fields.insert(name.clone(), default.clone());
            }
            if let Some(value) = fields.get_mut(name) {
                schema.default(value);
            }
        }
    }

    /// What is wrong with a value. `field` is its full path, `place` the one that texts name it by.
    pub(super) fn validate(&self, value: &Value, field: &str, place: &str, causes: &mut Vec<Cause>) {
        if value.is_null() && self.nullable {
            return;
        }
        if let Some(cause) = self.check_type(value, field, place) {
            causes.push(cause);
            if value.is_null() {
                return;
            }
        }
        self.check_format(value, field, place, causes);
        self.check_choices(value, field, causes);
        self.check_range(value, field, place, causes);
        self.check_branches(value, field, place, causes);
        match value {
            Value::Object(fields) => {
                for name in &self.required {
                    if !fields.contains_key(name) {
                        causes.push(Cause::required(below(field, name), ""));
                    }
                }
                for (name, value) in fields {
                    if let Some(schema) = self.field(name) {
                        schema.validate(value, &below(field, name), &below(place, name), causes);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = self.items() {
                    for (index, item) in items.iter().enumerate() {
                        schema.validate(item, &format!("{field}[{index}]"), &format!("{place}[{index}]"), causes);
                    }
                }
                self.check_keys(items, field, causes);
            }
            _ => {}
        }
    }

    fn check_type(&self, value: &Value, field: &str, place: &str) -> Option<Cause> {
        let wanted = self.kind?;
        let wrong = |wanted: &str, found: &str| {
            let found = format!("\"{found}\"");
            Some(Cause::wrong_type(field, &found, &format!("{place} in body must be of type {wanted}: {found}")))
        };
        match (wanted, value) {
            (Kind::Object, Value::Object(_)) | (Kind::Array, Value::Array(_)) | (Kind::String, Value::String(_)) => {
                None
            }
            (Kind::Integer, Value::Number(number)) if number.is_i64() => None,
            (Kind::Integer, Value::Number(_)) => wrong("int32", "float64"),
            (Kind::Integer, Value::Bool(_) | Value::Object(_)) => wrong("int32", ""),
            (Kind::String, Value::Number(number)) if self.format.is_some() => {
                wrong(self.format_name(), if number.is_i64() { "int64" } else { "float64" })
            }
            (Kind::String, Value::Bool(_)) if self.format.is_some() => wrong(self.format_name(), ""),
            (_, Value::Null) => wrong(wanted.name(), "null"),
            (_, Value::Bool(_)) => wrong(wanted.name(), "boolean"),
            (_, Value::Number(number)) => wrong(wanted.name(), if number.is_i64() { "integer" } else { "number" }),
            (_, Value::String(_)) => wrong(wanted.name(), "string"),
            (_, Value::Array(_)) => wrong(wanted.name(), "array"),
            (_, Value::Object(_)) => wrong(wanted.name(), "object"),
        }
    }

    fn format_name(&self) -> &'static str {
        self.format.map_or("string", Format::name)
    }

    fn check_format(&self, value: &Value, field: &str, place: &str, causes: &mut Vec<Cause>) {
        let Some(format) = self.format else { return };
        let shown = match value {
            Value::String(text) if !format.holds(text) => text.as_str(),
            // Where no type is asked for besides, other scalars have no format either.
            Value::Number(number) if self.kind.is_none() => {
                if number.is_i64() {
                    "int64"
                } else {
                    "float64"
                }
            }
            Value::Bool(_) if self.kind.is_none() => "",
            Value::Number(number) if format == Format::Int32 => {
                if number.as_i64().is_none_or(|number| i32::try_from(number).is_err()) {
                    let what = format!("Checked value must be of type integer with format int32 in {place}");
                    causes.push(Cause::invalid_shown("<nil>", "\"\"", &what));
                }
                return;
            }
            _ => return,
        };
        let shown = super::json::go_quoted(shown);
        let detail = format!("{place} in body must be of type {}: {shown}", format.name());
        causes.push(Cause::wrong_type(field, &shown, &detail));
    }

    fn check_choices(&self, value: &Value, field: &str, causes: &mut Vec<Cause>) {
        if self.choices.is_empty() || self.choices.contains(value) {
            return;
        }
        let names: Vec<&str> = self.choices.iter().filter_map(Value::as_str).collect();
        causes.push(Cause::unsupported(field, value, &names));
    }

    fn check_range(&self, value: &Value, field: &str, place: &str, causes: &mut Vec<Cause>) {
        let Value::Number(number) = value else { return };
        let Some(size) = number.as_f64() else { return };
        let mut refuse = |bound: i64, what: &str| {
            let detail = format!("{place} in body should be {what} than or equal to {bound}");
            causes.push(Cause::invalid_shown(field, &number.to_string().replace("e18", "e+18"), &detail));
        };
        #[expect(clippy::cast_precision_loss, reason = "the schema's bounds are small")]
        if let Some(minimum) = self.minimum.filter(|minimum| size < *minimum as f64) {
            refuse(minimum, "greater");
        }
        #[expect(clippy::cast_precision_loss, reason = "the schema's bounds are small")]
        if let Some(maximum) = self.maximum.filter(|maximum| size > *maximum as f64) {
            refuse(maximum, "less");
        }
    }

    /// `oneOf` and `anyOf`: where none holds, the first says what it misses.
    fn check_branches(&self, value: &Value, field: &str, place: &str, causes: &mut Vec<Cause>) {
        let branches = [
            (&self.one_of, "one and only one schema (oneOf). Found none valid"),
            (&self.any_of, "at least one schema (anyOf)"),
        ];
        for (branches, what) in branches {
            let mut first = None;
            for branch in branches {
                let mut missed = Vec::new();
                branch.validate(value, field, place, &mut missed);
                first.get_or_insert(missed.clone());
                if missed.is_empty() {
                    first = None;
                    break;
                }
            }
            if let Some(first) = first {
                causes.push(Cause::invalid_shown("<nil>", "\"\"", &format!("\"{place}\" must validate {what}")));
                causes.extend(first);
            }
        }
    }

    /// The items of a list with keys differ in them.
    fn check_keys(&self, items: &[Value], field: &str, causes: &mut Vec<Cause>) {
        if self.list_keys.is_empty() {
            return;
        }
        let mut seen: Vec<Value> = Vec::new();
        let mut reported: Vec<Value> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let place = format!("{field}[{index}]");
            let Value::Object(fields) = item else {
                if !item.is_null() {
                    let what = "must be an object for an array of list-type map";
                    causes.push(Cause::invalid(place, item, what));
                }
                continue;
            };
            let key: Map<String, Value> = self
                .list_keys
                .iter()
                .filter_map(|name| fields.get(name).map(|value| (name.clone(), value.clone())))
                .collect();
            if key.len() < self.list_keys.len() {
                continue;
            }
            let key = Value::Object(key);
            if seen.contains(&key) {
                if !reported.contains(&key) {
                    causes.push(Cause::duplicate(place, &key));
                    reported.push(key);
                }
            } else {
                seen.push(key);
            }
        }
    }
}

/// Path of a field of an object.
fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
