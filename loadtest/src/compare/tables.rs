//! The tables of a report, the same for Markdown and HTML.
use super::{
    config::Kind,
    goals::{Judged, Verdict},
    results::{Entry, Results, Run, ScenarioResults, Spread},
};
use crate::report::time;

/// What belongs together in a report: tables of one kind, one for each section of the scenarios.
pub struct Chapter<'a> {
    pub title: &'static str,
    pub caption: String,
    pub charts: Charts,
    pub tables: Vec<Table<'a>>,
}

/// What is drawn above each table of a chapter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Charts {
    None,
    Goals,
    Cpu,
    SessionCpu,
    Memory,
    Latency,
}

/// A table. The first columns have words, the others have figures.
pub struct Table<'a> {
    /// The section, if there is one.
    pub title: String,
    pub caption: String,
    pub head: Vec<String>,
    pub words: usize,
    pub rows: Vec<Row>,
    pub scenarios: Vec<&'a ScenarioResults>,
}

pub struct Row {
    pub mark: Mark,
    pub cells: Vec<String>,
}

/// What a row is marked with where there are colours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    None,
    /// Of the contender that the report is about.
    Own,
    Met,
    Missed,
    NotMeasured,
}

impl Results {
    /// Scenarios of a kind, by section.
    fn sections(&self, kinds: &[Kind]) -> Vec<Vec<&ScenarioResults>> {
        let mut sections: Vec<Vec<&ScenarioResults>> = Vec::new();
        for scenario in self.scenarios.iter().filter(|scenario| kinds.contains(&scenario.scenario.kind)) {
            let same = |section: &&mut Vec<&ScenarioResults>| section[0].scenario.section == scenario.scenario.section;
            match sections.iter_mut().find(same) {
                Some(section) => section.push(scenario),
                None => sections.push(vec![scenario]),
            }
        }
        sections
    }

