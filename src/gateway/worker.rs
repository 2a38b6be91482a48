//! One worker thread: accepts connections on its own listeners, runs them, and ends them when the gateway drains.
use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::{FutureExt, StreamExt};
use monoio::net::{TcpListener, TcpStream};

use super::{
    Shared, connection,
    http::Response,
    record::{Records, RowsWanted},
};
use crate::{
    protocol::drain::Drain,
    relay::{Registry, deadline, wake::Signal},
    runtime::{
        memory, sockets,
        threads::{Line, Order},
    },
    telemetry::counters::{self, WorkerCounters},
};

/// How long accepting rests when the process has no file descriptors or memory left. Trying again at once would fail
/// at once, and keep the thread from the sessions it has.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// So many connections are accepted before others have a turn.
const IN_A_ROW: u32 = 64;

/// How often a worker looks whether a crowd has left, and how many tasks are one. A session that ends alone leaves
/// little, which the next one uses.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const CROWD: usize = 100;
/// How often more it looks for those who leave late.
const LOOKS_MORE: i32 = 12;

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
    /// Connections and sessions of this worker, as long as they are not closed.
    live: RefCell<Vec<Weak<Signal>>>,
    draining: RefCell<Option<Arc<Drain>>>,
    /// Set when, in a drain, one of the counts below has gone down.
    fewer: Signal,
    /// Set-ups and sessions that a drain waits for.
    awaited: Cell<usize>,
    /// How many are live, and the most there were since memory was given back.
    count: Cell<usize>,
    most: Cell<usize>,
}

/// What a worker has of its own in the view of the admin listener.
#[derive(Debug)]
pub(super) struct Desk {
    pub index: usize,
    pub counters: Arc<WorkerCounters>,
    pub rows: UnboundedReceiver<RowsWanted>,
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

/// A set-up or a session that a drain waits for until this is dropped.
pub(super) struct Awaited(Rc<Worker>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.awaited.set(self.0.awaited.get() - 1);
        self.0.tell_of_fewer();
    }
}

