//! The report as one page that needs nothing else, for a screen and for paper.
use std::fmt::Write as _;

use super::{
    markdown::left_out,
    results::{ContenderResult, Entry, Results, ScenarioResults, Spread},
    svg::{self, Bar, Curve, escape},
    tables::{Chapter, Charts, Mark, Table},
};

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; } th.words, td.words { text-align: left; white-space: normal; } td:first-child { min-width: 11rem; } p { max-width: 860px; }
tr.own td { background: #fff3e8; font-weight: 600; }
tr.missed td { background: #fbe9e7; } tr.unmeasured td { color: #777; }
tr.met td:nth-child(7) { color: #00693c; font-weight: 600; } tr.missed td:nth-child(7) { color: #a00000; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
pre { font-size: .75rem; line-height: 1.35; background: #f6f6f6; padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
svg { width: 100%; height: auto; margin: .4rem 0; }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: .4rem 1.6rem; } .curves svg { max-width: 900px; }
svg text { font: 12px system-ui, sans-serif; fill: #1a1a1a; }
svg .title { font-size: 14px; font-weight: 600; } svg .unit { font-weight: 400; fill: #555; }
svg .name { text-anchor: end; } svg text.own, svg .strong { font-weight: 700; fill: #1a1a1a; }
svg rect.own { fill: #D55E00; } svg rect.floor { fill: #a8a8a8; } svg rect.peer { fill: #56B4E9; }
svg .whisker { stroke: #1a1a1a; stroke-width: 1.2; fill: none; }
svg .grid { stroke: #ddd; } svg .line { fill: none; stroke-linejoin: round; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
.problem { color: #a00000; }
@media print { .bars { grid-template-columns: 1fr 1fr; } body { max-width: none; margin: 0; font-size: 11px; } svg, table, tr, pre, h2, h3 { break-inside: avoid; } h2, h3 { break-after: avoid; } }
";

/// The whole page.
pub fn report(results: &Results) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width\"><title>Relays side by side</title>");
    let _ = write!(out, "<style>{STYLE}</style></head><body>\n<h1>Relays side by side</h1>\n<dl>");
    for (name, value) in results.conditions() {
        let _ = write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    out.push_str("</dl>\n");
    let problems: Vec<String> = results.problems().collect();
    let mut chapters = results.chapters().into_iter().peekable();
    if let Some(goals) = chapters.next_if(|chapter| chapter.charts == Charts::Goals) {
        write_chapter(&mut out, results, &goals);
    }
    list(&mut out, "What went wrong", &problems, " class=\"problem\"");
    chapters.for_each(|chapter| write_chapter(&mut out, results, &chapter));
    list(&mut out, "Left out", &left_out(results), "");
    list(&mut out, "Notes", &results.notes, "");
    out.push_str("<h2>Contenders</h2><p>Ports stand for whatever was free; DIR is a fresh folder.</p>\n");
    for contender in &results.contenders {
        write_contender(&mut out, contender);
    }
    out.push_str("</body></html>\n");
    out
}

fn write_chapter(out: &mut String, results: &Results, chapter: &Chapter) {
    let _ = writeln!(out, "<h2>{}</h2><p>{}</p>", chapter.title, escape(&chapter.caption));
    for table in &chapter.tables {
        for (tag, text) in [("h3", &table.title), ("p", &table.caption)] {
            if !text.is_empty() {
                let _ = writeln!(out, "<{tag}>{}</{tag}>", escape(text));
            }
        }
        charts(out, results, chapter.charts, &table.scenarios);
        write_table(out, table);
    }
}

fn charts(out: &mut String, results: &Results, charts: Charts, scenarios: &[&ScenarioResults]) {
    let class = match charts {
        Charts::None | Charts::Goals => return,
        Charts::Latency => "curves",
        Charts::Cpu | Charts::SessionCpu | Charts::Memory => "bars",
    };
    let _ = writeln!(out, "<div class=\"{class}\">");
    for scenario in scenarios {
        let name = &scenario.scenario.name;
        out.push_str(&match charts {
            Charts::Cpu => svg::bars(name, "µs of CPU for a one-way message", &bars(results, scenario, Entry::cpu)),
            Charts::SessionCpu => {
                svg::bars(name, "µs of CPU for a session", &bars(results, scenario, Entry::session_cpu))
            }
            Charts::Memory => {
                let bars = bars(results, scenario, |entry| entry.spread(|run| run.pss_kib_per_session));
                svg::bars(name, "KiB of user memory for a session", &bars)
            }
            Charts::Latency => svg::curves(name, &curves(results, scenario)),
            Charts::None | Charts::Goals => String::new(),
        });
        out.push('\n');
    }
    out.push_str("</div>\n");
}

fn curves<'a>(results: &'a Results, scenario: &'a ScenarioResults) -> Vec<Curve<'a>> {
    let curve = |(index, contender): (usize, &'a ContenderResult)| {
        let points = &scenario.entries[index].latency.as_ref()?.curve;
        Some(Curve { name: contender.title.clone(), points, own: contender.is_own() })
    };
    results.contenders.iter().enumerate().filter_map(curve).collect()
}

fn bars(results: &Results, scenario: &ScenarioResults, value: impl Fn(&Entry) -> Option<Spread>) -> Vec<Bar> {
    let floor = scenario.scenario.floor.as_ref().unwrap_or(&results.run.floor);
    let bar = |(index, contender): (usize, &ContenderResult)| {
        Some(Bar {
            name: contender.title.clone(),
            value: value(&scenario.entries[index])?,
            own: contender.is_own(),
            floor: contender.name.starts_with(floor),
        })
    };
    results.contenders.iter().enumerate().filter_map(bar).collect()
}

fn write_table(out: &mut String, table: &Table) {
    out.push_str("<div class=\"scroll\"><table><thead><tr>");
    let class = |column: usize| if column < table.words { " class=\"words\"" } else { "" };
    for (column, cell) in table.head.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(column), escape(cell));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        let _ = match row.mark {
            Mark::None => write!(out, "<tr>"),
            Mark::Own => write!(out, "<tr class=\"own\">"),
            Mark::Met => write!(out, "<tr class=\"met\">"),
            Mark::Missed => write!(out, "<tr class=\"missed\">"),
            Mark::NotMeasured => write!(out, "<tr class=\"unmeasured\">"),
        };
        for (column, cell) in row.cells.iter().enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(column), escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>\n");
}

fn list(out: &mut String, title: &str, items: &[String], class: &str) {
    if !items.is_empty() {
        let _ = write!(out, "<h2>{title}</h2><ul{class}>");
        for item in items {
            let _ = write!(out, "<li>{}</li>", escape(item));
        }
        out.push_str("</ul>\n");
    }
}

fn write_contender(out: &mut String, contender: &ContenderResult) {
    let _ = write!(out, "<h3>{}</h3>", escape(&contender.title));
    if let Some(version) = &contender.version {
        let _ = write!(out, "<p>{}</p>", escape(version));
    }
    let _ = write!(out, "<pre>{}</pre>", escape(&contender.command));
    for (name, text) in &contender.files {
        let _ = writeln!(out, "<p>{}</p><pre>{}</pre>", escape(name), escape(text.trim_end()));
    }
}
