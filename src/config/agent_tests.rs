//! agent.toml and the token's file: what is read, what is refused, and in which words.
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::gateway::Driver;
use crate::protocol::connect::Proxy;

/// What is required; further lines begin at line 5.
const REQUIRED: &str = "slug = 'de1'
country = 'DE'
gateways = ['wss://gw1.example.com/agent']
token_file = 'agent.token'
";
const EXAMPLE: &str = "write \"wss://relay.example.com/agent\"";

fn parse(text: &str) -> Result<AgentConfig, ConfigErrors> {
    AgentConfig::parse(text, Path::new("agent.toml"))
}

/// All errors as they are shown, one a line.
fn errors(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn with(lines: &str) -> String {
    format!("{REQUIRED}{lines}\n")
}

/// A file that is right, but for its list of gateways in line 3.
fn gateways_file(list: &str, more: &str) -> String {
    with(more).replace("['wss://gw1.example.com/agent']", list)
}

fn gateway(url: &str) -> Result<GatewayUrl, ConfigErrors> {
    parse(&gateways_file(&format!("['{url}']"), "")).map(|mut config| config.gateways.remove(0))
}

fn name(name: &str) -> Host {
    Host::Name(name.to_owned())
}

#[test]
fn a_file_with_what_is_required_has_the_defaults() {
    let expected = AgentConfig {
        slug: "de1".into(),
        country: "DE".into(),
        node_id: tables::host_name().unwrap(),
        gateways: vec![GatewayUrl {
            tls: true,
            host: name("gw1.example.com"),
            port: 443,
            path: "/agent".into(),
            text: "wss://gw1.example.com/agent".into(),
        }],
        token_file: "agent.token".into(),
        insecure: false,
        ca_file: None,
        max_sessions: 20_000,
        runtime: RuntimeConfig { workers: 0, driver: Driver::Auto },
        egress: EgressConfig::default(),
        limits: AgentLimits {
            target_timeout: Duration::from_secs(15),
            drain: Duration::from_secs(30),
            tcp_keepalive: Duration::from_secs(60),
        },
        admin: AdminConfig { addr: None },
    };
    assert_eq!(parse(REQUIRED).unwrap(), expected);
    let spelt_out = r#"
        insecure = false
        ca_file = ""
        max_sessions = 20000
        [runtime]
        workers = 0
        driver = "auto"
        [egress]
        allow = []
        deny = []
        ca_file = ""
        proxy = ""
        [limits]
        target_timeout = "15s"
        drain = "30s"
        tcp_keepalive = "60s"
        [admin]
        addr = ""
    "#;
    assert_eq!(parse(&with(spelt_out)).unwrap(), expected);
}

#[test]
fn every_key_is_read() {
    let full = r#"
        slug = "De1"
        country = "de"
        node_id = "scraping-de1"
        gateways = ["wss://gw1.example.com/agent", "ws://192.0.2.1:8080/agent"]
        token_file = "secret/token"
        insecure = true
        ca_file = "private-ca.pem"
        max_sessions = 7
        [runtime]
        workers = 3
        driver = "epoll"
        [egress]
        allow = ["10.0.0.0/8"]
        deny = ["DB.example.com"]
        ca_file = "/etc/targets.pem"
        proxy = "http://127.0.0.1:3128"
        [limits]
        target_timeout = "3s"
        drain = "0s"
        tcp_keepalive = "7s"
        [admin]
        addr = "127.0.0.1:9092"
    "#;
    let config = AgentConfig::parse(full, Path::new("/etc/ringway/agent.toml")).unwrap();
    let [first, second] = config.gateways.as_slice() else { panic!("{:?}", config.gateways) };
    assert_eq!(first.text, "wss://gw1.example.com/agent");
    assert_eq!(second.host, Host::Ip(Ipv4Addr::new(192, 0, 2, 1).into()));
    let expected = AgentConfig {
        slug: "De1".into(),
        country: "DE".into(),
        node_id: "scraping-de1".into(),
        gateways: config.gateways.clone(),
        token_file: "/etc/ringway/secret/token".into(),
        insecure: true,
        ca_file: Some("/etc/ringway/private-ca.pem".into()),
        max_sessions: 7,
        runtime: RuntimeConfig { workers: 3, driver: Driver::Epoll },
        egress: EgressConfig {
            allow: vec!["10.0.0.0/8".parse().unwrap()],
            deny: vec!["db.example.com".parse().unwrap()],
            ca_file: Some("/etc/targets.pem".into()),
            proxy: Some(Proxy::parse("http://127.0.0.1:3128").unwrap()),
        },
        limits: AgentLimits {
            target_timeout: Duration::from_secs(3),
            drain: Duration::ZERO,
            tcp_keepalive: Duration::from_secs(7),
        },
        admin: AdminConfig { addr: Some("127.0.0.1:9092".parse().unwrap()) },
    };
    assert_eq!(config, expected);
}

#[test]
fn gateways_are_taken_apart() {
    for (written, tls, host, port, path, text) in [
        ("wss://gw/agent", true, name("gw"), 443, "/agent", "wss://gw/agent"),
        ("WSS://GW.example.com:443/agent/", true, name("gw.example.com"), 443, "/agent", "wss://gw.example.com/agent"),
        ("wss://gw:8443/a b//", true, name("gw"), 8443, "/a%20b", "wss://gw:8443/a%20b"),
        ("wss://gw/eu/../x/agent", true, name("gw"), 443, "/x/agent", "wss://gw/x/agent"),
        ("wss://gw/data", true, name("gw"), 443, "/data", "wss://gw/data"),
        ("ws://127.0.0.1/agent", false, Host::Ip([127, 0, 0, 1].into()), 80, "/agent", "ws://127.0.0.1/agent"),
        (
            "wss://[2001:DB8::1]/agent",
            true,
            Host::Ip("2001:db8::1".parse().unwrap()),
            443,
            "/agent",
            "wss://[2001:db8::1]/agent",
        ),
    ] {
        let expected = GatewayUrl { tls, host, port, path: path.into(), text: text.into() };
        assert_eq!(gateway(written).unwrap(), expected, "{written}");
    }
}

#[test]
fn what_is_no_gateway_says_what_to_write() {
    let secret = "a gateway is named without user and password; the agent's token stands in \"token_file\"";
    let query = "a gateway is named without \"?\"; the agent's token stands in \"token_file\"";
    let no_path = "a gateway is named with its path, which is \"/agent\" as a rule";
    let added = "a gateway is named without \"/control\" and \"/data\", which are added";
    for (written, message) in [
        ("", "must start with ws:// or wss://"),
        ("gw.example.com", "must start with ws:// or wss://"),
        ("https://gw.example.com/agent", "must start with ws:// or wss://, not https://"),
        ("wss:///agent", "has no host"),
        ("wss://gw:0/agent", "port 0 cannot be dialled"),
        ("wss://gw:hunter2/agent", "not a URL: invalid port number"),
        ("wss://gw/agent#hunter2", "must not have a fragment (write # as %23)"),
        ("wss://user:hunter2@gw/agent", secret),
        ("wss://hunter2@gw/agent", secret),
        ("wss://gw/agent?token=hunter2", query),
        ("wss://gw/agent?", query),
        ("wss://gw", no_path),
        ("wss://gw//", no_path),
        ("wss://gw/agent/control", added),
        ("wss://gw/agent/data/", added),
    ] {
        let expected = format!("agent.toml:3: \"gateways\": {message}; {EXAMPLE}");
        assert_eq!(gateway(written).unwrap_err().to_string(), expected, "{written}");
    }
    for (list, message) in [
        (
            "[]",
            "\"gateways\": names no gateway, so there is nothing to do; write gateways = \
             [\"wss://relay.example.com/agent\"]",
        ),
        (
            "'wss://gw/agent'",
            "\"gateways\" is a list, not a text that is not shown here; write gateways = \
             [\"wss://relay.example.com/agent\"]",
        ),
        ("[5]", "\"gateways\" is a text in quotes, not 5"),
    ] {
        assert_eq!(errors(&gateways_file(list, "")), format!("agent.toml:3: {message}"), "{list}");
    }
}

#[test]
fn each_wrong_gateway_is_named_in_its_line() {
    let list = "[
  'wss://gw/agent',
  'wss://gw',
  'WSS://gw:443/agent/',
  'wss://gw/other',
  'ws://gw/agent',
]";
    let shown = errors(&gateways_file(list, ""));
    let lines: Vec<_> = shown.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(lines, ["agent.toml:5", "agent.toml:6", "agent.toml:8"], "{shown}");
    assert!(shown.contains("agent.toml:6: \"gateways\": this gateway stands in the list already"), "{shown}");
}

