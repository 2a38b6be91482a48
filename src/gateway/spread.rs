//! Which worker gets a fresh connection.
//!
//! The kernel spreads connections over the workers' listeners at random, and connections that live long stay as uneven
//! as chance has made them. So a worker that has more than another hands what it accepts to the one that has fewest,
//! before a byte of it is read. Counts are read and changed without locks, and none is ever waited for.
use std::{
    fmt,
    net::{SocketAddr, TcpStream as StdStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_channel::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::worker::Counted;
use crate::runtime::load::Load;

/// So many connections more than another a worker may have, and one in so many. Less would send most connections of a
/// gateway whose sessions are short through two threads.
const AT_LEAST: usize = 4;
const ONE_IN: usize = 64;

/// A connection that was accepted, on its way to the worker that serves it. How many there are, `limits.max_pending`
/// bounds.
pub(super) struct Arrival {
    pub tcp: StdStream,
    pub peer: SocketAddr,
    /// It came to a TLS listener.
    pub tls: bool,
    pub pending: Counted,
    pub load: Load,
}

/// The workers, by what they have.
pub(super) struct Spread(Vec<Place>);

struct Place {
    connections: Arc<AtomicUsize>,
    arrivals: UnboundedSender<Arrival>,
}

impl fmt::Debug for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spread").field("workers", &self.0.len()).finish_non_exhaustive()
    }
}

impl Spread {
    /// With what each worker is to take arrivals from.
    pub fn new(workers: usize) -> (Self, Vec<UnboundedReceiver<Arrival>>) {
        let place = |_| {
            let (arrivals, arriving) = mpsc::unbounded();
            (Place { connections: Arc::default(), arrivals }, arriving)
        };
        let (places, arriving) = (0..workers).map(place).unzip();
        (Self(places), arriving)
    }

    /// One more connection of this worker. `None`: there is no such worker.
    pub fn load(&self, worker: usize) -> Option<Load> {
        Some(Load::on(&self.0.get(worker)?.connections))
    }

    /// The worker that a connection should go to that was accepted by this one. `None`: it stays.
    pub fn better(&self, here: usize) -> Option<usize> {
        let count = |place: &Place| place.connections.load(Ordering::Relaxed);
        let (place, fewest) = self.0.iter().map(count).enumerate().min_by_key(|(_, count)| *count)?;
        let may_have = fewest + AT_LEAST.max(fewest / ONE_IN);
        (count(self.0.get(here)?) >= may_have).then_some(place)
    }

    /// Sends it to a worker.
    ///
    /// # Errors
    /// That worker has ended; here it is again.
    pub fn send(&self, worker: usize, arrival: Arrival) -> Result<(), Arrival> {
        match self.0.get(worker) {
            Some(place) => place.arrivals.unbounded_send(arrival).map_err(mpsc::TrySendError::into_inner),
            None => Err(arrival),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Accepts as many at random, and says how much more than the mean the worker with most has.
    fn excess(workers: usize, connections: usize) -> f64 {
        let (spread, _arriving) = Spread::new(workers);
        let mut random = fastrand::Rng::with_seed(7);
        let mut loads = Vec::new();
        for _ in 0..connections {
            let here = random.usize(..workers);
            loads.push(spread.load(spread.better(here).unwrap_or(here)).unwrap());
        }
        let most = spread.0.iter().map(|place| place.connections.load(Ordering::Relaxed)).max().unwrap();
        most as f64 * workers as f64 / connections as f64
    }

    #[test]
    fn connections_are_even() {
        for (workers, connections) in [(1, 400), (2, 400), (4, 400), (8, 1000), (2, 9900), (4, 9900), (8, 9900)] {
            let excess = excess(workers, connections);
            assert!(excess <= 1.05, "{connections} on {workers} workers: {excess}");
        }
    }

    #[test]
    fn a_few_more_stay_where_they_are() {
        let (spread, _arriving) = Spread::new(3);
        let mut loads: Vec<Load> = (0..AT_LEAST - 1).map(|_| spread.load(0).unwrap()).collect();
        assert_eq!(spread.better(0), None);
        loads.push(spread.load(0).unwrap());
        assert_eq!(spread.better(0), Some(1));
        assert_eq!(spread.better(1), None, "it has none");
        loads.push(spread.load(1).unwrap());
        assert_eq!(spread.better(0), Some(2));
        loads.push(spread.load(2).unwrap());
        assert_eq!(spread.better(0), None);
        drop(loads);
        assert_eq!(spread.better(0), None);
    }
}
