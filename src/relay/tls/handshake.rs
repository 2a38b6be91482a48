//! The handshake of one connection, by rustls, up to the keys. Does no I/O.
use rustls::{
    Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};

use super::records::{Keys, Records, record_len};

/// How much of a handshake may wait for its message's end. rustls takes none of more than 64 KiB.
const MAX_WAITING: usize = 96 * 1024;

/// The state of a connection whose handshake has not begun.
pub enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Connection::Client",
            Self::Server(_) => "Connection::Server",
        })
    }
}

impl From<UnbufferedClientConnection> for Connection {
    fn from(connection: UnbufferedClientConnection) -> Self {
        Self::Client(Box::new(connection))
    }
}

impl From<UnbufferedServerConnection> for Connection {
    fn from(connection: UnbufferedServerConnection) -> Self {
        Self::Server(Box::new(connection))
    }
}

impl Connection {
    fn is_handshaking(&self) -> bool {
        match self {
            Self::Client(connection) => connection.is_handshaking(),
            Self::Server(connection) => connection.is_handshaking(),
        }
    }

    /// Records wait to be taken out.
    fn wants_write(&self) -> bool {
        match self {
            Self::Client(connection) => connection.wants_write(),
            Self::Server(connection) => connection.wants_write(),
        }
    }

    /// Processes `incoming`; how much of it is done with, and what comes next.
    fn process(&mut self, incoming: &mut [u8], flight: &mut Vec<u8>) -> (usize, Result<Next, Error>) {
        match self {
            Self::Client(connection) => next(connection.process_tls_records(incoming), flight),
            Self::Server(connection) => next(connection.process_tls_records(incoming), flight),
        }
    }

    fn into_records(self) -> Result<Records, Error> {
        match self {
            Self::Client(connection) => {
                let (secrets, keys) = connection.dangerous_into_kernel_connection()?;
                Records::new(Keys::Client(keys), secrets)
            }
            Self::Server(connection) => {
                let (secrets, keys) = connection.dangerous_into_kernel_connection()?;
                Records::new(Keys::Server(keys), secrets)
            }
        }
    }
}

enum Next {
    /// There is more to do with what is here.
    Again,
    /// It takes another record.
    More,
}

fn next<Data>(status: UnbufferedStatus<'_, '_, Data>, flight: &mut Vec<u8>) -> (usize, Result<Next, Error>) {
    let next = match status.state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = flight.len();
            let mut encoded = data.encode(&mut []);
            if let Err(EncodeError::InsufficientSize(size)) = encoded {
                flight.resize(at + size.required_size, 0);
                encoded = data.encode(&mut flight[at..]);
            }
            encoded.map(|_| Next::Again).map_err(|error| Error::General(error.to_string()))
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Next::Again)
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Next::More),
        Ok(other) => Err(Error::General(format!("{other:?} in a handshake"))),
        Err(error) => Err(error),
    };
    (status.discard, next)
}

pub(super) struct Handshake {
    connection: Connection,
    /// What came and is not done with.
    incoming: Vec<u8>,
    /// How much of it rustls has been shown. That is one record at a time, so that it never sees one behind the
    /// handshake, which is for [`Records`].
    shown: usize,
}

/// A complete handshake, and what was received behind it.
pub(super) struct Complete {
    pub records: Records,
    pub rest: Vec<u8>,
}

impl Handshake {
    pub fn new(connection: Connection) -> Self {
        Self { connection, incoming: Vec::new(), shown: 0 }
    }

    /// Goes on with what was received. `flight` is to be sent then, also in front of an error.
    ///
    /// # Errors
    /// The peer was refused, or refuses us, or does not speak TLS.
    pub fn advance(&mut self, received: &[u8], flight: &mut Vec<u8>) -> Result<bool, Error> {
        self.incoming.extend_from_slice(received);
        loop {
            let (done, next) = self.connection.process(&mut self.incoming[..self.shown], flight);
            let done = done.min(self.shown);
            self.incoming.drain(..done);
            self.shown -= done;
            match next {
                Ok(Next::Again) => {}
                // Nothing may be left of what was shown: a message that is not complete would be lost.
                Ok(Next::More) if self.shown == 0 && !self.connection.is_handshaking() => return Ok(true),
                Ok(Next::More) => {
                    let hidden = &self.incoming[self.shown..];
                    match record_len(hidden) {
                        Ok(Some(len)) if len <= hidden.len() => self.shown += len,
                        Ok(_) if self.incoming.len() > MAX_WAITING => {
                            return Err(rustls::InvalidMessage::HandshakePayloadTooLarge.into());
                        }
                        Ok(_) => return Ok(false),
                        // rustls finds the same, and has an alert for it.
                        Err(_) => self.shown = self.incoming.len(),
                    }
                }
                Err(error) => {
                    // The alert comes behind the error, and nothing else must be asked for.
                    while self.connection.wants_write() {
                        self.connection.process(&mut self.incoming[..self.shown], flight).1?;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Must be complete.
    pub fn finish(self) -> Result<Complete, Error> {
        Ok(Complete { records: self.connection.into_records()?, rest: self.incoming })
    }
}
