//! The state machine between two simulated peers, with a clock of its own: seeded, so that a failure comes again.
use proptest::prelude::*;

use super::*;
use crate::protocol::frame::{self, Header, Opcode, Parsed};

/// What a peer will send, and how it behaves meanwhile.
#[derive(Clone, Debug)]
struct Script {
    /// The bytes it sends, cut where `chunks` say; whether they end in a FIN is `fin`.
    bytes: Vec<u8>,
    chunks: Vec<usize>,
    fin: bool,
    /// It reads nothing before this time, in seconds from the start.
    reads_from: u64,
    /// It answers a Close with one of its own, and ends its TCP when ours has ended.
    polite: bool,
}

struct Peer {
    script: Script,
    sent: usize,
    chunk: usize,
    /// FIN was sent, or the connection was aborted.
    ended: bool,
    received: Vec<u8>,
    /// Handed to the socket, but not taken.
    queued: Vec<u8>,
    saw_end: bool,
    answered: bool,
}

/// What a lane is doing between two turns.
#[derive(Default)]
struct LaneTask {
    carry: Vec<u8>,
    /// Being sent, and what is to be reported when it is done.
    sending: Option<(Vec<u8>, bool)>,
    done: bool,
}

struct World {
    session: Session,
    start: Instant,
    now: Instant,
    peers: [Peer; 2],
    tasks: [LaneTask; 2],
    ours: [Option<Close>; 2],
}

/// What a peer's socket takes when its application does not read.
const SOCKET_ROOM: usize = 200;

impl World {
    fn new(scripts: [Script; 2], idle: Option<Duration>) -> Self {
        Self::at(Place::Whole, scripts, idle)
    }

    fn at(place: Place, scripts: [Script; 2], idle: Option<Duration>) -> Self {
        let start = Instant::now();
        let peer = |script: Script| Peer {
            answered: has_close(&script.bytes),
            script,
            sent: 0,
            chunk: 0,
            ended: false,
            received: Vec::new(),
            queued: Vec::new(),
            saw_end: false,
        };
        Self {
            session: Session::new(place, idle, start),
            start,
            now: start,
            peers: scripts.map(peer),
            tasks: Default::default(),
            ours: [None; 2],
        }
    }

    fn seconds(&self) -> f64 {
        (self.now - self.start).as_secs_f64()
    }

    fn reads(&self, side: Side) -> bool {
        self.seconds() >= self.peers[side.index()].script.reads_from as f64
    }

    /// Runs until both lanes are done; `None` if they are not after that many seconds.
    fn run(&mut self, limit: u64) -> Option<f64> {
        loop {
            let mut active = false;
            for side in Side::BOTH {
                active |= self.take(side);
                active |= self.lane(side);
            }
            if self.tasks.iter().all(|task| task.done) {
                return Some(self.seconds());
            }
            if active {
                continue;
            }
            if self.seconds() > limit as f64 {
                return None;
            }
            // Nothing to do but to let time pass: to the next tick, or to when a peer begins to read.
            let tick = self.session.next_tick(self.now);
            let reads = Side::BOTH
                .iter()
                .filter(|side| !self.reads(**side))
                .map(|side| self.start + Duration::from_secs(self.peers[side.index()].script.reads_from));
            let Some(next) = tick.into_iter().chain(reads).min() else {
                self.now += Duration::from_secs(1);
                continue;
            };
            self.now = next.max(self.now);
            if tick.is_some_and(|tick| tick <= self.now) {
                let peers = &self.peers;
                let progress = |side: Side| {
                    let peer = &peers[side.index()];
                    Progress { acknowledged: peer.received.len() as u64, queued: peer.queued.len() as u64 }
                };
                let tick = self.session.tick(progress, self.now);
                for (side, abort) in [(Side::Client, tick.abort_client), (Side::Target, tick.abort_target)] {
                    if abort {
                        self.peers[side.index()].ended = true;
                        let task = &mut self.tasks[side.other().index()];
                        if task.sending.take().is_some() {
                            self.session.send_failed(side.other(), self.now);
                        }
                    }
                }
                if self.session.next_tick(self.now).is_some_and(|next| next <= self.now) && !self.session.changed {
                    panic!("a tick asks for itself at once");
                }
            }
        }
    }

