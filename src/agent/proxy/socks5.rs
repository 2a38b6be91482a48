//! SOCKS5 (RFC 1928), without authentication or with user and password (RFC 1929).
use std::net::IpAddr;

use super::{Destination, Step};
use crate::protocol::{connect::Credentials, target::Host};

const VERSION: u8 = 5;
const CONNECT: u8 = 1;

/// Methods of authentication.
const NONE: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;

/// Kinds of address.
const V4: u8 = 1;
const NAME: u8 = 3;
const V6: u8 = 4;

/// The answer's fields in front of its address, and behind it.
const ANSWER_HEAD: usize = 4;
const PORT: usize = 2;

#[derive(Debug)]
pub struct Conversation<'a> {
    credentials: Option<&'a Credentials>,
    destination: Destination<'a>,
    awaits: Awaits,
}

#[derive(Clone, Copy, Debug)]
enum Awaits {
    Nothing,
    Method,
    Authentication,
    Answer,
}

impl<'a> Conversation<'a> {
    pub fn new(credentials: Option<&'a Credentials>, destination: Destination<'a>) -> Self {
        Self { credentials, destination, awaits: Awaits::Nothing }
    }

    pub fn next(&mut self, input: &mut Vec<u8>) -> Result<Step, String> {
        match self.awaits {
            Awaits::Nothing => {
                self.awaits = Awaits::Method;
                let methods: &[u8] = if self.credentials.is_some() { &[NONE, USER_AND_PASSWORD] } else { &[NONE] };
                Ok(Step::Send([&[VERSION, methods.len() as u8], methods].concat()))
            }
            Awaits::Method => {
                speaks_socks5(input)?;
                let Some(method) = input.get(1).copied() else { return Ok(Step::More) };
                input.drain(..2);
                match (method, self.credentials) {
                    (NONE, _) => self.ask(),
                    (USER_AND_PASSWORD, Some(credentials)) => {
                        self.awaits = Awaits::Authentication;
                        user_and_password(credentials).map(Step::Send)
                    }
                    (NO_ACCEPTABLE_METHOD, None) => Err("it wants user and password".into()),
                    (NO_ACCEPTABLE_METHOD, Some(_)) => {
                        Err("it wants another authentication than user and password".into())
                    }
                    _ => Err("it chose an authentication that was not offered".into()),
                }
            }
            Awaits::Authentication => {
                // The version in front of the status is not looked at: some proxies say 5, where the RFC says 1.
                let Some(status) = input.get(1).copied() else { return Ok(Step::More) };
                input.drain(..2);
                if status == 0 { self.ask() } else { Err("it refused user and password".into()) }
            }
            Awaits::Answer => {
                speaks_socks5(input)?;
                let Some(code) = input.get(1).copied() else { return Ok(Step::More) };
                if code != 0 {
                    return Err(in_words(code));
                }
                let address = match (input.get(ANSWER_HEAD - 1), input.get(ANSWER_HEAD)) {
                    (Some(&V4), _) => 4,
                    (Some(&V6), _) => 16,
                    (Some(&NAME), Some(len)) => 1 + usize::from(*len),
                    (None | Some(&NAME), _) => return Ok(Step::More),
                    _ => return Err("its answer has an unknown kind of address".into()),
                };
                let whole = ANSWER_HEAD + address + PORT;
                if input.len() < whole {
                    return Ok(Step::More);
                }
                input.drain(..whole);
                Ok(Step::Done)
            }
        }
    }

    /// The request (section 4).
    fn ask(&mut self) -> Result<Step, String> {
        self.awaits = Awaits::Answer;
        let mut out = vec![VERSION, CONNECT, 0];
        match self.destination.host {
            Host::Ip(IpAddr::V4(ip)) => {
                out.push(V4);
                out.extend(ip.octets());
            }
            Host::Ip(IpAddr::V6(ip)) => {
                out.push(V6);
                out.extend(ip.octets());
            }
            Host::Name(name) => {
                let len = u8::try_from(name.len()).map_err(|_| "the target's name is too long for SOCKS5")?;
                out.extend([NAME, len]);
                out.extend(name.bytes());
            }
        }
        out.extend(self.destination.port.to_be_bytes());
        Ok(Step::Send(out))
    }
}

/// Seen in the first byte: what speaks something else may not send a second one.
fn speaks_socks5(input: &[u8]) -> Result<(), String> {
    if input.first().is_none_or(|version| *version == VERSION) { Ok(()) } else { Err("it is no SOCKS5 proxy".into()) }
}

/// RFC 1929 section 2.
fn user_and_password(credentials: &Credentials) -> Result<Vec<u8>, String> {
    let mut out = vec![1];
    for text in [&credentials.user, &credentials.password] {
        out.push(u8::try_from(text.len()).map_err(|_| "user or password is too long for SOCKS5")?);
        out.extend(text);
    }
    Ok(out)
}

/// Section 6.
fn in_words(code: u8) -> String {
    match code {
        1 => "it reports a general failure",
        2 => "its rules do not allow the target",
        3 => "it cannot reach the target: network unreachable",
        4 => "it cannot reach the target: host unreachable",
        5 => "it cannot reach the target: connection refused",
        6 => "it cannot reach the target: TTL expired",
        7 => "it does not know the command CONNECT",
        8 => "it does not take this kind of address",
        _ => return format!("it answered with the unknown code {code}"),
    }
    .into()
}
