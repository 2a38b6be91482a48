//! The books of one gateway's data channels: how many are ready, and how many are to be opened. Nothing here is
//! opened or closed.
use crate::protocol::link::MAX_WAITING;

/// A gateway cannot make an agent open more than these.
const MAX_OPENING: u32 = 64;
const MAX_WANTED: u32 = 4096;
const MAX_ASKED: u32 = MAX_WAITING - MAX_WANTED;

/// What a data channel is before its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Opening,
    /// It stands, and waits.
    Ready,
}

#[derive(Debug, Default)]
pub(super) struct Stock {
    /// So many are to be ready at all times.
    wanted: u32,
    /// So many more are wanted once.
    asked: u32,
    opening: u32,
    ready: u32,
}

impl Stock {
    pub fn want(&mut self, channels: u32) {
        self.wanted = channels.min(MAX_WANTED);
    }

    pub fn ask(&mut self, more: u32) {
        self.asked = self.asked.saturating_add(more).min(MAX_ASKED);
    }

    /// The gateway takes no new sessions, so it needs no channels.
    pub fn want_none(&mut self) {
        (self.wanted, self.asked) = (0, 0);
    }

    /// None of its channels is there any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn ready(&self) -> u32 {
        self.ready
    }

    /// How many to open now. They count as opening from here on.
    pub fn open(&mut self) -> u32 {
        let missing = self.wanted.saturating_sub(self.ready + self.opening) + self.asked;
        // However often it asks: what waits unused is bounded, too.
        let room = MAX_WAITING.saturating_sub(self.ready + self.opening);
        let now = missing.min(MAX_OPENING.saturating_sub(self.opening)).min(room);
        self.asked -= self.asked.min(now);
        self.opening += now;
        now
    }

    pub fn opened(&mut self) {
        self.opening = self.opening.saturating_sub(1);
        self.ready += 1;
    }

    /// One has been taken, or has come to nothing.
    pub fn ended(&mut self, was: Stage) {
        let count = match was {
            Stage::Opening => &mut self.opening,
            Stage::Ready => &mut self.ready,
        };
        *count = count.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_replaced() {
        let mut stock = Stock::default();
        assert_eq!(stock.open(), 0);
        stock.want(3);
        assert_eq!(stock.open(), 3);
        assert_eq!(stock.open(), 0);
        (0..3).for_each(|_| stock.opened());
        assert_eq!((stock.open(), stock.ready()), (0, 3));
        stock.ended(Stage::Ready);
        stock.ended(Stage::Ready);
        assert_eq!(stock.open(), 2);
        stock.ended(Stage::Opening);
        assert_eq!(stock.open(), 1);
    }

    #[test]
    fn what_is_asked_for_comes_on_top_and_once() {
        let mut stock = Stock::default();
        stock.want(2);
        stock.ask(3);
        assert_eq!(stock.open(), 5);
        (0..5).for_each(|_| stock.opened());
        assert_eq!(stock.open(), 0);
        (0..3).for_each(|_| stock.ended(Stage::Ready));
        assert_eq!(stock.open(), 0);
        stock.ended(Stage::Ready);
        assert_eq!(stock.open(), 1);
        stock.want_none();
        stock.ended(Stage::Ready);
        assert_eq!(stock.open(), 0);
    }

    #[test]
    fn a_gateway_cannot_ask_for_the_moon() {
        let mut stock = Stock::default();
        stock.want(u32::MAX);
        stock.ask(u32::MAX);
        stock.ask(u32::MAX);
        assert_eq!(stock.open(), MAX_OPENING);
        assert_eq!(stock.open(), 0);
        let mut all = MAX_OPENING;
        loop {
            (0..stock.opening).for_each(|_| stock.opened());
            match stock.open() {
                0 => break,
                more => all += more,
            }
        }
        assert!(all <= MAX_WANTED + MAX_ASKED, "{all}");
        // It asks again and again, and takes none.
        for _ in 0..200 {
            stock.ask(u32::MAX);
            stock.open();
            (0..stock.opening).for_each(|_| stock.opened());
        }
        assert_eq!(stock.ready(), MAX_WANTED + MAX_ASKED);
        stock.ended(Stage::Ready);
        assert_eq!(stock.open(), 1);
        stock.clear();
        assert_eq!((stock.open(), stock.ready()), (0, 0));
        stock.ended(Stage::Opening);
        stock.ended(Stage::Ready);
        stock.want(1);
        assert_eq!(stock.open(), 1);
    }
}
