//! What may name an agent, a country, a node, a key.
//!
//! Owns the rules for names that leave the process again: in response headers, JSON, log lines and metric labels. So
//! they are short, visible ASCII, and need no escaping beyond JSON's own. The errors never repeat the name, because
//! the text in its place may be a secret that slipped into the wrong line.

const MAX_SLUG: usize = 64;
const MAX_NODE_ID: usize = 128;
const MAX_KEY_ID: usize = 64;

/// An agent's slug: letters, digits, `-`, `_`, `.`. Kept as written, compared without regard to case.
pub fn slug(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=MAX_SLUG).contains(&text.len()) && text.bytes().all(legal) {
        return Ok(text.to_owned());
    }
    Err(format!("a slug is 1 to {MAX_SLUG} letters, digits, \"-\", \"_\" or \".\", like \"de1\""))
}

/// An ISO 3166 alpha-2 code, made upper-case. Whether the code is assigned is not checked: lists of them age.
pub fn country(text: &str) -> Result<String, String> {
    if text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Ok(text.to_ascii_uppercase());
    }
    Err("a country is two letters (ISO 3166), like \"DE\"".to_owned())
}

/// A node's id: goes into the header `Ringway-Node-Id`.
pub fn node_id(text: &str) -> Result<String, String> {
    if (1..=MAX_NODE_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(format!("a node id is 1 to {MAX_NODE_ID} visible ASCII characters without spaces, like \"scraping-de1\""))
}

/// A key's id, which stands for the key in logs: no spaces and no quotes, so that it can be searched and pasted.
pub fn key_id(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_graphic() && !b"\"'`\\".contains(&byte);
    if (1..=MAX_KEY_ID).contains(&text.len()) && text.bytes().all(legal) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "an id is 1 to {MAX_KEY_ID} visible ASCII characters without spaces, quotes and backslashes, like \"acme\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_names_are_kept() {
        let longest = "x".repeat(64);
        for text in ["de1", "DE-1_a.b", longest.as_str()] {
            assert_eq!(slug(text).as_deref(), Ok(text));
            assert_eq!(key_id(text).as_deref(), Ok(text));
        }
        assert_eq!(country("de").as_deref(), Ok("DE"));
        assert_eq!(node_id("host.example:1").as_deref(), Ok("host.example:1"));
        assert_eq!(key_id("team@acme/42").as_deref(), Ok("team@acme/42"));
    }

    #[test]
    fn others_are_refused() {
        let too_long = "x".repeat(65);
        for text in ["", "a b", "a,b", "ä", too_long.as_str()] {
            assert!(slug(text).is_err(), "{text}");
        }
        for text in ["", "D", "DEU", "D1", "ß"] {
            assert!(country(text).is_err(), "{text}");
        }
        for text in ["", "a b", "a\"b", "a'b", "a\\b", "a\nb", "ä", too_long.as_str()] {
            assert!(key_id(text).is_err(), "{text}");
        }
        for text in ["", "a b", "a\r\nb", "é"] {
            assert!(node_id(text).is_err(), "{text}");
        }
    }
}