    fn chapter(
        &self,
        title: &'static str,
        caption: &str,
        charts: Charts,
        kinds: &[Kind],
        cell: impl Fn(&ScenarioResults, &Entry) -> String,
    ) -> Option<Chapter<'_>> {
        let tables: Vec<Table> =
            self.sections(kinds).into_iter().filter_map(|scenarios| self.table(scenarios, &cell)).collect();
        (!tables.is_empty()).then(|| Chapter { title, caption: caption.into(), charts, tables })
    }

    fn table<'a>(
        &'a self,
        scenarios: Vec<&'a ScenarioResults>,
        cell: impl Fn(&ScenarioResults, &Entry) -> String,
    ) -> Option<Table<'a>> {
        let rows: Vec<Row> = self
            .measured(&scenarios)
            .map(|(index, contender)| {
                let cells = scenarios.iter().map(|scenario| {
                    let entry = &scenario.entries[index];
                    match (entry.asked, entry.runs.is_empty()) {
                        (false, _) => String::new(),
                        (true, true) if entry.errors.is_empty() => "–".into(),
                        (true, true) => "failed".into(),
                        (true, false) => cell(scenario, entry),
                    }
                });
                Row {
                    mark: if contender.is_own() { Mark::Own } else { Mark::None },
                    cells: std::iter::once(contender.title.clone()).chain(cells).collect(),
                }
            })
            .collect();
        let head = std::iter::once("relay".to_owned()).chain(scenarios.iter().map(|s| s.scenario.name.clone()));
        let (title, head) = (scenarios.first()?.scenario.section.clone(), head.collect());
        (!rows.is_empty()).then_some(Table { title, caption: String::new(), head, words: 1, rows, scenarios })
    }

    /// All chapters for which there is something.
    pub fn chapters(&self) -> Vec<Chapter<'_>> {
        [
            self.goals_chapter(),
            self.cpu_chapter(),
            self.ratio_chapter(),
            self.speed_chapter(),
            self.latency_chapter(),
            self.rated_cpu_chapter(),
            self.storm_chapter(),
            self.memory_chapter(),
            self.verified_chapter(),
            self.generator_chapter(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub fn goals_chapter(&self) -> Option<Chapter<'_>> {
        let head = ["work", "measure", "compared with", "figures", "ratio", "limit", "result", "met in"];
        let rows: Vec<Row> = self.goals.iter().map(|goal| self.goal_row(goal)).collect();
        let count = |verdict| self.goals.iter().filter(|goal| goal.verdict == verdict).count();
        let caption = format!(
            "{} met, {} missed, {} not measured. The ratio is taken within each repetition, in which both were measured \
             within moments; its median over the repetitions (behind it the range) is judged, as it is shown. “Best of” \
             is the one with the best median over all repetitions: that favours the others by what chance favours. \
             Without a comparison the figure itself is judged. With a failed measurement no goal is met.",
            count(Verdict::Met),
            count(Verdict::Missed),
            count(Verdict::NotMeasured)
        );
        let table = Table {
            title: String::new(),
            caption: String::new(),
            head: head.map(str::to_owned).to_vec(),
            words: 3,
            rows,
            scenarios: Vec::new(),
        };
        (!self.goals.is_empty()).then(|| Chapter {
            title: "What was wanted, and what was measured",
            caption,
            charts: Charts::Goals,
            tables: vec![table],
        })
    }

    fn goal_row(&self, goal: &Judged) -> Row {
        let mut against = match (&goal.against, goal.chosen_from) {
            (None, _) => String::new(),
            (Some(name), 0 | 1) => self.title(name).to_owned(),
            (Some(name), count) => format!("best of {count}: {}", self.title(name)),
        };
        if !goal.without.is_empty() {
            let names: Vec<&str> = goal.without.iter().map(|name| self.title(name)).collect();
            against = format!("{against} (not measured: {})", names.join("; "));
        }
        let figure = |value: Option<f64>| value.map_or("–".to_owned(), |value| number(value, 2));
        let figures = match goal.against.is_some() || !goal.without.is_empty() {
            true => format!("{} / {} {}", figure(goal.own), figure(goal.other), goal.unit),
            false => format!("{} {}", figure(goal.own), goal.unit),
        };
        let limit = match (goal.at_most, goal.at_least) {
            (Some(most), _) => format!("≤ {}", number(most, 2)),
            (None, least) => format!("≥ {}", number(least.unwrap_or(0.0), 2)),
        };
        // What the report is about needs no name in each line.
        let own = self.contenders.iter().any(|contender| contender.name == goal.of && contender.is_own());
        let cells = vec![
            goal.scenario.clone(),
            if own { goal.what.to_owned() } else { format!("{} of {}", goal.what, self.title(&goal.of)) },
            against,
            figures.trim_end().to_owned(),
            range(goal.value, 2),
            limit,
            goal.verdict.words().to_owned(),
            match (goal.repetitions, goal.failed) {
                (0, 0) => "–".into(),
                (all, 0) => format!("{} of {all}", goal.met_in),
                (all, failed) => format!("{} of {all}, {failed} failed", goal.met_in),
            },
        ];
        let mark = match goal.verdict {
            Verdict::Met => Mark::Met,
            Verdict::Missed => Mark::Missed,
            Verdict::NotMeasured => Mark::NotMeasured,
        };
        Row { mark, cells }
    }

    pub fn cpu_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "CPU time of the relay, in microseconds, for each message that it passes one way: median (range). \
                       The figure that counts; less is better. Closed loop; one message on its way on each session \
                       unless said.";
        self.chapter("CPU of the relay for a message", caption, Charts::Cpu, &[Kind::Throughput], |_, entry| {
            range(entry.cpu(), 2)
        })
    }

    /// Whom the others of a scenario are put in relation to, where they take part in it.
    fn marks<'a>(&self, scenario: &'a ScenarioResults) -> [Option<&'a Entry>; 2] {
        let (run, own) = (&self.run, &scenario.scenario);
        [own.baseline.as_ref().unwrap_or(&run.baseline), own.floor.as_ref().unwrap_or(&run.floor)]
            .map(|name| self.entry(scenario, name).filter(|entry| entry.asked))
    }

    fn ratio_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "The same as multiples of others' medians.";
        let mut chapter =
            self.chapter("In relation", caption, Charts::None, &[Kind::Throughput], |scenario, entry| {
                let own = entry.cpu().map(|cpu| cpu.median);
                let to = |other: &Entry| {
                    let other = other.cpu().map(|cpu| cpu.median).filter(|&us| us > 0.0);
                    own.zip(other).map_or("–".to_owned(), |(own, other)| format!("{:.2}", own / other))
                };
                if own.is_none() {
                    return "–".into();
                }
                self.marks(scenario).into_iter().flatten().map(to).collect::<Vec<_>>().join(" / ")
            })?;
        for table in &mut chapter.tables {
            let mut names: Vec<&str> = Vec::new();
            for entry in table.scenarios.iter().flat_map(|scenario| self.marks(scenario)).flatten() {
                if !names.contains(&self.title(&entry.contender)) {
                    names.push(self.title(&entry.contender));
                }
            }
            let names: Vec<String> = names.into_iter().map(|name| format!("“{name}”")).collect();
            table.caption = format!("Of {}.", names.join(", and behind it of "));
        }
        // Where there is nobody to compare with there is nothing to say.
        chapter
            .tables
            .retain(|table| table.scenarios.iter().any(|scenario| self.marks(scenario).iter().any(Option::is_some)));
        (!chapter.tables.is_empty()).then_some(chapter)
    }

    fn speed_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "Echoes a second, median (range). Load, relay and echo target share their cores as told above, so \
                       this is the speed of all three together.";
        self.chapter("Speed", caption, Charts::None, &[Kind::Throughput], |_, entry| {
            range(entry.spread(|run| Some(run.messages_per_second)), 0)
        })
    }

    fn latency_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "p50 / p99 / p99.9 of all repetitions together, each message from when it was due (open loop), and \
                       behind it the range of p99 over the repetitions.";
        self.chapter("Latency at a fixed rate", caption, Charts::Latency, &[Kind::Latency], |_, entry| {
            let Some(all) = &entry.latency else { return "–".into() };
            let p99 = entry.spread(|run| run.p99_us);
            let range = p99.map(|p99| format!(" (p99 {} to {})", time(p99.min), time(p99.max))).unwrap_or_default();
            format!("{} / {} / {}{range}", time(all.p50_us), time(all.p99_us), time(all.p999_us))
        })
    }

    fn rated_cpu_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "CPU time of the relay at that rate, in microseconds, for each message that it passes one way: median \
                       (range); and the p99 of the second half of the time as a multiple of that of the first (medians of \
                       the p99 of each tenth).";
        self.chapter("CPU at a fixed rate, and drift", caption, Charts::None, &[Kind::Latency], |_, entry| {
            let drift = entry.spread(|run| run.p99_drift);
            format!("{}; {}", range(entry.cpu(), 2), range(drift, 2))
        })
    }

    fn storm_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "Sessions opened, used for one message, and closed again, as fast as it goes: CPU time of the relay for \
                       each, in microseconds, median (range), and behind it how many there were a second, which load and \
                       echo target have their part in.";
        self.chapter("Sessions set up and ended", caption, Charts::SessionCpu, &[Kind::Storm], |_, entry| {
            let (cpu, rate) = (entry.session_cpu(), entry.spread(|run| run.sessions_per_second));
            format!("{}; {}", range(cpu, 0), range(rate, 0))
        })
    }

    fn memory_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "User memory (PSS) that a session adds to the relay's process and its children after one message, \
                       in KiB, and the process itself without sessions in MiB. What the kernel holds is not in it.";
        self.chapter("Memory of an idle session", caption, Charts::Memory, &[Kind::Idle], |scenario, entry| {
            let own = |run: &Run| {
                let sessions = run.pss_kib_per_session? * scenario.scenario.sessions as f64;
                Some((run.pss_kib? as f64 - sessions) / 1024.0)
            };
            let per_session = entry.spread(|run| run.pss_kib_per_session);
            if per_session.is_none() {
                return "–".into();
            }
            format!("{}; {}", range(per_session, 1), range(entry.spread(own), 1))
        })
    }

    fn verified_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "Payload that came back and was compared byte for byte, over all repetitions, in MiB; and \
                       measurements that failed. A measurement with one wrong or missing byte, or one failed session, \
                       counts as failed and is in no other table.";
        let kinds = [Kind::Throughput, Kind::Latency, Kind::Storm, Kind::Idle];
        self.chapter("Verified", caption, Charts::None, &kinds, |_, entry| {
            let failed =
                if entry.errors.is_empty() { String::new() } else { format!(", {} failed", entry.errors.len()) };
            format!("{:.1}{failed}", entry.verified_bytes() as f64 / f64::from(1 << 20))
        })
    }

    fn generator_chapter(&self) -> Option<Chapter<'_>> {
        let caption = "Share of the measured time that the load generator's thread was on a core, median; and at a fixed \
                       rate, by how much it missed the times at which messages were due, p99, which the latencies \
                       contain. On a core that it shares, both depend on the relay.";
        let kinds = [Kind::Throughput, Kind::Latency, Kind::Storm];
        self.chapter("The load generator itself", caption, Charts::None, &kinds, |scenario, entry| {
            let busy = entry.spread(|run| Some(run.load_busy * 100.0)).map_or(0.0, |busy| busy.median);
            match entry.spread(|run| Some(run.load_late_p99_us)) {
                Some(late) if scenario.scenario.kind == Kind::Latency => {
                    format!("{busy:.0} %, late {}", time(late.median))
                }
                _ => format!("{busy:.0} %"),
            }
        })
    }
}

