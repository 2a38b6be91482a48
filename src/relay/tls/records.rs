//! The records of one connection once its handshake is complete: opened where they lie, sealed where they are to be.
//!
//! rustls has agreed on the keys, and still derives new ones and keeps session tickets. What it cannot do is leave the
//! plaintext in the buffer that the ciphertext was received into, and keep nothing else. Does no I/O. Whatever a peer
//! may send besides data follows what rustls itself makes of it: the same errors, alerts and limits.
use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce as AeadNonce, UnboundKey};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, HandshakeType, InvalidMessage,
    PeerMisbehaved, ProtocolVersion, SupportedCipherSuite,
    client::ClientConnectionData,
    crypto::cipher::{InboundOpaqueMessage, Iv, MessageDecrypter, Nonce, make_tls12_aad, make_tls13_aad},
    kernel::KernelConnection,
    server::ServerConnectionData,
};

#[cfg(test)]
mod tests;

/// Type, version and length.
const HEADER: usize = 5;
/// The plaintext of a full record.
const FULL: usize = 16 * 1024;
/// The largest payload that a record may claim to have (RFC 5246, section 6.2.3).
const MAX_PAYLOAD: usize = FULL + 2048;
/// What a record of ours has besides its plaintext, at most: header, explicit nonce or inner type, tag.
const OVERHEAD: usize = HEADER + EXPLICIT_NONCE + TAG;
const EXPLICIT_NONCE: usize = 8;
const TAG: usize = 16;
/// Type and length of a handshake message.
const MESSAGE_HEADER: usize = 4;
const MAX_MESSAGE: usize = 0xffff;

const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// A key_update that asks for nothing in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What a peer may send without limit in theory only (the numbers are those of rustls and BoringSSL).
const EMPTY_RECORDS: u8 = 32;
const WARNINGS: u8 = 4;
const KEY_UPDATES: u8 = 32;
const RENEGOTIATIONS: u8 = 1;

/// The length of the record that begins here, with its header; `None` if the header is not complete.
///
/// # Errors
/// This is no TLS.
pub(super) fn record_len(bytes: &[u8]) -> Result<Option<usize>, InvalidMessage> {
    let Some(&[typ, major, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let typ = ContentType::from(typ);
    let len = usize::from(u16::from_be_bytes([high, low]));
    match typ {
        ContentType::Unknown(_) => Err(InvalidMessage::InvalidContentType),
        _ if major != 3 => Err(InvalidMessage::UnknownProtocolVersion),
        _ if len == 0 && typ != ContentType::ApplicationData => Err(InvalidMessage::InvalidEmptyPayload),
        _ if len >= MAX_PAYLOAD => Err(InvalidMessage::MessageTooLarge),
        _ => Ok(Some(HEADER + len)),
    }
}

/// What becomes of the keys, and who keeps the tickets.
pub(super) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn version(&self) -> ProtocolVersion {
        match self {
            Self::Client(keys) => keys.protocol_version(),
            Self::Server(keys) => keys.protocol_version(),
        }
    }

    fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Client(keys) => keys.negotiated_cipher_suite(),
            Self::Server(keys) => keys.negotiated_cipher_suite(),
        }
    }

    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }
    }

    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }
    }
}

/// Why nothing can be received any more.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The peer sent close_notify.
    Closed,
    Broken(Error),
}

/// What became of the ciphertext in a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opened {
    /// The length of the plaintext, which now lies at the buffer's beginning.
    pub plaintext: usize,
    /// How much ciphertext that took. What is behind it is a record whose end has not come yet.
    pub consumed: usize,
}

/// What is wrong with a record, and the alert that says so to the peer.
struct Wrong(Option<AlertDescription>, Error);

