//! Walks a parsed TOML file, key by key, and collects everything that is wrong with it.
//!
//! Asking for a key is what makes it known: after a file has been read, whatever stands in it and was not asked for is
//! an unknown key, and what was asked for is what a misspelt key is compared with. So a key is named in one place, and
//! the list of valid keys cannot fall behind. The tree is walked by hand, not through serde's derive, because that
//! stops at the first error and repeats the offending value, which may be a secret.
use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error as SyntaxError};

use super::error::{ConfigError, ConfigErrors, Wrong};
use super::value::{MAX_SHOWN, show};

/// Below this similarity (0 to 1, Jaro-Winkler) a suggestion confuses more than it helps.
const SIMILAR: f64 = 0.79;
/// Behind the first few syntax errors the parser has lost the thread.
const MAX_SYNTAX_ERRORS: usize = 3;
/// Nobody reads more at once, and finding a line costs a walk through the file.
const MAX_ERRORS: usize = 100;

/// Reads a whole file. `read` may return `None` only where it has reported an error.
pub(super) fn read<T>(
    text: &str,
    path: &Path,
    read: impl FnOnce(&mut Section<'_, '_>) -> Option<T>,
) -> Result<T, ConfigErrors> {
    let (root, mut syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        // A key is looked at after what follows it.
        syntax.sort_by_key(|error| error.span().map(|span| span.start));
        return Err(ConfigErrors(
            syntax.iter().take(MAX_SYNTAX_ERRORS).map(|error| syntax_error(error, text, path)).collect(),
        ));
    }
    let mut file = File { path, text, known: Vec::new(), opened: Vec::new(), found: Vec::new() };
    let read = read(&mut file.open("", Some(root.get_ref()), 0));
    file.report_unknown();
    match read {
        Some(value) if file.found.is_empty() => Ok(value),
        _ => Err(file.into_errors()),
    }
}

/// What has been asked for and found so far.
struct File<'t> {
    path: &'t Path,
    text: &'t str,
    known: Vec<Known>,
    /// Tables whose keys are to be checked, with their labels.
    opened: Vec<(&'static str, &'t DeTable<'t>)>,
    /// Problems with the offset they stand at.
    found: Vec<(usize, Wrong)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    /// The table's label, "" at the top.
    table: &'static str,
    key: &'static str,
    is_table: bool,
}

/// At which offset the table stood in which a value came first.
pub(super) type FirstOffsets<T> = HashMap<T, usize>;

/// A table that is being read; present or not, so that its keys are known and its defaults apply either way.
pub(super) struct Section<'f, 't> {
    file: &'f mut File<'t>,
    /// As errors name it: `[listen]`, `[[key]]`, or "" for the top of the file.
    label: &'static str,
    table: Option<&'t DeTable<'t>>,
    offset: usize,
}

