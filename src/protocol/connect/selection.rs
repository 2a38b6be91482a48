//! Which agents a client will have: the fields `geo` and `agent`.
//!
//! Owns the reading of the two comma lists and the question whether an agent fits. Must never know which agents there
//! are, or pick one.

/// The client's restriction on agents. The default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// ISO 3166 alpha-2 codes in upper case; `None` for every country.
    pub geo: Option<Vec<String>>,
    /// Slugs in lower case; `None` for every agent.
    pub agents: Option<Vec<String>>,
}

impl Selection {
    /// Reads the two lists. A code or slug that nobody has is no error: it matches no agent.
    #[must_use]
    pub fn new(geo: Option<&str>, agents: Option<&str>) -> Self {
        Self { geo: list(geo, str::to_ascii_uppercase), agents: list(agents, str::to_ascii_lowercase) }
    }

    /// Whether an agent of this slug in this country fits: both lists must have it.
    #[must_use]
    pub fn matches(&self, slug: &str, country: &str) -> bool {
        allows(self.agents.as_deref(), slug) && allows(self.geo.as_deref(), country)
    }
}

/// The items of a comma list in one case, `None` if there are none.
fn list(text: Option<&str>, in_one_case: fn(&str) -> String) -> Option<Vec<String>> {
    let items: Vec<String> = text?.split(',').map(str::trim).filter(|item| !item.is_empty()).map(in_one_case).collect();
    (!items.is_empty()).then_some(items)
}

fn allows(list: Option<&[String]>, item: &str) -> bool {
    list.is_none_or(|list| list.iter().any(|listed| listed.eq_ignore_ascii_case(item)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ignore_spaces_case_and_empty_items() {
        let table: &[(&str, Option<&[&str]>)] = &[
            ("", None),
            (" ", None),
            (",", None),
            (" , ,, ", None),
            ("US", Some(&["US"])),
            ("us", Some(&["US"])),
            (" us ,\tDe,,at, ", Some(&["US", "DE", "AT"])),
            ("XX", Some(&["XX"])),
            ("de,DE", Some(&["DE", "DE"])),
            ("ü", Some(&["ü"])),
        ];
        for (text, expected) in table {
            let expected: Option<Vec<String>> =
                expected.map(|codes| codes.iter().copied().map(str::to_owned).collect());
            let selection = Selection::new(Some(text), None);
            assert_eq!((selection.geo, selection.agents), (expected, None), "{text:?}");
        }
        assert_eq!(Selection::new(None, Some("DE1, At5")).agents, Some(vec!["de1".to_owned(), "at5".to_owned()]));
        assert_eq!(Selection::new(None, None), Selection::default());
    }

    #[test]
    fn an_agent_must_fit_both_lists() {
        let table = [
            ("", "", true),
            ("de", "", true),
            ("US,De", "", true),
            ("US", "", false),
            ("D", "", false),
            ("", "de1", true),
            ("", "us1,dE1", true),
            ("", "de", false),
            ("", "de11", false),
            ("DE", "de1", true),
            ("US", "de1", false),
            ("DE", "us1", false),
        ];
        for (geo, agents, expected) in table {
            let selection = Selection::new(Some(geo), Some(agents));
            assert_eq!(selection.matches("DE1", "DE"), expected, "{geo:?} {agents:?}");
            assert_eq!(selection.matches("de1", "de"), expected, "{geo:?} {agents:?}");
        }
    }
}
