//! One worker thread: accepts connections on its own listeners, runs them, and ends them when the gateway drains.
use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::StreamExt;
use monoio::net::{TcpListener, TcpStream};

use super::{
    Shared,
    agents::{self, Channels, Errand},
    connection,
    http::Response,
    record::{Records, Row},
    spread::Arrival,
};
use crate::{
    admin::RowsWanted,
    protocol::drain::Drain,
    relay::{self, Registry},
    runtime::{
        sockets,
        tasks::Tasks,
        threads::{Line, Order},
    },
    telemetry::counters::{self, WorkerCounters},
};

/// How long accepting rests when the process has no file descriptors or memory left. Trying again at once would fail
/// at once, and keep the thread from the sessions it has.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// So many connections are accepted before others have a turn.
const IN_A_ROW: u32 = 64;

/// When a worker has drained: how long what was accepted last has for its request, and for its answer.
const LAST_REQUESTS: Duration = Duration::from_millis(20);
const LAST_ANSWERS: Duration = Duration::from_millis(250);

/// What the tasks of one worker share.
pub(super) struct Worker {
    pub shared: Arc<Shared>,
    /// From 0.
    pub index: usize,
    pub counters: Arc<WorkerCounters>,
    pub records: Records,
    pub registry: Registry,
    /// Data channels of agents that are ready here.
    pub channels: Rc<Channels>,
    /// Connections and sessions of this worker.
    pub tasks: Rc<Tasks>,
}

/// What a worker has of its own in the view of the admin listener.
#[derive(Debug)]
pub(super) struct Desk {
    pub index: usize,
    pub counters: Arc<WorkerCounters>,
    pub rows: UnboundedReceiver<RowsWanted<Row>>,
    /// What the other workers want.
    pub errands: UnboundedReceiver<Errand>,
    /// Connections that they have accepted for this one.
    pub arrivals: UnboundedReceiver<Arrival>,
}

/// One that is counted in the whole process until it is dropped.
pub(super) struct Counted {
    shared: Arc<Shared>,
    counter: fn(&Shared) -> &AtomicU64,
}

