//! A key's token bucket, from which all workers take: beside the obvious one behind a lock.
use std::{
    hint::black_box,
    sync::{Barrier, Mutex},
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use ringway::gateway::bucket::Bucket;

const RATE: f64 = 1e9;
const BURST: u32 = u32::MAX;

pub fn contended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bucket");
    // A token from each thread.
    for threads in [1, 2, 4] {
        group.throughput(Throughput::Elements(threads));
        group.bench_function(format!("ringway, {threads} threads"), |bencher| {
            let bucket = Bucket::new(RATE, BURST);
            bencher.iter_custom(|takes| together(threads, takes, |now| bucket.take(now).is_ok()));
        });
        group.bench_function(format!("behind a lock, {threads} threads"), |bencher| {
            let bucket = Mutex::new((f64::from(BURST), 0));
            bencher.iter_custom(|takes| together(threads, takes, |now| take_locked(&bucket, now)));
        });
    }
    group.finish();
}

/// Lets so many threads take so often each, and gives the time until all are done.
fn together(threads: u64, takes: u64, take: impl Fn(u64) -> bool + Sync) -> Duration {
    let barrier = Barrier::new(threads as usize + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    // A clock that goes on, without what asking for the time costs.
                    (0..takes).filter(|now| take(black_box(*now))).count()
                })
            })
            .collect();
        barrier.wait();
        let began = Instant::now();
        workers.into_iter().for_each(|worker| {
            black_box(worker.join().unwrap());
        });
        began.elapsed()
    })
}

fn take_locked(bucket: &Mutex<(f64, u64)>, now: u64) -> bool {
    let mut bucket = bucket.lock().unwrap();
    let (level, filled_at) = *bucket;
    let level = (level + now.saturating_sub(filled_at) as f64 * RATE / 1e9).min(f64::from(BURST));
    let taken = level >= 1.0;
    *bucket = (if taken { level - 1.0 } else { level }, now.max(filled_at));
    taken
}