impl<'t> Section<'_, 't> {
    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// A value, or `None` if it is absent or wrong; if it is wrong, the error is noted.
    pub fn value<T>(&mut self, key: &'static str, read: impl FnOnce(&DeValue<'t>) -> Result<T, Wrong>) -> Option<T> {
        let value = self.get(key, false)?.1;
        read(value.get_ref()).map_err(|wrong| self.wrong(key, value.span().start, wrong)).ok()
    }

    /// As [`Self::value`], but an absent key is an error if the table is present.
    pub fn required<T>(&mut self, key: &'static str, read: impl FnOnce(&DeValue<'t>) -> Result<T, Wrong>) -> Option<T> {
        let present = self.get(key, false).is_some();
        if !present && self.is_present() {
            let what = if self.label.is_empty() { "the file" } else { self.label };
            self.error(format!("{what} needs {key:?}"));
        }
        self.value(key, read)
    }

    /// A list; each wrong item is noted in its own line.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        mut read: impl FnMut(&DeValue<'t>) -> Result<T, Wrong>,
    ) -> Option<Vec<T>> {
        let value = self.get(key, false)?.1;
        let Some(items) = value.get_ref().as_array() else {
            let wrong = Wrong::from(format!("is a list, not {}", show(value.get_ref())));
            self.wrong(key, value.span().start, wrong.hint(format!("write {key} = {example}")));
            return None;
        };
        let read = items
            .iter()
            .map(|item| read(item.get_ref()).map_err(|wrong| self.wrong(key, item.span().start, wrong)).ok());
        // Every item is read before the first bad one ends the collection.
        read.collect::<Vec<_>>().into_iter().collect()
    }

    /// A table such as `[listen]`; `label` is how errors name it.
    pub fn table(&mut self, key: &'static str, label: &'static str) -> Section<'_, 't> {
        let found = self.get(key, true);
        let offset = found.map_or(self.offset, |(key, _)| key.span().start);
        let table = found.and_then(|(_, value)| value.get_ref().as_table());
        if found.is_some() && table.is_none() {
            self.wrong(key, offset, Wrong::from("is a table").hint(format!("write {label} in a line of its own")));
        }
        self.file.open(label, table, offset)
    }

    /// Tables such as `[[key]]`, in the order of the file.
    pub fn each_table(&mut self, key: &'static str, label: &'static str, mut read: impl FnMut(&mut Section<'_, 't>)) {
        let Some((name, value)) = self.get(key, true) else {
            // Asked for all the same, so that a key that stands outside of its table is told where it belongs.
            return read(&mut self.file.open(label, None, self.offset));
        };
        let offset = name.span().start;
        let hint = format!("write {label} in a line of its own before each");
        let Some(items) = value.get_ref().as_array() else {
            return self.wrong(key, offset, Wrong::from("is a list of tables").hint(hint));
        };
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => read(&mut self.file.open(label, Some(table), item.span().start)),
                None => self.wrong(key, item.span().start, Wrong::from("is a list of tables").hint(hint.clone())),
            }
        }
    }

    /// A key or table that the contract has and this version has not.
    pub fn refuse(&mut self, key: &'static str) {
        self.refuse_unless(key, |_| false);
    }

    /// A key that may stand in the file as long as it asks for nothing.
    pub fn refuse_unless(&mut self, key: &'static str, asks_for_nothing: impl FnOnce(&DeValue<'t>) -> bool) {
        let Some((name, value)) = self.get(key, false) else { return };
        if !asks_for_nothing(value.get_ref()) {
            let what = match value.get_ref() {
                DeValue::Table(_) if self.label.is_empty() => format!("[{key}]"),
                DeValue::Table(_) => format!("[{}.{key}]", self.label.trim_matches(['[', ']'])),
                _ => self.full_name(key),
            };
            self.error_at(name.span().start, Wrong::from(unsupported(&what)).hint("leave it out"));
        }
    }

    /// Notes an error about the table as a whole.
    pub fn error(&mut self, wrong: impl Into<Wrong>) {
        self.error_at(self.offset, wrong.into());
    }

    /// Notes an error about one key: at its value, or at the table's head where it is absent.
    pub fn error_about(&mut self, key: &'static str, wrong: impl Into<Wrong>) {
        let offset = self.get(key, false).map_or(self.offset, |(_, value)| value.span().start);
        self.wrong(key, offset, wrong.into());
    }

    /// Notes an error about a key whose value one of the tables before has too; `seen` are theirs.
    pub fn refuse_second<T: Clone + Eq + Hash>(
        &mut self,
        key: &'static str,
        value: Option<&T>,
        seen: &mut FirstOffsets<T>,
    ) {
        let Some(value) = value else { return };
        let first = *seen.entry(value.clone()).or_insert(self.offset);
        if first != self.offset {
            let line = position(self.file.text, first).0;
            self.error_about(key, format!("is that of the {} in line {line} already", self.label));
        }
    }

    fn get(&mut self, key: &'static str, is_table: bool) -> Option<(&'t Spanned<Name<'t>>, &'t Spanned<DeValue<'t>>)> {
        let known = Known { table: self.label, key, is_table };
        if !self.file.known.contains(&known) {
            self.file.known.push(known);
        }
        self.table?.get_key_value(key)
    }

    fn full_name(&self, key: &str) -> String {
        match self.label {
            "" => format!("{key:?}"),
            label => format!("{key:?} in {label}"),
        }
    }

    fn wrong(&mut self, key: &str, offset: usize, wrong: Wrong) {
        // "addr" in [listen] is a list; but: "drain" in [limits]: a duration is written "10s"
        let joint = if wrong.message.starts_with("is ") { "" } else { ":" };
        let message = format!("{}{joint} {}", self.full_name(key), wrong.message);
        self.error_at(offset, Wrong { message, ..wrong });
    }

    fn error_at(&mut self, offset: usize, wrong: Wrong) {
        self.file.note(offset, wrong);
    }
}