/// `median (min–max)`; the range only where it can be seen.
pub fn range(spread: Option<Spread>, digits: usize) -> String {
    let Some(Spread { median, min, max }) = spread else { return "–".into() };
    let [median, min, max] = [median, min, max].map(|value| number(value, digits));
    if min == max { median } else { format!("{median} ({min}–{max})") }
}

/// With so many digits behind the point, fewer for large values, and spaces between thousands.
fn number(value: f64, digits: usize) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        digits.min(1)
    } else {
        digits
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 && whole.len() > 4 && digit.is_ascii_digit() {
            grouped.push('\u{202F}');
        }
        grouped.push(digit);
    }
    match fraction {
        Some(fraction) => format!("{grouped}.{fraction}"),
        None => grouped,
    }
}

impl Results {
    /// What the figures were measured on and how, a line each.
    pub fn conditions(&self) -> Vec<(&'static str, String)> {
        let core = |core: Option<usize>| core.map_or("any core".to_owned(), |core| format!("core {core}"));
        let (run, machine) = (&self.run, &self.machine);
        vec![
            ("Started", format!("{}, {:.0} s in all", self.started, self.seconds)),
            ("Machine", format!("{}, {} cores, {} GiB", machine.cpu, machine.cores, machine.memory_gib)),
            ("System", format!("{}, Linux {}", machine.system, machine.kernel)),
            ("Other load", format!("load average {} when it began", machine.load_average)),
            ("Load generator", format!("ringway-loadtest {}, one thread on {}", self.version, core(run.load_core))),
            ("Relay", format!("on {}{}", core(run.relay_core), self.other_cores())),
            ("Echo target", format!("ringway-loadtest echo, one thread on {}", core(run.echo_core))),
            (
                "Repetitions",
                format!(
                    "{} of {} behind {} of warm-up, interleaved, each relay started anew for each",
                    run.repetitions,
                    humantime::format_duration(run.duration),
                    humantime::format_duration(run.warmup)
                ),
            ),
            ("Network", "loopback".into()),
            ("Command", self.command.clone()),
        ]
    }
}

impl Results {
    /// Scenarios that have cores of their own, as they stand in the conditions.
    fn other_cores(&self) -> String {
        let named = |name: &str, core: Option<usize>| core.map(|core| format!("{name} on core {core}"));
        let other = self.scenarios.iter().map(|scenario| &scenario.scenario).filter_map(|scenario| {
            let cores = [
                named("load", scenario.load_core),
                named("relay", scenario.relay_core),
                named("echo target", scenario.echo_core),
            ];
            let cores: Vec<String> = cores.into_iter().flatten().collect();
            (!cores.is_empty()).then(|| format!("; in “{}” {}", scenario.name, cores.join(", ")))
        });
        other.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(number(3.954, 2), "3.95");
        assert_eq!(number(48.21, 2), "48.2");
        assert_eq!(number(1234.5, 0), "1234");
        assert_eq!(number(123_456.0, 0), "123\u{202F}456");
        assert_eq!(range(Some(Spread { median: 4.0, min: 3.999, max: 4.001 }), 2), "4.00");
        assert_eq!(range(Some(Spread { median: 4.0, min: 3.9, max: 4.1 }), 2), "4.00 (3.90–4.10)");
        assert_eq!(range(None, 2), "–");
    }
}
