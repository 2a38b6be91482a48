//! One rule of `[egress] allow` and `deny`: a network or a host name.
//!
//! Owns the notation and its normal form, so that whoever compares need not: single addresses are networks of one,
//! IPv4 in IPv6 (`::ffff:10.0.0.0/104`) is IPv4, host names are lower-case ASCII without a trailing dot. Must never
//! guess: a network with host bits set is refused, because half of such lines mean the host and half the network.
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

const MAX_TEXT: usize = 1024;

/// What a rule names. Which names a `Host` covers (subdomains in `deny`) is the egress policy's to say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EgressRule {
    Net(IpNet),
    Host(String),
}

impl FromStr for EgressRule {
    /// A sentence without a full stop.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // IDNA can make a long name short, but not as short as that; and errors repeat the text.
        if text.len() > MAX_TEXT {
            return Err("a rule is a host name or a network, and this is too long for one".to_owned());
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(unmapped(address.into())));
        }
        if let Some((address, _)) = text.split_once('/')
            && address.parse::<IpAddr>().is_ok()
        {
            return network(text, address);
        }
        host(text).map(Self::Host)
    }
}

fn network(text: &str, address: &str) -> Result<EgressRule, String> {
    let net: IpNet = text.parse().map_err(|_| format!("{text:?} has no usable prefix length, like \"10.0.0.0/8\""))?;
    if net.addr() != net.network() {
        let trunc = net.trunc();
        return Err(format!(
            "{text:?} is one host in a network: write \"{trunc}\" for the network, \"{address}\" for the host"
        ));
    }
    Ok(EgressRule::Net(unmapped(net)))
}

/// A target's address is compared unmapped, so a mapped rule would match nothing, which in `deny` is a hole.
fn unmapped(net: IpNet) -> IpNet {
    const MAPPED_PREFIX: u8 = 96;
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped();
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_PREFIX => mapped(v6.addr())
            .and_then(|address| Ipv4Net::new(address, v6.prefix_len() - MAPPED_PREFIX).ok())
            .map_or(net, IpNet::V4),
        other => other,
    }
}

fn host(text: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("{text:?} is no host name or network: {why}"));
    if text.contains("://") || text.contains('@') {
        // Whole URLs are not repeated: they can carry a password.
        return Err("a rule is a host name or a network, not a URL: write \"relay.example.com\"".to_owned());
    }
    if text.contains('*') {
        return wrong("there are no wildcards, and in deny a name covers its subdomains");
    }
    if text.contains(['/', ':', '[', ']', '%']) {
        return wrong("write the name or address alone, without port, path or brackets");
    }
    // The same rules as for the host of a target's URL: IDNA, lower case, and numbers that would be read as IPv4.
    let Ok(url::Host::Domain(name)) = url::Host::parse(text) else {
        return wrong("write \"db.example.com\", \"10.1.2.3\" or \"10.0.0.0/8\"");
    };
    let name = name.strip_suffix('.').unwrap_or(&name);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let legal_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(legal);
    if name.len() > 253 || !name.split('.').all(legal_label) {
        return wrong("each part between dots is 1 to 63 letters, digits, \"-\" or \"_\"");
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> Result<EgressRule, String> {
        text.parse()
    }

    #[test]
    fn networks_and_addresses() {
        for (text, net) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("::1", "::1/128"),
            ("fd00::/8", "fd00::/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(rule(text), Ok(EgressRule::Net(net.parse().unwrap())), "{text}");
        }
    }

    #[test]
    fn host_bits_are_refused_with_both_readings() {
        let error = rule("10.1.2.3/8").unwrap_err();
        assert!(error.contains("\"10.0.0.0/8\"") && error.contains("\"10.1.2.3\""), "{error}");
    }

    #[test]
    fn hosts_are_normalised() {
        let longest_label = "x".repeat(63);
        for (text, host) in [
            ("db.example.com", "db.example.com"),
            ("DB.Example.COM.", "db.example.com"),
            ("localhost", "localhost"),
            ("_srv.example.com", "_srv.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            (longest_label.as_str(), longest_label.as_str()),
        ] {
            assert_eq!(rule(text), Ok(EgressRule::Host(host.to_owned())), "{text}");
        }
    }

    #[test]
    fn others_are_refused() {
        let too_long = "x".repeat(64);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".example.com",
            "a b",
            "*.example.com",
            "example.com:80",
            "[::1]",
            "10.0.0.0/33",
            "10.0.0.0/",
            "1.2.3",
            "010.0.0.1",
            "0x7f.1",
            "256.1.1.1",
            "a/b",
            "a%41b",
            "ws://example.com",
            "a\nb",
            too_long.as_str(),
        ] {
            assert!(rule(text).is_err(), "{text:?} gave {:?}", rule(text));
        }
        let error = rule("ws://user:hunter2@example.com").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = rule(&text);
        }
    }
}
