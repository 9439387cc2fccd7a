//! HTTP/1.1 by hand: clients that test a server have to be able to send what no client sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(90);

/// A connection.
pub type Connection = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// Makes connections to one server. Whether certificates are checked is tested with kubectl.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Method, as it is sent.
    pub method: String,
    /// Path and query, as they are sent.
    pub target: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Option<Vec<u8>>,
}

impl Request {
    /// A request of the one whose token is `admin-token`; a body is JSON, and that of a PATCH is merged.
    pub fn new(method: &str, target: &str, body: Option<&str>) -> Self {
        Self::by("admin-token", method, target, body)
    }

    /// The same of the one whose token is `token`.
    pub fn by(token: &str, method: &str, target: &str, body: Option<&str>) -> Self {
        let mut headers = vec![("Authorization".to_owned(), format!("Bearer {token}"))];
        if body.is_some() {
            let ty = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            headers.push(("Content-Type".to_owned(), ty.to_owned()));
        }
        let (method, target) = (method.to_owned(), target.to_owned());
        Self { method, target, headers, body: body.map(|body| body.as_bytes().to_vec()) }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// Every value of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        let text = || format!("read {} {:?}", self.status, String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).with_context(text)
    }
}

impl Client {
    /// Clients of the server at an address.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(address: SocketAddr) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_no_client_auth();
        Ok(Self { address, config: Arc::new(config) })
    }

    /// A new connection.
    ///
    /// # Errors
    /// When the server is away.
    pub fn connect(&self) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(WITHIN))?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let session = ClientConnection::new(Arc::clone(&self.config), name).map_err(std::io::Error::other)?;
        Ok(BufReader::new(StreamOwned::new(session, stream)))
    }

    /// Sends a request on a new connection and reads the whole answer.
    ///
    /// # Errors
    /// When the server is away, or breaks off.
    pub fn send(&self, request: &Request) -> std::io::Result<Response> {
        self.exchange(&mut self.connect()?, request)
    }

    /// Sends a request on a connection that stays, and reads the whole answer.
    ///
    /// # Errors
    /// When the server breaks off.
    pub fn exchange(&self, connection: &mut Connection, request: &Request) -> std::io::Result<Response> {
        send(connection, self.address, request)?;
        let mut response = read_head(connection)?;
        if request.method != "HEAD" {
            read_body(connection, &mut response)?;
        }
        Ok(response)
    }

    /// A request of the administrator's, with a JSON body, on a connection of its own.
    ///
    /// # Errors
    /// When the server is away.
    pub fn call(&self, method: &str, target: &str, body: Option<&str>) -> std::io::Result<Response> {
        self.send(&Request::new(method, target, body))
    }
}

/// Sends a request.
///
/// # Errors
/// When the server breaks off.
pub fn send(connection: &mut Connection, address: SocketAddr, request: &Request) -> std::io::Result<()> {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: {address}\r\n", request.method, request.target);
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = &request.body {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let stream = connection.get_mut();
    stream.write_all(head.as_bytes())?;
    // A server that refuses a body early may not read it to its end.
    let sent = request.body.as_ref().map_or(Ok(()), |body| stream.write_all(body)).and_then(|()| stream.flush());
    match sent {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Reads status and headers.
///
/// # Errors
/// When the server breaks off, or says something else.
pub fn read_head(connection: &mut Connection) -> std::io::Result<Response> {
    let first = line(connection)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status in {first:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = line(connection)?;
        if line.is_empty() {
            return Ok(Response { status, headers, body: Vec::new() });
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn line(connection: &mut Connection) -> std::io::Result<String> {
    let mut line = Vec::new();
    connection.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// Reads the body that the headers announce.
///
/// # Errors
/// When the server breaks off.
pub fn read_body(connection: &mut Connection, response: &mut Response) -> std::io::Result<()> {
    if is_chunked(response) {
        while let Some(chunk) = chunk(connection)? {
            response.body.extend(chunk);
        }
        return Ok(());
    }
    let length = response.all("content-length").first().and_then(|length| length.parse().ok()).unwrap_or(0);
    response.body.resize(length, 0);
    connection.read_exact(&mut response.body)
}

/// Whether a body comes in chunks.
pub fn is_chunked(response: &Response) -> bool {
    response.all("transfer-encoding").contains(&"chunked")
}

/// The next chunk; none at the end.
///
/// # Errors
/// When the server breaks off.
pub fn chunk(connection: &mut Connection) -> std::io::Result<Option<Vec<u8>>> {
    let size = line(connection)?;
    let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16).map_err(std::io::Error::other)?;
    let mut chunk = vec![0; size];
    connection.read_exact(&mut chunk)?;
    connection.read_exact(&mut [0; 2])?;
    Ok((size > 0).then_some(chunk))
}

#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
