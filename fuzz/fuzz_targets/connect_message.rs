//! Whatever a connect message says: what comes out can go on the wire, and no error repeats a secret.
#![no_main]
use libfuzzer_sys::fuzz_target;
use ringway::agent::handshake;
use ringway::protocol::connect::{self, ConnectError, ConnectRequest, Handshake, Opening, Proxy, Reason};
use ringway::protocol::target::Target;

/// Stands where values stand. Longer than a scheme that an error shows, and not in lower case as hosts are.
const SECRET: &str = "zQ7-Secret-4mX9vKp2";

/// The bits of the first byte.
const BUILT: u8 = 1;
const ESCAPED: u8 = 2;
const SECRET_VALUES: u8 = 4;
const SECRET_URL: u8 = 8;
const KEY_LAST: u8 = 16;
const SPLICED: u8 = 32;

fuzz_target!(|data: &[u8]| {
    let Some((&options, data)) = data.split_first() else { return };
    // What the input itself calls secret may be a name, which errors show.
    if data.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()) {
        return;
    }
    let text = if options & BUILT != 0 {
        build(options, data)
    } else if options & SPLICED != 0 {
        [b"{\"apiKey\":\"", SECRET.as_bytes(), data].concat()
    } else {
        data.to_vec()
    };
    let result = read(&text);
    agrees_with_serde_json(&text, &result);
    if let Err(error) = &result {
        let shown = error.to_string();
        assert!(shown.len() < 400 && !shown.chars().any(char::is_control), "{shown:?}");
        assert!(!shown.contains(SECRET) && !format!("{error:?}").contains(SECRET), "{shown:?}");
    }
    if let Ok(request) = &result {
        assert!(!format!("{request:?}").contains(SECRET), "{request:?}");
        assert_fit_for_the_wire(request);
    }
});

fn read(text: &[u8]) -> Result<ConnectRequest, ConnectError> {
    let mut text = text.to_vec();
    let message = connect::parse(&mut text)?;
    assert_eq!(format!("{message:?}"), "ConnectMessage { .. }");
    assert!(message.key(Some("header")).is_none_or(|key| !key.is_empty()));
    message.validate()
}

/// A message of parts that the bytes 0xFF separate, which are in no text: URL, `geo`, `agent`, `idle_timeout` as JSON,
/// then name and value of a header, of a cookie, of a header, and so on.
fn build(options: u8, data: &[u8]) -> Vec<u8> {
    let parts: Vec<String> =
        data.split(|byte| *byte == 0xFF).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    let part = |index: usize| parts.get(index).map_or("", String::as_str);
    let string = |text: &str| json_string(text, options & ESCAPED != 0);
    let secret = |bit: u8| if options & bit != 0 { SECRET } else { "" };

    let url = match part(0).split_once("://") {
        Some((scheme, rest)) if options & SECRET_URL != 0 => {
            format!("{scheme}://u:{SECRET}@{rest}/{SECRET}?{SECRET}")
        }
        _ => part(0).to_owned() + secret(SECRET_URL),
    };
    let mut fields = vec![
        format!("\"url\":{}", string(&url)),
        format!("\"geo\":{}", string(part(1))),
        format!("\"agent\":{}", string(part(2))),
    ];
    if !part(3).is_empty() {
        fields.push(format!("\"idle_timeout\":{}", part(3)));
    }
    let mut members = [Vec::new(), Vec::new()];
    for (index, pair) in parts.get(4..).unwrap_or_default().chunks(2).enumerate() {
        let value = pair.get(1).map_or("", String::as_str).to_owned() + secret(SECRET_VALUES);
        members[index % 2].push(format!("{}:{}", string(&pair[0]), string(&value)));
    }
    for (field, members) in ["headers", "cookies"].iter().zip(members) {
        fields.push(format!("\"{field}\":{{{}}}", members.join(",")));
    }
    let at = if options & KEY_LAST != 0 { fields.len() } else { 0 };
    fields.insert(at, format!("\"apiKey\":{}", string(SECRET)));
    format!("{{{}}}", fields.join(",")).into_bytes()
}

fn json_string(text: &str, escaped: bool) -> String {
    if escaped {
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        format!("\"{units}\"")
    } else {
        serde_json::to_string(text).unwrap()
    }
}

/// Two parsers that disagree about what is JSON are how one lets through what the other one hides.
fn agrees_with_serde_json(text: &[u8], result: &Result<ConnectRequest, ConnectError>) {
    let ours = !matches!(
        result,
        Err(ConnectError::NotUtf8
            | ConnectError::NotJson(_)
            | ConnectError::NotAnObject(_)
            | ConnectError::Field { reason: Reason::NotJson, .. })
    );
    let theirs = match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(value) => value.is_object(),
        // Its limit is 128, the other's 1024.
        Err(error) if error.to_string().starts_with("recursion limit") => return,
        Err(_) => false,
    };
    assert_eq!(ours, theirs, "{:?}", text.escape_ascii().to_string());
}

fn assert_fit_for_the_wire(request: &ConnectRequest) {
    let ConnectRequest { target, opening: Opening::Ours(handshake), proxy, .. } = request else {
        panic!("no connect message asks for another's handshake");
    };
    let Handshake { host, headers, subprotocols } = handshake;
    let mut names: Vec<String> = headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1], "{headers:?}");
    }
    for owned in ["host", "upgrade", "connection", "sec-websocket-key", "content-length", "transfer-encoding"] {
        assert!(!names.iter().any(|name| name == owned), "{headers:?}");
    }
    for (name, value) in headers.iter().chain([host]) {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'), "{name:?}");
        assert!(is_value(value), "{value:?}");
    }
    assert!(host.0.eq_ignore_ascii_case("host"), "{host:?}");
    assert!(subprotocols.iter().all(|subprotocol| is_value(subprotocol)), "{subprotocols:?}");
    let path = &target.path_and_query;
    assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{path:?}");
    assert!(target.authority().bytes().all(|byte| byte.is_ascii_graphic()), "{target:?}");
    assert!(target.basic.as_deref().is_none_or(is_value));
    assert_ne!(target.port, 0);

    // Who reads our spelling dials the same target.
    let scheme = if target.tls { "wss" } else { "ws" };
    let again = Target::parse(&format!("{scheme}://{}{path}", target.host_and_port()));
    assert!(again == Ok(Target { basic: None, ..target.clone() }), "{target:?} {path:?} {again:?}");

    // So does an agent that is told of the proxy.
    assert!(proxy.as_ref().is_none_or(|proxy| Proxy::parse(&proxy.to_url()).as_ref() == Ok(proxy)), "{proxy:?}");

    // What goes out is one request with just these headers.
    let bytes = handshake::request(target, handshake, "dGhlIHNhbXBsZSBub25jZQ==");
    let mut parsed_headers = vec![httparse::EMPTY_HEADER; headers.len() + 6];
    let mut parsed = httparse::Request::new(&mut parsed_headers);
    assert_eq!(parsed.parse(&bytes), Ok(httparse::Status::Complete(bytes.len())));
    assert_eq!((parsed.method, parsed.path, parsed.version), (Some("GET"), Some(&path[..]), Some(1)));
    assert_eq!(parsed.headers.len(), headers.len() + 5);
    for (parsed, (name, value)) in parsed.headers[5..].iter().zip(headers) {
        assert_eq!((parsed.name, parsed.value), (&name[..], value.as_bytes()));
    }
}

/// RFC 9110 section 5.5: what a field value may hold.
fn is_value(text: &str) -> bool {
    !text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t')
}
