//! Answers, from values to bytes.

use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY, WARNING,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use flate2::write::GzEncoder;
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
/// Pieces of an answer are put together up to about this size.
const PIECE: usize = 32 * 1024;

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
    pub(super) fn bytes(&self, code: u16, bytes: impl Into<Bytes>, media_type: &'static str) -> Response<Body> {
        self.pieces(code, vec![bytes.into()], media_type)
    }

    /// An answer of bytes in pieces, which are put together and compressed as the client takes them.
    pub(super) fn pieces(&self, code: u16, pieces: Vec<Bytes>, media_type: &'static str) -> Response<Body> {
        let size: usize = pieces.iter().map(Bytes::len).sum();
        let compressed = code == 200 && self.takes_gzip() && size > COMPRESSED_FROM;
        let streamed = compressed || (size > CHUNKED_ABOVE && self.http == Version::HTTP_11);
        let body = match (streamed, compressed) {
            (true, true) => Body::from_stream(iter(Compressed::new(pieces))),
            (true, false) => Body::from_stream(iter(Joined(pieces.into_iter()).map(Ok::<_, std::convert::Infallible>))),
            (false, _) => Body::from(pieces.concat()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if compressed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        response
    }

    fn takes_gzip(&self) -> bool {
        self.header(&ACCEPT_ENCODING).is_some_and(|accepted| {
            accepted.split(',').any(|one| one.split(';').next().unwrap_or_default().trim() == "gzip")
        })
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

/// Small pieces put together, large ones as they are.
struct Joined(std::vec::IntoIter<Bytes>);

impl Iterator for Joined {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let first = self.0.next()?;
        if first.len() >= PIECE {
            return Some(first);
        }
        let mut joined = Vec::with_capacity(2 * PIECE);
        joined.extend_from_slice(&first);
        while joined.len() < PIECE
            && let Some(next) = self.0.next()
        {
            joined.extend_from_slice(&next);
        }
        Some(joined.into())
    }
}

/// Pieces, compressed one after the other.
struct Compressed {
    pieces: Joined,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Compressed {
    fn new(pieces: Vec<Bytes>) -> Self {
        let encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        Self { pieces: Joined(pieces.into_iter()), encoder: Some(encoder) }
    }
}

impl Iterator for Compressed {
    type Item = std::io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(piece) = self.pieces.next() else {
                return self.encoder.take().map(|encoder| encoder.finish().map(Bytes::from));
            };
            let encoder = self.encoder.as_mut()?;
            if let Err(error) = encoder.write_all(&piece) {
                return Some(Err(error));
            }
            let ready = std::mem::take(encoder.get_mut());
            if !ready.is_empty() {
                return Some(Ok(ready.into()));
            }
        }
    }
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