/// Runs a worker as long as the process lives: the listeners stay open to the last, since one that closes resets what
/// waits in its accept queue.
pub(super) async fn run(shared: Arc<Shared>, listeners: Vec<Listener>, desk: Desk, mut line: Line) -> io::Result<()> {
    let Desk { index, counters, mut rows } = desk;
    let registry = Registry::new(shared.relayed.clone());
    let worker = Rc::new(Worker {
        shared,
        index,
        counters,
        records: Records::default(),
        registry,
        live: RefCell::default(),
        draining: RefCell::default(),
        fewer: Signal::default(),
        awaited: Cell::default(),
        count: Cell::default(),
        most: Cell::default(),
    });
    for Listener { socket, tls } in listeners {
        let worker = worker.clone();
        let listener = sockets::listener(socket)?;
        monoio::spawn(async move { worker.accept(listener, tls).await });
    }
    let watcher = worker.clone();
    monoio::spawn(async move { watcher.registry.watch().await });
    let clerk = worker.clone();
    monoio::spawn(async move {
        while let Some(wanted) = rows.next().await {
            clerk.records.send(wanted).await;
        }
    });
    let housekeeper = worker.clone();
    monoio::spawn(async move { housekeeper.keep_memory_low().await });
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

    /// Runs a task that counts as live until it ends. The signal is set when the gateway begins to drain.
    pub fn spawn<F, R>(self: &Rc<Self>, run: F)
    where
        F: FnOnce(Rc<Signal>) -> R,
        R: Future<Output = ()> + 'static,
    {
        let signal = Rc::new(Signal::default());
        {
            let mut live = self.live.borrow_mut();
            memory::make_room(&mut live);
            live.push(Rc::downgrade(&signal));
        }
        self.count.set(self.count.get() + 1);
        self.most.set(self.most.get().max(self.count.get()));
        // In a box, or the task below would have room for it twice: before its first turn, and while it is awaited.
        let task = Box::pin(AssertUnwindSafe(run(signal.clone())).catch_unwind());
        let worker = self.clone();
        monoio::spawn(async move {
            if task.await.is_err() {
                tracing::error!("a connection failed: its task panicked");
            }
            drop(signal);
            worker.count.set(worker.count.get() - 1);
            worker.tell_of_fewer();
        });
    }

    /// One more set-up or session that a drain waits for.
    pub fn awaited(self: &Rc<Self>) -> Awaited {
        self.awaited.set(self.awaited.get() + 1);
        Awaited(self.clone())
    }

    /// Awaits a future that may be dropped, in a drain until its window ends: `None` if that comes first. `draining`
    /// is the signal of the task that this is called from.
    pub async fn within_window<F: Future>(&self, draining: &Signal, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        if let Some(output) = draining.or(future.as_mut()).await {
            return Some(output);
        }
        let window_end = self.draining.borrow().as_ref().map(|drain| drain.window_end());
        deadline::until(window_end.unwrap_or_else(Instant::now), future).await
    }

    fn tell_of_fewer(&self) {
        if self.draining() {
            self.fewer.set();
        }
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
                    if catch_unwind(AssertUnwindSafe(|| self.take(tcp, peer, tls))).is_err() {
                        tracing::error!("a connection failed: taking it panicked");
                    }
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

    fn take(self: &Rc<Self>, tcp: TcpStream, peer: SocketAddr, tls: bool) {
        if !self.shared.may_connect(peer.ip()) {
            tracing::debug!(%peer, "connection refused: its address is not in listen.proxy_protocol_from");
            self.counters.refused(counters::ADDRESS);
            return;
        }
        let Some(pending) = Counted::new(&self.shared, |shared| &shared.pending, self.shared.limits.max_pending) else {
            self.counters.refused(counters::TOO_MANY_PENDING);
            // With TLS there is nothing to say before the handshake.
            return if tls { drop(tcp) } else { refuse(&tcp) };
        };
        sockets::prepare(&tcp, self.shared.limits.tcp_keepalive);
        let worker = self.clone();
        self.spawn(move |draining| connection::run(worker, tcp, peer, tls, draining, pending));
    }

    /// Gives memory back when half of a crowd has left, and for a while as the rest of it leaves.
    async fn keep_memory_low(&self) {
        let mut leaving = 0;
        loop {
            monoio::time::sleep(LOOK_AFTER).await;
            let (count, most) = (self.count.get(), self.most.get());
            let crowd = most - count >= CROWD && count <= most / 2;
            leaving = if crowd { LOOKS_MORE } else { leaving - i32::from(leaving > 0) };
            if crowd || (leaving > 0 && count < most) {
                memory::tidy(&mut self.live.borrow_mut());
                memory::give_back();
                self.most.set(count);
            }
        }
    }

    /// Ends all sessions as the drain says. Done when none is left, and no client waits for its last word.
    async fn drain(self: &Rc<Self>, drain: Arc<Drain>) {
        *self.draining.borrow_mut() = Some(drain.clone());
        let tasks: Vec<_> = self.live.borrow().iter().filter_map(Weak::upgrade).collect();
        tasks.iter().for_each(|task| task.set());
        drop(tasks);
        let worker = self.clone();
        monoio::spawn(async move { worker.registry.drain(drain).await });
        while self.awaited.get() > 0 {
            self.fewer.wait().await;
        }
        // Requests that are still answered are worth a moment, and no more.
        monoio::time::sleep(LAST_REQUESTS).await;
        let deadline = Instant::now() + LAST_ANSWERS;
        while self.count.get() > 0 && deadline::until(deadline, self.fewer.wait()).await.is_some() {}
    }
}

/// More connections are waiting to become sessions than the gateway takes: says so, as far as that needs no waiting.
fn refuse(tcp: &TcpStream) {
    let answer = Response::error(503, "overloaded", "Too many connections are being set up").with("Retry-After", "1");
    sockets::send_now(tcp, &answer.to_bytes(false));
}