impl Counted {
    /// `None`: there are `limit` already.
    pub fn new(shared: &Arc<Shared>, counter: fn(&Shared) -> &AtomicU64, limit: u64) -> Option<Self> {
        let below = |count: u64| (count < limit).then_some(count + 1);
        counter(shared).try_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        Some(Self { shared: shared.clone(), counter })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.shared).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A listening socket of one worker.
#[derive(Debug)]
pub(super) struct Listener {
    pub socket: StdListener,
    pub tls: bool,
}

/// Runs a worker as long as the process lives: the listeners stay open to the last, since one that closes resets what
/// waits in its accept queue.
pub(super) async fn run(shared: Arc<Shared>, listeners: Vec<Listener>, desk: Desk, mut line: Line) -> io::Result<()> {
    let Desk { index, counters, mut rows, errands, mut arrivals } = desk;
    relay::count_in(&counters);
    let registry = Registry::new(shared.relayed.clone());
    let worker = Rc::new(Worker {
        shared,
        index,
        counters,
        records: Records::default(),
        registry,
        channels: Rc::default(),
        tasks: Rc::default(),
    });
    for Listener { socket, tls } in listeners {
        let worker = worker.clone();
        sockets::prepare_accepted(&socket, worker.shared.limits.tcp_keepalive);
        let listener = sockets::listener(socket)?;
        monoio::spawn(async move { worker.accept(listener, tls).await });
    }
    let (watcher, beat) = (worker.clone(), line.beat());
    monoio::spawn(async move { watcher.registry.watch(&beat).await });
    let clerk = worker.clone();
    monoio::spawn(async move {
        while let Some(wanted) = rows.next().await {
            clerk.records.send(wanted).await;
        }
    });
    let host = worker.clone();
    monoio::spawn(async move {
        while let Some(arrival) = arrivals.next().await {
            host.guarded(|| host.welcome(arrival));
            // Others have a turn, however many arrive.
            monoio::spawn(async {}).await;
        }
    });
    let porter = worker.clone();
    monoio::spawn(async move { agents::run_errands(&porter, errands).await });
    let (housekeeper, beat) = (worker.tasks.clone(), line.beat());
    monoio::spawn(async move { housekeeper.keep_memory_low(&beat).await });
    while let Some(order) = line.order().await {
        let worker = worker.clone();
        let reporter = line.reporter();
        match order {
            Order::Drain(drain) => monoio::spawn(async move {
                worker.drain(drain).await;
                reporter.drained();
            }),
            Order::Finish => monoio::spawn(async move {
                worker.records.write_all().await;
                reporter.finished();
            }),
        };
    }
    Ok(())
}

impl Worker {
    pub fn draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, tls: bool) {
        let (mut resting, mut taken) = (false, 0u32);
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    resting = false;
                    taken = taken.wrapping_add(1);
                    if taken % IN_A_ROW == 0 {
                        // On epoll, a queue that never empties would keep the thread from everything else.
                        monoio::time::sleep(Duration::from_millis(1)).await;
                    }
                    self.counters.accepts.add(1);
                    self.guarded(|| self.take(tcp, peer, tls));
                }
                Err(error) => {
                    // A connection that was gone before it was accepted is no reason to rest (accept(2)).
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ECONNABORTED | libc::EPROTO | libc::EPERM | libc::EINTR)
                    ) {
                        continue;
                    }
                    if !resting {
                        tracing::error!("cannot accept connections: {error}; trying again every {ACCEPT_REST:?}");
                    }
                    resting = true;
                    monoio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn take(self: &Rc<Self>, tcp: TcpStream, peer: SocketAddr, secure: bool) {
        if !self.shared.may_connect(peer.ip()) {
            tracing::debug!(%peer, "connection refused: its address is not in listen.proxy_protocol_from");
            self.counters.refused(counters::ADDRESS);
            return;
        }
        let Some(pending) = Counted::new(&self.shared, |shared| &shared.pending, self.shared.limits.max_pending) else {
            self.counters.refused(counters::TOO_MANY_PENDING);
            // With TLS there is nothing to say before the handshake.
            return if secure { drop(tcp) } else { refuse(&tcp) };
        };
        // A drain ends a worker that has nothing more to do, so nothing is on its way to it then.
        let better = if self.draining() { None } else { self.shared.spread.better(self.index) };
        let Some(load) = self.shared.spread.load(better.unwrap_or(self.index)) else { return };
        let Some(better) = better else {
            return self.serve(Arrival { tcp, peer, secure, pending, load });
        };
        let arrival = Arrival { tcp: sockets::detach(tcp), peer, secure, pending, load };
        if let Err(mut arrival) = self.shared.spread.send(better, arrival) {
            // That worker has ended.
            let Some(load) = self.shared.spread.load(self.index) else { return };
            arrival.load = load;
            self.welcome(arrival);
        }
    }

    /// Serves a connection that another worker has accepted.
    fn welcome(self: &Rc<Self>, arrival: Arrival) {
        let Arrival { tcp, peer, secure, pending, load } = arrival;
        match TcpStream::from_std(tcp) {
            Ok(tcp) => self.serve(Arrival { tcp, peer, secure, pending, load }),
            Err(error) => tracing::error!(%peer, "a connection could not be taken over: {error}"),
        }
    }

    fn serve(self: &Rc<Self>, arrival: Arrival<TcpStream>) {
        let worker = self.clone();
        self.tasks.spawn(move |draining| connection::run(worker, arrival, draining));
    }

    /// What goes wrong with one connection must not end the worker.
    fn guarded(&self, take: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(take)).is_err() {
            tracing::error!("a connection failed: taking it panicked");
        }
    }

    /// Ends all sessions as the drain says. Done when none is left, and no client waits for its last word.
    async fn drain(self: &Rc<Self>, drain: Arc<Drain>) {
        self.tasks.drain(drain.clone());
        let worker = self.clone();
        monoio::spawn(async move { worker.registry.drain(drain).await });
        self.tasks.none_awaited().await;
        // Requests that are still answered are worth a moment, and no more.
        monoio::time::sleep(LAST_REQUESTS).await;
        self.tasks.all_ended(Instant::now() + LAST_ANSWERS).await;
    }
}

/// More connections are waiting to become sessions than the gateway takes: says so, as far as that needs no waiting.
fn refuse(tcp: &TcpStream) {
    let answer = Response::error(503, "overloaded", "Too many connections are being set up").with("Retry-After", "1");
    sockets::send_now(tcp, &answer.to_bytes(false));
}
