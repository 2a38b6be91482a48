//! The state machine of one relayed session: what may be sent to whom, when, and how it ends.
//!
//! A session has two lanes, one in each direction. The lane that reads from a side is the only writer to the other
//! side, so every decision about what goes to a peer is taken in one place. Whoever moves the bytes asks a lane for
//! its next [`Step`], does it, and reports what came of it; a timer calls [`Session::tick`]. Bytes, times and the
//! peers' acknowledgements go in, decisions come out: there is no I/O and no clock here.
//!
//! How a session may end is CONTRACT's section 3: each rule stands beside the code that keeps it.
use std::time::{Duration, Instant};

use super::{
    close::Close,
    frame::{FrameCounts, Scanner, Stop, Until},
};

/// How long a peer may take, since its last progress, to answer a Close of ours or to end its TCP connection.
const ANSWER: Duration = Duration::from_secs(5);
/// The same in all, however much progress there is.
const ANSWER_IN_ALL: Duration = Duration::from_secs(60);
/// How long a peer may take for its own Close once it has taken the other's.
const OWN_CLOSE: Duration = Duration::from_secs(30);
/// The same where the peer is another hop of ours: that hop knows when its own peer has taken the Close, and decides.
const OWN_CLOSE_OF_HOP: Duration = Duration::from_secs(95);
/// How long a peer may take nothing of a forwarded Close, before it is given up.
const TAKE_CLOSE: Duration = Duration::from_secs(60);
/// How long the frame in progress may take to its end when a Close of ours waits for that.
const FRAME_END: Duration = Duration::from_secs(5);
/// How often progress is looked at while something is being waited for.
const SAMPLE: Duration = Duration::from_millis(500);
/// How often the client's progress is looked at while it holds up the idle clock.
const IDLE_SAMPLE: Duration = Duration::from_millis(50);

/// Where on its way a session is relayed. It decides who a peer is that leaves without a Close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Between client and target.
    #[default]
    Whole,
    /// On a gateway, between client and an agent, which stands in the target's place.
    Gateway,
    /// On an agent, between a gateway, which stands in the client's place, and the target.
    Agent,
}

impl Place {
    /// The side that is another hop of ours.
    pub const fn other_hop(self) -> Option<Side> {
        match self {
            Self::Whole => None,
            Self::Gateway => Some(Side::Target),
            Self::Agent => Some(Side::Client),
        }
    }
}

/// The two peers of a session. On an agent, the gateway stands in the client's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Target,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Target];

    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Target,
            Self::Target => Self::Client,
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// Who brought a session to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    Client,
    Target,
    Agent,
    Gateway,
}

/// How a session ended: who began it, and with which close code, if there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub by: Party,
    pub code: Option<u16>,
}

/// What a lane does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Receive from the lane's sender, until that or until the lane is woken.
    Receive,
    /// Send this Close to the lane's receiver, then report [`Session::close_sent`] or [`Session::send_failed`].
    SendClose(Close),
    /// End the write side of the receiver's connection, then report [`Session::write_ended`].
    EndWrite,
    /// Nothing until the lane is woken.
    Wait,
    /// The lane has nothing left to do.
    Done,
}

/// What [`Session::received`] decides about received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// So many bytes from the front are to be sent on now.
    pub forward: usize,
    /// So many bytes from the front are done with; the rest comes again in front of what is received next.
    pub consumed: usize,
    /// A Close is among what is to be sent on, with this code; `Some(None)`: one without a code.
    pub close: Option<Option<u16>>,
}

/// What a peer's TCP says of the bytes sent to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes acknowledged since the connection began.
    pub acknowledged: u64,
    /// Bytes handed to the socket and not acknowledged yet.
    pub queued: u64,
}

/// The connections that [`Session::tick`] wants aborted: reset, whatever waits in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    pub abort_client: bool,
    pub abort_target: bool,
}

/// What still comes from a lane's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Frames,
    /// It sent a frame without a knowable end: there are no frames behind that, only bytes to be dropped.
    Garbage,
    /// Its Close has been received: what it sends behind that is dropped.
    Closed,
    Ended,
}

