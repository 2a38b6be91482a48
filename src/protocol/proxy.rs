//! The header of the PROXY protocol, versions 1 and 2: who the client is, as the proxy in front of us says.
//!
//! Finds the header's end in bytes that come in pieces, within bounds; what stands in it is `ppp`'s to parse. The
//! specification is HAProxy's doc/proxy-protocol.txt.
use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

/// The longest header of version 1, its line end included (section 2.1).
const MAX_V1: usize = 107;
/// The longest of version 2 that is taken. The addresses need 232 bytes at most; the rest are extensions (TLVs), of
/// which a client's TLS certificate is not one that a proxy sends unasked.
const MAX_V2: usize = 4096;
/// What a header of version 2 has in front of its addresses: signature, command, family, length.
const FIXED_V2: usize = 16;
const PREFIX_V1: &[u8] = b"PROXY ";
const UNKNOWN_V1: &[u8] = b"PROXY UNKNOWN";

/// A header that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its length in bytes; what follows is the client's.
    pub len: usize,
    /// The client's address; `None` where the proxy speaks for itself (LOCAL) or does not know (UNKNOWN, a family
    /// that is not IP), so that the connection's own address counts.
    pub client: Option<SocketAddr>,
}

/// Why there is no header, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(&'static str);

/// Reads the header at the front of `input`; `None` while it is not whole.
///
/// # Errors
/// What is there is no header, or one that is broken or too long.
pub fn parse(input: &[u8]) -> Result<Option<Header>, Broken> {
    if begins(input, v2::PROTOCOL_PREFIX) {
        return version_2(input);
    }
    if begins(input, PREFIX_V1) {
        return version_1(input);
    }
    Err(Broken("there is no PROXY protocol header"))
}

/// As far as `input` goes.
fn begins(input: &[u8], prefix: &[u8]) -> bool {
    let len = input.len().min(prefix.len());
    input[..len] == prefix[..len]
}

fn version_1(input: &[u8]) -> Result<Option<Header>, Broken> {
    let within = &input[..input.len().min(MAX_V1)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        let full = within.len() == MAX_V1;
        return if full { Err(Broken("the PROXY protocol header has no end")) } else { Ok(None) };
    };
    let (line, len) = (&within[..end], end + 2);
    // Section 2.1: whatever stands behind UNKNOWN is to be ignored.
    if line == UNKNOWN_V1 || line.strip_prefix(UNKNOWN_V1).is_some_and(|rest| rest.starts_with(b" ")) {
        return Ok(Some(Header { len, client: None }));
    }
    let broken = Broken("the PROXY protocol header, version 1, is broken");
    // A number's sign, which Rust would read, is in none of the header's words.
    if line.contains(&b'+') {
        return Err(broken);
    }
    // Within the line there is nothing more to come, so what `ppp` calls incomplete is broken too.
    let header = v1::Header::try_from(&input[..len]).map_err(|_| broken)?;
    let client = match header.addresses {
        v1::Addresses::Tcp4(ip) => SocketAddr::new(ip.source_address.into(), ip.source_port),
        v1::Addresses::Tcp6(ip) => canonical(ip.source_address.into(), ip.source_port),
        v1::Addresses::Unknown => return Err(broken),
    };
    if header.header.len() == len { Ok(Some(Header { len, client: Some(client) })) } else { Err(broken) }
}

