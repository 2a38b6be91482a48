//! What the kernel says about a process and its children: CPU time and memory.
use std::{collections::BTreeSet, fs};

use anyhow::{Context, ensure};
use serde::Serialize;

/// CPU time and memory of a process and all its descendants.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// User and system time, in seconds; resolution 10 ms.
    pub cpu_s: f64,
    /// Proportional set size: memory shared by n processes counts one n-th. In KiB.
    pub pss_kib: u64,
    pub processes: usize,
}

/// Looks at `pid` and its descendants.
///
/// # Errors
/// It is gone, or its memory map may not be read.
pub fn sample(pid: u32) -> anyhow::Result<Sample> {
    let tree = tree(pid);
    let mut sum = Sample { processes: tree.len(), cpu_s: cpu_of(&tree)?, ..Sample::default() };
    for &pid in &tree {
        // A child may have ended in between.
        match pss_kib(pid) {
            Ok(pss) => sum.pss_kib += pss,
            Err(error) if pid == tree[0] => return Err(error),
            Err(_) => {}
        }
    }
    Ok(sum)
}

/// CPU time of `pid` and its descendants, in seconds: cheaper than a whole sample.
///
/// # Errors
/// It is gone.
pub fn cpu_s(pid: u32) -> anyhow::Result<f64> {
    cpu_of(&tree(pid))
}

/// Open files that `pid` may have, if that can be known.
pub fn open_files_limit(pid: u32) -> Option<u64> {
    parse_limit(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// The soft limit, which holds.
fn parse_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

fn cpu_of(tree: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for &pid in tree {
        match cpu_ticks(pid) {
            Ok(more) => ticks += more,
            Err(error) if pid == tree[0] => return Err(error),
            Err(_) => {}
        }
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The process and its descendants.
fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut seen = BTreeSet::from([pid]);
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        at += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|id| id.parse().ok()).filter(|&id| seen.insert(id)));
        }
    }
    found
}

fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    parse_ticks(&text).with_context(|| format!("/proc/{pid}/stat is not as expected"))
}

fn parse_ticks(stat: &str) -> Option<u64> {
    // The name, in brackets, may have spaces and brackets of its own.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn pss_kib(pid: u32) -> anyhow::Result<u64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    let number = line.trim().strip_suffix(" kB").and_then(|number| number.trim().parse().ok());
    ensure!(number.is_some(), "{file} has no Pss");
    Ok(number.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_behind_a_name_with_brackets() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 2 0 0 0 31 11 0 0 20 0 1 0 5 6 7";
        assert_eq!(parse_ticks(stat), Some(42));
    }

    #[test]
    fn the_soft_limit_of_open_files_is_the_one_that_holds() {
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax open files            1024                 20000                files     \n";
        assert_eq!(parse_limit(limits), Some(1024));
        assert_eq!(parse_limit("Max open files   unlimited   unlimited   files"), Some(u64::MAX));
        assert_eq!(parse_limit(""), None);
        assert!(open_files_limit(std::process::id()) > Some(10));
    }

    #[test]
    fn this_process_with_its_child() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let found = tree(std::process::id());
        let sample = sample(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()), "{found:?}");
        assert!(sample.unwrap().pss_kib > 100);
        assert!(super::sample(child.id()).is_err());
    }
}