/// What goes on of that which a lane's sender still sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forward {
    Everything,
    /// The frame in progress, to its end or to this time.
    FrameInProgress(Instant),
    Nothing,
}

/// What a lane's receiver has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Open,
    /// The frame in progress goes on to its end; then comes this Close of ours, or none where the receiver has left.
    Finishing(Option<Close>),
    /// The lane stands at a boundary, and this Close of ours is to be sent.
    Due(Close),
    /// It has a Close: ours, or the other side's as it was.
    Closed {
        forwarded: bool,
    },
    /// It gets no Close: its last frame was cut, or it has left.
    Cut,
    /// The write side of its connection has been ended.
    Ended,
    /// Sending to it failed.
    Failed,
}

/// Since when, and on what terms, the end of a side's connection is awaited.
#[derive(Clone, Copy, Debug)]
struct Closing {
    began: Instant,
    /// The last change: a phase that began, or bytes that were acknowledged.
    progress_at: Instant,
    acknowledged: u64,
    /// When everything sent had been acknowledged, if it has.
    taken_at: Option<Instant>,
    /// Its time is over: what it has still to say is not waited for.
    expired: bool,
}

#[derive(Debug)]
struct Lane {
    scanner: Scanner,
    input: Input,
    forward: Forward,
    output: Output,
    sending: bool,
    frames: u64,
    bytes: u64,
    /// Of the side that this lane writes to. In a box, as `Session::idle`: most sessions, most of their time, have none.
    closing: Option<Box<Closing>>,
}

#[derive(Debug)]
struct Idle {
    timeout: Duration,
    since: Instant,
    /// Data from the target has been received, and it is not known yet whether the client has taken it.
    untaken: bool,
    /// The client was seen to hold data up.
    held_up: bool,
}

/// One relayed session; see the module's documentation.
#[derive(Debug)]
pub struct Session {
    place: Place,
    lanes: [Lane; 2],
    idle: Option<Box<Idle>>,
    ending: Option<Ending>,
    /// A step or the next tick may have changed since [`Session::take_changed`] was asked last.
    changed: bool,
}

impl Session {
    /// A session that is connected at `now`. `idle_timeout` is the time without a data message from the target.
    pub fn new(place: Place, idle_timeout: Option<Duration>, now: Instant) -> Self {
        let lane = || Lane {
            scanner: Scanner::default(),
            input: Input::Frames,
            forward: Forward::Everything,
            output: Output::Open,
            sending: false,
            frames: 0,
            bytes: 0,
            closing: None,
        };
        Self {
            place,
            lanes: [lane(), lane()],
            idle: idle_timeout.map(|timeout| Box::new(Idle { timeout, since: now, untaken: false, held_up: false })),
            ending: None,
            changed: false,
        }
    }

    pub const fn place(&self) -> Place {
        self.place
    }

    /// Frames and bytes that went on from this side to the other.
    pub fn passed(&self, from: Side) -> (u64, u64) {
        let lane = self.lane(from);
        (lane.frames, lane.bytes)
    }

    /// Who ended the session and how, once it is ending.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Whether, since this was asked last, a lane's next step or the time of the next tick may have changed through
    /// something other than that lane's own reports.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What the lane that reads from `from` does next.
    pub fn step(&self, from: Side) -> Step {
        let lane = self.lane(from);
        match lane.output {
            Output::Due(close) => Step::SendClose(close),
            Output::Closed { .. } | Output::Cut if self.may_end_write(from.other()) => Step::EndWrite,
            Output::Ended | Output::Failed if lane.input == Input::Ended => Step::Done,
            _ if lane.input == Input::Ended => Step::Wait,
            _ => Step::Receive,
        }
    }

