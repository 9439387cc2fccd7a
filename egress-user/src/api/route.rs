//! What a path names.

use percent_encoding::percent_decode_str;

use super::resource::Resource;
use super::review;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Objects.
    Objects(Objects),
    /// A question about who may do what, by its whole path.
    Review(String),
    /// Any other path.
    Other(String),
}

/// Some objects of a resource, or one, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Objects {
    /// Of what.
    pub(super) resource: Resource,
    /// All namespaces, if none.
    pub(super) namespace: Option<String>,
    /// All objects, if none.
    pub(super) name: Option<String>,
    /// Such as `status`.
    pub(super) subresource: Option<String>,
    /// Whether the path itself asks for a watch, in the old way.
    pub(super) watch: bool,
}

/// What is in namespaces.
const NAMESPACED: [Resource; 3] = [Resource::Routers, Resource::CoreEvents, Resource::Events];

impl Target {
    /// Reads a path. Names are percent-decoded after the path was split only where they stand.
    pub(super) fn of(path: &str) -> Self {
        let decoded = percent_decode_str(path).decode_utf8_lossy().into_owned();
        if let Some(objects) = NAMESPACED.into_iter().find_map(|resource| objects(resource, &decoded)) {
            return Self::Objects(objects);
        }
        if let Some(objects) = namespaces(&decoded) {
            return Self::Objects(objects);
        }
        if review::PATHS.contains(&decoded.as_str()) { Self::Review(decoded) } else { Self::Other(decoded) }
    }
}

/// The path below which a resource is.
fn root(resource: Resource) -> String {
    let base = if resource.group().is_empty() { "api" } else { "apis" };
    format!("/{base}/{}/", resource.api_version())
}

fn objects(resource: Resource, path: &str) -> Option<Objects> {
    let rest = path.strip_prefix(&root(resource))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (watch, rest) = match rest.strip_prefix("watch/") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let mut parts = rest.split('/');
    let mut objects = Objects { resource, namespace: None, name: None, subresource: None, watch };
    match parts.next()? {
        first if first == resource.plural() => {
            // Names without a namespace name nothing.
            return parts.next().is_none().then_some(objects);
        }
        "namespaces" => {
            // An empty namespace is all of them.
            objects.namespace = Some(parts.next()?.to_owned()).filter(|namespace| !namespace.is_empty());
            if parts.next()? != resource.plural() {
                return None;
            }
        }
        _ => return None,
    }
    objects.name = parts.next().map(str::to_owned);
    objects.subresource = parts.next().map(str::to_owned);
    Some(objects)
}

fn namespaces(path: &str) -> Option<Objects> {
    let resource = Resource::Namespaces;
    let rest = path.strip_prefix(&root(resource))?;
    let mut parts = rest.strip_suffix('/').unwrap_or(rest).split('/');
    let named = parts.next()? == resource.plural();
    let (name, more) = (parts.next().map(str::to_owned), parts.next());
    (named && more.is_none()).then_some(Objects { resource, namespace: None, name, subresource: None, watch: false })
}

/// The query of a request: each key with its values, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Reads a query as Go does: pairs that cannot be read are left out.
    pub(super) fn new(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
        Self(
            pairs
                .filter_map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    Some((String::from_utf8(unescaped(key)?).ok()?, unescaped(value)?))
                })
                .collect(),
        )
    }

    /// The first value of a key, as bytes.
    pub(super) fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_slice())
    }

    /// The first value of a key.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.bytes(key).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Every value of a key.
    pub(super) fn all(&self, key: &str) -> Vec<String> {
        let values = self.0.iter().filter(|(name, _)| name == key);
        values.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// Whether a switch is on: any value but `false` and `0` is.
    pub(super) fn switch(&self, key: &str) -> Option<bool> {
        self.text(key).map(|value| !(value.eq_ignore_ascii_case("false") || value == "0"))
    }

    /// A whole number.
    ///
    /// # Errors
    /// Go's message.
    pub(super) fn number(&self, key: &str) -> Result<Option<i64>, String> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(number) => Ok(Some(number)),
            Err(error) => {
                use std::num::IntErrorKind::{NegOverflow, PosOverflow};
                let range = matches!(error.kind(), PosOverflow | NegOverflow);
                let what = if range { "value out of range" } else { "invalid syntax" };
                Err(format!("strconv.ParseInt: parsing {text:?}: {what}"))
            }
        }
    }
}

/// Percent-decoded, with `+` for a blank; none where an escape is broken.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = text.get(at..at + 2)?;
                out.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
                at += 2;
            }
            other => out.push(*other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let base = "/apis/network.operator.openshift.io/v1";
        let of = |rest: &str| Target::of(&format!("{base}{rest}"));
        let Target::Objects(item) = of("/namespaces/a/egressrouters/x%20y/status") else { panic!("routers") };
        assert_eq!((item.namespace.as_deref(), item.name.as_deref()), (Some("a"), Some("x y")));
        assert_eq!(item.subresource.as_deref(), Some("status"));
        assert!(matches!(of("/egressrouters"), Target::Objects(Objects { namespace: None, name: None, .. })));
        assert!(matches!(of("/watch/egressrouters"), Target::Objects(Objects { watch: true, .. })));
        for rest in ["", "/", "/egressrouters/a", "/namespaces/a", "/namespaces/a/egressrouter", "//egressrouters"] {
            assert!(matches!(of(rest), Target::Other(_)), "{rest}");
        }
        let resource = |path: &str| match Target::of(path) {
            Target::Objects(objects) => Some(objects.resource),
            _ => None,
        };
        assert_eq!(resource("/api/v1/namespaces/a"), Some(Resource::Namespaces));
        assert_eq!(resource("/api/v1/namespaces/a/events"), Some(Resource::CoreEvents));
        assert_eq!(resource("/apis/events.k8s.io/v1/events"), Some(Resource::Events));
        assert_eq!(resource("/api/v1/namespaces/a/pods"), None);
    }

    #[test]
    fn queries() {
        let query = Query::new("a=1&b=%41+c&a=2&%zz=1&watch&x=1;y=2&limit=1.5");
        assert_eq!(query.all("a"), ["1", "2"]);
        assert_eq!(query.text("b").as_deref(), Some("A c"));
        assert_eq!(query.switch("watch"), Some(true));
        assert_eq!(query.text("x"), None);
        assert_eq!(query.number("limit").unwrap_err(), "strconv.ParseInt: parsing \"1.5\": invalid syntax");
    }
}
