//! splice(2) through pooled pipes, called directly and without waiting; epoll tells when.
use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    fd::OwnedFd,
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

const PIPE_LEN: usize = 1 << 20;
const LISTENER: u64 = u64::MAX;
/// Rounds in a row for one direction before others get their turn.
const MAX_ROUNDS: usize = 8;

type Pipe = (OwnedFd, OwnedFd);

/// One direction: lane `l` takes from socket `l` and gives to socket `l ^ 1`.
#[derive(Default)]
struct Lane {
    /// With so many bytes in it that the other socket did not take.
    held: Option<(Pipe, usize)>,
    ended: bool,
    shut: bool,
}

struct Session {
    sockets: [TcpStream; 2],
    lanes: [Lane; 2],
    /// Whether each socket's writability is waited for.
    watched: [bool; 2],
}

struct Copier {
    epoll: OwnedFd,
    listener: TcpListener,
    upstream: SocketAddr,
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    pipes: Vec<Pipe>,
}

pub fn run(listener: TcpListener, upstream: SocketAddr) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    Copier { epoll, listener, upstream, sessions: Vec::new(), free: Vec::new(), pipes: Vec::new() }.turn()
}

impl Copier {
    fn turn(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1024);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut accept = false;
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => accept = true,
                    socket => self.ready((socket / 2) as usize, (socket % 2) as usize, event.flags),
                }
            }
            if accept {
                self.accept()?;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..64 {
            let Some(client) = super::accept(&self.listener)? else { return Ok(()) };
            let Ok(upstream) = super::connect(self.upstream) else { continue };
            client.set_nonblocking(true)?;
            upstream.set_nonblocking(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.sessions.push(None);
                self.sessions.len() - 1
            });
            for (side, socket) in [&client, &upstream].into_iter().enumerate() {
                let data = EventData::new_u64((2 * index + side) as u64);
                epoll::add(&self.epoll, socket, data, EventFlags::IN)?;
            }
            self.sessions[index] =
                Some(Session { sockets: [client, upstream], lanes: Default::default(), watched: [false; 2] });
        }
        Ok(())
    }

    fn ready(&mut self, index: usize, side: usize, flags: EventFlags) {
        let Some(mut session) = self.sessions[index].take() else { return };
        let mut result = Ok(());
        if flags.contains(EventFlags::OUT) {
            result = self.pump(&mut session, side ^ 1);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            result = result.and_then(|()| self.pump(&mut session, side));
        }
        result = result.and_then(|()| self.watch(index, &mut session));
        let over = session.lanes.iter().all(|lane| lane.shut);
        if result.is_ok() && !over {
            self.sessions[index] = Some(session);
        } else {
            // Pipes with something in them go with it.
            self.free.push(index);
        }
    }

    /// Moves what there is from socket `side` to the other.
    fn pump(&mut self, session: &mut Session, side: usize) -> Result<(), Errno> {
        let (from, to) = (&session.sockets[side], &session.sockets[side ^ 1]);
        let lane = &mut session.lanes[side];
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        for _ in 0..MAX_ROUNDS {
            let (pipe, mut pending) = match lane.held.take() {
                Some(held) => held,
                None if lane.ended => break,
                None => {
                    let pipe = self.pipes.pop().map_or_else(new_pipe, Ok)?;
                    match splice(from, None, &pipe.1, None, PIPE_LEN, flags) {
                        Ok(0) => {
                            lane.ended = true;
                            self.pipes.push(pipe);
                            break;
                        }
                        Ok(len) => (pipe, len),
                        Err(Errno::AGAIN) => {
                            self.pipes.push(pipe);
                            return Ok(());
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            while pending > 0 {
                match splice(&pipe.0, None, to, None, pending, flags) {
                    Ok(len) => pending -= len,
                    Err(Errno::AGAIN) => {
                        lane.held = Some((pipe, pending));
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                }
            }
            self.pipes.push(pipe);
            // Level-triggered: if there is more, epoll says so, which is cheaper than to ask in vain.
            if !lane.ended {
                return Ok(());
            }
        }
        if lane.ended && !lane.shut {
            lane.shut = true;
            let _ = to.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Waits for what is of use: to read where nothing is held, to write where something is.
    fn watch(&self, index: usize, session: &mut Session) -> Result<(), Errno> {
        for side in 0..2 {
            let lane = &session.lanes[side];
            let quiet = lane.ended || lane.held.is_some();
            let blocked = session.lanes[side ^ 1].held.is_some();
            if quiet || blocked || session.watched[side] {
                let mut flags = EventFlags::empty();
                flags.set(EventFlags::IN, !quiet);
                flags.set(EventFlags::OUT, blocked);
                session.watched[side] = quiet || blocked;
                epoll::modify(
                    &self.epoll,
                    &session.sockets[side],
                    EventData::new_u64((2 * index + side) as u64),
                    flags,
                )?;
            }
        }
        Ok(())
    }
}

fn new_pipe() -> Result<Pipe, Errno> {
    let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A smaller one works too.
    let _ = fcntl_setpipe_size(&pipe.1, PIPE_LEN);
    Ok(pipe)
}