    /// Bytes came from `from`, the unconsumed rest of the last call in front. What is to be forwarded must be sent,
    /// and [`Session::sent`] or [`Session::send_failed`] be reported, before the lane takes its next step.
    pub fn received(&mut self, from: Side, bytes: &[u8], counts: &mut FrameCounts, now: Instant) -> Received {
        let lane = self.lane_mut(from);
        if lane.input != Input::Frames {
            return Received { forward: 0, consumed: bytes.len(), close: None };
        }
        let until = match lane.forward {
            Forward::FrameInProgress(_) => Until::FrameEnd,
            // What is not passed is still looked at, for this side's own Close.
            Forward::Everything | Forward::Nothing => Until::InputEnd,
        };
        let passing = lane.forward != Forward::Nothing;
        let mut began = FrameCounts::default();
        let scanned = lane.scanner.scan(bytes, until, &mut began);
        let data_seen = lane.scanner.take_data_seen();
        let mut forward = 0;
        if passing {
            forward = scanned.len;
            lane.sending = forward > 0;
            lane.bytes += forward as u64;
            for (count, began) in counts.iter_mut().zip(began) {
                *count += began;
                lane.frames += began;
            }
        }
        if data_seen {
            self.data_came(from, now);
        }
        let mut consumed = scanned.len;
        let mut close = None;
        match scanned.stop {
            Stop::InputEnd => {}
            Stop::FrameEnd => {
                self.frame_ended(from, now);
                consumed += self.received(from, &bytes[consumed..], &mut FrameCounts::default(), now).consumed;
            }
            Stop::Close => {
                consumed = bytes.len();
                close = passing.then(|| self.lane(from).scanner.close_code());
                self.close_received(from, passing, now);
            }
            Stop::LengthOverflow => {
                consumed = bytes.len();
                self.length_overflow(from, now);
            }
        }
        Received { forward, consumed, close }
    }

    /// Payload bytes of the frame in progress of `from` that are to be passed on, and need not be looked at for that: 0
    /// at a frame boundary. `None`: what comes from this side must be looked at, or dropped.
    pub fn may_pass_unseen(&self, from: Side) -> Option<u64> {
        let lane = self.lane(from);
        let passing = lane.input == Input::Frames && lane.forward != Forward::Nothing && lane.scanner.may_skip();
        passing.then(|| lane.scanner.remaining())
    }

    /// So many payload bytes of the frame in progress, as [`Session::may_pass_unseen`] allows, came from `from` and are
    /// to be sent on; [`Session::sent`] or [`Session::send_failed`] is to be reported as for [`Session::received`].
    pub fn received_unseen(&mut self, from: Side, len: u64, now: Instant) {
        let lane = self.lane_mut(from);
        lane.scanner.skip(len);
        lane.sending = true;
        lane.bytes += len;
        let ended = lane.scanner.at_boundary() && matches!(lane.forward, Forward::FrameInProgress(_));
        if lane.scanner.take_data_seen() {
            self.data_came(from, now);
        }
        if ended {
            self.frame_ended(from, now);
        }
    }

    /// A data message, or a part of one, came from that side.
    fn data_came(&mut self, from: Side, now: Instant) {
        if let (Side::Target, Some(idle)) = (from, &mut self.idle) {
            idle.since = now;
            self.changed |= !idle.untaken;
            idle.untaken = true;
        }
    }

    /// What [`Session::received`] said is to be forwarded has been sent.
    pub fn sent(&mut self, from: Side) {
        self.lane_mut(from).sending = false;
    }

    /// The Close of [`Step::SendClose`] has been sent by the lane that reads from `from`.
    pub fn close_sent(&mut self, from: Side, now: Instant) {
        self.lane_mut(from).output = Output::Closed { forwarded: false };
        self.note_progress(from.other(), now);
    }

    /// The write side that the lane from `from` writes to has been ended. A last wait begins: for the peer's end.
    pub fn write_ended(&mut self, from: Side, now: Instant) {
        self.lane_mut(from).output = Output::Ended;
        self.restart_wait(from.other(), now);
    }

