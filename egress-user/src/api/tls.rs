//! The server's certificate, and the kubeconfig that trusts it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("find {what} in PEM form in {}", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// The reason.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// None can be made.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    /// Certificate and key do not fit.
    #[error("use the certificate")]
    Use(#[from] rustls::Error),
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    certificate: String,
    key: String,
    certificate_path: PathBuf,
    key_path: PathBuf,
}

impl Identity {
    /// The one in these files.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let text = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        Ok(Self {
            certificate: text(certificate)?,
            key: text(key)?,
            certificate_path: certificate.to_owned(),
            key_path: key.to_owned(),
        })
    }

    /// The one that was made in a directory, or a new one, for an address and for this machine's own names.
    ///
    /// # Errors
    /// When it cannot be made or kept.
    pub fn of_directory(directory: &Path, address: SocketAddr) -> Result<Self, TlsError> {
        let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
        if certificate.exists() && key.exists() {
            return Self::read(&certificate, &key);
        }
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        if !address.ip().is_unspecified() {
            names.push(address.ip().to_string());
        }
        names.sort();
        names.dedup();
        let made = rcgen::generate_simple_self_signed(names)?;
        write_private(&key, made.signing_key.serialize_pem().as_bytes())?;
        let text = made.cert.pem();
        let written = std::fs::write(&certificate, text);
        written.map_err(|source| TlsError::Write { path: certificate.clone(), source })?;
        Self::read(&certificate, &key)
    }

    /// What a server is set up with.
    ///
    /// # Errors
    /// When certificate and key are none, or do not fit.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let wrong = |path: &Path, what| {
            let path = path.to_owned();
            move |source| TlsError::Pem { path, what, source }
        };
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(wrong(&self.certificate_path, "a certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(wrong(&self.key_path, "a private key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A kubeconfig for a server with this certificate.
    pub fn kubeconfig(&self, address: SocketAddr, token: &str) -> String {
        let host = match address {
            address if address.ip().is_unspecified() => format!("127.0.0.1:{}", address.port()),
            address => address.to_string(),
        };
        let authority = STANDARD.encode(&self.certificate);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: egress-router\nclusters:\n- name: egress-router\n  cluster:\n    \
             server: https://{host}\n    certificate-authority-data: {authority}\ncontexts:\n- name: egress-router\n  \
             context: {{cluster: egress-router, user: egress-router, namespace: default}}\nusers:\n- name: \
             egress-router\n  user:\n    token: {token}\n"
        )
    }
}

/// Writes a file that only its owner reads.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |source| TlsError::Write { path: path.to_owned(), source };
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)
}
