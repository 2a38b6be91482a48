//! The report as Markdown.
use std::fmt::Write as _;

use super::{
    results::Results,
    tables::{Chapter, Charts, Table},
};

/// The whole report.
pub fn report(results: &Results) -> String {
    let mut out = String::from("# Relays side by side\n\n");
    for (name, value) in results.conditions() {
        let _ = writeln!(out, "- **{name}:** {}", escape(&value));
    }
    let mut chapters = results.chapters().into_iter().peekable();
    let goals = chapters.next_if(|chapter| chapter.charts == Charts::Goals);
    goals.into_iter().for_each(|chapter| write_chapter(&mut out, &chapter));
    list(&mut out, "What went wrong", results.problems().collect());
    chapters.for_each(|chapter| write_chapter(&mut out, &chapter));
    list(&mut out, "Left out", left_out(results));
    list(&mut out, "Notes", results.notes.clone());
    out.push_str("\n## Contenders\n\nPorts stand for whatever was free; DIR is a fresh folder.\n");
    for contender in &results.contenders {
        let version = contender.version.as_deref().unwrap_or("no version known");
        let _ = write!(out, "\n### {}\n\n{}\n\n```\n{}\n```\n", contender.title, escape(version), contender.command);
        for (name, text) in &contender.files {
            let _ = write!(out, "\n`{name}`:\n\n```\n{}\n```\n", text.trim_end());
        }
    }
    out
}

/// The tables that count, for a terminal.
pub fn summary(results: &Results) -> String {
    let mut out = String::new();
    for chapter in [results.goals_chapter(), results.cpu_chapter()].into_iter().flatten() {
        let _ = writeln!(out, "{}", chapter.title);
        if let (Charts::Goals, Some((counts, _))) = (chapter.charts, chapter.caption.split_once('.')) {
            let _ = writeln!(out, "{counts}");
        }
        write_tables(&mut out, &chapter, "");
        out.push('\n');
    }
    for problem in results.problems().chain(left_out(results)) {
        let _ = writeln!(out, "! {problem}");
    }
    out
}

fn write_chapter(out: &mut String, chapter: &Chapter) {
    let _ = write!(out, "\n## {}\n\n{}\n", chapter.title, chapter.caption);
    write_tables(out, chapter, "### ");
}

fn write_tables(out: &mut String, chapter: &Chapter, mark: &str) {
    for table in &chapter.tables {
        for (mark, text) in [(mark, &table.title), ("", &table.caption)] {
            if !text.is_empty() {
                let _ = write!(out, "\n{mark}{text}\n");
            }
        }
        let _ = write!(out, "\n{}", rows(table));
    }
}

pub fn left_out(results: &Results) -> Vec<String> {
    let reason = |c: &super::results::ContenderResult| Some(format!("{}: {}", c.title, c.left_out.as_ref()?));
    results.contenders.iter().filter_map(reason).collect()
}

fn list(out: &mut String, title: &str, items: Vec<String>) {
    if !items.is_empty() {
        let _ = write!(out, "\n## {title}\n\n");
        for item in items {
            let _ = writeln!(out, "- {}", escape(&item));
        }
    }
}

/// With columns of even width, so that it reads well as plain text too.
fn rows(table: &Table) -> String {
    let lines: Vec<Vec<String>> = std::iter::once(&table.head)
        .chain(table.rows.iter().map(|row| &row.cells))
        .map(|row| row.iter().map(|cell| escape(cell)).collect())
        .collect();
    let width = |column: usize| lines.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table.head.len()).map(width).collect();
    let mut out = String::new();
    for (at, row) in lines.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let _ = if column < table.words { write!(out, "| {cell}{pad} ") } else { write!(out, "| {pad}{cell} ") };
        }
        out.push_str("|\n");
        if at == 0 {
            for (column, width) in widths.iter().enumerate() {
                let _ = if column < table.words {
                    write!(out, "| {} ", "-".repeat(*width))
                } else {
                    write!(out, "| {}: ", "-".repeat(width - 1))
                };
            }
            out.push_str("|\n");
        }
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").replace('\n', " ")
}
