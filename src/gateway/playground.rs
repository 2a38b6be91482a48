//! The playground: what a browser gets at `/ws/docs`. One page that needs nothing else, and may do nothing else.
use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use super::http::{Request, Response};

const HTML: &str = include_str!("playground/page.html");
const STYLE: &str = include_str!("playground/style.css");
const SCRIPT: &str = include_str!("playground/app.js");
/// Where style and script go in the page.
const STYLE_SLOT: &str = "{{style}}";
const SCRIPT_SLOT: &str = "{{script}}";

struct Page {
    html: String,
    /// Its Content-Security-Policy.
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| Page {
    html: HTML.replacen(STYLE_SLOT, STYLE, 1).replacen(SCRIPT_SLOT, SCRIPT, 1),
    policy: [
        "default-src 'none'",
        &format!("script-src {}", hash(SCRIPT)),
        &format!("style-src {}", hash(STYLE)),
        // CSP 3, section 6.7.2.8: this covers ws:// and wss:// of the same host and port.
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    .join("; "),
});

/// How a Content-Security-Policy names an inline script or style.
fn hash(content: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(content)))
}

/// Whether the request wants the page: it names `text/html`, and does not like JSON better, which everybody else gets.
/// Of two that are named and liked the same, the first is meant.
pub(super) fn is_wanted(request: &Request) -> bool {
    let items = request.values("accept").flat_map(|value| value.split(','));
    let accept: Vec<(&str, f32)> = items.filter_map(quality).collect();
    let find = |range: &str| accept.iter().position(|(named, _)| named.eq_ignore_ascii_case(range));
    let Some(html) = find("text/html") else { return false };
    // RFC 9110 section 12.5.1: the most specific range counts.
    let named = find("application/json");
    let json = named.or_else(|| find("application/*")).or_else(|| find("*/*"));
    let (quality, other) = (accept[html].1, json.map_or(0.0, |json| accept[json].1));
    quality > 0.0 && (quality > other || quality == other && named.is_none_or(|named| html < named))
}

/// The media range of an item in an Accept header, and its quality. `None`: that is no such item.
fn quality(item: &str) -> Option<(&str, f32)> {
    let mut parts = item.split(';').map(str::trim);
    let range = parts.next()?;
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let quality = quality.map_or(Some(1.0), |text| text.parse().ok())?;
    (0.0..=1.0).contains(&quality).then_some((range, quality))
}

pub(super) fn page() -> Response {
    Response::text(200, "text/html; charset=utf-8", PAGE.html.as_str())
        .with("Content-Security-Policy", PAGE.policy.as_str())
        .with("X-Content-Type-Options", "nosniff")
        .with("Referrer-Policy", "no-referrer")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gateway::http::HeadReader;

    fn wanted(accept: &[&str]) -> bool {
        let lines: String = accept.iter().map(|value| format!("Accept: {value}\r\n")).collect();
        let mut head = format!("GET /ws/docs HTTP/1.1\r\nHost: h\r\n{lines}\r\n").into_bytes();
        is_wanted(&HeadReader::default().next(&mut head).unwrap().unwrap())
    }

    #[test]
    fn those_who_name_html_get_it() {
        assert!(wanted(&["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"]));
        assert!(wanted(&["text/html"]));
        assert!(wanted(&["TEXT/HTML ; Q=0.1"]));
        assert!(wanted(&["text/html", "application/json"]));
        assert!(wanted(&["text/html;q=0.5,application/json;q=0.5"]));
        assert!(wanted(&["*/*,application/*,text/html"]));
        assert!(wanted(&["application/json;q=0.5,text/html"]));
        assert!(wanted(&["text/html;q=0.5,application/json;q=0.4,*/*"]));
        assert!(wanted(&["text/html;q=0.5,application/*;q=0.4,*/*"]));
        assert!(wanted(&["text/html;charset=utf-8;q=0.9, */*;q=0.1"]));
    }

    #[test]
    fn all_others_get_json() {
        assert!(!wanted(&[]));
        assert!(!wanted(&[""]));
        assert!(!wanted(&["*/*"]));
        assert!(!wanted(&["text/*"]));
        assert!(!wanted(&["application/json"]));
        assert!(!wanted(&["text/html;q=0"]));
        assert!(!wanted(&["text/html;q=0.5,*/*"]));
        assert!(!wanted(&["text/html;q=0.5,application/json"]));
        assert!(!wanted(&["application/json, text/html, */*"]));
        assert!(!wanted(&["application/json;q=0.5", "text/html;q=0.5"]));
        assert!(!wanted(&["text/html;q=0.3,application/*;q=0.4,*/*;q=0.1"]));
        for broken in ["2", "-1", "x", "", "NaN", "inf"] {
            assert!(!wanted(&[&format!("text/html;q={broken}")]), "{broken}");
        }
    }

    #[test]
    fn it_is_one_page_of_what_may_stand_in_it() {
        assert!(PAGE.html.contains(&format!("<style>{STYLE}</style>")));
        assert!(PAGE.html.contains(&format!("<script>{SCRIPT}</script>")));
        assert!(!STYLE.contains("</style") && !SCRIPT.contains("</script") && !SCRIPT.contains("<!--"));
        // Attributes that the policy forbids, and whatever would be fetched.
        for forbidden in [" style=", " onclick=", " src=", "href=\"http", "href=\"//", "javascript:", "@import", "url("]
        {
            assert!(!HTML.contains(forbidden) && !STYLE.contains(forbidden), "{forbidden}");
        }
        for unsafe_sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"] {
            assert!(!SCRIPT.contains(unsafe_sink), "{unsafe_sink}");
        }
    }
}