pub(super) struct Records {
    keys: Keys,
    opening: Opening,
    sealing: Sealing,
    /// The beginning of a handshake message whose rest has not come yet.
    message: Vec<u8>,
    /// Sealed, to go out in front of everything that is sealed from now on.
    unsent: Vec<u8>,
    /// The peer has asked for a key_update. It goes out with the next data, so that no peer can have us send any
    /// number of them.
    key_update_due: bool,
    /// close_notify or a fatal alert of ours was sealed.
    said_end: bool,
    end: Option<End>,
    empty_records: u8,
    warnings: u8,
    key_updates: u8,
    renegotiations: u8,
}

impl Records {
    /// # Errors
    /// The cipher suite is one that is not known here.
    pub fn new(keys: Keys, secrets: ExtractedSecrets) -> Result<Self, Error> {
        let suite = keys.suite();
        Ok(Self {
            opening: Opening::new(suite, secrets.rx)?,
            sealing: Sealing::new(suite, secrets.tx)?,
            keys,
            message: Vec::new(),
            unsent: Vec::new(),
            key_update_due: false,
            said_end: false,
            end: None,
            empty_records: 0,
            warnings: 0,
            key_updates: 0,
            renegotiations: 0,
        })
    }

    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Opens all whole records in `bytes`. What comes in front of a broken one, or of close_notify, counts; behind
    /// that nothing does, and all is consumed.
    pub fn open(&mut self, bytes: &mut [u8]) -> Opened {
        let mut opened = Opened::default();
        while self.end.is_none() {
            let rest = &mut bytes[opened.consumed..];
            let len = match record_len(rest) {
                Ok(Some(len)) if len <= rest.len() => len,
                Ok(_) => return opened,
                Err(error) => {
                    self.fail(Wrong(Some(AlertDescription::DecodeError), error.into()));
                    break;
                }
            };
            match self.open_record(&mut rest[..len]) {
                Ok(data) => {
                    let data = opened.consumed + data.start..opened.consumed + data.end;
                    let len_of_data = data.len();
                    bytes.copy_within(data, opened.plaintext);
                    opened.plaintext += len_of_data;
                }
                Err(wrong) => self.fail(wrong),
            }
            opened.consumed += len;
        }
        Opened { consumed: bytes.len(), ..opened }
    }

    /// How much plaintext is sealed into so much room at most, when nothing else waits.
    pub fn fits(room: usize) -> usize {
        room / (FULL + OVERHEAD) * FULL
    }

    /// Seals what waits to be sent, and as much of `data` as fits, into `out`. How much of it, and how much that is
    /// there.
    ///
    /// # Errors
    /// The keys are used up, or the connection is broken.
    pub fn seal_data(&mut self, data: &[u8], out: &mut [u8]) -> Result<(usize, usize), Error> {
        if let Some(End::Broken(error)) = &self.end {
            return Err(error.clone());
        }
        let mut written = self.take_unsent(out);
        let mut taken = 0;
        while taken < data.len() {
            if self.key_update_due || self.sealing.is_used_up() {
                if out.len() - written < KEY_UPDATE.len() + OVERHEAD {
                    break;
                }
                written += self.seal_key_update(&mut out[written..])?;
            }
            let len = (data.len() - taken).min(FULL).min((out.len() - written).saturating_sub(OVERHEAD));
            if len == 0 {
                break;
            }
            written +=
                self.sealing.seal(ContentType::ApplicationData, &data[taken..taken + len], &mut out[written..])?;
            taken += len;
        }
        Ok((taken, written))
    }

    /// Whether something waits that is no data.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Moves what waits, and is no data, into `out`, as much as fits.
    pub fn take_unsent(&mut self, out: &mut [u8]) -> usize {
        let len = self.unsent.len().min(out.len());
        out[..len].copy_from_slice(&self.unsent[..len]);
        self.unsent.drain(..len);
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        len
    }

    /// Has close_notify wait to be sent, unless the end was told already.
    pub fn close(&mut self) {
        if !self.said_end {
            self.said_end = true;
            self.alert(WARNING, AlertDescription::CloseNotify);
        }
    }

