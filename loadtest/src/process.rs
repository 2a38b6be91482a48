//! What the kernel says about a process and its children: CPU time and memory.
use std::{collections::BTreeSet, fs};

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::clock;

/// CPU time and memory of a process and all its descendants.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// User and system time, in seconds.
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
    let root = tree.first().copied().unwrap_or_default();
    let own = clock::cpu_of(root).with_context(|| format!("no process {root}"))?;
    // A child may have ended in between.
    let children: u64 = tree.iter().skip(1).filter_map(|&pid| clock::cpu_of(pid)).sum();
    Ok((own + children) as f64 / clock::SECOND as f64)
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
    fn cpu_time_counts_finer_than_a_tick() {
        let before = cpu_s(std::process::id()).unwrap();
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(3) {
            std::hint::spin_loop();
        }
        let used = cpu_s(std::process::id()).unwrap() - before;
        assert!(used > 0.0 && used != (used * 100.0).round() / 100.0, "{used}");
        assert!(cpu_s(u32::MAX).is_err());
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
