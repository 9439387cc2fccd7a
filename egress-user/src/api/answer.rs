//! Answers, from values to bytes.

use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY, WARNING,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use futures_util::stream::iter;
use serde_json::Value;

use super::json::{Layout, encode};
use super::negotiate::{Accepted, Encoding, Offer, negotiate};
use super::route::Query;
use super::status::Refusal;
use super::{protobuf, yaml};

/// Answers from this size on are compressed where the client takes it.
const COMPRESSED_FROM: usize = 128 * 1024;
/// Answers above this size are sent in chunks, as the original's are.
const CHUNKED_ABOVE: usize = 2048;

/// What of a request its answer depends on.
#[derive(Debug)]
pub(super) struct Asked {
    /// The headers.
    pub(super) headers: HeaderMap,
    /// The query.
    pub(super) query: Query,
    /// The version of HTTP.
    pub(super) http: Version,
    /// Whether it is a watch.
    pub(super) watch: bool,
}

impl Asked {
    /// A header, if it is text.
    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the client accepts, all of it.
    pub(super) fn accept(&self) -> Option<String> {
        let values: Vec<&str> = self.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// The client's name.
    pub(super) fn agent(&self) -> Option<&str> {
        self.header(&axum::http::header::USER_AGENT)
    }

    /// What the client gets.
    ///
    /// # Errors
    /// 406.
    pub(super) fn accepted(&self, offer: Offer) -> Result<Accepted, Refusal> {
        negotiate(self.accept().as_deref(), &self.query, self.agent().unwrap_or_default(), offer)
    }

    /// An answer of a value.
    pub(super) fn answer(&self, code: u16, value: &Value, encoding: Encoding) -> Response<Body> {
        let bytes = match encoding {
            Encoding::Json => encode(value, Layout::Line),
            Encoding::Pretty => encode(value, Layout::Indented),
            Encoding::Yaml => yaml::encode(value).into_bytes(),
            Encoding::Protobuf => protobuf::encode(value),
        };
        self.bytes(code, bytes, encoding.media_type())
    }

    /// An answer of bytes, compressed where that is worth it.
    pub(super) fn bytes(&self, code: u16, bytes: Vec<u8>, media_type: &'static str) -> Response<Body> {
        let takes_gzip = self.header(&ACCEPT_ENCODING).is_some_and(|accepted| {
            accepted.split(',').any(|one| one.split(';').next().unwrap_or_default().trim() == "gzip")
        });
        let mut response = if code == 200 && takes_gzip && bytes.len() > COMPRESSED_FROM {
            let mut response = self.sized(code, gzip(&bytes).unwrap_or_default());
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            response
        } else {
            self.sized(code, bytes)
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        response
    }

    fn sized(&self, code: u16, bytes: Vec<u8>) -> Response<Body> {
        let bytes = Bytes::from(bytes);
        let body = if bytes.len() > CHUNKED_ABOVE && self.http == Version::HTTP_11 {
            Body::from_stream(iter([Ok::<_, std::convert::Infallible>(bytes)]))
        } else {
            Body::from(bytes)
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    }

    /// An answer of plain text.
    pub(super) fn text(&self, code: u16, text: &str) -> Response<Body> {
        let mut response = self.bytes(code, text.as_bytes().to_vec(), "text/plain; charset=utf-8");
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    /// What Go's router says of a path that it does not have.
    pub(super) fn page_not_found(&self) -> Response<Body> {
        self.text(404, "404 page not found\n")
    }

    /// A refusal, in the form that the client accepts, or else indented.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response<Body> {
        let encoding = match self.accepted(Offer::Document) {
            Ok(accepted) => accepted.encoding,
            Err(_) if self.watch => Encoding::Json,
            Err(_) => Encoding::Pretty,
        };
        let mut response = self.answer(refusal.code, &refusal.to_json(), encoding);
        if let Some(seconds) = refusal.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if refusal.code == 403 && refusal.by_authorization() {
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        warn(&mut response, &refusal.warnings);
        response
    }
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Adds warnings, each once.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for (index, warning) in warnings.iter().enumerate() {
        if warnings.iter().take(index).any(|earlier| earlier == warning) {
            continue;
        }
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
