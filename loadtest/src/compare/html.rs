//! The report as one page that needs nothing else, for a screen and for paper.
use std::fmt::Write as _;

use super::{
    config::Kind,
    markdown::left_out,
    results::{ContenderResult, Entry, Results, ScenarioResults, Spread},
    svg::{self, Bar, Curve, escape},
    tables::Table,
};

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 860px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
tr.own td { background: #fff3e8; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
pre { font-size: .75rem; line-height: 1.35; background: #f6f6f6; padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
svg { width: 100%; height: auto; margin: .6rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: #1a1a1a; }
svg .title { font-size: 14px; font-weight: 600; } svg .unit { font-weight: 400; fill: #555; }
svg .name { text-anchor: end; } svg text.own, svg .strong { font-weight: 700; fill: #1a1a1a; }
svg rect.own { fill: #D55E00; } svg rect.floor { fill: #a8a8a8; } svg rect.peer { fill: #56B4E9; }
svg .whisker { stroke: #1a1a1a; stroke-width: 1.2; fill: none; }
svg .grid { stroke: #ddd; } svg .line { fill: none; stroke-linejoin: round; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
.problem { color: #a00000; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } svg, table, tr, pre, h2, h3 { break-inside: avoid; } h2, h3 { break-after: avoid; } }
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
    list(&mut out, "What went wrong", &problems, " class=\"problem\"");
    for table in results.tables() {
        let _ = writeln!(out, "<h2>{}</h2><p>{}</p>", table.title, escape(&table.caption));
        if let Some(kind) = charts_of(table.title) {
            charts(&mut out, results, kind);
        }
        write_table(&mut out, results, &table);
    }
    list(&mut out, "Left out", &left_out(results), "");
    list(&mut out, "Notes", &results.notes, "");
    out.push_str("<h2>Contenders</h2><p>Ports stand for whatever was free; DIR is a fresh folder.</p>\n");
    for contender in &results.contenders {
        write_contender(&mut out, contender);
    }
    out.push_str("</body></html>\n");
    out
}

fn charts_of(title: &str) -> Option<Kind> {
    match title {
        "CPU of the relay for a message" => Some(Kind::Throughput),
        "Latency at a fixed rate" => Some(Kind::Latency),
        "Memory of an idle session" => Some(Kind::Idle),
        _ => None,
    }
}

fn is_own(results: &Results, index: usize) -> bool {
    results.contenders[index].name.starts_with("ringway")
}

fn charts(out: &mut String, results: &Results, kind: Kind) {
    for scenario in results.scenarios.iter().filter(|scenario| scenario.scenario.kind == kind) {
        let name = &scenario.scenario.name;
        match kind {
            Kind::Throughput => {
                let bars = bars(results, scenario, Entry::cpu);
                out.push_str(&svg::bars(name, "µs of CPU for a one-way message", &bars));
            }
            Kind::Idle => {
                let bars = bars(results, scenario, |entry| entry.spread(|run| run.pss_kib_per_session));
                out.push_str(&svg::bars(name, "KiB of user memory for a session", &bars));
            }
            Kind::Latency => {
                let curves: Vec<Curve> = results
                    .measured()
                    .filter_map(|(index, contender)| {
                        let points = &scenario.entries[index].latency.as_ref()?.curve;
                        Some(Curve { name: contender.title.clone(), points, own: is_own(results, index) })
                    })
                    .collect();
                out.push_str(&svg::curves(name, &curves));
            }
        }
        out.push('\n');
    }
}

fn bars(results: &Results, scenario: &ScenarioResults, value: impl Fn(&Entry) -> Option<Spread>) -> Vec<Bar> {
    results
        .measured()
        .filter_map(|(index, contender)| {
            Some(Bar {
                name: contender.title.clone(),
                value: value(&scenario.entries[index])?,
                own: is_own(results, index),
                floor: contender.name.starts_with(&results.run.floor),
            })
        })
        .collect()
}

fn write_table(out: &mut String, results: &Results, table: &Table) {
    out.push_str("<div class=\"scroll\"><table><thead><tr>");
    for cell in &table.head {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr></thead><tbody>");
    for ((index, _), row) in results.measured().zip(&table.rows) {
        out.push_str(if is_own(results, index) { "<tr class=\"own\">" } else { "<tr>" });
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escape(cell));
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
