//! Waking one task of this thread from another one: a flag with a waker, without any synchronisation.
use std::{
    cell::Cell,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;

/// A signal that one task awaits. Set while nobody waits, it is there for the next wait.
#[derive(Default)]
pub struct Signal {
    set: Cell<bool>,
    waiting: Cell<Option<Waker>>,
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("set", &self.set).finish_non_exhaustive()
    }
}

impl Signal {
    pub fn set(&self) {
        self.set.set(true);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits for the signal and takes it.
    pub async fn wait(&self) {
        poll_fn(|context| self.poll(context)).await;
    }

    /// Waits for `future` or the signal, and takes the signal if it came: `None`. `future` must be one that may be
    /// dropped, which no receive and no send is.
    pub const fn or<F: Future>(&self, future: F) -> Or<'_, F> {
        Or { signal: self, future }
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.set.replace(false) {
            return Poll::Ready(());
        }
        let waiting = self.waiting.take().filter(|waker| waker.will_wake(context.waker()));
        self.waiting.set(Some(waiting.unwrap_or_else(|| context.waker().clone())));
        Poll::Pending
    }
}

pin_project! {
    /// See [`Signal::or`]. Not an async function, which would have room for `future` twice.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct Or<'a, F> {
        signal: &'a Signal,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Or<'_, F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.signal.poll(context).is_ready() {
            return Poll::Ready(None);
        }
        this.future.poll(context).map(Some)
    }
}
