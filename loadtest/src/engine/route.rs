//! The way to the target: whom to connect to, and what to say there until messages may flow.
use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use ringway::agent::insecure::trust_anybody;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use url::{Host, Url};

/// How the target is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The URL itself, or a peer that passes everything on.
    Direct,
    /// A relay that takes the connect message.
    Message,
    /// A relay that takes the target in the query.
    Transparent,
}

/// What the user says about the way.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub form: Form,
    /// The relay, or with [`Form::Direct`] the target.
    pub peer: String,
    /// With a relay.
    pub target: Option<String>,
    pub key: Option<String>,
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate.
    pub insecure: bool,
}

/// Everything that every session needs to open.
pub struct Route {
    pub address: SocketAddr,
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// The request up to the value of Sec-WebSocket-Key, which is its last header.
    pub request: String,
    /// The JSON text to send behind the upgrade.
    pub connect_message: Option<String>,
    /// Through a relay, which has two connections for each session.
    pub relayed: bool,
    /// For people: without key and query.
    pub description: String,
}

impl fmt::Debug for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Route({})", self.description)
    }
}

impl Route {
    /// Resolves names and makes the texts.
    ///
    /// # Errors
    /// A URL is not usable, a name does not resolve, or the certificates cannot be read.
    pub fn new(wanted: &Wanted) -> anyhow::Result<Self> {
        let peer = parse(&wanted.peer)?;
        let target = wanted.target.as_deref().map(parse).transpose()?;
        let host = peer.host().context("a URL without host")?.to_owned();
        let port = peer.port_or_known_default().context("a URL without port")?;
        let address = resolve(&host, port)?;
        let tls = match peer.scheme() {
            "wss" => {
                let name = match &host {
                    Host::Domain(name) => ServerName::try_from(name.clone())?,
                    Host::Ipv4(ip) => ServerName::from(std::net::IpAddr::from(*ip)),
                    Host::Ipv6(ip) => ServerName::from(std::net::IpAddr::from(*ip)),
                };
                Some((Arc::new(client_config(wanted)?), name))
            }
            _ => None,
        };
        let mut headers = String::new();
        let mut connect_message = None;
        let mut location = peer.clone();
        let mut description = plainly(&peer);
        if wanted.form != Form::Direct {
            let target = target.context("a relay needs a target")?;
            let key = wanted.key.as_deref().context("no key for the relay: give --key, or RINGWAY_KEY")?;
            ensure!(
                !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic()),
                "the key has characters that no key has"
            );
            description = format!("{} through {}", plainly(&target), plainly(&peer));
            if matches!(location.path(), "" | "/") {
                location.set_path("/ws");
            }
            if wanted.form == Form::Message {
                connect_message = Some(serde_json::json!({"apiKey": key, "url": target.as_str()}).to_string());
            } else {
                location.query_pairs_mut().append_pair("url", target.as_str());
                headers = format!("X-API-Key: {key}\r\n");
            }
        }
        let authority = match peer.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        let path = location.path();
        let query = location.query().map(|query| format!("?{query}")).unwrap_or_default();
        let request = format!(
            "GET {path}{query} HTTP/1.1\r\nHost: {authority}\r\n{headers}Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        );
        let relayed = wanted.form != Form::Direct;
        Ok(Self { address, tls, request, connect_message, relayed, description })
    }
}

fn parse(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).with_context(|| format!("{text:?} is not a URL; write ws://host:port/path"))?;
    ensure!(matches!(url.scheme(), "ws" | "wss"), "{text:?}: the scheme must be ws or wss");
    ensure!(url.fragment().is_none(), "{text:?}: a WebSocket URL has no fragment");
    Ok(url)
}

/// Scheme, host, port and path: a query may hold a key.
fn plainly(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

fn resolve(host: &Host<String>, port: u16) -> anyhow::Result<SocketAddr> {
    let found = match host {
        Host::Ipv4(ip) => Some((*ip, port).into()),
        Host::Ipv6(ip) => Some((*ip, port).into()),
        Host::Domain(name) => (name.as_str(), port)
            .to_socket_addrs()
            .with_context(|| format!("{name} does not resolve"))?
            // Local relays listen on 127.0.0.1 more often than on ::1.
            .min_by_key(SocketAddr::is_ipv6),
    };
    found.with_context(|| format!("{host} has no address"))
}

fn client_config(wanted: &Wanted) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut roots = RootCertStore::empty();
    if wanted.insecure {
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        // So that a relay with a certificate of its own making can be measured.
        trust_anybody(&mut config);
        return Ok(config);
    }
    if let Some(file) = &wanted.ca_file {
        let read = || -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
            CertificateDer::pem_file_iter(file)?.collect()
        };
        let certificates = read().map_err(io::Error::other).with_context(|| format!("{}", file.display()))?;
        if certificates.is_empty() {
            bail!("{}: no certificate in it", file.display());
        }
        for certificate in certificates {
            roots.add(certificate).with_context(|| format!("{}", file.display()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(form: Form, peer: &str, target: Option<&str>) -> Wanted {
        let target = target.map(Into::into);
        Wanted { form, peer: peer.into(), target, key: Some("rw_secret".into()), ca_file: None, insecure: false }
    }

    #[test]
    fn the_three_forms() {
        let direct = Route::new(&wanted(Form::Direct, "ws://127.0.0.1:9000/a?b=c", None)).unwrap();
        assert!(direct.request.starts_with("GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n"), "{}", direct.request);
        assert!(direct.connect_message.is_none());

        let message = Route::new(&wanted(Form::Message, "ws://127.0.0.1:80", Some("wss://t.example/x"))).unwrap();
        assert!(message.request.starts_with("GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\n"), "{}", message.request);
        assert_eq!(message.connect_message.unwrap(), r#"{"apiKey":"rw_secret","url":"wss://t.example/x"}"#);

        let transparent =
            Route::new(&wanted(Form::Transparent, "ws://[::1]:1/ws", Some("ws://t.example/?q=1&r"))).unwrap();
        assert!(
            transparent
                .request
                .starts_with("GET /ws?url=ws%3A%2F%2Ft.example%2F%3Fq%3D1%26r HTTP/1.1\r\nHost: [::1]:1\r\n")
        );
        assert!(transparent.request.contains("X-API-Key: rw_secret\r\n"));
    }

    #[test]
    fn no_description_holds_a_secret() {
        let route = Route::new(&wanted(
            Form::Message,
            "ws://u:rw_secret@127.0.0.1/ws?key=rw_secret",
            Some("ws://t/?rw_secret"),
        ));
        assert!(!format!("{:?}", route.unwrap()).contains("rw_secret"));
    }

    #[test]
    fn what_is_no_route() {
        for (peer, part) in [("http://x", "ws or wss"), ("x", "is not a URL"), ("ws://127.0.0.1/#a", "no fragment")] {
            let error = Route::new(&wanted(Form::Direct, peer, None)).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
        let mut keyless = wanted(Form::Message, "ws://127.0.0.1", Some("ws://t"));
        keyless.key = None;
        assert!(format!("{:#}", Route::new(&keyless).unwrap_err()).contains("RINGWAY_KEY"));
    }
}