    /// The peer's application reads, if it reads.
    fn take(&mut self, side: Side) -> bool {
        if !self.reads(side) {
            return false;
        }
        let peer = &mut self.peers[side.index()];
        let taken = !peer.queued.is_empty();
        let queued = std::mem::take(&mut peer.queued);
        peer.received.extend(queued);
        // Behind both Closes the server ends TCP first, which is the target; the client when we have.
        let closed = side == Side::Target && peer.answered && has_close(&peer.received);
        let finished = peer.sent == peer.script.bytes.len();
        if peer.script.polite && !peer.ended && finished && (peer.saw_end || closed) {
            peer.ended = true;
            return true;
        }
        taken
    }

    fn lane(&mut self, from: Side) -> bool {
        let to = from.other();
        if self.tasks[from.index()].done {
            return false;
        }
        if let Some((mut bytes, is_close)) = self.tasks[from.index()].sending.take() {
            let peer = &mut self.peers[to.index()];
            let room = SOCKET_ROOM.saturating_sub(peer.queued.len());
            let len = bytes.len().min(room);
            peer.queued.extend(bytes.drain(..len));
            if !bytes.is_empty() {
                self.tasks[from.index()].sending = Some((bytes, is_close));
                return len > 0;
            }
            match is_close {
                true => self.session.close_sent(from, self.now),
                false => self.session.sent(from),
            }
            return true;
        }
        match self.session.step(from) {
            Step::Done => {
                self.tasks[from.index()].done = true;
                true
            }
            Step::Wait => false,
            Step::SendClose(close) => {
                assert_eq!(self.ours[to.index()], None, "two Closes of ours");
                self.ours[to.index()] = Some(close);
                let key = (to == Side::Target).then_some([9; 4]);
                self.tasks[from.index()].sending = Some((close.to_bytes(key), true));
                true
            }
            Step::EndWrite => {
                self.peers[to.index()].saw_end = true;
                self.session.write_ended(from, self.now);
                true
            }
            Step::Receive => self.receive(from),
        }
    }

    fn receive(&mut self, from: Side) -> bool {
        let peer = &mut self.peers[from.index()];
        if peer.sent == peer.script.bytes.len() || peer.ended {
            let closes = peer.ended || peer.script.fin && !peer.script.polite;
            if closes {
                peer.ended = true;
                self.session.ended(from, self.now);
                return true;
            }
            // A polite peer answers the Close that it got with its own, once.
            if peer.script.polite && !peer.answered && has_close(&peer.received) {
                peer.answered = true;
                let close = Close { code: 1000, reason: "" };
                let bytes = close.to_bytes((from == Side::Client).then_some([5; 4]));
                peer.script.bytes.extend(bytes);
                return true;
            }
            return false;
        }
        let size = peer.script.chunks[peer.chunk % peer.script.chunks.len()].max(1);
        peer.chunk += 1;
        let end = (peer.sent + size).min(peer.script.bytes.len());
        // Every other time, what may pass unseen does.
        let unseen = self.session.may_pass_unseen(from).and_then(|len| usize::try_from(len).ok()).unwrap_or_default();
        if unseen > 0 && peer.chunk.is_multiple_of(2) {
            assert!(self.tasks[from.index()].carry.is_empty());
            let end = end.min(peer.sent + unseen);
            let bytes = peer.script.bytes[peer.sent..end].to_vec();
            peer.sent = end;
            self.session.received_unseen(from, bytes.len() as u64, self.now);
            self.tasks[from.index()].sending = Some((bytes, false));
            return true;
        }
        let mut bytes = std::mem::take(&mut self.tasks[from.index()].carry);
        bytes.extend(&peer.script.bytes[peer.sent..end]);
        peer.sent = end;
        let received = self.session.received(from, &bytes, &mut FrameCounts::default(), self.now);
        assert!(received.forward <= received.consumed);
        assert!(bytes.len() - received.consumed < frame::MAX_HEADER);
        let task = &mut self.tasks[from.index()];
        task.carry = bytes.split_off(received.consumed);
        bytes.truncate(received.forward);
        if !bytes.is_empty() {
            task.sending = Some((bytes, false));
        }
        true
    }

    /// Everything that the peer got or would have got, had it read on.
    fn got(&self, side: Side) -> Vec<u8> {
        let peer = &self.peers[side.index()];
        [&peer.received[..], &peer.queued[..]].concat()
    }

