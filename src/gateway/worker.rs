//! One worker thread: accepts connections on its own listeners, runs them, and ends them when the gateway drains.
use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    panic::AssertUnwindSafe,
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
    relay::{Registry, deadline, wake::Signal},
    runtime::{memory, sockets, threads::Command},
    telemetry::counters::{self, WorkerCounters},
};

/// How long accepting rests when the process has no file descriptors or memory left. Trying again at once would fail
/// at once, and keep the thread from the sessions it has.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How often a worker looks whether a crowd has left, and how many tasks are one. A session that ends alone leaves
/// little, which the next one uses.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const CROWD: usize = 100;

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
    idle: Signal,
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

/// Runs a worker until the gateway has drained.
pub(super) async fn run(
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    desk: Desk,
    mut commands: UnboundedReceiver<Command>,
) -> io::Result<()> {
    let Desk { index, counters, mut rows } = desk;
    let worker = Rc::new(Worker {
        shared,
        index,
        counters,
        records: Records::default(),
        registry: Registry::default(),
        live: RefCell::default(),
        idle: Signal::default(),
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
    match commands.next().await {
        Some(Command::Drain { window_end }) => worker.drain(window_end).await,
        None => {}
    }
    worker.records.write_all();
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
            if live.len() == live.capacity() {
                live.retain(|task| task.strong_count() > 0);
            }
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
            if worker.draining() {
                worker.idle.set();
            }
        });
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, tls: bool) {
        let mut resting = false;
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    resting = false;
                    self.counters.accepts.add(1);
                    self.take(tcp, peer, tls);
                }
                Err(error) => {
                    // A connection that was gone before it was accepted (ECONNABORTED and the like) is no reason.
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
                    {
                        if !resting {
                            tracing::error!("cannot accept connections: {error}; trying again every {ACCEPT_REST:?}");
                        }
                        resting = true;
                        monoio::time::sleep(ACCEPT_REST).await;
                    }
                }
            }
        }
    }

    fn take(self: &Rc<Self>, tcp: TcpStream, peer: SocketAddr, tls: bool) {
        if !self.shared.may_connect(peer.ip()) {
            tracing::debug!(%peer, "connection refused: its address is not in listen.proxy_protocol_from");
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

    /// Gives memory back when half of a crowd has left.
    async fn keep_memory_low(&self) {
        loop {
            monoio::time::sleep(LOOK_AFTER).await;
            let (count, most) = (self.count.get(), self.most.get());
            if most - count >= CROWD && count <= most / 2 {
                self.live.borrow_mut().retain(|task| task.strong_count() > 0);
                self.live.borrow_mut().shrink_to(count);
                memory::give_back();
                self.most.set(count);
            }
        }
    }

    async fn drain(&self, window_end: Instant) {
        self.registry.close_all(window_end);
        let tasks: Vec<_> = self.live.borrow().iter().filter_map(Weak::upgrade).collect();
        tasks.iter().for_each(|task| task.set());
        drop(tasks);
        while self.count.get() > 0 {
            if deadline::until(window_end, self.idle.wait()).await.is_none() {
                return;
            }
        }
    }
}

/// More connections are waiting to become sessions than the gateway takes: says so, as far as that needs no waiting.
fn refuse(tcp: &TcpStream) {
    let answer = Response::error(503, "overloaded", "Too many connections are being set up").with("Retry-After", "1");
    sockets::send_now(tcp, &answer.to_bytes(false));
}
