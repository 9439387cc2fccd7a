//! A request that is being answered, and its body.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::http::header::{CONTENT_TYPE, EXPECT};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use super::answer::Asked;
use super::negotiate::{self, Accepted, Offer};
use super::object;
use super::options::{self, Verb, WriteOptions};
use super::status::Refusal;

/// Bytes of a body.
const MAX_BODY: usize = 3 * 1024 * 1024;
/// How long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a refused body that are read and thrown away, and how long that may take.
const MAX_REFUSED: usize = 32 * 1024 * 1024;
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// A request, taken apart.
pub(super) struct Call {
    /// What its answer depends on besides.
    pub(super) asked: Asked,
    /// What it brings, as far as it has not been read.
    pub(super) body: Option<Body>,
}

impl Call {
    /// Its whole body; empty when there is none.
    ///
    /// # Errors
    /// 413 when it is too large, 400 when it breaks off or takes too long.
    pub(super) async fn read_body(&mut self) -> Result<Bytes, Refusal> {
        let Some(body) = &mut self.body else { return Ok(Bytes::new()) };
        let too_large = || Refusal::too_large(&format!("limit is {MAX_BODY}"));
        // Nobody is asked for what will not be taken.
        if body.size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let read = tokio::time::timeout(BODY_WITHIN, Limited::new(body, MAX_BODY).collect()).await;
        match read {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(Refusal::bad_request(format!("read the body: {error}"))),
            Err(_) => Err(Refusal::bad_request("the body did not arrive in time")),
        }
    }

    /// Reads what is left of a refused body. A client that is still writing would find the connection closed, and not its
    /// answer.
    pub(super) async fn discard_body(&mut self) {
        let Some(body) = &mut self.body else { return };
        // Who waits to be asked for it has not begun.
        if self.asked.headers.contains_key(EXPECT) {
            return;
        }
        let discard = async {
            let mut left = MAX_REFUSED;
            while left > 0
                && let Some(Ok(frame)) = body.frame().await
            {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            }
        };
        let _in_time = tokio::time::timeout(REFUSED_WITHIN, discard).await;
    }

    /// What it says that its body is.
    pub(super) fn content_type(&self) -> Option<&str> {
        self.asked.header(&CONTENT_TYPE)
    }
}

/// An object that a request gives, and how it is to be taken.
pub(super) struct Given {
    /// What the client takes.
    pub(super) accepted: Accepted,
    /// How it is to be written.
    pub(super) options: WriteOptions,
    /// The object.
    pub(super) object: Value,
    /// What is odd about it.
    pub(super) warnings: Vec<String>,
}

impl Given {
    /// Reads it from the body.
    ///
    /// # Errors
    /// 406, 413, 415, 422, or 400 when it is no object.
    pub(super) async fn read(call: &mut Call, verb: Verb) -> Result<Self, Refusal> {
        let accepted = call.asked.accepted(Offer::Objects)?;
        let ty = negotiate::body_type(call.content_type())?;
        let body = call.read_body().await?;
        let options = options::of_write(&call.asked.query, call.asked.agent(), verb)?;
        let (object, warnings) = object::read(&body, ty, options.validation)?;
        Ok(Self { accepted, options, object, warnings })
    }
}
