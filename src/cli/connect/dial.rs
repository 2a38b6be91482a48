//! From a gateway's address to an open WebSocket: TCP, TLS, opening handshake.
use std::{io, sync::Arc, time::Duration};

use rustls::{CertificateError, ClientConfig, Error};
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::screen::harmless;
use crate::{
    agent::{
        dial as target_dial,
        handshake::{AnswerReader, Asked},
        insecure::trust_anybody,
        tls,
    },
    protocol::{
        answer::Failure,
        opening,
        target::{Host, Target},
    },
};

/// How long a gateway may take for TCP, TLS and the opening handshake together.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The longest body of an error answer that is read, in bytes.
const MAX_BODY: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// TCP with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// An open WebSocket.
pub struct Opened {
    pub stream: Box<dyn Stream>,
    /// What came right behind the gateway's answer.
    pub received: Vec<u8>,
}

/// What an error answer of a gateway says, if it is one.
#[derive(Deserialize)]
struct Explanation {
    message: String,
    code: Option<String>,
}

/// The TLS of a `wss://` gateway: the platform's roots and `extra` ones; `insecure` trusts anybody.
///
/// # Errors
/// One of `extra` cannot serve as a root.
pub fn client_config(extra: Vec<CertificateDer<'static>>, insecure: bool) -> io::Result<Arc<ClientConfig>> {
    let config = tls::client_config(extra)?;
    if !insecure {
        return Ok(config);
    }
    let mut config = ClientConfig::clone(&config);
    trust_anybody(&mut config);
    Ok(Arc::new(config))
}

/// Opens a WebSocket at the gateway.
///
/// # Errors
/// It cannot be reached, or does not open one; the error says what went wrong.
pub async fn dial(gateway: &Target, tls: Option<Arc<ClientConfig>>) -> anyhow::Result<Opened> {
    let place = gateway.host_and_port();
    let opened = tokio::time::timeout(TIMEOUT, async {
        let stream = connect(gateway, tls).await.map_err(|error| anyhow::anyhow!("cannot reach {place}: {error}"))?;
        open(gateway, stream).await
    });
    opened.await.map_err(|_| anyhow::anyhow!("{place} did not answer within {TIMEOUT:?}"))?
}

/// An error is in the words that a gateway has for its targets.
async fn connect(gateway: &Target, tls: Option<Arc<ClientConfig>>) -> Result<Box<dyn Stream>, String> {
    let tcp = match &gateway.host {
        Host::Ip(ip) => TcpStream::connect((*ip, gateway.port)).await,
        Host::Name(name) => TcpStream::connect((name.as_str(), gateway.port)).await,
    };
    let tcp = tcp.map_err(|error| target_dial::explain(&error))?;
    tcp.set_nodelay(true).map_err(|error| target_dial::explain(&error))?;
    let Some(config) = tls else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(gateway.server_name())
        .map_err(|_| "TLS: no certificate can be for its name".to_owned())?;
    let stream = TlsConnector::from(config).connect(name, tcp).await;
    Ok(Box::new(stream.map_err(|error| explain(&error))?))
}

/// What a failed TLS handshake means, and what to do.
fn explain(error: &io::Error) -> String {
    let hint = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "; name its root with --ca-file, or trust anybody with --insecure"
        }
        Some(Error::InvalidCertificate(_)) => "; --insecure trusts anybody",
        Some(Error::InvalidMessage(_)) => "; perhaps it speaks ws://, not wss://",
        _ => "",
    };
    format!("{}{hint}", tls::explain(error))
}

async fn open(gateway: &Target, mut stream: Box<dyn Stream>) -> anyhow::Result<Opened> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    let key = opening::key_from(nonce);
    let authorization = gateway.basic.as_ref().map(|basic| format!("Authorization: {basic}\r\n")).unwrap_or_default();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\nUser-Agent: ringway/{}\r\n{authorization}\r\n",
        gateway.path_and_query,
        gateway.authority(),
        env!("CARGO_PKG_VERSION"),
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut received = Vec::new();
    let mut reader = AnswerReader::default();
    loop {
        if stream.read_buf(&mut received).await? == 0 {
            anyhow::bail!("{} closed the connection instead of answering", gateway.host_and_port());
        }
        match reader.next(&mut received, Asked::Ours { key: &key, subprotocols: &[] }) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Opened { stream, received }),
            Err(Failure::TargetRejected { status }) => {
                let why = explanation(&mut stream, received).await;
                anyhow::bail!("{} answered HTTP {status}{why}", gateway.host_and_port());
            }
            Err(Failure::TargetHandshakeInvalid(why)) => {
                anyhow::bail!("{} answered an invalid handshake: {why}", gateway.host_and_port());
            }
            Err(_) => anyhow::bail!("{} is no gateway: it does not answer in HTTP/1.1", gateway.host_and_port()),
        }
    }
}

/// What the body of an error answer says, as text to append; empty if it says nothing.
async fn explanation(stream: &mut Box<dyn Stream>, mut received: Vec<u8>) -> String {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = response.parse(&received) else { return String::new() };
        let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or(0);
        if length > MAX_BODY {
            return String::new();
        }
        if let Some(body) = received.get(head..head + length) {
            return match serde_json::from_slice::<Explanation>(body) {
                Ok(Explanation { message, code: Some(code) }) => harmless(&format!(": {message} ({code})")),
                Ok(Explanation { message, code: None }) => harmless(&format!(": {message}")),
                Err(_) => "; its path is usually /ws".to_owned(),
            };
        }
        if !stream.read_buf(&mut received).await.is_ok_and(|len| len > 0) {
            return String::new();
        }
    }
}