    fn fail(&mut self, Wrong(alert, error): Wrong) {
        if let (Some(alert), false) = (alert, self.said_end) {
            self.said_end = true;
            self.alert(FATAL, alert);
        }
        self.end = Some(End::Broken(error));
    }

    fn alert(&mut self, level: u8, description: AlertDescription) {
        let alert = [level, description.into()];
        let mut record = [0; 2 + OVERHEAD];
        // Keys that are used up say nothing any more.
        if let Ok(len) = self.sealing.seal(ContentType::Alert, &alert, &mut record) {
            self.unsent.extend_from_slice(&record[..len]);
        }
    }

    fn seal_key_update(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        if self.keys.version() != ProtocolVersion::TLSv1_3 {
            return Err(Error::EncryptError);
        }
        let len = self.sealing.seal(ContentType::Handshake, &KEY_UPDATE, out)?;
        self.sealing = Sealing::new(self.keys.suite(), self.keys.next_to_seal()?)?;
        self.key_update_due = false;
        Ok(len)
    }

    /// Opens one record, and says where in it there is data.
    fn open_record(&mut self, record: &mut [u8]) -> Result<Range<usize>, Wrong> {
        let start = record.as_ptr().addr();
        let plain = self.opening.open(record)?;
        let (typ, payload) = (plain.typ, plain.payload);
        if !self.message.is_empty() && typ != ContentType::Handshake {
            return Err(misbehaved(PeerMisbehaved::MessageInterleavedWithHandshakeMessage));
        }
        if payload.is_empty() {
            count(&mut self.empty_records, EMPTY_RECORDS, PeerMisbehaved::TooManyEmptyFragments)?;
        } else {
            self.empty_records = 0;
        }
        match typ {
            ContentType::ApplicationData => {
                self.key_updates = 0;
                let at = payload.as_ptr().addr() - start;
                return Ok(at..at + payload.len());
            }
            ContentType::Handshake => self.receive_messages(payload)?,
            ContentType::Alert => self.receive_alert(payload)?,
            got_type => {
                let expect_types = vec![ContentType::ApplicationData, ContentType::Handshake];
                let error = Error::InappropriateMessage { expect_types, got_type };
                return Err(Wrong(Some(AlertDescription::UnexpectedMessage), error));
            }
        }
        Ok(0..0)
    }

    fn receive_alert(&mut self, payload: &[u8]) -> Result<(), Wrong> {
        let &[level, description] = payload else {
            let error = InvalidMessage::TrailingData("AlertMessagePayload");
            return Err(Wrong(Some(AlertDescription::DecodeError), error.into()));
        };
        let description = AlertDescription::from(description);
        let received = Error::AlertReceived(description);
        match level {
            WARNING | FATAL if description == AlertDescription::CloseNotify => self.end = Some(End::Closed),
            WARNING => {
                count(&mut self.warnings, WARNINGS, PeerMisbehaved::TooManyWarningAlertsReceived)?;
                let is_tls13 = self.keys.version() == ProtocolVersion::TLSv1_3;
                if is_tls13 && description != AlertDescription::UserCanceled {
                    return Err(Wrong(Some(AlertDescription::DecodeError), received));
                }
            }
            FATAL => return Err(Wrong(None, received)),
            _ => return Err(Wrong(Some(AlertDescription::IllegalParameter), received)),
        }
        Ok(())
    }