    /// The connection of `from` can be read no further: its FIN came, or it failed.
    pub fn ended(&mut self, from: Side, now: Instant) {
        let lane = self.lane_mut(from);
        let before = std::mem::replace(&mut lane.input, Input::Ended);
        match lane.output {
            // "If the last frame was cut in the middle, the TCP connection is closed without a Close."
            Output::Finishing(_) => self.finish(from, Output::Cut, now),
            // "A FIN after a Close is no event."
            Output::Open if before == Input::Frames => self.lost(from, now),
            _ => {}
        }
        self.lane_mut(from).forward = Forward::Nothing;
        self.changed = true;
    }

    /// Sending to the other side of the lane that reads from `from` failed.
    ///
    /// That is no event by itself: what the broken side had sent before can still be read, its Close among it, and
    /// its end comes behind that.
    pub fn send_failed(&mut self, from: Side, now: Instant) {
        self.lane_mut(from).sending = false;
        self.finish(from, Output::Failed, now);
    }

    /// Ends the session from here, with these Closes, each at the next frame boundary of its side.
    ///
    /// A frame in progress has until `frame_end` to come to its end; else its receiver gets no Close.
    pub fn close(&mut self, to_client: Close, to_target: Close, frame_end: Instant, now: Instant) {
        if !self.is_ending() {
            self.ending.get_or_insert(Ending { by: Party::Gateway, code: Some(to_client.code) });
        }
        self.stop_forwarding(Side::Target, Some(to_client), frame_end, now);
        self.stop_forwarding(Side::Client, Some(to_target), frame_end, now);
    }

    /// Whether a side has closed, left, or been told to.
    pub fn is_ending(&self) -> bool {
        self.lanes.iter().any(|lane| lane.output != Output::Open || lane.input != Input::Frames)
    }

