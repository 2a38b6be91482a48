//! Charts as SVG, to stand inside a page: no script, no font, no colour that paper would lose.
use std::fmt::Write as _;

use super::results::Spread;
use crate::{engine::stats::Point, report::time};

/// Distinct for those who see colours otherwise too (Okabe and Ito), and then once more with dashes.
const COLOURS: [&str; 7] = ["#000000", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F"];
/// The one that the page is about, in bars and lines.
const OWN: &str = "#D55E00";

/// A bar with its name, the one that the page is about or not.
pub struct Bar {
    pub name: String,
    pub value: Spread,
    pub own: bool,
    pub floor: bool,
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Horizontal bars from zero, with the range as a line across the end of each.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    const WIDTH: f64 = 540.0;
    const LEFT: f64 = 220.0;
    const RIGHT: f64 = 56.0;
    const ROW: f64 = 24.0;
    const TOP: f64 = 40.0;
    let most = bars.iter().map(|bar| bar.value.max).fold(0.0, f64::max).max(1e-9);
    let x = |value: f64| LEFT + value / most * (WIDTH - LEFT - RIGHT);
    let height = TOP + ROW * bars.len() as f64 + 6.0;
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><text x=\"0\" y=\"16\" class=\"title\">{0}\
         </text><text x=\"0\" y=\"33\" class=\"unit\">{1}</text>",
        escape(title),
        escape(unit)
    );
    for (at, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * at as f64;
        let middle = y + ROW / 2.0;
        let class = if bar.own {
            "own"
        } else if bar.floor {
            "floor"
        } else {
            "peer"
        };
        let Spread { median, min, max } = bar.value;
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"name {class}\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" class=\"{class}\"/>\
             <path d=\"M{:.1} {middle:.1}H{:.1}M{:.1} {:.1}v8M{:.1} {:.1}v8\" class=\"whisker\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" class=\"value\">{}</text>",
            LEFT - 8.0,
            middle + 4.0,
            escape(&bar.name),
            y + 4.0,
            (x(median) - LEFT).max(0.5),
            ROW - 8.0,
            x(min),
            x(max),
            x(min),
            middle - 4.0,
            x(max),
            middle - 4.0,
            x(max) + 6.0,
            middle + 4.0,
            figure(median),
        );
    }
    out.push_str("</svg>");
    out
}

fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// A line of a percentile chart.
pub struct Curve<'a> {
    pub name: String,
    pub points: &'a [Point],
    pub own: bool,
}

/// Latency over percentile; the axis gives each further nine the same room.
pub fn curves(title: &str, curves: &[Curve]) -> String {
    const WIDTH: f64 = 820.0;
    const HEIGHT: f64 = 400.0;
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 260.0;
    const TOP: f64 = 34.0;
    const BOTTOM: f64 = 36.0;
    let fewest = curves.iter().filter_map(|curve| curve.points.last()).map(|point| point.count).min().unwrap_or(1);
    // Further out than this a curve is a handful of messages.
    let nines = ((fewest as f64).log10() - 1.0).clamp(2.0, 6.0);
    let shown = |point: &&Point| point.percentile < 100.0 && nines_of(point.percentile) <= nines && point.us > 0.0;
    let values = || curves.iter().flat_map(|curve| curve.points.iter().filter(shown)).map(|point| point.us.log10());
    let (low, high) = values().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return String::new();
    }
    let (low, high) = ((low * 3.0).floor() / 3.0, (high * 3.0).ceil() / 3.0 + 0.01);
    let x = |nines_of: f64| LEFT + nines_of / nines * (WIDTH - LEFT - RIGHT);
    let y = |us: f64| HEIGHT - BOTTOM - (us.log10() - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><text x=\"0\" y=\"16\" class=\"title\">{0}</text>",
        escape(title)
    );
    for label in ["0", "50", "90", "99", "99.9", "99.99", "99.999", "99.9999"] {
        let at = nines_of(label.parse().unwrap_or(0.0));
        if at <= nines + 0.01 {
            let _ = write!(
                out,
                "<path d=\"M{0:.1} {TOP}V{1:.1}\" class=\"grid\"/><text x=\"{0:.1}\" y=\"{2:.1}\" class=\"tick middle\">{label} %</text>",
                x(at),
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 18.0
            );
        }
    }
    for power in (low.floor() as i32)..=(high.ceil() as i32) {
        for factor in [1.0, 2.0, 5.0] {
            let us = 10_f64.powi(power) * factor;
            if (low..=high).contains(&us.log10()) {
                let _ = write!(
                    out,
                    "<path d=\"M{LEFT} {0:.1}H{1:.1}\" class=\"grid\"/><text x=\"{2:.1}\" y=\"{3:.1}\" class=\"tick end\">{4}</text>",
                    y(us),
                    WIDTH - RIGHT,
                    LEFT - 6.0,
                    y(us) + 4.0,
                    time(us)
                );
            }
        }
    }
    // The legend stands in the order in which the lines end.
    let end = |curve: &Curve| curve.points.iter().rfind(shown).map_or(0.0, |point| point.us);
    let mut order: Vec<usize> = (0..curves.len()).collect();
    order.sort_by(|&a, &b| end(&curves[b]).total_cmp(&end(&curves[a])));
    for (place, &index) in order.iter().enumerate() {
        let curve = &curves[index];
        let style = format!(
            "stroke:{};stroke-width:{};stroke-dasharray:{}",
            if curve.own { OWN } else { COLOURS[index % COLOURS.len()] },
            if curve.own { 3.0 } else { 1.6 },
            ["none", "6 3", "2 3"][(index / COLOURS.len()).min(2)]
        );
        let points = curve.points.iter().filter(shown).fold(String::new(), |mut points, point| {
            let _ = write!(points, "{:.1},{:.1} ", x(nines_of(point.percentile)), y(point.us));
            points
        });
        let top = TOP + 10.0 + 20.0 * place as f64;
        let _ = write!(
            out,
            "<polyline points=\"{points}\" class=\"line\" style=\"{style}\"/>\
             <path d=\"M{:.1} {top:.1}h24\" class=\"line\" style=\"{style}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"tick{}\">{}</text>",
            WIDTH - RIGHT + 14.0,
            WIDTH - RIGHT + 44.0,
            top + 4.0,
            if curve.own { " strong" } else { "" },
            escape(&curve.name)
        );
    }
    out.push_str("</svg>");
    out
}

/// 0 for the minimum, 1 for 90 %, 2 for 99 %, and so on.
fn nines_of(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).max(1e-12).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_has_the_same_room() {
        assert!(nines_of(0.0).abs() < 1e-9);
        assert!((nines_of(99.9) - nines_of(99.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn names_cannot_break_out() {
        let value = Spread { median: 1.0, min: 0.5, max: 2.0 };
        let bar = Bar { name: "<script>\"&".into(), value, own: false, floor: false };
        assert!(!bars("<b>", "µs", &[bar]).contains("<script>"));
        let point = Point { percentile: 50.0, us: 10.0, count: 100 };
        let curve = Curve { name: "<script>".into(), points: &[point], own: true };
        let drawn = curves("t", &[curve]);
        assert!(drawn.contains("<polyline") && !drawn.contains("<script>"), "{drawn}");
    }
}
