//! What a session costs before it is dialled: request, 101, connect message, key, bucket, answer. Without sockets.
use std::{
    hint::black_box,
    time::{Instant, SystemTime},
};

use criterion::Criterion;

use crate::inputs::{self, Client};

pub fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("set-up");
    let keys = inputs::keys();
    for message in inputs::messages().into_iter().filter(|message| message.usable) {
        let client = Client::new(&message.text);
        group.bench_function(message.name, |bencher| {
            bencher.iter(|| inputs::set_up(black_box(&client), &keys, (SystemTime::now(), Instant::now())));
        });
    }
    group.finish();
}