    /// Whatever happened: what a side got are bytes of the other side in order, then at most one Close of ours, at a
    /// frame boundary, and nothing behind it.
    fn check_integrity(&self) {
        for side in Side::BOTH {
            let got = self.got(side);
            let source = &self.peers[side.other().index()].script.bytes;
            let passed = match self.ours[side.index()] {
                Some(close) => {
                    let ours = close.to_bytes((side == Side::Target).then_some([9; 4]));
                    // It may have been aborted in the middle of it.
                    let cut = (0..=ours.len()).rev().find(|len| got.ends_with(&ours[..*len])).unwrap();
                    let passed = &got[..got.len() - cut];
                    if cut == ours.len() {
                        assert!(at_boundary(passed), "a Close of ours inside a frame: {got:?}");
                    }
                    passed
                }
                None => &got[..],
            };
            assert!(source.starts_with(passed), "{side:?} got {passed:?} of {source:?}");
        }
    }
}

fn frames_of(mut bytes: &[u8]) -> impl Iterator<Item = (Opcode, &[u8])> {
    std::iter::from_fn(move || {
        let Parsed::Header(header) = Header::parse(bytes) else { return None };
        let end = header.header_len + usize::try_from(header.payload_len).ok()?;
        let frame = bytes.get(..end)?;
        bytes = &bytes[end..];
        Some((header.opcode, frame))
    })
}

fn has_close(bytes: &[u8]) -> bool {
    frames_of(bytes).any(|(opcode, _)| opcode == Opcode::CLOSE)
}

fn at_boundary(bytes: &[u8]) -> bool {
    frames_of(bytes).map(|(_, frame)| frame.len()).sum::<usize>() == bytes.len()
}

fn text(from: Side, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, Opcode::TEXT, (from == Side::Client).then_some([1, 2, 3, 4]), &vec![b'x'; len]);
    out
}

fn script(bytes: Vec<u8>) -> Script {
    Script { bytes, chunks: vec![64], fin: false, reads_from: 0, polite: true }
}

fn close_of(from: Side, code: u16) -> Vec<u8> {
    Close { code, reason: "why" }.to_bytes((from == Side::Client).then_some([5; 4]))
}

