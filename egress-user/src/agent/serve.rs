//! `--metrics`: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts the agent again or sends clients.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::AgentError;

/// The agent counts as hung when it has done nothing for this long: an apply that asks the network takes seconds.
const HUNG: Duration = Duration::from_secs(60);
/// How long a scrape waits for the agent to be free. Prometheus gives up after ten seconds.
const ANSWER: Duration = Duration::from_secs(9);
/// Connections at a time, and how long one may take to say what it wants.
const CONNECTIONS: usize = 32;
const REQUEST: Duration = Duration::from_secs(5);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The agent's end: what it says of itself all the time, and who asks for figures.
pub(super) struct Served {
    pulse: watch::Sender<Pulse>,
    scrapes: mpsc::Receiver<Scrape>,
}

/// Who waits for the figures.
pub(super) type Scrape = oneshot::Sender<String>;

#[derive(Clone, Copy)]
struct Pulse {
    at: Instant,
    available: bool,
}

#[derive(Clone)]
struct Asked {
    pulse: watch::Receiver<Pulse>,
    scrapes: mpsc::Sender<Scrape>,
}

impl Served {
    /// Serves on an address, if one is given.
    ///
    /// # Errors
    ///
    /// [`AgentError::Listen`] when the address cannot be listened on.
    pub(super) async fn on(address: Option<SocketAddr>) -> Result<Self, AgentError> {
        let (pulse, pulse_seen) = watch::channel(Pulse { at: Instant::now(), available: false });
        let (ask, scrapes) = mpsc::channel(1);
        if let Some(address) = address {
            let listener = TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })?;
            tokio::spawn(accept(listener, Asked { pulse: pulse_seen, scrapes: ask }));
        }
        Ok(Self { pulse, scrapes })
    }

    /// The agent is alive, and its router available or not.
    pub(super) fn beat(&self, available: bool) {
        self.pulse.send_replace(Pulse { at: Instant::now(), available });
    }

    /// Waits for a scrape; for ever where nothing is served.
    pub(super) async fn scrape(&mut self) -> Scrape {
        match self.scrapes.recv().await {
            Some(scrape) => scrape,
            None => std::future::pending().await,
        }
    }
}

async fn accept(listener: TcpListener, asked: Asked) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _peer)) => stream,
            Err(failed) => {
                warn!("accept a connection to the metrics: {failed}");
                // Out of descriptors, as a rule: at once again would be a loop without end.
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let asked = asked.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, asked.clone()));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(REQUEST);
            if let Err(failed) = http.serve_connection(TokioIo::new(stream), answer).await {
                debug!("serve metrics: {failed}");
            }
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>, asked: Asked) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    let pulse = *asked.pulse.borrow();
    Ok(match request.uri().path() {
        "/metrics" => match figures(&asked).await {
            Some(figures) => {
                let mut response = text(StatusCode::OK, figures);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
                response
            }
            None => text(StatusCode::SERVICE_UNAVAILABLE, "the agent is busy\n"),
        },
        "/healthz" if pulse.at.elapsed() < HUNG => text(StatusCode::OK, "ok\n"),
        "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "the agent hangs\n"),
        "/readyz" if pulse.available => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not available: see `egress-router status`\n"),
        _ => text(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz\n"),
    })
}

async fn figures(asked: &Asked) -> Option<String> {
    let (scrape, figures) = oneshot::channel();
    let ask = async {
        asked.scrapes.send(scrape).await.ok()?;
        figures.await.ok()
    };
    timeout(ANSWER, ask).await.ok()?
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