type Name<'t> = std::borrow::Cow<'t, str>;

/// The one sentence for what the contract has and this version has not.
pub(super) fn unsupported(what: &str) -> String {
    format!("{what} is not supported by this version yet")
}

impl<'t> File<'t> {
    fn open(&mut self, label: &'static str, table: Option<&'t DeTable<'t>>, offset: usize) -> Section<'_, 't> {
        self.opened.extend(table.map(|table| (label, table)));
        Section { file: self, label, table, offset }
    }

    fn note(&mut self, offset: usize, wrong: Wrong) {
        self.found.push((offset, wrong));
    }

    fn report_unknown(&mut self) {
        for (label, table) in std::mem::take(&mut self.opened) {
            for (name, value) in table.iter() {
                let key = name.get_ref().as_ref();
                let is_known = self.known.iter().any(|known| known.table == label && known.key == key);
                if !is_known {
                    self.note(name.span().start, self.unknown(label, key, value.get_ref()));
                }
            }
        }
    }

    fn unknown(&self, label: &'static str, key: &str, value: &DeValue<'_>) -> Wrong {
        let is_table =
            value.is_table() || value.as_array().is_some_and(|items| items.iter().any(|i| i.get_ref().is_table()));
        let what = match (is_table, label) {
            (true, "") => format!("unknown table {}", bracketed(key)),
            (true, _) => format!("unknown table {} in {label}", bracketed(key)),
            (false, "") => format!("unknown key {}", quoted(key)),
            (false, _) => format!("unknown key {} in {label}", quoted(key)),
        };
        let message = Wrong::from(what);
        match self.suggest(label, key, is_table) {
            Some(hint) => message.hint(hint),
            None => message,
        }
    }

    fn suggest(&self, label: &'static str, key: &str, is_table: bool) -> Option<String> {
        let candidates = || self.known.iter().filter(|known| known.is_table == is_table);
        let mut homes: Vec<String> =
            candidates().filter(|known| known.key == key).map(|known| home(known.table)).collect();
        homes.dedup();
        if !homes.is_empty() {
            return Some(format!("it belongs {}", homes.join(" or ")));
        }
        // Of two keys as similar, the one of this very table is meant.
        let similarity = |known: &Known| {
            let here = if known.table == label { 0.05 } else { 0.0 };
            (strsim::jaro_winkler(known.key, key), here)
        };
        let (best, _) = candidates()
            .map(|known| (known, similarity(known)))
            .filter(|(_, (similarity, _))| *similarity > SIMILAR)
            .max_by(|(_, (a, a_here)), (_, (b, b_here))| (a + a_here).total_cmp(&(b + b_here)))?;
        Some(match (is_table, best.table == label) {
            (true, _) => format!("did you mean {}?", self.heading(best.key)),
            (false, true) => format!("did you mean {:?}?", best.key),
            (false, false) => format!("did you mean {:?}, which belongs {}?", best.key, home(best.table)),
        })
    }

