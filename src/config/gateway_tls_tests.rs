//! `[listen.tls]` and the PROXY protocol's keys: what is read, what is refused, and in which words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;

const TLS: &str =
    "[listen.tls]\naddr = [\"0.0.0.0:443\", \"[::]:443\"]\ncert = \"tls/cert.pem\"\nkey = \"/etc/key.pem\"\n";

fn parse(text: &str) -> Result<ListenConfig, ConfigErrors> {
    GatewayConfig::parse(text, Path::new("conf/gateway.toml")).map(|config| config.listen)
}

fn errors(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn tls_beside_plain_listeners_and_alone() {
    let tls = TlsListenConfig {
        addr: vec!["0.0.0.0:443".parse().unwrap(), "[::]:443".parse().unwrap()],
        cert: "conf/tls/cert.pem".into(),
        key: "/etc/key.pem".into(),
    };
    assert_eq!(parse(TLS).unwrap(), ListenConfig { tls: Some(tls.clone()), ..ListenConfig::default() });
    let alone = parse(&format!("[listen]\naddr = []\n{TLS}")).unwrap();
    assert_eq!(alone, ListenConfig { addr: vec![], tls: Some(tls), ..ListenConfig::default() });
    let any_port = "[listen]\naddr = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n[listen.tls]\naddr = [\"127.0.0.1:0\"]\n";
    parse(&format!("{any_port}cert = \"c\"\nkey = \"k\"")).unwrap();
}

#[test]
fn tls_that_cannot_be_meant() {
    for (text, expected) in [
        ("[listen.tls]\n", &["[listen.tls] needs \"addr\"", "needs \"cert\"", "needs \"key\""][..]),
        ("[listen]\ntls = true\n", &["2: \"tls\" in [listen] is a table; write [listen.tls] in a line of its own"]),
        (
            "[listen.tls]\naddr = []\ncert = \"c\"\nkey = \"k\"\n",
            &[
                ":2: \"addr\" in [listen.tls]: names no address; write addr = [\"0.0.0.0:443\"], or leave [listen.tls] out",
            ],
        ),
        (
            "[listen.tls]\naddr = [\"1.2.3.4:1\"]\ncert = \"\"\nkey = 1\n",
            &[":3: \"cert\" in", "empty here", ":4: \"key\" in"],
        ),
        (
            "[listen.tls]\naddr = [\"127.0.0.1:8080\"]\ncert = \"c\"\nkey = \"k\"\n",
            &["\"addr\" in [listen.tls]: names 127.0.0.1:8080, which [listen] names too"],
        ),
        (
            "[listen.tls]\naddr = [\"1.2.3.4:1\", \"1.2.3.4:1\"]\ncert = \"c\"\nkey = \"k\"\n",
            &["\"addr\" in [listen.tls]: names 1.2.3.4:1 twice"],
        ),
        (
            "[listen.tls]\naddr = [\"1.2.3.4:1\"]\ncertificate = \"c\"\n",
            &["needs \"cert\"", "needs \"key\"", "unknown key \"certificate\" in [listen.tls]; did you mean \"cert\"?"],
        ),
        ("[listen]\ncert = \"c\"\n", &["unknown key \"cert\" in [listen]; it belongs to [listen.tls]"]),
        ("[listen]\naddr = []\n", &[":2: \"addr\" in [listen]: names no address, and there is no [listen.tls]"]),
    ] {
        let found = errors(text);
        assert!(expected.iter().all(|part| found.contains(part)), "{text}\n{found}");
        assert!(found.lines().count() <= expected.len(), "{text}\n{found}");
    }
}

#[test]
fn proxy_protocol() {
    let config = parse("[listen]\nproxy_protocol = true\n").unwrap();
    assert_eq!((config.proxy_protocol, config.proxy_protocol_from), (true, vec![]));
    let from = "proxy_protocol_from = [\"10.0.0.0/8\", \"192.0.2.1\", \"2001:db8::/32\", \"::1\"]";
    let config = parse(&format!("[listen]\nproxy_protocol = true\n{from}\n")).unwrap();
    let expected = ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::1/128"].map(|net| net.parse::<IpNet>().unwrap());
    assert_eq!(config.proxy_protocol_from, expected);
    assert_eq!(parse("[listen]\nproxy_protocol = false\nproxy_protocol_from = []\n").unwrap(), ListenConfig::default());
}

#[test]
fn proxy_protocol_that_cannot_be_meant() {
    for (line, expected) in [
        ("proxy_protocol = \"v2\"", "\"proxy_protocol\" in [listen] is true or false, not \"v2\""),
        ("proxy_protocol_from = \"10.0.0.0/8\"", "is a list, not \"10.0.0.0/8\"; write proxy_protocol_from = ["),
        ("proxy_protocol_from = [\"lb.example.com\"]", "a network is written \"10.0.0.0/8\", not \"lb.example.com\""),
        ("proxy_protocol_from = [\"10.0.0.1/8\"]", "write \"10.0.0.0/8\" for the network, \"10.0.0.1\" for the host"),
        ("proxy_protocol_from = [\"10.0.0.0/40\"]", "has no usable prefix length"),
        ("proxy_protocol_from = [1]", "a network is written \"10.0.0.0/8\", not 1"),
        (
            "proxy_protocol_from = [\"10.0.0.0/8\"]",
            "\"proxy_protocol_from\" in [listen]: has no meaning without \"proxy_protocol\", and keeps nobody out; \
             write proxy_protocol = true, or leave it out",
        ),
    ] {
        let found = errors(&format!("[listen]\n{line}\n"));
        assert!(found.starts_with("conf/gateway.toml:2: ") && found.contains(expected), "{line}: {found}");
    }
}
