//! Values under a type, as structured-merge-diff handles them: which fields they have, how two differ, how one is
//! merged into another. What server-side apply stands on.

use serde_json::{Map, Value};

use super::fields::{Set, shown};
use super::schema::Schema;

/// How a value merges.
#[derive(Debug)]
pub(super) enum Type {
    /// One value, replaced whole; with the JSON type that it must have.
    Scalar(Option<&'static str>),
    /// Replaced whole, whatever is in it.
    Atomic(&'static str),
    /// Named fields, each of its own type.
    Struct(Vec<(String, Type)>),
    /// Fields of any name.
    Map(Box<Type>),
    /// A list of scalars in which each is there once.
    Set,
    /// A list of objects that some of their fields tell apart.
    Keyed { keys: Vec<String>, items: Box<Type> },
}

impl Type {
    /// The type of the whole object.
    pub(super) fn of_object(schema: &Schema) -> Self {
        let Self::Struct(mut fields) = Self::of(schema) else { return Self::Atomic("map") };
        for (name, field) in &mut fields {
            if name == "metadata" {
                *field = Self::metadata();
            }
        }
        Self::Struct(fields)
    }

    fn of(schema: &Schema) -> Self {
        if schema.is_object() {
            return Self::Struct(schema.fields.iter().map(|(name, field)| (name.clone(), Self::of(field))).collect());
        }
        match schema.items() {
            Some(items) if !schema.list_keys.is_empty() => {
                Self::Keyed { keys: schema.list_keys.clone(), items: Box::new(Self::of(items)) }
            }
            _ if schema.is_list() => Self::Atomic("list"),
            _ => Self::Scalar(Some(schema.scalar_name())),
        }
    }

    /// `ObjectMeta`, whose merge rules are Kubernetes' own.
    fn metadata() -> Self {
        let scalar = |name: &str| (name.to_owned(), Self::Scalar(None));
        let names = [
            "name",
            "generateName",
            "namespace",
            "selfLink",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ];
        let mut fields: Vec<(String, Self)> = names.into_iter().map(scalar).collect();
        let map = || Self::Map(Box::new(Self::Scalar(Some("string"))));
        let owners = Self::Keyed { keys: vec!["uid".to_owned()], items: Box::new(Self::Atomic("map")) };
        fields.extend([
            ("labels".to_owned(), map()),
            ("annotations".to_owned(), map()),
            ("finalizers".to_owned(), Self::Set),
            ("ownerReferences".to_owned(), owners),
            ("managedFields".to_owned(), Self::Atomic("list")),
        ]);
        Self::Struct(fields)
    }

    /// The type of a field, and whether it is a named one.
    fn field(&self, name: &str) -> Option<(&Self, bool)> {
        match self {
            Self::Struct(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, ty)| (ty, true)),
            Self::Map(ty) => Some((ty, false)),
            _ => None,
        }
    }

    /// The items of a list by their steps.
    fn items<'v>(&self, value: Option<&'v Value>) -> Vec<(String, &'v Value)> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        items.map(|item| (self.step(item), item)).collect()
    }

    /// The step to an item of a list.
    fn step(&self, item: &Value) -> String {
        match self {
            Self::Keyed { keys, .. } => {
                let key: Map<String, Value> =
                    keys.iter().map(|name| (name.clone(), item.get(name).cloned().unwrap_or(Value::Null))).collect();
                format!("k:{}", Value::Object(key))
            }
            _ => format!("v:{item}"),
        }
    }

    fn item_type(&self) -> &Self {
        match self {
            Self::Keyed { items, .. } => items,
            _ => &Self::Scalar(None),
        }
    }

    /// Checks that a value has this type; `strict` as for what is applied.
    ///
    /// # Errors
    /// The first field that has not.
    pub(super) fn check(&self, value: &Value, path: &str, strict: bool) -> Result<(), String> {
        let expected = |what: &str, value: &Value| {
            let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
            Err(format!("{place}expected {what}, got {}", go_value(value, what)))
        };
        match (self, value) {
            (_, Value::Null) => Ok(()),
            (Self::Scalar(Some("string")), value) if !value.is_string() => expected("string", value),
            (Self::Scalar(Some("integer")), value) if !value.is_number() => expected("numeric (int or float)", value),
            (Self::Scalar(_), _) => Ok(()),
            (Self::Atomic("list"), value) if !value.is_array() => expected("list", value),
            (Self::Atomic("map"), value) if !value.is_object() => expected("map", value),
            (Self::Atomic(_), _) => Ok(()),
            (Self::Struct(_) | Self::Map(_), Value::Object(fields)) => {
                for (name, value) in fields {
                    let place = format!("{path}.{name}");
                    let Some((ty, _)) = self.field(name) else {
                        return Err(format!("{place}: field not declared in schema"));
                    };
                    ty.check(value, &place, strict)?;
                }
                Ok(())
            }
            (Self::Struct(_) | Self::Map(_), value) => expected("map", value),
            (Self::Set | Self::Keyed { .. }, Value::Array(items)) => self.check_items(items, path, strict),
            (Self::Set | Self::Keyed { .. }, value) => expected("list", value),
        }
    }