    /// How a table is opened: the keys of a list of tables are known by `[[key]]`.
    fn heading(&self, key: &str) -> String {
        let in_list = format!("[[{key}]]");
        if self.known.iter().any(|known| known.table == in_list) { in_list } else { format!("[{key}]") }
    }

    fn into_errors(mut self) -> ConfigErrors {
        if self.found.is_empty() {
            self.note(0, Wrong::from("the file could not be understood"));
        }
        self.found.sort_by_key(|(offset, _)| *offset);
        let errors = self.found.into_iter().take(MAX_ERRORS).map(|(offset, Wrong { message, hint })| {
            let line = Some(position(self.text, offset).0);
            ConfigError { path: self.path.to_owned(), line, column: None, message, hint }
        });
        ConfigErrors(errors.collect())
    }
}

fn home(label: &str) -> String {
    match label {
        "" => "to the top of the file, above the first [table]".to_owned(),
        label => format!("to {label}"),
    }
}

fn quoted(key: &str) -> String {
    if key.len() > MAX_SHOWN { "(a long name, not shown)".to_owned() } else { format!("{key:?}") }
}

fn bracketed(key: &str) -> String {
    if key.len() > MAX_SHOWN { "(a long name, not shown)".to_owned() } else { format!("[{}]", key.escape_debug()) }
}

fn syntax_error(error: &SyntaxError, text: &str, path: &Path) -> ConfigError {
    // The message alone: the error's own display repeats the line, and with it whatever secret stands there.
    let message = format!("this is not TOML: {}", error.message());
    let place = error.span().map(|span| position(text, span.start));
    let (line, column) = place.unzip();
    ConfigError { path: path.to_owned(), line, column, message, hint: None }
}

