//! TLS of the public listener: the certificate that it shows, and exchanging that while connections live.
use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig, ServerConnection,
    crypto::aws_lc_rs::{self, Ticketer},
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
};

use crate::config::{ConfigError, ConfigErrors, certs, gateway::TlsListenConfig};

/// Takes TLS connections with the certificate that its files held when they were read last.
#[derive(Debug)]
pub struct Acceptor {
    cert: PathBuf,
    key: PathBuf,
    config: ArcSwap<ServerConfig>,
}

impl Acceptor {
    /// Reads the certificate and its key. What clients will not like about them is logged as a warning.
    ///
    /// # Errors
    /// They cannot be served; which file, and what is wrong with it.
    pub fn load(listen: &TlsListenConfig) -> Result<Self, ConfigErrors> {
        let TlsListenConfig { cert, key, .. } = listen.clone();
        let config = ArcSwap::new(server_config(&cert, &key)?);
        Ok(Self { cert, key, config })
    }

    /// Reads the files again. From now on new connections are shown what they hold; the others stay as they are.
    /// Reads files, so it must not be called on a worker thread.
    ///
    /// # Errors
    /// As for [`Acceptor::load`]; then the certificate stays the one it was.
    pub fn reload(&self) -> Result<(), ConfigErrors> {
        self.config.store(server_config(&self.cert, &self.key)?);
        Ok(())
    }

    /// The state of a connection that was accepted just now.
    ///
    /// # Errors
    /// There are no random numbers to be had.
    pub(super) fn connection(&self) -> Result<rustls::Connection, rustls::Error> {
        ServerConnection::new(self.config.load_full()).map(Into::into)
    }
}

/// A configuration with ticket keys of its own, so that a session of an older certificate is not resumed: whoever
/// comes anew sees the new one.
fn server_config(cert: &std::path::Path, key: &std::path::Path) -> Result<Arc<ServerConfig>, ConfigErrors> {
    let identity = certs::load_identity(cert, key)?;
    for warning in &identity.warnings {
        tracing::warn!("{warning}");
    }
    let failed =
        |error: rustls::Error| ConfigErrors::from(ConfigError::new(cert, format!("cannot be served: {error}")));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)));
    // A client that offers HTTP/2 too must not choose it: a WebSocket's opening handshake is HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sessions are resumed by tickets, which cost no memory here and no lock, and are good on every worker.
    config.ticketer = Ticketer::new().map_err(failed)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}