#[test]
fn plain_connections_to_other_machines_have_to_be_asked_for() {
    for host in ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LocalHost.", "0x7f.1"] {
        gateway(&format!("ws://{host}:8080/agent")).unwrap();
    }
    for host in
        ["gw.example.com", "localhost.example.com", "my.localhost", "10.0.0.1", "128.0.0.1", "0.0.0.0", "[::]", "[::2]"]
    {
        let expected = "agent.toml:3: \"gateways\": ws:// to another machine is refused: the token and all that is \
                        relayed would travel in clear; write wss://, or insecure = true if nobody can listen on the way";
        assert_eq!(gateway(&format!("ws://{host}/agent")).unwrap_err().to_string(), expected, "{host}");
        gateway(&format!("wss://{host}/agent")).unwrap();
        parse(&gateways_file(&format!("['ws://{host}/agent']"), "insecure = true")).unwrap();
    }
}

#[test]
fn what_is_missing_is_named_together() {
    let expected =
        ["slug", "country", "gateways", "token_file"].map(|key| format!("agent.toml:1: the file needs \"{key}\""));
    assert_eq!(errors("").lines().collect::<Vec<_>>(), expected);
}

#[test]
fn wrong_values_and_unknown_keys() {
    let top = "it belongs to the top of the file, above the first [table]";
    for (lines, message) in [
        ("insecure = 'yes'", "5: \"insecure\" is true or false, not \"yes\"".to_owned()),
        ("max_sessions = 0", "5: \"max_sessions\" is a whole number from 1 to 100000000, not 0".into()),
        ("ca_file = 1", "5: \"ca_file\" is a text in quotes, not 1".into()),
        ("node_id = ''", "5: \"node_id\": a node id is 1 to 128 visible ASCII characters without spaces, like \"scraping-de1\"".into()),
        ("insecur = true", "5: unknown key \"insecur\"; did you mean \"insecure\"?".into()),
        ("gateway = 'x'", "5: unknown key \"gateway\"; did you mean \"gateways\"?".into()),
        ("drain = '1s'", "5: unknown key \"drain\"; it belongs to [limits]".into()),
        ("[limits]\nmax_sessions = 5", format!("6: unknown key \"max_sessions\" in [limits]; {top}")),
        ("[limits]\nheader_timeout = '1s'", "6: unknown key \"header_timeout\" in [limits]".into()),
        ("[limits]\ndrain = 5", "6: \"drain\" in [limits]: a duration is written \"10s\", not 5".into()),
        ("[admin]\naddr = ':80'", "6: \"addr\" in [admin]: an address is an IP and a port, not \":80\"; for every IPv4 address write \"0.0.0.0:80\"".into()),
        ("[egress]\nproxy = 'x'", "6: \"proxy\" in [egress]: must start with socks5://, socks5h:// or http://; write \"socks5://127.0.0.1:1080\" or \"http://127.0.0.1:3128\"".into()),
        ("[runtime]\nrelay = 'x'", "6: \"relay\" in [runtime] is not supported by this version yet; leave it out".into()),
        ("[listen]\naddr = []", "5: unknown table [listen]".into()),
    ] {
        assert_eq!(errors(&with(lines)), format!("agent.toml:{message}"), "{lines}");
    }
    let slug = errors(&REQUIRED.replace("de1", "de 1").replace("DE", "Germany").replace("agent.token", ""));
    assert_eq!(
        slug.lines().collect::<Vec<_>>(),
        [
            "agent.toml:1: \"slug\": a slug is 1 to 64 letters, digits, \"-\", \"_\" or \".\", like \"de1\"",
            "agent.toml:2: \"country\": a country is two letters (ISO 3166), like \"DE\"",
            "agent.toml:4: \"token_file\" is the path of the token's file, and empty here; write token_file = \
             \"agent.token\"",
        ]
    );
}

