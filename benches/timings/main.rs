//! Times of ringway's parts, and of the whole beside no relay at all.
//!
//!     cargo bench --bench timings                # all, two minutes
//!     cargo bench --bench timings -- frames      # those with "frames" in their name
//!
//! Times are compared within one run, or with criterion's own baselines on one machine; none of them fails anything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A benchmark ends by a panic.

mod bucket;
mod connect;
mod frames;
#[path = "../inputs/mod.rs"]
mod inputs;
mod round_trip;
mod setup;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
}

criterion_group! {
    name = timings;
    config = settings();
    targets = frames::scan, connect::json, connect::whole, bucket::contended, setup::decide, round_trip::round_trip
}
criterion_main!(timings);