fn version_2(input: &[u8]) -> Result<Option<Header>, Broken> {
    let Some(fixed) = input.get(..FIXED_V2) else { return Ok(None) };
    let len = FIXED_V2 + usize::from(u16::from_be_bytes([fixed[FIXED_V2 - 2], fixed[FIXED_V2 - 1]]));
    if len > MAX_V2 {
        return Err(Broken("the PROXY protocol header is longer than 4 KiB"));
    }
    let Some(whole) = input.get(..len) else { return Ok(None) };
    let header = v2::Header::try_from(whole).map_err(|_| Broken("the PROXY protocol header, version 2, is broken"))?;
    let client = match (header.command, header.protocol, header.addresses) {
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => {
            Some(SocketAddr::new(ip.source_address.into(), ip.source_port))
        }
        (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => {
            Some(canonical(ip.source_address.into(), ip.source_port))
        }
        _ => None,
    };
    Ok(Some(Header { len, client }))
}

/// A proxy that listens on IPv6 sockets shows its IPv4 clients mapped (`::ffff:192.0.2.1`).
fn canonical(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    fn v2_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        header.extend(body);
        header
    }

    fn v2_address(client: SocketAddr) -> Vec<u8> {
        let port = client.port().to_be_bytes();
        match client.ip() {
            IpAddr::V4(ip) => [&ip.octets()[..], &[10, 0, 0, 1], &port, &[1, 187]].concat(),
            IpAddr::V6(ip) => [&ip.octets()[..], &[9; 16], &port, &[1, 187]].concat(),
        }
    }

    fn v1_line(client: SocketAddr) -> Vec<u8> {
        let ip = client.ip();
        let (family, own) = if ip.is_ipv4() { ("TCP4", "10.0.0.1") } else { ("TCP6", "2001:db8::1") };
        format!("PROXY {family} {ip} {own} {} 443\r\n", client.port()).into_bytes()
    }

    /// Whole, in every piece of it, and with bytes behind it.
    fn read(header: &[u8]) -> Option<SocketAddr> {
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end]), Ok(None), "{end} of {header:?}");
        }
        let behind = [header, b"\r\n\r\nGET /"].concat();
        assert_eq!(parse(&behind), parse(header));
        let found = parse(header).unwrap().unwrap();
        assert_eq!(found.len, header.len());
        found.client
    }

    #[test]
    fn the_proxy_that_speaks_for_itself() {
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ff::1 a b c d e f g\r\n", "PROXY UNKNOWN \r\n"] {
            assert_eq!(read(line.as_bytes()), None, "{line}");
        }
        let address = v2_address("192.0.2.1:5000".parse().unwrap());
        for header in [
            v2_header(0x20, 0x00, &[]),
            v2_header(0x20, 0x11, &address),
            v2_header(0x21, 0x00, b"whatever"),
            v2_header(0x21, 0x12, &address),
            v2_header(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(read(&header), None, "{header:?}");
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let client = "192.0.2.1:5000".parse::<SocketAddr>().unwrap();
        let mapped = "[::ffff:192.0.2.1]:5000".parse().unwrap();
        assert_eq!(read(&v2_header(0x21, 0x21, &v2_address(mapped))), Some(client));
        assert_eq!(read(&v1_line(mapped)), Some(client));
    }

    #[test]
    fn extensions_are_skipped_up_to_a_bound() {
        let client = "[2001:db8::7]:65535".parse().unwrap();
        let mut body = v2_address(client);
        body.extend([0x20, 0xff, 0xff, 1, 2, 3]);
        assert_eq!(read(&v2_header(0x21, 0x21, &body)), Some(client));
        body.resize(MAX_V2 - FIXED_V2, 0);
        assert_eq!(parse(&v2_header(0x21, 0x21, &body)).unwrap().unwrap().len, MAX_V2);
        body.push(0);
        parse(&v2_header(0x21, 0x21, &body)[..FIXED_V2]).unwrap_err();
    }

    #[test]
    fn what_is_no_header() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for input in [
            &b"GET /ws HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PROXYTCP4",
            b"proxy TCP4",
            b"\r\n\r\n\0\r\nQUIX",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8  1 2\r\n",
            b"PROXY TCP4 1.2.3.400 5.6.7.8 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY TCP4\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY UNKNOWNX\r\n",
            b"PROXY \r\n",
            b"PROXY TCP4 1.2.3.4\r5.6.7.8 1 2\r\n",
            b"PROXY TCP4 \xff 5.6.7.8 1 2\r\n",
            long.as_bytes(),
            &long.as_bytes()[..MAX_V1],
            &v2_header(0x11, 0x11, &[0; 12]),
            &v2_header(0x22, 0x11, &[0; 12]),
            &v2_header(0x21, 0x11, &[0; 11]),
            &v2_header(0x21, 0x21, &[0; 35]),
            &v2_header(0x21, 0x41, &[0; 36]),
            &v2_header(0x21, 0x13, &[0; 36]),
        ] {
            assert!(parse(input).is_err(), "{:?}", String::from_utf8_lossy(input));
        }
    }

    proptest! {
        #[test]
        fn addresses_come_through(ip in any::<IpAddr>(), port in any::<u16>()) {
            let client = SocketAddr::new(ip, port);
            let family = if ip.is_ipv4() { 0x11 } else { 0x21 };
            let expected = Some(SocketAddr::new(ip.to_canonical(), port));
            prop_assert_eq!(read(&v1_line(client)), expected);
            prop_assert_eq!(read(&v2_header(0x21, family, &v2_address(client))), expected);
        }

        #[test]
        fn nothing_panics_and_a_verdict_stays(
            start in prop_oneof![
                Just(Vec::new()),
                Just(b"PROXY ".to_vec()),
                Just(b"PROXY TCP4 ".to_vec()),
                Just(v2::PROTOCOL_PREFIX.to_vec()),
                (any::<u8>(), any::<u8>(), 0..300u16).prop_map(|(command, family, len)| {
                    [v2::PROTOCOL_PREFIX, &[command, family][..], &len.to_be_bytes()].concat()
                }),
            ],
            rest in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let input = [start, rest].concat();
            let mut verdict = Ok(None);
            for end in 0..=input.len() {
                let now = parse(&input[..end]);
                if verdict != Ok(None) {
                    prop_assert_eq!(now, verdict, "at {}", end);
                }
                if let Ok(Some(header)) = now {
                    prop_assert!(header.len <= end && header.len <= MAX_V2);
                }
                verdict = now;
            }
        }
    }
}
