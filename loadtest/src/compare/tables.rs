//! The tables of a report, the same for Markdown and HTML.
use super::{
    config::Kind,
    results::{Entry, Results, Run, ScenarioResults, Spread},
};
use crate::report::time;

/// A table. The first column has names, the others have figures.
pub struct Table {
    pub title: &'static str,
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Results {
    fn of_kind(&self, kind: Kind) -> Vec<&ScenarioResults> {
        self.scenarios.iter().filter(|scenario| scenario.scenario.kind == kind).collect()
    }

    fn table(
        &self,
        title: &'static str,
        caption: String,
        scenarios: &[&ScenarioResults],
        cell: impl Fn(&ScenarioResults, &Entry) -> String,
    ) -> Option<Table> {
        if scenarios.is_empty() {
            return None;
        }
        let head =
            std::iter::once("relay".to_owned()).chain(scenarios.iter().map(|s| s.scenario.name.clone())).collect();
        let row = |(index, contender): (usize, &super::results::ContenderResult)| {
            let cells = scenarios.iter().map(|scenario| {
                let entry = &scenario.entries[index];
                if entry.runs.is_empty() { "failed".to_owned() } else { cell(scenario, entry) }
            });
            std::iter::once(contender.title.clone()).chain(cells).collect()
        };
        Some(Table { title, caption, head, rows: self.measured().map(row).collect() })
    }

    /// All tables for which there is something.
    pub fn tables(&self) -> Vec<Table> {
        [
            self.cpu_table(),
            self.ratio_table(),
            self.speed_table(),
            self.latency_table(),
            self.memory_table(),
            self.verified_table(),
            self.generator_table(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub fn cpu_table(&self) -> Option<Table> {
        let caption =
            "CPU time of the relay, in microseconds, for each message that it passes one way: median (range). \
                       The figure that counts; less is better. Closed loop, one message on its way on each session."
                .into();
        self.table("CPU of the relay for a message", caption, &self.of_kind(Kind::Throughput), |_, entry| {
            range(entry.cpu(), 2)
        })
    }

    fn ratio_table(&self) -> Option<Table> {
        let title = |name: &str| {
            self.contenders.iter().find(|c| c.name == name).map_or(name.to_owned(), |contender| contender.title.clone())
        };
        let (baseline, floor) = (&self.run.baseline, &self.run.floor);
        let caption =
            format!("The same as a multiple of “{}”, and behind it of the floor, “{}”.", title(baseline), title(floor));
        self.table("In relation", caption, &self.of_kind(Kind::Throughput), |scenario, entry| {
            let own = entry.cpu().map(|cpu| cpu.median);
            let to = |name: &str| {
                let other =
                    self.entry(scenario, name).and_then(Entry::cpu).map(|cpu| cpu.median).filter(|&us| us > 0.0);
                own.zip(other).map_or("–".to_owned(), |(own, other)| format!("{:.2}", own / other))
            };
            if own.is_none() { "–".into() } else { format!("{} / {}", to(baseline), to(floor)) }
        })
    }

    fn speed_table(&self) -> Option<Table> {
        let caption =
            "Echoes a second, median (range). Load, relay and echo target share their cores as told below, so \
                       this is the speed of all three together."
                .into();
        self.table("Speed", caption, &self.of_kind(Kind::Throughput), |_, entry| {
            range(entry.spread(|run| Some(run.messages_per_second)), 0)
        })
    }

    fn latency_table(&self) -> Option<Table> {
        let caption =
            "p50 / p99 / p99.9 of all repetitions together, each message from when it was due (open loop), and \
                       behind it the range of p99 over the repetitions."
                .into();
        self.table("Latency at a fixed rate", caption, &self.of_kind(Kind::Latency), |_, entry| {
            let Some(all) = &entry.latency else { return "–".into() };
            let p99 = entry.spread(|run| run.p99_us);
            let range = p99.map(|p99| format!(" (p99 {} to {})", time(p99.min), time(p99.max))).unwrap_or_default();
            format!("{} / {} / {}{range}", time(all.p50_us), time(all.p99_us), time(all.p999_us))
        })
    }

    fn memory_table(&self) -> Option<Table> {
        let caption =
            "User memory (PSS) that a session adds to the relay's process and its children after one message, \
                       in KiB, and the process itself without sessions in MiB. What the kernel holds is not in it."
                .into();
        self.table("Memory of an idle session", caption, &self.of_kind(Kind::Idle), |scenario, entry| {
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

    fn verified_table(&self) -> Option<Table> {
        let scenarios: Vec<&ScenarioResults> = self.scenarios.iter().collect();
        let caption = "Payload that came back and was compared byte for byte, over all repetitions, in MiB; and \
                       measurements that failed. A measurement with one wrong or missing byte, or one failed session, \
                       counts as failed and is in no other table."
            .into();
        self.table("Verified", caption, &scenarios, |_, entry| {
            let failed =
                if entry.errors.is_empty() { String::new() } else { format!(", {} failed", entry.errors.len()) };
            format!("{:.1}{failed}", entry.verified_bytes() as f64 / f64::from(1 << 20))
        })
    }
}

impl Results {
    fn generator_table(&self) -> Option<Table> {
        let scenarios: Vec<&ScenarioResults> =
            self.scenarios.iter().filter(|s| s.scenario.kind != Kind::Idle).collect();
        let caption =
            "Share of the measured time that the load generator's thread was on a core, median; and at a fixed \
                       rate, by how much it missed the times at which messages were due, p99, which the latencies \
                       contain. On a core that it shares, both depend on the relay."
                .into();
        self.table("The load generator itself", caption, &scenarios, |scenario, entry| {
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
            ("Relay", format!("on {}", core(run.relay_core))),
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
