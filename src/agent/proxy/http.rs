//! HTTP CONNECT (RFC 9110 section 9.3.6), with Basic authentication (RFC 7617) where there are credentials.
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Destination, Step};
use crate::{
    agent::handshake::{HeadReader, MAX_HEADERS},
    protocol::connect::Credentials,
};

#[derive(Debug)]
pub struct Conversation<'a> {
    credentials: Option<&'a Credentials>,
    destination: Destination<'a>,
    asked: bool,
    reader: HeadReader,
}

impl<'a> Conversation<'a> {
    pub fn new(credentials: Option<&'a Credentials>, destination: Destination<'a>) -> Self {
        Self { credentials, destination, asked: false, reader: HeadReader::default() }
    }

    pub fn next(&mut self, input: &mut Vec<u8>) -> Result<Step, String> {
        if !std::mem::replace(&mut self.asked, true) {
            return Ok(Step::Send(self.request()));
        }
        let with_credentials = self.credentials.is_some();
        let accepted = self.reader.next(input, |head| judge(head, with_credentials), String::from)?;
        Ok(if accepted.is_some() { Step::Done } else { Step::More })
    }

    fn request(&self) -> Vec<u8> {
        let Destination { host, port } = self.destination;
        let mut out = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
        if let Some(Credentials { user, password }) = self.credentials {
            let user_pass = [user, &b":"[..], password].concat();
            out += &format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(user_pass));
        }
        out += "\r\n";
        out.into_bytes()
    }
}

/// `None`: not whole, or an interim answer. Any 2xx is a yes, and what its headers say of a length means nothing.
fn judge(head: &[u8], with_credentials: bool) -> Result<Option<()>, String> {
    let no_http = || Err("it does not answer in HTTP".to_owned());
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("its answer has more than 100 headers".into()),
        Err(_) => return no_http(),
    }
    match response.code.unwrap_or_default() {
        ..100 => no_http(),
        // Nobody has asked it to switch.
        status @ 101 => Err(format!("it answered HTTP {status}")),
        100..=199 => Ok(None),
        200..=299 => Ok(Some(())),
        407 if with_credentials => Err("it refused user and password (HTTP 407)".into()),
        407 => Err("it wants user and password (HTTP 407)".into()),
        status => Err(format!("it answered HTTP {status}")),
    }
}
