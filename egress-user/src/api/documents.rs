//! The paths that are no objects: discovery, OpenAPI, health.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, VARY};
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::Value;

use super::answer::Asked;
use super::negotiate::{Encoding, Offer, aggregated};
use super::server::Server;
use super::status::Refusal;
use super::{discovery, openapi};

impl Server {
    /// Whatever is no object.
    pub(super) fn document(&self, asked: &Asked, path: &str, verb: &str) -> Result<Response<Body>, Refusal> {
        let answer = |value: &Value| Ok(asked.answer(200, value, asked.accepted(Offer::Document)?.encoding));
        let group = format!("/apis/{}", super::GROUP);
        let version = format!("/apis/{}", crate::spec::API_VERSION);
        let path = match path.strip_suffix('/') {
            Some(trimmed) if trimmed == group || trimmed == version => trimmed,
            _ => path,
        };
        if path == group {
            return answer(&discovery::group());
        }
        if path == version {
            return answer(&discovery::resources());
        }
        if let Some(resources) = discovery::resources_of_others(path) {
            return answer(&resources);
        }
        if verb == "get" && is_services(path) {
            return answer(&discovery::services(self.store.state().newest()));
        }
        if path.starts_with("/api/v1/") {
            return Err(if verb == "get" { Refusal::no_resource() } else { Refusal::method_not_allowed() });
        }
        let get_only = || if verb == "get" { Ok(()) } else { Err(Refusal::method_not_allowed()) };
        match path {
            "/api" | "/apis" => {
                get_only()?;
                self.root(asked, path)
            }
            "/version" => {
                get_only()?;
                Ok(asked.answer(200, &discovery::version(), Encoding::Pretty))
            }
            "/apis/" | "/api/" | "/version/" => Err(Refusal::no_resource()),
            "/openapi/v2" => Ok(self.swagger(asked)),
            "/openapi/v3" => Ok(Self::openapi_index(asked)),
            "/metrics" => Ok(asked.text(200, &self.metrics.text(&self.store.state()))),
            "/" => Ok(asked.answer(200, &discovery::paths(), Encoding::Pretty)),
            _ => Ok(Self::other(asked, path)),
        }
    }

    fn other(asked: &Asked, path: &str) -> Response<Body> {
        if let Some(group) = path.strip_prefix("/openapi/v3/") {
            return Self::openapi(asked, group);
        }
        for probe in ["healthz", "livez", "readyz"] {
            match path.strip_prefix('/').and_then(|rest| rest.strip_prefix(probe)) {
                Some("") => {
                    let verbose = asked.query.text("verbose").is_some();
                    return asked.text(200, &discovery::health(probe, verbose, &asked.query.all("exclude")));
                }
                Some("/ping" | "/store") => {
                    return asked.bytes(200, b"ok".to_vec(), "text/plain; charset=utf-8");
                }
                _ => {}
            }
        }
        if path.starts_with("/apis/") {
            return asked.page_not_found();
        }
        asked.answer(404, &discovery::paths(), Encoding::Pretty)
    }

    /// `/api` and `/apis`, plain or all in one.
    fn root(&self, asked: &Asked, path: &str) -> Result<Response<Body>, Refusal> {
        let core = path == "/api";
        let Some(encoding) = aggregated(asked.accept().as_deref()) else {
            let plain = if core { discovery::core_versions(&self.address) } else { discovery::groups() };
            let accepted = asked.accepted(Offer::Document).map_err(|refusal| match core {
                true => Refusal::no_representation(),
                false => refusal,
            })?;
            return Ok(asked.answer(200, &plain, accepted.encoding));
        };
        let document = if core { discovery::aggregated_core() } else { discovery::aggregated_groups() };
        let tag = format!("\"{}{}\"", if core { "core-" } else { "" }, openapi::hash());
        let unchanged = asked.header(&IF_NONE_MATCH) == Some(tag.as_str());
        let encoding = match (encoding, asked.accepted(Offer::Document).map(|accepted| accepted.encoding)) {
            (Encoding::Json, _) if asked.query.text("pretty").is_some() => Encoding::Pretty,
            (encoding, _) => encoding,
        };
        let mut response = if unchanged {
            let mut response = asked.bytes(304, Vec::new(), "");
            response.headers_mut().remove(CONTENT_TYPE);
            response
        } else {
            let media_type = match encoding {
                Encoding::Yaml => "application/yaml;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                _ => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            };
            let mut response = asked.answer(200, &document, encoding);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
            response
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
        headers.insert(VARY, HeaderValue::from_static("Accept"));
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(ETAG, tag);
        }
        Ok(response)
    }

    fn openapi_index(asked: &Asked) -> Response<Body> {
        let mut response = asked.bytes(200, super::json::compact(&openapi::index()).into_bytes(), "application/json");
        Self::tag(&mut response, "index-");
        response
    }

    fn openapi(asked: &Asked, group: &str) -> Response<Body> {
        let Some(document) = openapi::document(group) else {
            let mut response = asked.bytes(200, Vec::new(), "application/json");
            if !group.starts_with("apis/") {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            return response;
        };
        let wrong = asked.query.text("hash").is_some_and(|hash| hash != openapi::hash());
        let mut response = if wrong {
            let mut response = asked.bytes(301, Vec::new(), "application/json");
            let place = format!("/openapi/v3/{group}?hash={}", openapi::hash());
            if let Ok(place) = HeaderValue::from_str(&place) {
                response.headers_mut().insert(LOCATION, place);
            }
            response
        } else if takes_json(asked) {
            asked.answer(200, &document, Encoding::Json)
        } else {
            let mut response = asked.bytes(406, Vec::new(), "application/json");
            response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
            return response;
        };
        Self::tag(&mut response, "");
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        response
    }

    fn swagger(&self, asked: &Asked) -> Response<Body> {
        let json = takes_json(asked);
        let mut response = if json {
            asked.answer(200, &openapi::swagger(), Encoding::Json)
        } else {
            asked.bytes(406, Vec::new(), "application/json")
        };
        if json {
            Self::tag(&mut response, "v2-");
        }
        let headers = response.headers_mut();
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
        headers.append(VARY, HeaderValue::from_static("Accept"));
        response
    }

    fn tag(response: &mut Response<Body>, prefix: &str) {
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{prefix}{}\"", openapi::hash())) {
            response.headers_mut().insert(ETAG, tag);
        }
    }
}

/// Whether a path asks for services, of a namespace or of all.
fn is_services(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(parts.as_slice(), ["", "api", "v1", "services"] | ["", "api", "v1", "namespaces", _, "services"])
}

/// Whether a client that asks for a document takes JSON; there is no other form.
fn takes_json(asked: &Asked) -> bool {
    asked.accept().is_none_or(|accept| {
        accept.is_empty()
            || accept.split(',').any(|clause| {
                matches!(
                    clause.split(';').next().unwrap_or_default().trim(),
                    "application/json" | "application/*" | "*/*"
                )
            })
    })
}
