//! Connections: TLS, time limits, how many.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::auth::Tokens;
use super::events::keep::{KEEPING, forget_old};
use super::metrics::Metrics;
use super::server::{Server, serve};
use super::store::{Store, StoreError};
use super::write::Namespaces;

/// Connections at a time.
const CONNECTIONS: usize = 8192;
/// How long the start of a connection, or the head of a request, may take. An idle connection ends then too.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of the head of a request.
const MAX_HEAD: usize = 64 * 1024;
/// How often a connection that says nothing is asked whether it is still there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// What a server is.
#[derive(Debug)]
pub struct Options {
    /// Where it keeps its objects.
    pub data: PathBuf,
    /// How long it remembers changes.
    pub history: Duration,
    /// Who may ask.
    pub tokens: Tokens,
    /// Whether somebody without a token may ask for what is open to all.
    pub anonymous: bool,
    /// The namespaces that exist; every one, if none is named.
    pub namespaces: Vec<String>,
    /// Requests at a time, watches apart; as many writes wait for the disk.
    pub max_requests: usize,
    /// Watches at a time.
    pub max_watches: usize,
}

/// A server that has its place, and does not answer yet.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    server: Arc<Server>,
    address: SocketAddr,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Its place is taken or not there.
    #[error("listen on {address}")]
    Bind {
        /// The place.
        address: SocketAddr,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Its store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Listening {
    /// Opens the store and takes the place.
    ///
    /// # Errors
    /// When either cannot be had.
    pub async fn new(address: SocketAddr, options: Options) -> Result<Self, ListenError> {
        let open =
            |file: &str| Store::open(&options.data.join(file), options.history, options.max_requests).map(Arc::new);
        let (store, events) = (open("egressrouters.redb")?, open("events.redb")?);
        let failed = |source| ListenError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let namespaces = match options.namespaces.as_slice() {
            [] => Namespaces::Implicit,
            names => Namespaces::Only(names.to_vec()),
        };
        let server = Server {
            store,
            events,
            tokens: options.tokens,
            anonymous: options.anonymous,
            namespaces,
            address: address.to_string(),
            in_flight: Semaphore::new(options.max_requests),
            watches: Arc::new(Semaphore::new(options.max_watches)),
            metrics: Metrics::default(),
        };
        Ok(Self { listener, server: Arc::new(server), address })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for as long as this is awaited.
    pub async fn run(self, tls: Arc<ServerConfig>) {
        let forgetting = forget_old(Arc::clone(&self.server.events), KEEPING);
        tokio::select! {
            () = forgetting => {}
            () = self.accept(tls) => {}
        }
    }

    async fn accept(self, tls: Arc<ServerConfig>) {
        let acceptor = TlsAcceptor::from(tls);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let router: Router = Router::new().fallback(serve).with_state(Arc::clone(&self.server));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: others have to end first.
                    debug!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.server.metrics.refused.add();
                continue;
            };
            self.server.metrics.connections.add();
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let _place = place;
                connection(stream, acceptor, router).await;
            });
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    // Events are small and should not wait for each other.
    let _slower_at_worst = stream.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(HEAD_WITHIN, acceptor.accept(stream)).await else { return };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(MAX_HEAD).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(256);
    let service = TowerToHyperService::new(router);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!("connection: {error}");
    }
}
