//! agents.toml: what is read, what is refused, and that no secret is repeated.
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

/// `printf secret | sha256sum`
const OF_SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const MAKE_ONE: &str = "`ringway agent-token new --slug NAME` makes a token and its entry";

fn read(text: &str) -> Result<Vec<AgentEntry>, ConfigErrors> {
    parse(text, Path::new("agents.toml"))
}

/// All errors as they are shown, one a line.
fn errors(text: &str) -> String {
    read(text).expect_err(text).to_string()
}

/// An entry that is right; what is added begins at its line 4.
fn entry(slug: &str, n: usize) -> String {
    format!("[[agent]]\nslug = '{slug}'\nsha256 = '{n:064x}'\n")
}

#[test]
fn entries_are_read_in_their_order() {
    for text in ["", "# nothing yet\n", "agent = []"] {
        assert_eq!(read(text).unwrap(), [], "{text}");
    }
    let upper = OF_SECRET.to_uppercase();
    let text = format!("[[agent]]\nslug = 'De1'\nsha256 = '{upper}'\ncountry = 'de'\n{}", entry("at1", 1));
    let mut of_one = [0; 32];
    of_one[31] = 1;
    let expected = [
        AgentEntry { slug: "De1".into(), sha256: Sha256::digest("secret").into(), country: Some("DE".into()) },
        AgentEntry { slug: "at1".into(), sha256: of_one, country: None },
    ];
    assert_eq!(read(&text).unwrap(), expected);
}

#[test]
fn one_slug_may_have_several_tokens() {
    let fleet = [entry("de1", 1), entry("de1", 2), entry("DE1", 3)].concat();
    assert_eq!(read(&fleet).unwrap().len(), 3);
}

#[test]
fn a_token_that_is_there_twice_is_refused_with_both_lines() {
    let text = [entry("a", 1), entry("b", 10), entry("c", 1), entry("b", 10).replace("00a'", "00A'")].concat();
    assert_eq!(
        errors(&text).lines().collect::<Vec<_>>(),
        [
            "agents.toml:9: \"sha256\" in [[agent]] is that of the [[agent]] in line 1 already",
            "agents.toml:12: \"sha256\" in [[agent]] is that of the [[agent]] in line 4 already",
        ]
    );
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let slug = "a slug is 1 to 64 letters, digits, \"-\", \"_\" or \".\", like \"de1\"";
    for (text, message) in [
        (format!("[[agent]]\nsha256 = '{OF_SECRET}'"), "1: [[agent]] needs \"slug\"".to_owned()),
        ("\n[[agent]]\nslug = 'de1'".into(), "2: [[agent]] needs \"sha256\"".into()),
        (entry("d e", 1), format!("2: \"slug\" in [[agent]]: {slug}")),
        (entry("", 1), format!("2: \"slug\" in [[agent]]: {slug}")),
        (
            entry("de1", 1) + "country = 'Germany'",
            "4: \"country\" in [[agent]]: a country is two letters (ISO 3166), like \"DE\"".into(),
        ),
        (
            entry("de1", 1) + "countri = 'DE'",
            "4: unknown key \"countri\" in [[agent]]; did you mean \"country\"?".into(),
        ),
        (entry("de1", 1) + "token = 'hunter2'", "4: unknown key \"token\" in [[agent]]".into()),
        ("slug = 'de1'".into(), "1: unknown key \"slug\"; it belongs to [[agent]]".into()),
        ("[[agents]]\nslug = 'de1'".into(), "1: unknown table [agents]; did you mean [[agent]]?".into()),
        (
            "[agent]\nslug = 'de1'".into(),
            "1: \"agent\" is a list of tables; write [[agent]] in a line of its own before each".into(),
        ),
    ] {
        assert_eq!(errors(&text), format!("agents.toml:{message}"), "{text}");
    }
}

#[test]
fn what_stands_in_place_of_a_hash_is_not_repeated() {
    let wanted = "is the SHA-256 of the token as 64 hex digits, not the token itself (what stands there is not shown)";
    for value in ["'rwa_hunter2'", "4711", "['hunter2']", "''", &format!("'{}'", &OF_SECRET[1..])] {
        let text = format!("[[agent]]\nslug = 'de1'\nsha256 = {value}");
        assert_eq!(errors(&text), format!("agents.toml:3: \"sha256\" in [[agent]] {wanted}; {MAKE_ONE}"));
    }
    let of_nothing: String = Sha256::digest("").iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!(
        "agents.toml:3: \"sha256\" in [[agent]] is the hash of no bytes at all: what was hashed was empty; {MAKE_ONE}"
    );
    assert_eq!(errors(&format!("[[agent]]\nslug = 'de1'\nsha256 = '{of_nothing}'")), expected);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(Path::new("/nonexistent/agents.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/agents.toml: cannot be read: "), "{error}");
}

proptest! {
    #[test]
    fn never_panics(text in ".*", value in "[-\"'\\[\\]{}a-z0-9:.@é ]*") {
        let _ = read(&text);
        let _ = read(&(entry("de1", 1) + &format!("country = {value}")));
    }
}
