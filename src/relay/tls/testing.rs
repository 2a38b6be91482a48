//! For tests: both sides of a connection, in which the one trusts the other.
#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::CryptoProvider};
use rustls_pki_types::PrivateKeyDer;

pub(crate) fn configs(
    name: &str,
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).unwrap();
    let mut server = server.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    server.enable_secret_extraction = true;
    client.enable_secret_extraction = true;
    (Arc::new(server), Arc::new(client))
}