/// A file of its own for one test, gone at its end.
struct TokenFile(PathBuf);

impl TokenFile {
    fn new(name: &str, bytes: &[u8], mode: u32) -> Self {
        let file = std::env::temp_dir().join(format!("ringway-{name}-{}.token", std::process::id()));
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        Self(file)
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_token_is_the_one_line_of_its_file() {
    let longest = "x".repeat(4095) + "\n";
    for text in ["rwa_abc", "rwa_abc\n", "~!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}", "abc \t\r\n\n", "a", &longest] {
        let file = TokenFile::new("one-line", text.as_bytes(), 0o600);
        assert_eq!(load_token(&file.0).unwrap().reveal(), text.trim_end(), "{text:?}");
    }
}

#[test]
fn what_is_no_token_is_refused_and_not_repeated() {
    let too_long = "hunter2".repeat(586);
    let (empty, lines) =
        ("is empty, so there is no token in it", "has more than one line, and only one can be the token");
    let other = "holds no token: there are spaces or other characters in it that no token has";
    for (text, message) in [
        ("", empty),
        (" \r\n\t\n", empty),
        ("hunter2\nhunter2\n", lines),
        ("\nhunter2", lines),
        (" hunter2", other),
        ("hunter2 hunter2", other),
        ("hunter2\rX", other),
        ("hunter2\0", other),
        ("hünter2", other),
        ("\u{feff}hunter2", other),
        (&too_long, "has more than 4096 bytes, so it holds no token"),
    ] {
        let file = TokenFile::new("no-token", text.as_bytes(), 0o600);
        let expected =
            format!("{}: {message}; write what `ringway agent-token new` printed in its first line", file.0.display());
        assert_eq!(load_token(&file.0).unwrap_err().to_string(), expected, "{text:?}");
    }
    let endless = load_token(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(endless.starts_with("/dev/zero: has more than 4096 bytes"), "{endless}");
    for path in ["/nonexistent/agent.token", "/"] {
        let error = load_token(Path::new(path)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{path}: cannot be read: ")), "{error}");
    }
    assert_eq!(format!("{:?}", Token("hunter2".into())), "Token(not shown)");
}

#[test]
fn a_file_that_others_can_read_is_warned_of() {
    for (mode, is_exposed) in
        [(0o600, false), (0o400, false), (0o700, false), (0o640, true), (0o604, true), (0o660, true)]
    {
        let file = TokenFile::new("mode", b"hunter2", mode);
        let warning = exposed(&file.0).map(|warning| warning.to_string());
        let expected = format!(
            "{0}: holds a secret and is open to others than its owner (mode {mode:04o}); `chmod 600 {0}` closes it",
            file.0.display()
        );
        assert_eq!(warning, is_exposed.then_some(expected), "{mode:o}");
    }
    for path in ["/dev/null", "/nonexistent/agent.token"] {
        assert_eq!(exposed(Path::new(path)), None, "{path}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in ".*", url in "(wss?://)?[a-z0-9./:@?#%\\[\\]-]*") {
        let _ = parse(&text);
        let _ = gateway(&url);
    }

    /// Whatever is accepted can be dialled and sent, and is the same gateway when it is read again.
    #[test]
    fn a_gateway_is_the_same_one_when_it_is_read_again(text in "wss?://(localhost|[a-z0-9.:]{1,9})/[a-z0-9./% é]{0,20}") {
        if let Ok(url) = GatewayUrl::parse(&text, true) {
            prop_assert!(url.path.len() > 1 && url.path.starts_with('/') && !url.path.ends_with('/'));
            prop_assert!(url.text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(GatewayUrl::parse(&url.text, true), Ok(url));
        }
    }
}