/// Line and column of a byte offset, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    (line, 1 + String::from_utf8_lossy(&before[line_start..]).chars().count())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::value::{string, whole};
    use super::*;

    const FILE: &str = "x.toml";

    /// The number, the names, and the lines of the items.
    type Walked = (Option<u64>, Vec<String>, Vec<usize>);

    /// A file with a key, a list, a table in a table, a list of tables, and one of what is not built.
    fn walk(text: &str) -> Result<Walked, ConfigErrors> {
        read(text, Path::new(FILE), |root| {
            let number = root.value("number", whole(1..=9));
            let names = root.list("names", "[\"a\"]", |value| string(value).map(str::to_owned));
            let mut outer = root.table("outer", "[outer]");
            outer.refuse("later");
            outer.table("inner", "[outer.inner]").required("must", |value| string(value).map(str::to_owned));
            let mut lines = Vec::new();
            root.each_table("item", "[[item]]", |item| {
                if item.is_present() {
                    lines.push(position(item.file.text, item.offset).0);
                }
                item.value("size", whole(1..=9));
            });
            Some((number, names.unwrap_or_default(), lines))
        })
    }

    fn errors(text: &str) -> String {
        walk(text).expect_err(text).to_string()
    }

    #[test]
    fn what_is_there_is_read() {
        let text = "number = 3\nnames = ['a', 'b']\n[[item]]\n[[item]]\nsize = 1\n[outer.inner]\nmust = 'x'\n";
        let names = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(walk(text), Ok((Some(3), names, vec![3, 4])));
        assert_eq!(walk(""), Ok((None, vec![], vec![])));
        // However the tables are written.
        assert_eq!(walk("outer = { inner = { must = 'x' } }\nitem = [\n{},\n{}]").unwrap().2, [3, 4]);
        assert_eq!(walk("outer.inner.must = 'x'\n'number' = 3").unwrap().0, Some(3));
    }

    #[test]
    fn every_error_has_its_line() {
        let text =
            "# é\nnumber = 0\nnames = [\n  1,\n  'a',\n  2]\n[outer.inner]\n[outer]\nlater = 1\n[[item]]\nsize = 0";
        let expected = [
            "x.toml:2: \"number\" is a whole number from 1 to 9, not 0",
            "x.toml:4: \"names\" is a text in quotes, not 1",
            "x.toml:6: \"names\" is a text in quotes, not 2",
            "x.toml:7: [outer.inner] needs \"must\"",
            "x.toml:9: \"later\" in [outer] is not supported by this version yet; leave it out",
            "x.toml:11: \"size\" in [[item]] is a whole number from 1 to 9, not 0",
        ];
        assert_eq!(errors(text).lines().collect::<Vec<_>>(), expected);
        assert_eq!(
            errors("[outer.later]"),
            "x.toml:1: [outer.later] is not supported by this version yet; leave it out"
        );
    }

    #[test]
    fn what_was_not_asked_for_is_unknown() {
        for (text, message) in [
            ("numbr = 1", "1: unknown key \"numbr\"; did you mean \"number\"?"),
            ("zzz = 1", "1: unknown key \"zzz\""),
            ("size = 1", "1: unknown key \"size\"; it belongs to [[item]]"),
            (
                "[outer]\nnumber = 1",
                "2: unknown key \"number\" in [outer]; it belongs to the top of the file, above the first [table]",
            ),
            ("[outr]", "1: unknown table [outr]; did you mean [outer]?"),
            ("[[items]]", "1: unknown table [items]; did you mean [[item]]?"),
            ("[items]", "1: unknown table [items]; did you mean [[item]]?"),
            // A key is not suggested for a table, nor a table for a key.
            ("[numbr]", "1: unknown table [numbr]"),
            ("outr = 1", "1: unknown key \"outr\""),
            ("\"a]\\n[b\" = {}", "1: unknown table [a]\\n[b]"),
        ] {
            assert_eq!(errors(text), format!("x.toml:{message}"), "{text}");
        }
        // As long as a name of ours could be, and longer.
        let name = "z".repeat(MAX_SHOWN);
        assert_eq!(errors(&format!("{name} = 1")), format!("x.toml:1: unknown key \"{name}\""));
        assert_eq!(errors(&format!("{name}z = 1")), "x.toml:1: unknown key (a long name, not shown)");
        assert_eq!(errors(&format!("[{name}z]")), "x.toml:1: unknown table (a long name, not shown)");
    }

    #[test]
    fn broken_toml_is_told_by_line_and_column_only() {
        for (text, place) in
            [("number 3", "1:8"), ("\nnumber = \"3", "2:12"), ("number = 1\nnumber = 2", "2:1"), ("é é", "1:1")]
        {
            let shown = errors(text);
            assert!(shown.starts_with(&format!("x.toml:{place}: this is not TOML: ")), "{text}: {shown}");
        }
        let many = "a b\n".repeat(50);
        assert_eq!(walk(&many).unwrap_err().0.len(), MAX_SYNTAX_ERRORS);
    }

    #[test]
    fn there_are_no_more_errors_than_somebody_reads() {
        let many: String = (0..2 * MAX_ERRORS).map(|n| format!("zzz{n} = 1\n")).collect();
        let errors = walk(&many).unwrap_err().0;
        assert_eq!(errors.len(), MAX_ERRORS);
        assert_eq!(errors.last().unwrap().line, Some(MAX_ERRORS));
    }

    #[test]
    fn a_reader_without_a_word_is_still_an_error() {
        let result: Result<(), _> = read("", Path::new(FILE), |_| None);
        assert_eq!(result.unwrap_err().to_string(), "x.toml:1: the file could not be understood");
    }

    #[test]
    fn positions_count_from_one_and_in_characters() {
        let text = "äb\r\ncd\n";
        for (offset, place) in [(0, (1, 1)), (2, (1, 2)), (5, (2, 1)), (6, (2, 2)), (8, (3, 1)), (99, (3, 1))] {
            assert_eq!(position(text, offset), place, "{offset}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "([a-z\\[\\]{}=.,'\"\n# é]|number|names|outer|item|size|later){0,40}") {
            if let Err(errors) = walk(&text) {
                prop_assert!(!errors.0.is_empty());
            }
        }
    }
}
