//! The query of the transparent form (`GET /ws?url=…`): the fields of a connect message, as far as an address can carry
//! them.
use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::error::{ConnectError, Reason};
use super::{ConnectRequest, Opening, Selection, idle_timeout, read_proxy};
use crate::protocol::target::Target;

/// A query, with its fields still unjudged. Of a name given twice the last counts, names that mean nothing are ignored.
#[derive(Clone, Copy)]
pub struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    /// `None`: it has no `url`, so it asks for nothing here.
    #[must_use]
    pub fn read(query: &'a str) -> Option<Self> {
        let query = Self(query);
        query.value("url").is_some().then_some(query)
    }

    /// The API key: `apiKey`, else `key`. One that is not UTF-8 is empty, which is no key.
    #[must_use]
    pub fn key(&self) -> Option<String> {
        let value = self.value("apiKey").or_else(|| self.value("key"))?;
        Some(decoded(value).map_or_else(String::new, Cow::into_owned))
    }

    /// Judges all fields but the key. `head`: the opening handshake of the client's own, for that target.
    ///
    /// # Errors
    /// An illegal value; the error names the field.
    pub fn validate(&self, head: impl FnOnce(&Target) -> Vec<u8>) -> Result<ConnectRequest, ConnectError> {
        let url = self.text("url")?.unwrap_or_default();
        let target = Target::parse(&url).map_err(|error| Reason::from(error).of("url"))?;
        // As HTML forms write a space.
        let list = |name| self.text(name).map(|text| text.map(|text| text.replace('+', " ")));
        let selection = Selection::new(list("geo")?.as_deref(), list("agent")?.as_deref());
        let idle_timeout = match self.text("idle_timeout")?.as_deref() {
            None | Some("") => None,
            Some(text) => idle_timeout(text.parse().map_err(|_| Reason::NotATimeout.of("idle_timeout"))?)?,
        };
        let proxy = self.text("proxy")?.filter(|proxy| !proxy.is_empty());
        let proxy = proxy.as_deref().map(read_proxy).transpose()?;
        let opening = Opening::Passed(head(&target));
        Ok(ConnectRequest { target, opening, selection, idle_timeout, proxy })
    }

    fn text(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, ConnectError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        decoded(value).map(Some).ok_or_else(|| Reason::NotUtf8.of(name))
    }

    /// As it was written.
    fn value(&self, name: &str) -> Option<&'a str> {
        let pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.rev().find(|(given, _)| percent_decode_str(given).eq(name.bytes())).map(|(_, value)| value)
    }
}

/// `+` stays: in a `url` that somebody wrote by hand it means itself, and who encodes a space there writes `%20`.
fn decoded(value: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(value).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Proxy;
    use super::*;

    fn read(query: &str) -> Result<ConnectRequest, String> {
        let query = Query::read(query).ok_or("no url")?;
        query.validate(|target| target.to_url().into_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_fields() {
        let request = read(
            "x=1&geo=us,+de&agent=De1%2C%20us1&idle_timeout=1.5&url=ws%3A%2F%2Fh.example%3A81%2Fp%3Fa%3Db%26c&key=k&proxy=",
        )
        .unwrap();
        assert_eq!(request.target.to_url(), "ws://h.example:81/p?a=b&c");
        assert_eq!(request.opening, Opening::Passed(b"ws://h.example:81/p?a=b&c".to_vec()));
        assert_eq!(request.selection, Selection::new(Some("US,DE"), Some("de1,us1")));
        assert_eq!(request.idle_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(request.proxy, None);
        // Its own percent-encoding is decoded behind that of the query.
        let request = read("url=ws://h/&proxy=socks5%3A%2F%2Fu%3A%2540%40h%3A9").unwrap();
        assert_eq!(request.proxy, Some(Proxy::parse("socks5://u:%40@h:9").unwrap()));
    }

    #[test]
    fn a_url_is_percent_decoded_once_and_nothing_else() {
        for (given, path) in [
            ("ws://h/a+b?c=d+e", "/a+b?c=d+e"),
            ("ws://h/%2525%20x", "/%25%20x"),
            ("ws%3a//h/?x=1%262", "/?x=1&2"),
            ("ws://h/&url=ws://h/last", "/last"),
        ] {
            let request = read(&format!("url={given}")).unwrap();
            assert_eq!(request.target.path_and_query, path, "{given}");
        }
    }

    #[test]
    fn what_is_wrong_names_the_field() {
        for (query, expected) in [
            ("url", "url: must start with ws:// or wss://"),
            ("url=", "url: must start with ws:// or wss://"),
            ("url=http://h/", "url: must start with ws:// or wss://, not http://"),
            ("url=ws://h/%23x", "url: must not have a fragment (write # as %23)"),
            ("url=ws://h/%0d%0ax", "url: must not contain control characters"),
            ("url=ws://h/%ff", "url: not UTF-8"),
            ("url=ws://h/&geo=%ff", "geo: not UTF-8"),
            ("url=ws://h/&idle_timeout=x", "idle_timeout: must be a finite number, 0 or more"),
            ("url=ws://h/&idle_timeout=-1", "idle_timeout: must be a finite number, 0 or more"),
            ("url=ws://h/&idle_timeout=inf", "idle_timeout: must be a finite number, 0 or more"),
            ("url=ws://h/&idle_timeout=nan", "idle_timeout: must be a finite number, 0 or more"),
            ("url=ws://h/&proxy=x", "proxy: must start with socks5://, socks5h:// or http://"),
            (
                "url=ws://h/&proxy=http://h/p",
                "proxy: must end behind its host and port: it has no path, query or fragment",
            ),
            ("url=ws://h/&proxy=%ff", "proxy: not UTF-8"),
        ] {
            assert_eq!(read(query).unwrap_err(), expected, "{query}");
        }
    }

    #[test]
    fn the_key_and_whether_it_is_meant() {
        let key = |query| Query::read(query).and_then(|query| query.key());
        assert_eq!(key("url=x&key=a%2Bb+c").as_deref(), Some("a+b+c"));
        assert_eq!(key("url=x&key=a&apiKey=b").as_deref(), Some("b"));
        assert_eq!(key("url=x&apiKey=&key=a").as_deref(), Some(""));
        assert_eq!(key("url=x&key=%ff").as_deref(), Some(""));
        assert_eq!(key("url=x"), None);
        assert!(Query::read("%75rl=x").is_some() && Query::read("a&url").is_some());
        assert!(Query::read("").is_none() && Query::read("URL=x&curl=y&key=url").is_none());
    }
}
