//! The frame scan, which is all that a relay does with what it passes on.
use std::hint::black_box;

use criterion::{Criterion, Throughput};

use crate::inputs;

const STREAM: usize = 1 << 20;
/// As much as a lane receives at most, a TCP segment, and so little that headers are cut again and again.
const READS: [(&str, usize); 3] = [("reads of 64 KiB", 64 << 10), ("reads of 1448 B", 1448), ("reads of 7 B", 7)];

pub fn scan(criterion: &mut Criterion) {
    for (size, payload) in [("0 B", 0), ("64 B", 64), ("1 KiB", 1 << 10), ("16 KiB", 16 << 10), ("256 KiB", 256 << 10)]
    {
        let stream = inputs::frames(payload, STREAM);
        let count = inputs::scan(&stream, READS[0].1);
        let mut group = criterion.benchmark_group(format!("frames/{size}"));
        // Both: bytes a second are what is passed over, frames a second what is worked on.
        group.throughput(Throughput::ElementsAndBytes { elements: count, bytes: stream.len() as u64 });
        for (name, read) in READS {
            assert_eq!(inputs::scan(&stream, read), count);
            group.bench_function(name, |bencher| bencher.iter(|| inputs::scan(black_box(&stream), read)));
        }
        group.finish();
    }
}