    /// Receives handshake messages, or a part of one.
    fn receive_messages(&mut self, payload: &[u8]) -> Result<(), Wrong> {
        let mut pending = std::mem::take(&mut self.message);
        pending.extend_from_slice(payload);
        let mut rest = &pending[..];
        while let Some((&[typ, a, b, c], behind)) = rest.split_first_chunk::<MESSAGE_HEADER>() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if len > MAX_MESSAGE {
                let error = InvalidMessage::HandshakePayloadTooLarge;
                return Err(Wrong(Some(AlertDescription::DecodeError), error.into()));
            }
            let Some((body, behind)) = behind.split_at_checked(len) else { break };
            self.receive_message(HandshakeType::from(typ), body, behind.is_empty())?;
            rest = behind;
        }
        self.message = rest.to_vec();
        Ok(())
    }

    /// `is_last`: nothing of another message is behind it in the record.
    fn receive_message(&mut self, got_type: HandshakeType, body: &[u8], is_last: bool) -> Result<(), Wrong> {
        let is_tls13 = self.keys.version() == ProtocolVersion::TLSv1_3;
        match (&mut self.keys, got_type) {
            (_, HandshakeType::KeyUpdate) if is_tls13 => self.receive_key_update(body, is_last),
            (Keys::Client(keys), HandshakeType::NewSessionTicket) if is_tls13 => {
                let taken = keys.handle_new_session_ticket(body);
                taken.map_err(|error| Wrong(Some(AlertDescription::DecodeError), error))
            }
            (Keys::Client(_), HandshakeType::HelloRequest) | (Keys::Server(_), HandshakeType::ClientHello)
                if !is_tls13 =>
            {
                let limit = PeerMisbehaved::TooManyRenegotiationRequests;
                count(&mut self.renegotiations, RENEGOTIATIONS, limit)?;
                self.alert(WARNING, AlertDescription::NoRenegotiation);
                Ok(())
            }
            _ => {
                let expect_types = vec![HandshakeType::KeyUpdate];
                let error = Error::InappropriateHandshakeMessage { expect_types, got_type };
                Err(Wrong(Some(AlertDescription::UnexpectedMessage), error))
            }
        }
    }

    fn receive_key_update(&mut self, body: &[u8], is_last: bool) -> Result<(), Wrong> {
        if !is_last {
            return Err(misbehaved(PeerMisbehaved::KeyEpochWithPendingFragment));
        }
        count(&mut self.key_updates, KEY_UPDATES, PeerMisbehaved::TooManyKeyUpdateRequests)?;
        match body {
            [0] => {}
            [1] => self.key_update_due = true,
            _ => {
                let error = InvalidMessage::InvalidKeyUpdate.into();
                return Err(Wrong(Some(AlertDescription::IllegalParameter), error));
            }
        }
        let next = self.keys.next_to_open().and_then(|secrets| Opening::new(self.keys.suite(), secrets));
        self.opening = next.map_err(|error| Wrong(Some(AlertDescription::InternalError), error))?;
        Ok(())
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Nothing of a key.
        f.debug_struct("Records").field("end", &self.end).finish_non_exhaustive()
    }
}

fn misbehaved(how: PeerMisbehaved) -> Wrong {
    Wrong(Some(AlertDescription::UnexpectedMessage), how.into())
}

/// Counts one more of what a peer may do so often.
fn count(counter: &mut u8, limit: u8, too_many: PeerMisbehaved) -> Result<(), Wrong> {
    if *counter == limit {
        return Err(misbehaved(too_many));
    }
    *counter += 1;
    Ok(())
}

/// Opens records with one key, in their order.
struct Opening {
    key: Box<dyn MessageDecrypter>,
    sequence: u64,
}

impl Opening {
    fn new(suite: SupportedCipherSuite, (sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => return Err(unknown_suite()),
        };
        let key = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.aead_alg.decrypter(key, iv),
            SupportedCipherSuite::Tls12(suite) => {
                let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
                suite.aead_alg.decrypter(key, &iv.as_ref()[..fixed])
            }
        };
        Ok(Self { key, sequence })
    }

    fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<rustls::crypto::cipher::InboundPlainMessage<'a>, Wrong> {
        let (header, payload) = record.split_at_mut(HEADER);
        let typ = ContentType::from(header[0]);
        let version = ProtocolVersion::from(u16::from_be_bytes([header[1], header[2]]));
        let message = InboundOpaqueMessage::new(typ, version, payload);
        // It is never encrypted, and has no place behind the handshake: for the caller to refuse.
        if typ == ContentType::ChangeCipherSpec {
            return Ok(message.into_plain_message());
        }
        let opened = self.key.decrypt(message, self.sequence);
        self.sequence += 1;
        opened.map_err(|error| {
            let alert = match error {
                Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
                Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
                _ => AlertDescription::BadRecordMac,
            };
            Wrong(Some(alert), error)
        })
    }
}

