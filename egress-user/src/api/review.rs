//! Questions about oneself: may I, and who am I. `kubectl auth can-i` and `kubectl auth whoami` ask them.

use serde_json::{Value, json};

use super::auth::{User, authorize};
use super::json;
use super::protobuf::Fields;
use super::resource::Resource;
use super::route::{Objects, Target};
use super::status::Refusal;

const MAY_I: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const WHO_AM_I: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
/// Where they are asked.
pub(super) const PATHS: [&str; 2] = [MAY_I, WHO_AM_I];

/// What somebody wants to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Attributes {
    verb: String,
    namespace: String,
    group: String,
    resource: String,
    subresource: String,
    name: String,
    /// A path that is no object; whatever else is said, it is about that.
    path: Option<String>,
}

/// The answer to a question, which is the question with its answer in it.
///
/// # Errors
/// 400 for a body that is no question.
pub(super) fn answer(path: &str, user: &User, body: &[u8], protobuf: bool) -> Result<Value, Refusal> {
    if path == WHO_AM_I {
        let who = json!({"username": user.name, "groups": user.groups()});
        return Ok(json!({
            "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
            "status": {"userInfo": who},
        }));
    }
    let asked = if protobuf { Attributes::of_protobuf(body) } else { Attributes::of_json(body) };
    let asked = asked.ok_or_else(|| Refusal::bad_request("the body is no SelfSubjectAccessReview"))?;
    let refused = authorize(user, &asked.verb, &asked.target()).err();
    let mut status = json!({"allowed": refused.is_none()});
    if let (Some(refusal), Some(fields)) = (&refused, status.as_object_mut()) {
        fields.insert("reason".to_owned(), refusal.message.as_str().into());
    }
    Ok(json!({
        "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
        "spec": asked.to_json(), "status": status,
    }))
}

impl Attributes {
    fn of_json(body: &[u8]) -> Option<Self> {
        let review = json::decode(body).ok()?.value;
        let spec = review.get("spec")?;
        let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(other) = spec.get("nonResourceAttributes").filter(|other| !other.is_null()) {
            return Some(Self { verb: text(other, "verb"), path: Some(text(other, "path")), ..Self::default() });
        }
        let of = spec.get("resourceAttributes")?;
        Some(Self {
            verb: text(of, "verb"),
            namespace: text(of, "namespace"),
            group: text(of, "group"),
            resource: text(of, "resource"),
            subresource: text(of, "subresource"),
            name: text(of, "name"),
            path: None,
        })
    }

    fn of_protobuf(body: &[u8]) -> Option<Self> {
        let raw = Fields::of_object(body)?;
        let spec = Fields::of(raw.bytes(2)?);
        if let Some(other) = spec.bytes(2).map(Fields::of) {
            return Some(Self { path: Some(other.text(1)), verb: other.text(2), ..Self::default() });
        }
        let of = Fields::of(spec.bytes(1)?);
        Some(Self {
            namespace: of.text(1),
            verb: of.text(2),
            group: of.text(3),
            resource: of.text(5),
            subresource: of.text(6),
            name: of.text(7),
            path: None,
        })
    }

    fn target(&self) -> Target {
        if let Some(path) = &self.path {
            return Target::Other(path.clone());
        }
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let known = [Resource::Routers, Resource::CoreEvents, Resource::Events, Resource::Namespaces];
        let resource = known.into_iter().find(|known| known.plural() == self.resource && known.group() == self.group);
        match resource {
            Some(resource) => Target::Objects(Objects {
                resource,
                namespace: some(&self.namespace),
                name: some(&self.name),
                subresource: some(&self.subresource),
                watch: false,
            }),
            // Of what is not here nobody may do anything but who may do everything.
            None => Target::Other(format!("{}.{}", self.resource, self.group)),
        }
    }

    fn to_json(&self) -> Value {
        match &self.path {
            Some(path) => json!({"nonResourceAttributes": {"path": path, "verb": self.verb}}),
            None => json!({"resourceAttributes": {
                "namespace": self.namespace, "verb": self.verb, "group": self.group, "resource": self.resource,
                "subresource": self.subresource, "name": self.name,
            }}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_in_protobuf() {
        // k8s\0, a type and a review whose spec asks for "get egressrouters" in "ns".
        let field = |tag: u8, bytes: &[u8]| [&[tag, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let of = [field(0x0a, b"ns"), field(0x12, b"get"), field(0x2a, b"egressrouters")].concat();
        let review = field(0x12, &field(0x0a, &of));
        let body = [&b"k8s\0"[..], &field(0x12, &review)].concat();
        let asked = Attributes::of_protobuf(&body).unwrap();
        assert_eq!(
            (asked.namespace.as_str(), asked.verb.as_str(), asked.resource.as_str()),
            ("ns", "get", "egressrouters")
        );
        for cut in 0..body.len() {
            // Half a body is no reason to stop.
            let _half = Attributes::of_protobuf(&body[..cut]);
        }
        assert_eq!(Attributes::of_protobuf(b"{}"), None);
    }
}
