//! TLS of the public listener: the certificate that it shows, and exchanging that while connections live.
use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::{self, Ticketer},
    server::{NoServerSessionStorage, UnbufferedServerConnection},
    sign::SingleCertAndKey,
};

use crate::{
    config::{ConfigError, ConfigErrors, certs, gateway::TlsListenConfig},
    relay::tls::Connection,
};

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
    pub(super) fn connection(&self) -> Result<Connection, rustls::Error> {
        UnbufferedServerConnection::new(self.config.load_full()).map(Into::into)
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
    // Once the handshake is done, the relay works with the keys itself.
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::{
        io,
        path::{Path, PathBuf},
    };

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection};
    use rustls_pki_types::CertificateDer;

    use super::*;

    const NAME: &str = "relay.example.com";

    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ringway-tls-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn renew(&self) -> CertificateDer<'static> {
            let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
            std::fs::write(self.0.join("cert.pem"), cert.pem()).unwrap();
            std::fs::write(self.0.join("key.pem"), signing_key.serialize_pem()).unwrap();
            cert.der().clone()
        }

        fn listen(&self) -> TlsListenConfig {
            TlsListenConfig { addr: vec![], cert: self.0.join("cert.pem"), key: self.0.join("key.pem") }
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn client(roots: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
        let mut store = RootCertStore::empty();
        roots.iter().for_each(|root| store.add(root.clone()).unwrap());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(store).with_no_client_auth())
    }

    /// A handshake in memory: the certificate that was shown, and whether a session was resumed.
    fn shake(acceptor: &Acceptor, config: &Arc<ClientConfig>) -> (CertificateDer<'static>, HandshakeKind) {
        let mut server = ServerConnection::new(acceptor.config.load_full()).unwrap();
        let mut client = ClientConnection::new(config.clone(), NAME.try_into().unwrap()).unwrap();
        while client.wants_write() || server.wants_write() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut wire = io::Cursor::new(wire);
            while server.read_tls(&mut wire).unwrap() > 0 {
                server.process_new_packets().unwrap();
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = io::Cursor::new(wire);
            while client.read_tls(&mut wire).unwrap() > 0 {
                client.process_new_packets().unwrap();
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        let shown = client.peer_certificates().unwrap()[0].clone().into_owned();
        (shown, client.handshake_kind().unwrap())
    }

    #[test]
    fn a_new_certificate_is_shown_to_new_connections_and_a_broken_one_never() {
        let files = Files::new("reload");
        let old = files.renew();
        let acceptor = Acceptor::load(&files.listen()).unwrap();
        let new = files.renew();
        let trusting = client(&[old.clone(), new.clone()]);
        assert_eq!(shake(&acceptor, &trusting), (old.clone(), HandshakeKind::Full));
        assert_eq!(shake(&acceptor, &trusting), (old.clone(), HandshakeKind::Resumed));
        acceptor.reload().unwrap();
        let (shown, kind) = shake(&acceptor, &trusting);
        assert!(shown == new && kind != HandshakeKind::Resumed, "{kind:?}");

        std::fs::write(files.0.join("key.pem"), "nonsense").unwrap();
        let error = acceptor.reload().unwrap_err().to_string();
        assert!(error.contains("key.pem: holds no private key"), "{error}");
        assert_eq!(shake(&acceptor, &trusting).0, new);
        std::fs::remove_file(files.0.join("cert.pem")).unwrap();
        acceptor.reload().unwrap_err();
        assert_eq!(shake(&acceptor, &client(std::slice::from_ref(&new))).0, new);
    }

    #[test]
    fn files_that_are_missing_are_named() {
        let listen =
            TlsListenConfig { addr: vec![], cert: "/nonexistent/c.pem".into(), key: "/nonexistent/k.pem".into() };
        let errors = Acceptor::load(&listen).unwrap_err();
        let named: Vec<&Path> = errors.0.iter().map(|error| error.path.as_path()).collect();
        assert_eq!(named, [Path::new("/nonexistent/c.pem"), Path::new("/nonexistent/k.pem")]);
    }
}
