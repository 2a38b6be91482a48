//! Which of ringway's files a text is, told by what stands in it.
//!
//! Serves `ringway check`, which takes any of them. Must never fail: a broken file is guessed at, and the reader of
//! that kind then says what is wrong with it.
use std::path::Path;

use toml::de::DeTable;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// gateway.toml
    Gateway,
    /// agent.toml
    Agent,
    /// keys.toml
    Keys,
    /// agents.toml, the tokens of remote agents
    Agents,
}

impl FileKind {
    /// Only a file without any key is told by its name: an empty keys.toml and an empty gateway.toml are both valid.
    pub fn detect(text: &str, path: &Path) -> Self {
        /// Keys of agent.toml that gateway.toml has nowhere.
        const OF_AGENT_ALONE: [&str; 3] = ["gateways", "token_file", "insecure"];
        /// Keys that agent.toml has at its top, and gateway.toml in a table.
        const OF_AGENT: [&str; 4] = ["slug", "country", "max_sessions", "ca_file"];
        let (root, _) = DeTable::parse_recoverable(text);
        let root = root.get_ref();
        if root.is_empty() {
            return Self::by_name(path);
        }
        let number_of = |keys: &[&str]| keys.iter().filter(|key| root.contains_key(**key)).count();
        let is_list = |key| root.get(key).is_some_and(|value| value.get_ref().is_array());
        match () {
            () if root.contains_key("key") => Self::Keys,
            () if root.contains_key("agent") => Self::Agents,
            // Misspelt: gateway.toml has tables of these names, not lists of tables.
            () if is_list("keys") => Self::Keys,
            () if is_list("agents") => Self::Agents,
            () if number_of(&OF_AGENT_ALONE) >= 1 => Self::Agent,
            // Several, as one of them alone may be a line that slipped above its table.
            () if number_of(&OF_AGENT) >= 2 => Self::Agent,
            () => Self::Gateway,
        }
    }

    fn by_name(path: &Path) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        match name.as_str() {
            name if name.contains("agents") => Self::Agents,
            name if name.contains("agent") => Self::Agent,
            name if name.contains("key") => Self::Keys,
            _ => Self::Gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides_before_the_name() {
        for (text, kind) in [
            ("[[key]]\nid = 'a'", FileKind::Keys),
            ("[key]\nid = 'a'", FileKind::Keys),
            ("[[keys]]\nid = 'a'", FileKind::Keys),
            ("[[agent]]\nslug = 'a'", FileKind::Agents),
            ("[[agents]]\nslug = 'a'", FileKind::Agents),
            ("slug = 'a'\ncountry = 'DE'", FileKind::Agent),
            ("gateways = 'x'", FileKind::Agent),
            ("token_file = 'x'\n[egress]", FileKind::Agent),
            ("[agents]\ntokens = 'x'", FileKind::Gateway),
            ("slug = 'a'\n[embedded_agent]", FileKind::Gateway),
            ("gateways = []\ntoken_file = 'x'\n[limits]", FileKind::Agent),
            ("[listen]\naddr = []", FileKind::Gateway),
            ("[keys]\nfile = 'x'", FileKind::Gateway),
            ("max_sessions = 1\n[limits]", FileKind::Gateway),
            ("node_id = 'x'\nbroken", FileKind::Gateway),
        ] {
            assert_eq!(FileKind::detect(text, Path::new("keys.toml")), kind, "{text}");
        }
    }

    #[test]
    fn an_empty_file_is_told_by_its_name() {
        for (name, kind) in [
            ("conf/keys.toml", FileKind::Keys),
            ("agents.toml", FileKind::Agents),
            ("agent.toml", FileKind::Agent),
            ("gateway.toml", FileKind::Gateway),
            ("x.toml", FileKind::Gateway),
        ] {
            assert_eq!(FileKind::detect("# nothing yet\n", Path::new(name)), kind, "{name}");
        }
    }
}
