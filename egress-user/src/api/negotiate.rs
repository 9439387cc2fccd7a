//! Which form an answer has, by the Accept header; which form a body has, by its Content-Type.

use super::route::Query;
use super::status::Refusal;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// JSON on one line.
    Json,
    /// JSON, indented.
    Pretty,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf.
    Protobuf,
}

impl Encoding {
    /// Its media type.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json | Self::Pretty => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// As what an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As it is.
    Plain,
    /// As rows of a table.
    Table,
    /// Its metadata.
    Metadata,
    /// The metadata of each of a list.
    MetadataList,
}

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// How it is written.
    pub(super) encoding: Encoding,
    /// As what it is shown.
    pub(super) form: Form,
    /// Version of the forms' group: `v1` or `v1beta1`.
    pub(super) version: &'static str,
}

impl Accepted {
    /// Whether objects go out as they are kept: JSON on one line.
    pub(super) fn is_plain_json(&self) -> bool {
        self.encoding == Encoding::Json && self.form == Form::Plain
    }
}

/// One of the types that a client accepts.
struct Clause {
    media: String,
    parameters: Vec<(String, String)>,
    quality: f64,
}

impl Clause {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

const ACCEPTED: &str = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
const ACCEPTED_STREAMS: &str = "only the following media types are accepted: application/json;stream=watch, \
    application/vnd.kubernetes.protobuf;stream=watch";
/// What a body may be.
const BODIES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

fn clauses(header: &str) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = header
        .split(',')
        .filter(|clause| !clause.trim().is_empty())
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality = 1.0;
            let mut parameters = Vec::new();
            for part in parts {
                let Some((key, value)) = part.split_once('=') else { continue };
                let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
                if key == "q" {
                    quality = value.parse().unwrap_or(1.0);
                } else {
                    parameters.push((key, value));
                }
            }
            Clause { media, parameters, quality }
        })
        .collect();
    clauses.sort_by(|one, other| other.quality.total_cmp(&one.quality));
    clauses
}

/// What kind of thing is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// Objects, which come in several forms, but not in protobuf.
    Objects,
    /// A stream of events about them.
    Events,
    /// Documents and refusals.
    Document,
}

/// What a client gets of what it accepts.
///
/// # Errors
/// 406.
pub(super) fn negotiate(header: Option<&str>, query: &Query, agent: &str, offer: Offer) -> Result<Accepted, Refusal> {
    let pretty = is_pretty(query, agent);
    let json = if pretty { Encoding::Pretty } else { Encoding::Json };
    let header = header.unwrap_or_default();
    if header.is_empty() {
        return Ok(Accepted { encoding: json, form: Form::Plain, version: "v1" });
    }
    let mut yaml_stream = false;
    for clause in clauses(header) {
        let encoding = match clause.media.as_str() {
            "*/*" | "application/*" | "application/json" => json,
            "application/yaml" => Encoding::Yaml,
            "application/vnd.kubernetes.protobuf" => Encoding::Protobuf,
            _ => continue,
        };
        let encoding =
            if encoding == Encoding::Json && clause.get("pretty") == Some("1") { Encoding::Pretty } else { encoding };
        let stream = clause.get("stream").is_none_or(|stream| stream.is_empty() || stream == "watch");
        let Some((form, version)) = form(&clause, offer).filter(|_| stream) else { continue };
        if offer != Offer::Document && encoding == Encoding::Protobuf && matches!(form, Form::Plain | Form::Table) {
            continue;
        }
        if offer == Offer::Events && encoding == Encoding::Yaml {
            yaml_stream = true;
            continue;
        }
        return Ok(Accepted { encoding, form, version });
    }
    Err(Refusal::not_acceptable(if yaml_stream { ACCEPTED_STREAMS } else { ACCEPTED }))
}

/// The form that a clause asks for; none if there is no such form.
fn form(clause: &Clause, offer: Offer) -> Option<(Form, &'static str)> {
    let (kind, group, version) = (clause.get("as"), clause.get("g"), clause.get("v"));
    if kind.is_none() && group.is_none() && version.is_none() {
        return Some((Form::Plain, "v1"));
    }
    let form = match kind? {
        "Table" => Form::Table,
        "PartialObjectMetadata" => Form::Metadata,
        "PartialObjectMetadataList" => Form::MetadataList,
        _ => return None,
    };
    let version = match version? {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    (group? == "meta.k8s.io" && offer != Offer::Document).then_some((form, version))
}

/// Whether the answer is for eyes.
fn is_pretty(query: &Query, agent: &str) -> bool {
    match query.text("pretty").as_deref() {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some(_) => false,
        None => ["curl", "Wget", "Mozilla/5.0"].iter().any(|browser| agent.starts_with(browser)),
    }
}

/// Whether a client asks for the aggregated discovery, and in JSON (or else YAML).
pub(super) fn aggregated(header: Option<&str>) -> Option<Encoding> {
    for clause in clauses(header.unwrap_or_default()) {
        let wanted = clause.get("as") == Some("APIGroupDiscoveryList")
            && clause.get("g") == Some("apidiscovery.k8s.io")
            && clause.get("v") == Some("v2");
        match clause.media.as_str() {
            "application/json" if wanted => return Some(Encoding::Json),
            "application/yaml" if wanted => return Some(Encoding::Yaml),
            "application/json" | "application/yaml" | "*/*" | "application/*" if clause.get("as").is_none() => {
                return None;
            }
            _ => {}
        }
    }
    None
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyType {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// How a patch is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Server-side apply.
    Apply,
}

/// The type of an object's body.
///
/// # Errors
/// 415.
pub(super) fn body_type(header: Option<&str>) -> Result<BodyType, Refusal> {
    let header = header.unwrap_or_default();
    let media = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media.as_str() {
        "" if header.is_empty() => Ok(BodyType::Json),
        "application/json" => Ok(BodyType::Json),
        "application/yaml" => Ok(BodyType::Yaml),
        // The original says that it takes it, and then finds no custom resource in it.
        "application/vnd.kubernetes.protobuf" => {
            Err(Refusal::unsupported_media_type("application/json, application/yaml"))
        }
        _ => Err(Refusal::unsupported_media_type(BODIES)),
    }
}

/// The type of a patch's body.
///
/// # Errors
/// 415; so also for a strategic merge patch, which custom resources do not have.
pub(super) fn patch_type(header: Option<&str>) -> Result<PatchType, Refusal> {
    match header.unwrap_or_default().split(';').next().unwrap_or_default().trim() {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/apply-patch+yaml" => Ok(PatchType::Apply),
        _ => Err(Refusal::unsupported_media_type(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_protobuf_is_not_said_to_be_taken() {
        let refused = body_type(Some("application/vnd.kubernetes.protobuf")).unwrap_err();
        assert_eq!(refused.code, 415);
        assert!(refused.message.ends_with("include: application/json, application/yaml"), "{}", refused.message);
        assert_eq!(body_type(Some("application/yaml; charset=utf-8")).unwrap(), BodyType::Yaml);
    }
}
