//! gateway.toml: what is read, what is refused, and in which words.
use proptest::prelude::*;

use super::*;
use crate::protocol::connect::Proxy;

fn parse(text: &str) -> Result<GatewayConfig, ConfigErrors> {
    GatewayConfig::parse(text, Path::new("gateway.toml"))
}

/// All errors as they are shown, one a line.
fn errors(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// The one error of a `[table]` whose second line is `line`, without the file's name.
fn error_in(table: &str, line: &str) -> String {
    let shown = errors(&format!("{table}\n{line}\n"));
    shown.strip_prefix("gateway.toml:2: ").unwrap_or_else(|| panic!("{line}: {shown}")).to_owned()
}

fn agent(rest: &str) -> String {
    format!("[embedded_agent]\nslug = \"de1\"\ncountry = \"DE\"\n{rest}")
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config, GatewayConfig::default());
    assert_eq!(config.node_id, tables::host_name().unwrap_or_else(|| "localhost".to_owned()));
    assert_eq!(config.public_url, None);
    assert_eq!(config.runtime, RuntimeConfig { workers: 0, driver: Driver::Auto });
    assert_eq!(config.listen.addr, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(config.keys.file, Path::new("keys.toml"));
    assert_eq!(config.agents, AgentsConfig { tokens: None, idle_channels: 4 });
    assert_eq!(config.embedded_agent, None);
    assert_eq!(config.egress, EgressConfig { allow: vec![], deny: vec![], ca_file: None, proxy: None });
    let limits = LimitsConfig {
        header_timeout: seconds(10),
        connect_timeout: seconds(10),
        target_timeout: seconds(15),
        max_sessions: 100_000,
        max_pending: 10_000,
        drain: seconds(30),
        tcp_keepalive: seconds(60),
    };
    assert_eq!(config.limits, limits);
}

/// Of keys that are not built, this has the value that asks for nothing.
#[test]
fn a_file_that_spells_the_defaults_out_means_them_too() {
    let spelt_out = r#"
        [runtime]
        workers = 0
        driver = "auto"
        [listen]
        addr = ["127.0.0.1:8080"]
        proxy_protocol = false
        proxy_protocol_from = []
        [admin]
        addr = "127.0.0.1:9091"
        [keys]
        file = "keys.toml"
        [agents]
        idle_channels = 4
        [egress]
        allow = []
        deny = []
        ca_file = ""
        proxy = ""
        [limits]
        header_timeout = "10s"
        connect_timeout = "10s"
        target_timeout = "15s"
        max_sessions = 100000
        max_pending = 10000
        drain = "30s"
        tcp_keepalive = "60s"
    "#;
    assert_eq!(parse(spelt_out).unwrap(), GatewayConfig::default());
    assert_eq!(parse("[runtime]\n[listen]\n[keys]\n[egress]\n[limits]\n").unwrap(), GatewayConfig::default());
}

#[test]
fn every_key_is_read() {
    let full = r#"
        node_id = "scraping-de1"
        public_url = "wss://relay.example.com"
        [runtime]
        workers = 3
        driver = "epoll"
        [listen]
        addr = ["0.0.0.0:80", "[::]:8080"]
        [keys]
        file = "customers.toml"
        [agents]
        tokens = "tokens.toml"
        idle_channels = 9
        [embedded_agent]
        slug = "De1"
        country = "de"
        node_id = "agent-de1"
        [egress]
        allow = ["10.0.0.0/8", "DB.example.com"]
        deny = ["192.0.2.1", "::ffff:198.51.100.0/120"]
        ca_file = "roots.pem"
        proxy = "socks5h://user:p%40ss@proxy.example.com"
        [admin]
        addr = "127.0.0.1:9092"
        [limits]
        header_timeout = "1s"
        connect_timeout = "2s"
        target_timeout = "3s"
        max_sessions = 4
        max_pending = 5
        drain = "6s"
        tcp_keepalive = "7s"
    "#;
    let rule = |text: &str| text.parse::<EgressRule>().unwrap();
    let expected = GatewayConfig {
        node_id: "scraping-de1".into(),
        public_url: Some("wss://relay.example.com".into()),
        runtime: RuntimeConfig { workers: 3, driver: Driver::Epoll },
        listen: ListenConfig {
            addr: vec!["0.0.0.0:80".parse().unwrap(), "[::]:8080".parse().unwrap()],
            ..ListenConfig::default()
        },
        admin: AdminConfig { addr: Some("127.0.0.1:9092".parse().unwrap()) },
        keys: KeysConfig { file: "customers.toml".into() },
        agents: AgentsConfig { tokens: Some("tokens.toml".into()), idle_channels: 9 },
        embedded_agent: Some(EmbeddedAgentConfig {
            slug: "De1".into(),
            country: "DE".into(),
            node_id: "agent-de1".into(),
        }),
        egress: EgressConfig {
            allow: vec![rule("10.0.0.0/8"), EgressRule::Host("db.example.com".into())],
            deny: vec![rule("192.0.2.1/32"), rule("198.51.100.0/24")],
            ca_file: Some("roots.pem".into()),
            proxy: Some(Proxy::parse("socks5://user:p%40ss@proxy.example.com:1080").unwrap()),
        },
        limits: LimitsConfig {
            header_timeout: seconds(1),
            connect_timeout: seconds(2),
            target_timeout: seconds(3),
            max_sessions: 4,
            max_pending: 5,
            drain: seconds(6),
            tcp_keepalive: seconds(7),
        },
    };
    assert_eq!(parse(full).unwrap(), expected);
    // As saved by an editor on another system.
    let elsewhere = format!("\u{feff}{}", full.replace('\n', "\r\n"));
    assert_eq!(parse(&elsewhere).unwrap(), expected);
}

#[test]
fn the_embedded_agent_takes_over_the_gateways_node_id() {
    let config = parse(&format!("node_id = \"gw\"\n{}", agent(""))).unwrap();
    assert_eq!(config.embedded_agent.unwrap().node_id, "gw");
}

#[test]
fn bounds_are_within() {
    for (line, workers) in [("workers = 1024", 1024), ("workers = 1", 1), ("workers = 0x10", 16)] {
        assert_eq!(parse(&format!("[runtime]\n{line}")).unwrap().runtime.worker_threads(), workers, "{line}");
    }
    assert!(parse("").unwrap().runtime.worker_threads() >= 1);
    assert_eq!(parse("[runtime]\ndriver = 'io_uring'").unwrap().runtime.driver, Driver::IoUring);
    type Read = fn(LimitsConfig) -> Duration;
    let durations: [(&str, Duration, Read); 6] = [
        ("header_timeout = '1ms'", Duration::from_millis(1), |limits| limits.header_timeout),
        ("connect_timeout = '1day'", seconds(86_400), |limits| limits.connect_timeout),
        ("target_timeout = '1m 30s'", seconds(90), |limits| limits.target_timeout),
        ("drain = '0s'", seconds(0), |limits| limits.drain),
        ("tcp_keepalive = '9h'", seconds(32_400), |limits| limits.tcp_keepalive),
        // Long, but nothing is wrong with it.
        ("drain = '1hour 1minute 1second 1msec 0usec'", Duration::from_millis(3_661_001), |limits| limits.drain),
    ];
    for (line, expected, read) in durations {
        assert_eq!(read(parse(&format!("[limits]\n{line}")).unwrap().limits), expected, "{line}");
    }
    let limits = parse("[limits]\nmax_sessions = 100_000_000\nmax_pending = 1").unwrap().limits;
    assert_eq!((limits.max_sessions, limits.max_pending), (100_000_000, 1));
}

#[test]
fn listening_addresses() {
    for (list, count) in [
        ("['127.0.0.1:0', '127.0.0.1:0']", 2), // two free ports
        ("['127.0.0.1:80', '127.0.0.1:81', '127.0.0.2:80', '[::1]:80']", 4),
    ] {
        assert_eq!(parse(&format!("[listen]\naddr = {list}")).unwrap().listen.addr.len(), count, "{list}");
    }
}

#[test]
fn public_urls() {
    for (written, url) in [
        ("wss://relay.example.com", "wss://relay.example.com"),
        ("WS://Relay.Example.com:8080/", "ws://relay.example.com:8080"),
        ("wss://relay.example.com:443/edge//", "wss://relay.example.com/edge"),
    ] {
        assert_eq!(parse(&format!("public_url = '{written}'")).unwrap().public_url.as_deref(), Some(url), "{written}");
    }
    let not_a_url = "is the gateway's public address as a ws:// or wss:// URL";
    let other = "is a ws:// or wss:// URL without user and password";
    let with_ws = "is the address without \"/ws\", which is added";
    let with_more = "is a URL without \"?\" and \"#\"";
    for (written, message) in [
        ("", not_a_url),
        ("relay.example.com", not_a_url),
        ("wss://", not_a_url),
        ("https://relay.example.com", other),
        ("relay.example.com:443", other),
        ("wss://hunter2@relay.example.com", other),
        ("wss://:hunter2@relay.example.com", other),
        ("wss://relay.example.com/ws", with_ws),
        ("wss://relay.example.com/edge/ws/", with_ws),
        ("wss://relay.example.com/?token=hunter2", with_more),
        ("wss://relay.example.com/#", with_more),
    ] {
        let expected = format!("gateway.toml:1: \"public_url\" {message}; write \"wss://relay.example.com\"");
        assert_eq!(errors(&format!("public_url = '{written}'")), expected, "{written}");
    }
}

#[test]
fn a_wrong_value_is_named_with_its_line_and_what_to_write() {
    let address = "\"addr\" in [listen]: an address is an IP and a port, not";
    let examples = "write \"127.0.0.1:8080\" or \"[::]:8080\"";
    let rules = "write allow = [\"10.0.0.0/8\", \"db.example.com\"]";
    let node_id = "a node id is 1 to 128 visible ASCII characters without spaces, like \"scraping-de1\"";
    for (table, line, message) in [
        ("", "node_id = ''", format!("\"node_id\": {node_id}")),
        ("", "node_id = 'a b'", format!("\"node_id\": {node_id}")),
        ("", "node_id = 1", "\"node_id\" is a text in quotes, not 1".into()),
        ("", "public_url = true", "\"public_url\" is a text in quotes, not true".into()),
        ("", "listen = 1", "\"listen\" is a table; write [listen] in a line of its own".into()),
        ("", "[[limits]]", "\"limits\" is a table; write [limits] in a line of its own".into()),
        ("[runtime]", "workers = -1", "\"workers\" in [runtime] is a whole number from 0 to 1024, not -1".into()),
        ("[runtime]", "workers = 1025", "\"workers\" in [runtime] is a whole number from 0 to 1024, not 1025".into()),
        ("[runtime]", "workers = 1.0", "\"workers\" in [runtime] is a whole number from 0 to 1024, not 1.0".into()),
        (
            "[runtime]",
            "driver = 'uring'",
            "\"driver\" in [runtime] is \"auto\", \"io_uring\" or \"epoll\", not \"uring\"".into(),
        ),
        (
            "[listen]",
            "addr = '127.0.0.1:8080'",
            "\"addr\" in [listen] is a list, not \"127.0.0.1:8080\"; write addr = [\"127.0.0.1:8080\"]".into(),
        ),
        ("[listen]", "addr = ['127.0.0.1']", format!("{address} \"127.0.0.1\"; {examples}")),
        ("[listen]", "addr = [8080]", format!("{address} 8080; {examples}")),
        ("[listen]", "addr = ['127.0.0.1:65536']", format!("{address} \"127.0.0.1:65536\"; {examples}")),
        ("[listen]", "addr = ['relay.example.com:80']", format!("{address} \"relay.example.com:80\"; {examples}")),
        ("[listen]", "addr = [':8080']", format!("{address} \":8080\"; for every IPv4 address write \"0.0.0.0:8080\"")),
        ("[listen]", "addr = ['*:80']", format!("{address} \"*:80\"; for every IPv4 address write \"0.0.0.0:80\"")),
        ("[listen]", "addr = ['localhost:80']", format!("{address} \"localhost:80\"; write \"127.0.0.1:80\"")),
        // What the hint repeats has to be right.
        ("[listen]", "addr = ['localhost:65536']", format!("{address} \"localhost:65536\"; {examples}")),
        ("[listen]", "addr = [':http']", format!("{address} \":http\"; {examples}")),
        (
            "[listen]",
            "addr = []",
            "\"addr\" in [listen]: names no address, and there is no [listen.tls], so nothing would listen; \
             write addr = [\"127.0.0.1:8080\"]"
                .into(),
        ),
        (
            "[listen]",
            "addr = ['[::1]:80', '[::1]:81', '[0::1]:80']",
            "\"addr\" in [listen]: names [::1]:80 twice".into(),
        ),
        ("[listen]", "proxy_protocol = 'no'", "\"proxy_protocol\" in [listen] is true or false, not \"no\"".into()),
        (
            "[keys]",
            "file = ''",
            "\"file\" in [keys] is the path of the keys file, and empty here; write file = \"keys.toml\"".into(),
        ),
        (
            "[agents]",
            "tokens = ''",
            "\"tokens\" in [agents] is the path of the agents file, and empty here; write tokens = \"agents.toml\", \
             or leave it out"
                .into(),
        ),
        ("[agents]", "tokens = ['rwa_x']", "\"tokens\" in [agents] is a text in quotes, not a list".into()),
        ("[agents]", "idle_channels = 0", "\"idle_channels\" in [agents] is a whole number from 1 to 64, not 0".into()),
        (
            "[agents]",
            "idle_channels = 65",
            "\"idle_channels\" in [agents] is a whole number from 1 to 64, not 65".into(),
        ),
        ("[keys]", "file = []", "\"file\" in [keys] is a text in quotes, not a list".into()),
        ("[egress]", "allow = '10.0.0.0/8'", format!("\"allow\" in [egress] is a list, not \"10.0.0.0/8\"; {rules}")),
        ("[egress]", "deny = [1]", "\"deny\" in [egress] is a text in quotes, not 1".into()),
        (
            "[egress]",
            "deny = ['10.1.2.3/8']",
            "\"deny\" in [egress]: \"10.1.2.3/8\" is one host in a network: write \"10.0.0.0/8\" for the network, \
             \"10.1.2.3\" for the host"
                .into(),
        ),
        (
            "[egress]",
            "allow = ['10.0.0.0/33']",
            "\"allow\" in [egress]: \"10.0.0.0/33\" has no usable prefix length, like \"10.0.0.0/8\"".into(),
        ),
        (
            "[egress]",
            "allow = ['*.example.com']",
            "\"allow\" in [egress]: \"*.example.com\" is no host name or network: there are no wildcards, and in deny \
             a name covers its subdomains"
                .into(),
        ),
        ("[egress]", "ca_file = {}", "\"ca_file\" in [egress] is a text in quotes, not a table".into()),
    ] {
        assert_eq!(error_in(table, line), message, "{table} {line}");
    }
}

#[test]
fn an_embedded_agent_is_complete_or_not_there() {
    let slug = "a slug is 1 to 64 letters, digits, \"-\", \"_\" or \".\", like \"de1\"";
    let country = "a country is two letters (ISO 3166), like \"DE\"";
    for (text, message) in [
        ("country = 'DE'", "1: [embedded_agent] needs \"slug\"".to_owned()),
        ("slug = 'de1'", "1: [embedded_agent] needs \"country\"".to_owned()),
        ("slug = 'de 1'\ncountry = 'DE'", format!("2: \"slug\" in [embedded_agent]: {slug}")),
        ("slug = 1\ncountry = 'DE'", "2: \"slug\" in [embedded_agent] is a text in quotes, not 1".to_owned()),
        ("slug = 'de1'\ncountry = 'Germany'", format!("3: \"country\" in [embedded_agent]: {country}")),
        (
            "slug = 'de1'\ncountry = 'DE'\nnode_id = true",
            "4: \"node_id\" in [embedded_agent] is a text in quotes, not true".to_owned(),
        ),
    ] {
        assert_eq!(errors(&format!("[embedded_agent]\n{text}")), format!("gateway.toml:{message}"), "{text}");
    }
    assert_eq!(errors("[embedded_agent]").lines().count(), 2);
}

#[test]
fn wrong_limits() {
    for (key, least, most) in [
        ("header_timeout", "1ms", "1day"),
        ("connect_timeout", "1ms", "1day"),
        ("target_timeout", "1ms", "1day"),
        ("drain", "0s", "1day"),
        ("tcp_keepalive", "1s", "9h"),
    ] {
        let out_of_range = |value: &str| {
            format!("\"{key}\" in [limits] is a duration from \"{least}\" to \"{most}\", not \"{value}\"")
        };
        let too_short = if key == "tcp_keepalive" { "999ms" } else { "0s" };
        if key != "drain" {
            assert_eq!(error_in("[limits]", &format!("{key} = '{too_short}'")), out_of_range(too_short));
        }
        let too_long = if key == "tcp_keepalive" { "9h 1s" } else { "1day 1ms" };
        assert_eq!(error_in("[limits]", &format!("{key} = '{too_long}'")), out_of_range(too_long));
        for (value, message) in [
            ("10", "a duration is written \"10s\", not 10"),
            ("'10'", "a duration needs its unit: \"10s\" or \"10ms\", not \"10\""),
            ("'soon'", "a duration is written \"10s\", \"500ms\" or \"1m 30s\", not \"soon\""),
        ] {
            let expected = format!("\"{key}\" in [limits]: {message}");
            assert_eq!(error_in("[limits]", &format!("{key} = {value}")), expected);
        }
    }
    for key in ["max_sessions", "max_pending"] {
        for value in ["0", "-1", "100000001", "1e3", "\"5\"", "99999999999999999999"] {
            let expected = format!("\"{key}\" in [limits] is a whole number from 1 to 100000000, not {value}");
            assert_eq!(error_in("[limits]", &format!("{key} = {value}")), expected);
        }
    }
}

#[test]
fn an_unknown_key_is_an_error_that_says_what_was_meant() {
    let top = "it belongs to the top of the file, above the first [table]";
    for (text, message) in [
        ("node = 'x'", "1: unknown key \"node\"; did you mean \"node_id\"?".to_owned()),
        ("[listen]\nadress = []", "2: unknown key \"adress\" in [listen]; did you mean \"addr\"?".to_owned()),
        ("[runtime]\nworker = 1", "2: unknown key \"worker\" in [runtime]; did you mean \"workers\"?".to_owned()),
        ("[limits]\ndrains = '1s'", "2: unknown key \"drains\" in [limits]; did you mean \"drain\"?".to_owned()),
        ("[limit]\ndrain = '1s'", "1: unknown table [limit]; did you mean [limits]?".to_owned()),
        ("[keys]\npublic_url = 'x'", format!("2: unknown key \"public_url\" in [keys]; {top}")),
        ("max_sessions = 5", "1: unknown key \"max_sessions\"; it belongs to [limits]".to_owned()),
        ("addr = []", "1: unknown key \"addr\"; it belongs to [listen] or to [listen.tls] or to [admin]".to_owned()),
        (
            "max_session = 5",
            "1: unknown key \"max_session\"; did you mean \"max_sessions\", which belongs to [limits]?".to_owned(),
        ),
        ("[listen.runtime]", "1: unknown table [runtime] in [listen]; ".to_owned() + top),
        ("quux = 1", "1: unknown key \"quux\"".to_owned()),
        ("[quux]\nfile = 1", "1: unknown table [quux]".to_owned()),
        ("\"a\\nb\" = 1", "1: unknown key \"a\\nb\"".to_owned()),
    ] {
        assert_eq!(errors(text), format!("gateway.toml:{message}"), "{text}");
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for (text, message) in [
        ("[runtime]\nrelay = 'auto'", "2: \"relay\" in [runtime] is not supported by this version yet; leave it out"),
        ("[keys]\nstore = 'x'", "2: \"store\" in [keys] is not supported by this version yet; leave it out"),
        (
            "[egress]\nproxy = 'https://h'",
            "2: \"proxy\" in [egress]: must start with socks5://, socks5h:// or http://, not https://; write \"socks5://127.0.0.1:1080\" or \"http://127.0.0.1:3128\"",
        ),
        (
            "[egress]\nproxy = 'http://h/p'",
            "2: \"proxy\" in [egress]: must end behind its host and port: it has no path, query or fragment; write \"socks5://127.0.0.1:1080\" or \"http://127.0.0.1:3128\"",
        ),
    ] {
        assert_eq!(errors(text), format!("gateway.toml:{message}"), "{text}");
    }
}

#[test]
fn relative_paths_count_from_the_files_folder() {
    let text = "[keys]\nfile = 'a/keys.toml'\n[agents]\ntokens = 'a.toml'\n[egress]\nca_file = '../ca.pem'";
    for (path, keys, tokens, ca_file) in [
        ("/etc/ringway/gateway.toml", "/etc/ringway/a/keys.toml", "/etc/ringway/a.toml", "/etc/ringway/../ca.pem"),
        ("conf/gateway.toml", "conf/a/keys.toml", "conf/a.toml", "conf/../ca.pem"),
        ("gateway.toml", "a/keys.toml", "a.toml", "../ca.pem"),
    ] {
        let config = GatewayConfig::parse(text, Path::new(path)).unwrap();
        assert_eq!(config.keys.file, Path::new(keys));
        assert_eq!(config.agents.tokens.as_deref(), Some(Path::new(tokens)));
        assert_eq!(config.egress.ca_file.as_deref(), Some(Path::new(ca_file)));
    }
    let path = Path::new("/etc/ringway/gateway.toml");
    assert_eq!(GatewayConfig::parse("", path).unwrap().keys.file, Path::new("/etc/ringway/keys.toml"));
    let absolute = "[keys]\nfile = '/srv/keys.toml'\n[egress]\nca_file = '/srv/ca.pem'";
    let config = GatewayConfig::parse(absolute, path).unwrap();
    assert_eq!(config.keys.file, Path::new("/srv/keys.toml"));
    assert_eq!(config.egress.ca_file.as_deref(), Some(Path::new("/srv/ca.pem")));
}

#[test]
fn all_problems_are_reported_together_in_the_order_of_their_lines() {
    let text = "node_id = ''
nod = 1
[limits]
drain = 5
max_sessions = 0
[listen]
addr = [
  ':80',
  '127.0.0.1:80',
  '*:80',
]
[listen.tls]
[embedded_agent]
[egress]
deny = ['a b', 'ok.example.com', '1.2.3']
[agent]
";
    let errors = parse(text).unwrap_err().0;
    let lines: Vec<_> = errors.iter().map(|error| error.line.unwrap()).collect();
    assert_eq!(lines, [1, 2, 4, 5, 8, 10, 12, 12, 12, 13, 13, 15, 15, 16], "{errors:#?}");
}

#[test]
fn secrets_in_the_wrong_place_are_not_repeated() {
    let long = "hunter2".repeat(8);
    for text in [
        "public_url = 'wss://user:hunter2@relay.example.com'",
        "public_url = 'wss://relay.example.com?token=hunter2'",
        "node_id = 'key hunter2'",
        "[listen]\naddr = ['ws://user:hunter2@relay.example.com:80']",
        "[listen]\naddr = ['user:hunter2@localhost:80']",
        "[listen]\naddr = 'redis://:hunter2@127.0.0.1'",
        "[listen]\naddr = ['localhost:hunter2@']",
        "[keys]\nstore = 'redis://:hunter2@127.0.0.1:6379'",
        "[egress]\nproxy = 'socks4://user:hunter2@127.0.0.1'",
        "[egress]\nproxy = 'user:hunter2@127.0.0.1:1080'",
        "[egress]\nproxy = 'socks5://user:hunter2@127.0.0.1/x'",
        "[egress]\nproxy = ['socks5://user:hunter2@127.0.0.1']",
        "[egress]\nallow = ['ws://user:hunter2@db.example.com']",
        "[egress]\ndeny = 'user:hunter2@db.example.com'",
        "[runtime]\ndriver = 'a:hunter2@b'",
        "[limits]\ndrain = 'redis://:hunter2@127.0.0.1'",
        "[limits]\nmax_sessions = 'redis://:hunter2@127.0.0.1'",
        "[embedded_agent]\nslug = '$hunter2'\ncountry = 'hunter2'",
        "store = 'hunter2'",
        "[keys]\nstores = 'hunter2'",
        // Not even of a line that is not TOML.
        "[keys]\nstore = hunter2",
        "[keys]\nstore = 'hunter2",
        "[keys]\nstore = \"\\hunter2\"",
        "[keys]\nhunter2",
        "[keys]\nstore 'hunter2'",
        "[keys]\nstore = 'x' hunter2",
    ] {
        assert!(!errors(text).contains("hunter2"), "{text}: {}", errors(text));
    }
    for text in [
        format!("{long} = 1"),
        format!("[{long}]"),
        format!("[limits]\ndrain = '{long}'"),
        format!("[runtime]\ndriver = '{long}'"),
        format!("[listen]\naddr = ['localhost:{long}']"),
        format!("[egress]\ndeny = ['{}']", long.repeat(30)),
    ] {
        assert!(!errors(&text).contains("hunter2"), "{text}: {}", errors(&text));
    }
}

#[test]
fn files_that_cannot_be_read() {
    let error = GatewayConfig::load(Path::new("/nonexistent/gateway.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/gateway.toml: cannot be read: "), "{error}");
    let error = super::super::utf8(b"[limits]\ndrain = '\xff'".to_vec(), Path::new("gateway.toml")).unwrap_err();
    assert_eq!(error.to_string(), "gateway.toml:2: the file is not UTF-8 text");
}

#[test]
fn extra_roots_are_read_from_the_file_that_is_named() {
    assert_eq!(parse("").unwrap().egress.roots().unwrap(), []);
    let error = parse("[egress]\nca_file = '/nonexistent/ca.pem'").unwrap().egress.roots().unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/ca.pem: cannot be read: "), "{error}");
}

proptest! {
    #[test]
    fn never_panics(text in ".*", value in "[-\"'\\[\\]{}a-z0-9:.@é ]*") {
        let _ = parse(&text);
        for key in ["node_id", "public_url", "listen.addr", "limits.drain", "egress.deny", "embedded_agent", "agents"] {
            let _ = parse(&format!("{key} = {value}"));
        }
    }
}