    fn check_items(&self, items: &[Value], path: &str, strict: bool) -> Result<(), String> {
        let mut seen: Vec<String> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            if let Self::Keyed { keys, .. } = self
                && !keys.iter().any(|key| item.get(key).is_some())
            {
                let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                return Err(format!(
                    "{path}: element {index}: associative list with keys has an element that omits all key fields \
                     [{}] (and doesn't have default values for any key fields)",
                    names.join(" ")
                ));
            }
            let step = self.step(item);
            self.item_type().check(item, &format!("{path}{}", shown(&step)), strict)?;
            // Objects that are stored may have an item of a set twice; nothing that is applied may.
            if seen.contains(&step) && (strict || matches!(self, Self::Keyed { .. })) {
                return Err(format!("{path}: duplicate entries for key {}", shown(&step)));
            }
            seen.push(step);
        }
        Ok(())
    }

    /// The fields that a value sets.
    pub(super) fn fields(&self, value: &Value) -> Set {
        let mut set = Set::default();
        self.collect(value, &mut Vec::new(), &mut set);
        set
    }

    fn collect(&self, value: &Value, path: &mut Vec<String>, set: &mut Set) {
        match (self, value) {
            (Self::Scalar(_) | Self::Atomic(_), _) => set.insert(path),
            (Self::Struct(_) | Self::Map(_), Value::Object(fields)) => {
                for (name, value) in fields {
                    let Some((ty, named)) = self.field(name) else { continue };
                    path.push(format!("f:{name}"));
                    ty.collect(value, path, set);
                    if !named || value.is_null() || value.as_object().is_some_and(Map::is_empty) {
                        set.insert(path);
                    }
                    path.pop();
                }
            }
            (Self::Set | Self::Keyed { .. }, _) => {
                for (step, item) in self.items(Some(value)) {
                    path.push(step);
                    self.item_type().collect(item, path, set);
                    set.insert(path);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    /// How `new` differs from `old`.
    pub(super) fn compare(&self, old: &Value, new: &Value) -> Comparison {
        let mut comparison = Comparison::default();
        self.differ(Some(old), Some(new), &mut Vec::new(), &mut comparison);
        comparison
    }

    fn differ(&self, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<String>, found: &mut Comparison) {
        let empty = |value: Option<&Value>| match value {
            None | Some(Value::Null) => true,
            Some(Value::Object(fields)) => fields.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        match self {
            Self::Struct(_) | Self::Map(_) if !(empty(old) && empty(new)) => {
                let fields = |value: Option<&'_ Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
                let (old, new) = (fields(old), fields(new));
                let added = new.keys().filter(|name| !old.contains_key(*name));
                for name in old.keys().chain(added) {
                    let Some((ty, _)) = self.field(name) else { continue };
                    path.push(format!("f:{name}"));
                    ty.differ(old.get(name), new.get(name), path, found);
                    path.pop();
                }
            }
            Self::Set | Self::Keyed { .. } if !(empty(old) && empty(new)) => {
                let (old, new) = (self.items(old), self.items(new));
                let find = |items: &[(String, &'_ Value)], step: &str| {
                    items.iter().find(|(other, _)| other == step).map(|(_, item)| (*item).clone())
                };
                let added = new.iter().filter(|(step, _)| !old.iter().any(|(other, _)| other == step));
                for (step, _) in old.iter().chain(added) {
                    path.push(step.clone());
                    let (old, new) = (find(&old, step), find(&new, step));
                    self.item_type().differ(old.as_ref(), new.as_ref(), path, found);
                    path.pop();
                }
            }
            _ => {
                if let (Some(old), Some(new)) = (old, new)
                    && old != new
                {
                    found.modified.insert(path);
                }
            }
        }
        if old.is_none() {
            found.added.insert(path);
        } else if new.is_none() {
            found.removed.insert(path);
        }
    }

    /// `live` with what `applied` says.
    pub(super) fn merge(&self, live: Option<&Value>, applied: Option<&Value>) -> Option<Value> {
        let collection = |value: Option<&Value>| value.is_some_and(|value| value.is_object() || value.is_array());
        match self {
            Self::Struct(_) | Self::Map(_) if collection(live) && collection(applied) => {
                let fields = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
                let (live, applied) = (fields(live), fields(applied));
                let mut merged = Map::new();
                let added = applied.keys().filter(|name| !live.contains_key(*name));
                for name in live.keys().chain(added) {
                    let value = match self.field(name) {
                        Some((ty, _)) => ty.merge(live.get(name), applied.get(name)),
                        None => applied.get(name).or_else(|| live.get(name)).cloned(),
                    };
                    merged.extend(value.map(|value| (name.clone(), value)));
                }
                Some(Value::Object(merged))
            }
            Self::Set | Self::Keyed { .. } if collection(live) && collection(applied) => {
                let (live, applied) = (self.items(live), self.items(applied));
                let find = |items: &[(String, &Value)], step: &str| {
                    items.iter().find(|(other, _)| other == step).map(|(_, item)| (*item).clone())
                };
                let added = applied.iter().filter(|(step, _)| !live.iter().any(|(other, _)| other == step));
                let steps = live.iter().chain(added).map(|(step, _)| step);
                let merged = steps.filter_map(|step| {
                    self.item_type().merge(find(&live, step).as_ref(), find(&applied, step).as_ref())
                });
                Some(Value::Array(merged.collect()))
            }
            _ => applied.or(live).cloned(),
        }
    }

    /// `value` without some fields. A collection that loses all it has becomes null, as in the original.
    pub(super) fn remove(&self, value: &Value, unwanted: &Set) -> Value {
        match (self, value) {
            (Self::Struct(_) | Self::Map(_), Value::Object(fields)) => {
                let mut kept = Map::new();
                for (name, value) in fields {
                    let step = format!("f:{name}");
                    if unwanted.has(&step) {
                        continue;
                    }
                    let value = match (unwanted.below(&step), self.field(name)) {
                        (Some(below), Some((ty, _))) => ty.remove(value, below),
                        _ => value.clone(),
                    };
                    kept.insert(name.clone(), value);
                }
                if kept.is_empty() { Value::Null } else { Value::Object(kept) }
            }
            (Self::Set | Self::Keyed { .. }, Value::Array(_)) => {
                let mut kept = Vec::new();
                for (step, item) in self.items(Some(value)) {
                    if unwanted.has(&step) {
                        continue;
                    }
                    kept.push(match unwanted.below(&step) {
                        Some(below) => self.item_type().remove(item, below),
                        None => item.clone(),
                    });
                }
                if kept.is_empty() { Value::Null } else { Value::Array(kept) }
            }
            _ => value.clone(),
        }
    }

    /// The set with every named field above its members.
    pub(super) fn with_named(&self, set: &Set) -> Set {
        let mut all = set.clone();
        for (step, below) in set.inner() {
            let (ty, named) = match step.strip_prefix("f:") {
                Some(name) => match self.field(name) {
                    Some((ty, named)) => (ty, named),
                    None => continue,
                },
                None => (self.item_type(), false),
            };
            if named {
                all.add_member(step);
            }
            all.set_below(step, ty.with_named(below));
        }
        all
    }
}

/// How two values differ.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Fields that only the new one has.
    pub(super) added: Set,
    /// Fields that only the old one has.
    pub(super) removed: Set,
    /// Fields with another value.
    pub(super) modified: Set,
}

impl Comparison {
    /// Without some fields and all that is below them.
    pub(super) fn without(self, ignored: &Set) -> Self {
        Self {
            added: self.added.without(ignored),
            removed: self.removed.without(ignored),
            modified: self.modified.without(ignored),
        }
    }
}

/// How Go prints a value of the wrong type there.
fn go_value(value: &Value, expected: &str) -> String {
    fn plain(value: &Value) -> String {
        match value {
            Value::Null => "<nil>".to_owned(),
            Value::String(text) => text.clone(),
            Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(" ")),
            Value::Object(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(name, value)| format!("{name}:{}", plain(value))).collect();
                format!("map[{}]", fields.join(" "))
            }
            other => other.to_string(),
        }
    }
    match (expected, value) {
        ("list" | "map", value) => format!("&{{{}}}", plain(value)),
        (_, Value::String(text)) => format!("&value.valueUnstructured{{Value:{text:?}}}"),
        (_, value) => format!("&value.valueUnstructured{{Value:{}}}", plain(value)),
    }
}
