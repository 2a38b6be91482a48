//! Deadlines over connections. A receive or a send cannot be dropped, so its time is ended by ending its connection.
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use monoio::time::{Instant as MonoioInstant, sleep_until};

use super::socket::Socket;

/// Awaits `future`, which uses `socket`, to its end; when `limit` is over, the connection is aborted, which ends it.
pub async fn within<F: Future>(socket: &Socket, limit: Duration, future: F) -> F::Output {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep_until(MonoioInstant::now() + limit));
    let mut expired = false;
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(output);
        }
        if !expired && sleep.as_mut().poll(context).is_ready() {
            expired = true;
            socket.abort();
            return future.as_mut().poll(context);
        }
        Poll::Pending
    })
    .await
}

/// Awaits a future that may be dropped until `deadline`; `None` if that comes first, or has come already: a peer that
/// always has something ready must not outlast its time.
pub async fn until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    if Instant::now() >= deadline {
        return None;
    }
    monoio::time::timeout_at(MonoioInstant::from_std(deadline), future).await.ok()
}
