//! The connect message: its JSON, beside serde_json, and all that the gateway does with it.
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use ringway::protocol::connect;

use crate::inputs;

/// JSON alone, as ringway reads it with simd-json, and as serde_json does.
pub fn json(criterion: &mut Criterion) {
    for message in inputs::messages() {
        let mut group = criterion.benchmark_group(format!("json/{}", message.name));
        group.throughput(Throughput::Bytes(message.text.len() as u64));
        let text = message.text.as_slice();
        group.bench_function("simd-json", |bencher| {
            // It reads in place, so each time a copy is read; copying is not counted.
            let read = |text: &mut Vec<u8>| connect::parse(black_box(text)).is_ok();
            bencher.iter_batched_ref(|| text.to_vec(), read, BatchSize::SmallInput);
        });
        group.bench_function("serde_json", |bencher| {
            bencher.iter_with_large_drop(|| serde_json::from_slice::<serde_json::Value>(black_box(text)));
        });
        group.finish();
    }
}

/// From the text to what can be dialled, or to the error.
pub fn whole(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connect");
    for message in inputs::messages() {
        assert_eq!(inputs::read(&mut message.text.clone()).is_some(), message.usable, "{}", message.name);
        group.throughput(Throughput::Bytes(message.text.len() as u64));
        group.bench_function(message.name, |bencher| {
            let read = |text: &mut Vec<u8>| inputs::read(black_box(text));
            bencher.iter_batched_ref(|| message.text.clone(), read, BatchSize::SmallInput);
        });
    }
    group.finish();
}
