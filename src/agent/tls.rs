//! TLS towards `wss://` targets and gateways: trusted roots, and what went wrong in words.
use std::{io, sync::Arc};

use rustls::{ClientConfig, RootCertStore, client::UnbufferedClientConnection, pki_types::ServerName};
use rustls_pki_types::CertificateDer;

use crate::relay::tls::Connection;

/// The configuration of connections to `wss://` targets, or gateways: the platform's roots, and `extra` ones.
///
/// # Errors
/// One of `extra` cannot serve as a root.
pub fn client_config(extra: Vec<CertificateDer<'static>>) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() && extra.is_empty() {
        let errors: Vec<String> = native.errors.iter().map(ToString::to_string).collect();
        tracing::warn!(
            "no trusted roots on this system, so wss:// needs roots of your own (ca_file) {}",
            errors.join(", ")
        );
    }
    for root in extra {
        roots.add(root).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A server that speaks HTTP/2 too must not choose it.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Once the handshake is done, the relay works with the keys itself.
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// A connection that is to be with `server_name`: a host name, sent as SNI, or an IP address.
///
/// # Errors
/// No certificate can be for such a name.
pub fn connection(config: &Arc<ClientConfig>, server_name: &str) -> Result<Connection, rustls::Error> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| rustls::Error::General(format!("no certificate can be for the name {server_name:?}")))?;
    Ok(UnbufferedClientConnection::new(config.clone(), name)?.into())
}

/// What a failed handshake means, in words that name TLS; "it" is the server.
pub fn explain(error: &io::Error) -> String {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "TLS: it closed the connection in the handshake".into(),
            _ => format!("TLS: {}", super::dial::explain(error)),
        };
    };
    format!("TLS: {}", in_words(error))
}

fn in_words(error: &rustls::Error) -> String {
    use rustls::{CertificateError as Certificate, Error};
    let why = match error {
        Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            "its certificate is signed by nobody who is trusted here"
        }
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "its certificate has expired"
        }
        Error::InvalidCertificate(Certificate::NotValidYet | Certificate::NotValidYetContext { .. }) => {
            "its certificate is not valid yet"
        }
        Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            "its certificate is for another name"
        }
        Error::InvalidCertificate(Certificate::BadSignature) => "its certificate's signature is wrong",
        Error::InvalidCertificate(Certificate::Revoked) => "its certificate is revoked",
        Error::InvalidCertificate(Certificate::Other(other)) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's own (CA:TRUE), which must not be a server's"
        }
        Error::InvalidCertificate(Certificate::BadEncoding) => "its certificate cannot be read",
        other => return other.to_string(),
    };
    why.to_owned()
}
