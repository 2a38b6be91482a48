//! The floor must be a relay like any other: every byte, whatever the sizes, and nothing left behind.
// Helpers of tests end by a panic too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

const LOADTEST: &str = env!("CARGO_BIN_EXE_ringway-loadtest");
const COPIER: &str = env!("CARGO_BIN_EXE_bare-copier");

struct Process(Child, String);

impl Process {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program).args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
        Self(child, address)
    }

    fn sockets(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap();
        let sockets = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        sockets.filter(|name| name.to_string_lossy().starts_with("socket:")).count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn check(variant: &[&str]) {
    let echo = Process::start(LOADTEST, &["echo", "--addr", "127.0.0.1:0"]);
    let mut arguments = vec!["--upstream", &echo.1];
    arguments.extend(variant);
    let copier = Process::start(COPIER, &arguments);
    let url = format!("ws://{}", copier.1);
    let runs: [&[&str]; 4] = [
        &["throughput", "-n", "50", "--size", "0-200KiB", "--window", "3", "--duration", "1s"],
        // More in flight than there are buffers.
        &["throughput", "-n", "100", "--size", "1MiB", "--duration", "1s"],
        &["latency", "-n", "100", "--rate", "2000", "--duration", "1s"],
        &["storm", "-n", "50", "--duration", "1s"],
    ];
    for run in runs {
        let output = Command::new(LOADTEST).args(run).args(["--direct", &url, "--warmup", "0s"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
    // The listener is one; whatever else is a session that was not closed.
    for _ in 0..50 {
        if copier.sockets() == 1 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{} sockets are left", copier.sockets());
}

#[test]
fn copy() {
    check(&[]);
}

#[test]
fn splice() {
    check(&["--splice"]);
}