    /// When [`Session::tick`] wants to be called next; `None` while nothing is being waited for.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut at = |time: Instant| next = Some(next.map_or(time, |next| next.min(time)));
        for lane in &self.lanes {
            match lane.forward {
                Forward::FrameInProgress(until) if !lane.sending => at(until),
                _ => {}
            }
            if lane.closing.is_some() {
                at(now + SAMPLE);
            }
        }
        if let (Some(idle), false) = (&self.idle, self.is_ending()) {
            // A time beyond what the clock can hold is never.
            let end = idle.since.checked_add(idle.timeout);
            if idle.untaken {
                at(now + (idle.timeout / 20).clamp(IDLE_SAMPLE, SAMPLE).min(idle.timeout));
            } else if let Some(end) = end {
                at(end);
            }
        }
        next
    }

    /// Time has passed: ends what is over. `progress` tells what each side has taken.
    pub fn tick(&mut self, progress: impl Fn(Side) -> Progress, now: Instant) -> Tick {
        let mut tick = Tick::default();
        self.tick_idle(&progress, now);
        for side in Side::BOTH {
            let lane = self.lane(side);
            if matches!(lane.forward, Forward::FrameInProgress(until) if now >= until && !lane.sending) {
                self.finish(side, Output::Cut, now);
            }
        }
        for side in Side::BOTH {
            self.tick_closing(side, &progress, now, &mut tick);
        }
        tick
    }

    fn tick_idle(&mut self, progress: impl Fn(Side) -> Progress, now: Instant) {
        if self.is_ending() {
            return;
        }
        let sending = self.lane(Side::Target).sending;
        let Some(idle) = &mut self.idle else { return };
        if idle.untaken {
            // The clock stands still while data waits for a slow client, and starts anew when that has taken it.
            let waits = sending || progress(Side::Client).queued > 0;
            if waits || idle.held_up {
                idle.since = now;
            }
            idle.held_up = waits;
            idle.untaken = waits;
        }
        if now.saturating_duration_since(idle.since) >= idle.timeout {
            self.close(Close::IDLE, Close::IDLE, now + FRAME_END, now);
        }
    }

    fn tick_closing(&mut self, side: Side, progress: impl Fn(Side) -> Progress, now: Instant, tick: &mut Tick) {
        let input = self.lane(side).input;
        // The other hop ends its channel without a Close only when the time there is over, or it is gone.
        let other_hop = self.place.other_hop();
        let relayed_away = other_hop == Some(side.other()) && self.lane(side.other()).input == Input::Ended;
        let lane = self.lane_to_mut(side);
        let Some(closing) = &mut lane.closing else { return };
        let seen = progress(side);
        if seen.acknowledged != closing.acknowledged {
            closing.acknowledged = seen.acknowledged;
            closing.progress_at = now;
        }
        if matches!(lane.output, Output::Finishing(_)) && !lane.sending {
            // It is the other side that is waited for, and that has a limit of its own.
            closing.began = now;
            closing.progress_at = now;
            return;
        }
        let taken = seen.queued == 0 && !lane.sending;
        if taken {
            closing.taken_at.get_or_insert(now);
        }
        let awaits_own_close = lane.output == (Output::Closed { forwarded: true }) && input == Input::Frames;
        let nobody_waits = awaits_own_close && relayed_away;
        let in_all = closing.began + ANSWER_IN_ALL;
        let may_still_end = matches!(lane.output, Output::Closed { .. }) && taken && now < in_all;
        let deadline = match closing.taken_at {
            Some(taken_at) if nobody_waits => taken_at,
            Some(taken_at) if awaits_own_close && other_hop == Some(side) => taken_at + OWN_CLOSE_OF_HOP,
            Some(taken_at) if awaits_own_close => taken_at + OWN_CLOSE,
            None if awaits_own_close => closing.progress_at + TAKE_CLOSE,
            _ => in_all.min(closing.progress_at + ANSWER),
        };
        if now < deadline {
            return;
        }
        let had_its_time = std::mem::replace(&mut closing.expired, true);
        closing.progress_at = now;
        self.changed = true;
        // An end that we make ourselves is no event for the other side, where that has closed or left before.
        if awaits_own_close || (side == Side::Target && self.lane(Side::Client).input == Input::Ended) {
            self.finish_if_open(side, now);
        }
        // One that has taken everything gets the end of our write side, and some time more; any other gets none.
        if awaits_own_close || had_its_time || !may_still_end {
            match side {
                Side::Client => tick.abort_client = true,
                Side::Target => tick.abort_target = true,
            }
        }
    }

    /// "After Close both ways the server side of each hop closes TCP first": towards a client we are the server.
    fn may_end_write(&self, to: Side) -> bool {
        let lane = self.lane_to(to);
        lane.output == Output::Cut
            || lane.closing.as_ref().is_some_and(|closing| closing.expired)
            || match self.lane(to).input {
                Input::Ended => true,
                Input::Closed => to == Side::Client,
                Input::Frames | Input::Garbage => false,
            }
    }

    /// The connection of `from` ended, and it had sent no Close.
    fn lost(&mut self, from: Side, now: Instant) {
        let (by, close) = match (self.place, from) {
            (Place::Agent, Side::Client) => (Party::Gateway, Close::GATEWAY_LOST),
            (_, Side::Client) => (Party::Client, Close::CLIENT_GONE),
            (Place::Gateway, Side::Target) => (Party::Agent, Close::AGENT_LOST),
            (_, Side::Target) => (Party::Target, Close::TARGET_LOST),
        };
        self.ending.get_or_insert(Ending { by, code: None });
        let told = self.lane(from).scanner.at_boundary() && !self.time_of_hop_is_over(from, now);
        let output = if told { Output::Due(close) } else { Output::Cut };
        self.finish(from, output, now);
        // A client may have ended its write side only: what the target still sends goes on. A target that has left
        // gets no more than the frame in progress, and is told nothing.
        if from == Side::Target {
            self.stop_forwarding(Side::Client, None, now + FRAME_END, now);
        }
    }

    /// Whether `from` is another hop of ours that has ended since its peer did not answer a Close in time. That is no
    /// loss of the hop: the other side, which closed first, gets no Close from anybody.
    fn time_of_hop_is_over(&self, from: Side, now: Instant) -> bool {
        let lane = self.lane_to(from);
        let forwarded = self.place.other_hop() == Some(from) && lane.output == (Output::Closed { forwarded: true });
        forwarded && lane.closing.as_ref().is_some_and(|closing| now >= closing.began + (OWN_CLOSE - ANSWER))
    }

    fn close_received(&mut self, from: Side, passed: bool, now: Instant) {
        let lane = self.lane_mut(from);
        lane.input = Input::Closed;
        let code = lane.scanner.close_code();
        if passed {
            let by = if from == Side::Client { Party::Client } else { Party::Target };
            self.ending.get_or_insert(Ending { by, code });
            self.finish(from, Output::Closed { forwarded: true }, now);
        }
        // It may be the answer that was awaited. What is awaited now is the end of its TCP.
        self.restart_wait(from, now);
    }

    fn length_overflow(&mut self, from: Side, now: Instant) {
        let passing = self.lane(from).forward != Forward::Nothing;
        self.lane_mut(from).input = Input::Garbage;
        if passing {
            let (by, to_other) = match from {
                Side::Client => (Party::Client, Close::CLIENT_BROKE),
                Side::Target => (Party::Target, Close::TARGET_BROKE),
            };
            self.ending.get_or_insert(Ending { by, code: Some(Close::PROTOCOL_ERROR.code) });
            self.finish(from, Output::Due(to_other), now);
            self.stop_forwarding(from.other(), Some(Close::PROTOCOL_ERROR), now + FRAME_END, now);
        }
    }

    /// The lane from `from` passes no more than its frame in progress; its receiver then gets `close`, or none.
    fn stop_forwarding(&mut self, from: Side, close: Option<Close>, frame_end: Instant, now: Instant) {
        let lane = self.lane_mut(from);
        if lane.output != Output::Open {
            return;
        }
        lane.output = Output::Finishing(close);
        if lane.scanner.at_boundary() {
            self.frame_ended(from, now);
        } else {
            lane.forward = Forward::FrameInProgress(frame_end);
            lane.closing.get_or_insert_with(|| Box::new(Closing::new(now)));
            self.changed = true;
        }
    }

    /// The frame that a lane still had to pass has come to its end.
    fn frame_ended(&mut self, from: Side, now: Instant) {
        if let Output::Finishing(close) = self.lane(from).output {
            self.finish(from, close.map_or(Output::Cut, Output::Due), now);
        }
    }

    fn finish_if_open(&mut self, from: Side, now: Instant) {
        if matches!(self.lane(from).output, Output::Open | Output::Finishing(_)) {
            self.finish(from, Output::Cut, now);
        }
    }

    /// Nothing more of the lane from `from` goes on; the end of its receiver's connection is awaited from now on.
    fn finish(&mut self, from: Side, output: Output, now: Instant) {
        let lane = self.lane_mut(from);
        lane.forward = Forward::Nothing;
        lane.output = output;
        self.changed = true;
        let lane = self.lane_mut(from);
        lane.closing.get_or_insert_with(|| Box::new(Closing::new(now)));
    }

    fn note_progress(&mut self, side: Side, now: Instant) {
        if let Some(closing) = &mut self.lane_to_mut(side).closing {
            closing.progress_at = now;
        }
    }

    fn restart_wait(&mut self, side: Side, now: Instant) {
        self.changed = true;
        if let Some(closing) = &mut self.lane_to_mut(side).closing {
            **closing = Closing { acknowledged: closing.acknowledged, ..Closing::new(now) };
        }
    }

    /// The lane that reads from this side.
    fn lane(&self, side: Side) -> &Lane {
        &self.lanes[side.index()]
    }

    fn lane_mut(&mut self, side: Side) -> &mut Lane {
        &mut self.lanes[side.index()]
    }

    /// The lane that writes to this side.
    fn lane_to(&self, side: Side) -> &Lane {
        self.lane(side.other())
    }

    fn lane_to_mut(&mut self, side: Side) -> &mut Lane {
        self.lane_mut(side.other())
    }
}

impl Closing {
    fn new(now: Instant) -> Self {
        Self { began: now, progress_at: now, acknowledged: 0, taken_at: None, expired: false }
    }
}

#[cfg(test)]
mod tests;
