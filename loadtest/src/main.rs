//! `ringway-loadtest`: load for WebSocket relays, with every echoed byte verified, and a comparison side by side.
//!
//! ```text
//! engine/   threads, sessions, payloads that follow from a seed, what was measured
//! echo      the target that the load is sent to
//! load      one run with what is reported of it: latency, throughput, storm, idle, soak
//! compare/  contenders from a file, one after the other, and the report
//! ```
// A command-line program: standard output is where its results go.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod clock;
mod compare;
mod echo;
mod engine;
mod load;
mod process;
mod progress;
mod report;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