/// Seals records with one key. rustls' own sealing allocates each record, and the caller copies it out.
struct Sealing {
    key: LessSafeKey,
    iv: Iv,
    form: Form,
    sequence: u64,
    /// How many records may be sealed with the key.
    limit: u64,
}

/// How a record is laid out, and what of it is authenticated.
#[derive(Clone, Copy)]
enum Form {
    Tls13,
    Tls12,
    /// TLS 1.2 with AES-GCM: a part of the nonce is in the record (RFC 5288, section 3).
    Tls12ExplicitNonce,
}

impl Sealing {
    fn new(suite: SupportedCipherSuite, (sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(unknown_suite()),
        };
        let (form, limit) = match suite {
            SupportedCipherSuite::Tls13(suite) => (Form::Tls13, suite.common.confidentiality_limit),
            SupportedCipherSuite::Tls12(suite) => {
                let explicit = suite.aead_alg.key_block_shape().explicit_nonce_len > 0;
                let form = if explicit { Form::Tls12ExplicitNonce } else { Form::Tls12 };
                (form, suite.common.confidentiality_limit)
            }
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unknown_suite())?;
        Ok(Self { key: LessSafeKey::new(key), iv, form, sequence, limit })
    }

    /// Only a key_update, or an alert, may still be sealed.
    fn is_used_up(&self) -> bool {
        self.sequence.saturating_add(1) >= self.limit
    }

    /// Makes one record of `plaintext`, at most [`FULL`] of it, with [`OVERHEAD`] more of room in `out`. Its length.
    fn seal(&mut self, typ: ContentType, plaintext: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let sequence = self.sequence;
        // A nonce is used once. Beyond the limit there is room for the last words.
        self.sequence = sequence.checked_add(1).filter(|next| *next < u64::MAX).ok_or(Error::EncryptError)?;
        let nonce = Nonce::new(&self.iv, sequence).0;
        let (outer, before, after) = match self.form {
            Form::Tls13 => (ContentType::ApplicationData, 0, 1),
            Form::Tls12 => (typ, 0, 0),
            Form::Tls12ExplicitNonce => (typ, EXPLICIT_NONCE, 0),
        };
        let inner = before + plaintext.len() + after;
        let len = inner + TAG;
        let (header, payload) = out.split_at_mut(HEADER);
        header[0] = outer.into();
        header[1..3].copy_from_slice(&u16::from(ProtocolVersion::TLSv1_2).to_be_bytes());
        let len_bytes = u16::try_from(len).map_err(|_| Error::EncryptError)?.to_be_bytes();
        header[3..].copy_from_slice(&len_bytes);
        payload[..before].copy_from_slice(&nonce[nonce.len() - before..]);
        payload[before..before + plaintext.len()].copy_from_slice(plaintext);
        payload[before + plaintext.len()..inner].fill(typ.into());
        let sealed = &mut payload[before..inner];
        let nonce = AeadNonce::assume_unique_for_key(nonce);
        let tag = match self.form {
            Form::Tls13 => {
                let aad = Aad::from(make_tls13_aad(len));
                self.key.seal_in_place_separate_tag(nonce, aad, sealed)
            }
            Form::Tls12 | Form::Tls12ExplicitNonce => {
                let aad = make_tls12_aad(sequence, typ, ProtocolVersion::TLSv1_2, plaintext.len());
                self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), sealed)
            }
        };
        let tag = tag.map_err(|_| Error::EncryptError)?;
        payload[inner..len].copy_from_slice(tag.as_ref());
        Ok(HEADER + len)
    }
}

fn unknown_suite() -> Error {
    Error::General("a cipher suite that is not known".into())
}