fn any_script(from: Side) -> impl Strategy<Value = Script> {
    let frames = prop::collection::vec(0..150usize, 0..6);
    let end = prop_oneof![
        Just(Vec::new()),
        Just(close_of(from, 4000)),
        Just([close_of(from, 4001), text(from, 10)].concat()),
        Just(vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
    ];
    let chunks = prop::collection::vec(1..100usize, 1..5);
    (frames, end, chunks, any::<bool>(), 0..90u64, any::<bool>(), any::<bool>(), 0..30usize).prop_map(
        move |(frames, end, chunks, fin, reads_from, slow, polite, cut)| {
            let mut bytes: Vec<u8> = frames.into_iter().flat_map(|len| text(from, len)).collect();
            bytes.extend(end);
            // A stream that does not end at a boundary ends the TCP connection too.
            let polite = polite && cut > 10;
            if !polite {
                bytes.truncate(bytes.len().saturating_sub(cut));
            }
            Script { bytes, chunks, fin, reads_from: if slow { reads_from } else { 0 }, polite }
        },
    )
}

proptest! {
    #[test]
    fn whatever_the_peers_do_bytes_stay_whole_and_the_session_ends(
        client in any_script(Side::Client),
        target in any_script(Side::Target),
        idle in prop::option::of(1..20u64),
        drain_at in prop::option::of(0..100u64),
        place in prop::sample::select(vec![Place::Whole, Place::Gateway, Place::Agent]),
    ) {
        let mut world = World::at(place, [client, target], idle.map(Duration::from_secs));
        let drained_at = drain_at.unwrap_or(100);
        if world.run(drained_at).is_none() {
            let window_end = world.now + Duration::from_secs(3);
            world.session.close(Close::RESTART_CLIENT, Close::RESTART_TARGET, window_end, world.now);
            // The longest way: a slow reader takes what waits (60 s), its own Close (30 s), the end of its TCP.
            prop_assert!(world.run(drained_at + 250).is_some(), "does not end: {:?}", world.session);
        }
        world.check_integrity();
    }
}

#[test]
fn both_closes_pass_and_the_target_closes_tcp_first() {
    let client = script([text(Side::Client, 100), close_of(Side::Client, 4000)].concat());
    let mut world = World::new([client, script(text(Side::Target, 30))], None);
    assert!(world.run(10).unwrap() < 6.0);
    assert_eq!(world.ours, [None, None]);
    assert_eq!(world.got(Side::Target), world.peers[0].script.bytes);
    assert_eq!(world.got(Side::Client), world.peers[1].script.bytes);
    assert_eq!(world.session.ending(), Some(Ending { by: Party::Client, code: Some(4000) }));
}

#[test]
fn nothing_behind_a_close_is_forwarded() {
    let sent = [close_of(Side::Target, 1000), text(Side::Target, 5)].concat();
    let mut world = World::new([script(vec![]), script(sent)], None);
    world.run(20).unwrap();
    assert_eq!(world.got(Side::Client), close_of(Side::Target, 1000));
}

#[test]
fn a_lost_target_is_1011_to_the_client_and_a_lost_client_is_1001_to_the_target() {
    let lost = |bytes| Script { fin: true, polite: false, ..script(bytes) };
    let mut world = World::new([script(vec![]), lost(text(Side::Target, 40))], None);
    world.run(20).unwrap();
    assert_eq!(world.ours, [Some(Close::TARGET_LOST), None]);
    let mut world = World::new([lost(text(Side::Client, 40)), script(vec![])], None);
    world.run(20).unwrap();
    assert_eq!(world.ours, [None, Some(Close::CLIENT_GONE)]);
    // Inside a frame there is no Close, and a header that is not complete counts for nothing.
    let mut cut = text(Side::Target, 40);
    cut.truncate(20);
    let mut world = World::new([script(vec![]), lost(cut.clone())], None);
    world.run(20).unwrap();
    assert_eq!((world.ours, world.got(Side::Client)), ([None, None], cut));
    let whole = text(Side::Target, 40);
    let mut world = World::new([script(vec![]), lost([&whole[..], &[0x82]].concat())], None);
    world.run(20).unwrap();
    assert_eq!(world.ours, [Some(Close::TARGET_LOST), None]);
    assert_eq!(world.got(Side::Client), [whole, Close::TARGET_LOST.to_bytes(None)].concat());
}

#[test]
fn what_a_half_closed_client_is_still_sent_reaches_it() {
    let client = Script { fin: true, polite: false, ..script(text(Side::Client, 10)) };
    let mut world = World::new([client, script(text(Side::Target, 1000))], None);
    world.run(20).unwrap();
    let got = world.got(Side::Client);
    assert!(got.starts_with(&text(Side::Target, 1000)));
    assert!(has_close(&got), "the target's own Close follows");
}

#[test]
fn an_unknowable_length_ends_both_sides() {
    let bad = [text(Side::Client, 3), vec![0x82, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0]].concat();
    let mut world = World::new([script(bad), script(vec![])], None);
    world.run(20).unwrap();
    assert_eq!(world.ours, [Some(Close::PROTOCOL_ERROR), Some(Close::CLIENT_BROKE)]);
    assert!(world.got(Side::Target).starts_with(&text(Side::Client, 3)));
}

#[test]
fn idle_means_no_data_message_from_the_target() {
    let mut ping = Vec::new();
    frame::write(&mut ping, Opcode::PING, None, b"");
    for (bytes, chunks) in [(vec![], 1), (ping, 1)] {
        let target = Script { chunks: vec![chunks], ..script(bytes) };
        let mut world = World::new([script(text(Side::Client, 10)), target], Some(Duration::from_secs(7)));
        let ended = world.run(20).unwrap();
        assert!((7.0..8.0).contains(&ended), "ended at {ended}");
        assert_eq!(world.ours, [Some(Close::IDLE), Some(Close::IDLE)]);
    }
}

#[test]
fn the_idle_clock_stands_still_while_a_slow_client_holds_data_up() {
    let client = Script { reads_from: 30, ..script(vec![]) };
    let mut world = World::new([client, script(text(Side::Target, 100))], Some(Duration::from_secs(5)));
    let ended = world.run(60).unwrap();
    assert!((35.0..37.0).contains(&ended), "ended at {ended}");
    assert!(world.got(Side::Client).starts_with(&text(Side::Target, 100)));
}

#[test]
fn a_silent_peer_has_30_seconds_for_its_own_close_and_5_for_the_answer_to_ours() {
    let silent = Script { polite: false, ..script(vec![]) };
    let mut world = World::new([script(close_of(Side::Client, 1000)), silent.clone()], None);
    let ended = world.run(60).unwrap();
    assert!((30.0..37.0).contains(&ended), "ended at {ended}");
    assert_eq!(world.ours, [None, None]);
    let mut world = World::new([silent.clone(), silent], Some(Duration::from_secs(1)));
    let ended = world.run(60).unwrap();
    assert!((6.0..13.0).contains(&ended), "ended at {ended}");
}

#[test]
fn a_frame_in_progress_comes_to_its_end_before_a_close_of_ours() {
    let whole = text(Side::Target, 1000);
    for (sent, expected) in [(&whole[..], Some(Close::RESTART_CLIENT)), (&whole[..500], None)] {
        let mut world = World::new([script(vec![]), Script { polite: false, ..script(vec![]) }], None);
        let received = world.session.received(Side::Target, &whole[..400], &mut FrameCounts::default(), world.now);
        assert_eq!(received, Received { forward: 400, consumed: 400, close: None });
        world.session.sent(Side::Target);
        world.peers[0].received.extend(&whole[..400]);
        let window_end = world.now + Duration::from_secs(20);
        world.session.close(Close::RESTART_CLIENT, Close::RESTART_TARGET, window_end, world.now);
        world.peers[1].script.bytes = sent[400..].to_vec();
        world.run(60).unwrap();
        assert_eq!(world.ours[0], expected);
        assert!(world.got(Side::Client).starts_with(sent));
    }
}

#[test]
fn a_hop_that_ends_without_a_close_is_lost_for_this_session() {
    let lost = || Script { fin: true, polite: false, ..script(text(Side::Client, 40)) };
    for (place, side, told, by) in [
        (Place::Gateway, Side::Target, Close::AGENT_LOST, Party::Agent),
        (Place::Gateway, Side::Client, Close::CLIENT_GONE, Party::Client),
        (Place::Agent, Side::Client, Close::GATEWAY_LOST, Party::Gateway),
        (Place::Agent, Side::Target, Close::TARGET_LOST, Party::Target),
    ] {
        let mut scripts = [script(vec![]), script(vec![])];
        scripts[side.index()] = lost();
        let mut world = World::at(place, scripts, None);
        world.run(20).unwrap();
        assert_eq!(world.ours[side.other().index()], Some(told), "{place:?} {side:?}");
        assert_eq!(world.session.ending(), Some(Ending { by, code: None }));
    }
}

#[test]
fn behind_the_end_of_the_other_hop_nobody_waits_for_a_close() {
    // The agent told of a lost target, waited five seconds for an answer, and left.
    let silent = Script { polite: false, ..script(vec![]) };
    for (place, side) in [(Place::Gateway, Side::Target), (Place::Agent, Side::Client)] {
        let leaves = Script { fin: true, polite: false, ..script(close_of(side, 1011)) };
        let mut scripts = [silent.clone(), silent.clone()];
        scripts[side.index()] = leaves;
        let mut world = World::at(place, scripts.clone(), None);
        let ended = world.run(60).unwrap();
        assert!(ended < 8.0, "{place:?} ended at {ended}");
        // Where there is no other hop, that peer has its 30 seconds.
        let ended = World::new(scripts, None).run(60).unwrap();
        assert!(ended >= 30.0, "ended at {ended}");
    }
}

#[test]
fn a_hop_whose_peer_let_its_30_seconds_pass_is_not_lost() {
    for (after, told) in [(10, Step::SendClose(Close::AGENT_LOST)), (31, Step::EndWrite)] {
        let start = Instant::now();
        let mut session = Session::new(Place::Gateway, None, start);
        let close = close_of(Side::Client, 1000);
        session.received(Side::Client, &close, &mut FrameCounts::default(), start);
        session.sent(Side::Client);
        let taken = |_| Progress { acknowledged: 1, queued: 0 };
        let ticked = session.tick(taken, start + Duration::from_secs(after));
        assert_eq!(ticked, Tick::default(), "it is the other hop that decides");
        session.ended(Side::Target, start + Duration::from_secs(after));
        assert_eq!(session.step(Side::Target), told, "after {after} s");
    }
}
