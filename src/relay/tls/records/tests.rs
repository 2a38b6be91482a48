#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::{
    io::{Read, Write},
    sync::Arc,
};

use rustls::{
    CipherSuiteCommon, ClientConfig, ClientConnection, Connection as Peer, HandshakeKind, ServerConfig,
    ServerConnection, Tls12CipherSuite, Tls13CipherSuite,
    client::UnbufferedClientConnection,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{ALL_CIPHER_SUITES, cipher_suite, default_provider},
    },
    server::UnbufferedServerConnection,
};

use super::*;
use crate::relay::tls::{
    handshake::{Complete, Connection, Handshake},
    testing,
};

const NAME: &str = "relay.example.com";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ours {
    Client,
    Server,
}

const SIDES: [Ours; 2] = [Ours::Client, Ours::Server];

/// Both configurations for one suite, in which the one trusts the other.
struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Configs {
    fn new(suite: SupportedCipherSuite) -> Self {
        let provider = CryptoProvider { cipher_suites: vec![suite], ..default_provider() };
        let (server, client) = testing::configs(NAME, provider, &[suite.version()]);
        Self { client, server }
    }

    fn begin(&self, ours: Ours) -> (Handshake, Peer) {
        let (client, server, name) = (self.client.clone(), self.server.clone(), NAME.try_into().unwrap());
        let (connection, peer): (Connection, Peer) = match ours {
            Ours::Client => (
                UnbufferedClientConnection::new(client, name).unwrap().into(),
                ServerConnection::new(server).unwrap().into(),
            ),
            Ours::Server => (
                UnbufferedServerConnection::new(server).unwrap().into(),
                ClientConnection::new(client, name).unwrap().into(),
            ),
        };
        (Handshake::new(connection), peer)
    }

    fn connect(&self, ours: Ours) -> (Records, Peer) {
        let (records, peer, received) = self.connect_cut(ours, usize::MAX, &[]);
        assert!(received.is_empty());
        (records, peer)
    }

    /// `cut`: how much arrives at once. `early`: what the peer sends as soon as it may; it comes back as it arrived.
    fn connect_cut(&self, ours: Ours, cut: usize, early: &[u8]) -> (Records, Peer, Vec<u8>) {
        let (mut handshake, mut peer) = self.begin(ours);
        let (mut behind, mut flight, mut sent) = (Vec::new(), Vec::new(), false);
        let mut complete = handshake.advance(&[], &mut flight).unwrap();
        loop {
            hear(&mut peer, &std::mem::take(&mut flight)).unwrap();
            if !sent && !peer.is_handshaking() {
                peer.writer().write_all(early).unwrap();
                sent = true;
            }
            let wire = say(&mut peer);
            if wire.is_empty() {
                break;
            }
            for part in wire.chunks(cut) {
                if complete {
                    behind.extend_from_slice(part);
                } else {
                    complete = handshake.advance(part, &mut flight).unwrap();
                }
            }
        }
        assert!(complete && sent);
        let Complete { mut records, mut rest } = handshake.finish().unwrap();
        rest.extend_from_slice(&behind);
        let opened = records.open(&mut rest);
        assert_eq!(opened.consumed, rest.len());
        rest.truncate(opened.plaintext);
        (records, peer, rest)
    }
}

fn say(peer: &mut Peer) -> Vec<u8> {
    let mut wire = Vec::new();
    while peer.wants_write() {
        peer.write_tls(&mut wire).unwrap();
    }
    wire
}

fn hear(peer: &mut Peer, mut wire: &[u8]) -> Result<(), Error> {
    while !wire.is_empty() {
        assert!(peer.read_tls(&mut wire).unwrap() > 0);
        peer.process_new_packets()?;
    }
    Ok(())
}

fn said_by(peer: &mut Peer, data: &[u8]) -> Vec<u8> {
    peer.set_buffer_limit(None);
    peer.writer().write_all(data).unwrap();
    say(peer)
}

/// What the peer makes of it.
fn heard_by(peer: &mut Peer, mut wire: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while !wire.is_empty() {
        assert!(peer.read_tls(&mut wire).unwrap() > 0);
        peer.process_new_packets().unwrap();
        match peer.reader().read_to_end(&mut data) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => panic!("{error}"),
            _ => {}
        }
    }
    data
}

/// Seals all of `data`, with so much room at a time.
fn seal(records: &mut Records, mut data: &[u8], room: usize) -> Vec<u8> {
    let (mut wire, mut out) = (Vec::new(), vec![0xaa; room]);
    loop {
        let (taken, len) = records.seal_data(data, &mut out).unwrap();
        assert!(len > 0 || data.is_empty());
        wire.extend_from_slice(&out[..len]);
        data = &data[taken..];
        if data.is_empty() && !records.has_unsent() {
            return wire;
        }
    }
}

fn unsent(records: &mut Records) -> Vec<u8> {
    let mut out = vec![0; 1000];
    let len = records.take_unsent(&mut out);
    out.truncate(len);
    out
}

/// Opens what arrives in pieces of this length, keeping what has no end as a connection does.
fn open(records: &mut Records, wire: &[u8], cut: usize) -> Vec<u8> {
    let (mut data, mut rest) = (Vec::new(), Vec::new());
    for part in wire.chunks(cut) {
        rest.extend_from_slice(part);
        let opened = records.open(&mut rest);
        data.extend_from_slice(&rest[..opened.plaintext]);
        rest.drain(..opened.consumed);
    }
    assert!(rest.is_empty());
    data
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// The suite with keys that are good for so many records only.
fn limited(suite: SupportedCipherSuite, confidentiality_limit: u64) -> SupportedCipherSuite {
    let limit = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit,
    };
    match suite {
        SupportedCipherSuite::Tls13(suite) => {
            let common = limit(&suite.common);
            let Tls13CipherSuite { hkdf_provider, aead_alg, quic, .. } = *suite;
            SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite { common, hkdf_provider, aead_alg, quic })))
        }
        SupportedCipherSuite::Tls12(suite) => {
            let common = limit(&suite.common);
            let Tls12CipherSuite { prf_provider, kx, sign, aead_alg, .. } = *suite;
            let suite = Tls12CipherSuite { common, prf_provider, kx, sign, aead_alg };
            SupportedCipherSuite::Tls12(Box::leak(Box::new(suite)))
        }
    }
}

const TLS13: SupportedCipherSuite = cipher_suite::TLS13_AES_128_GCM_SHA256;
const TLS12: SupportedCipherSuite = cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;

/// Every suite that the generated certificate, an ECDSA one, can serve.
fn suites() -> impl Iterator<Item = SupportedCipherSuite> {
    ALL_CIPHER_SUITES.iter().copied().filter(|suite| !format!("{:?}", suite.suite()).contains("_RSA_"))
}

#[test]
fn every_suite_carries_data_of_all_lengths_both_ways() {
    assert_eq!(suites().count(), 6);
    for (suite, ours) in suites().flat_map(|suite| SIDES.map(|ours| (suite, ours))) {
        let (mut records, mut peer) = Configs::new(suite).connect(ours);
        for len in [1, 2, 64, 1000, FULL - 1, FULL, FULL + 1, 3 * FULL, 100_000] {
            let data = pattern(len);
            let wire = said_by(&mut peer, &data);
            assert!(open(&mut records, &wire, usize::MAX) == data, "{suite:?}, {ours:?}, {len} received");
            let wire = seal(&mut records, &data, 64 * 1024);
            assert!(heard_by(&mut peer, &wire) == data, "{suite:?}, {ours:?}, {len} sent");
        }
    }
}

#[test]
fn records_are_as_full_as_they_can_be_and_fit_where_they_are_said_to() {
    for suite in suites() {
        let (mut records, mut peer) = Configs::new(suite).connect(Ours::Server);
        for room in [64 * 1024, 68 * 1024] {
            let data = pattern(Records::fits(room));
            let (taken, len) = records.seal_data(&data, &mut vec![0; room]).unwrap();
            assert_eq!(taken, data.len());
            assert!(len <= taken + taken / FULL * OVERHEAD, "{suite:?}");
        }
        assert_eq!(Records::fits(64 * 1024), 3 * FULL);
        assert_eq!(Records::fits(65 * 1024), 4 * FULL);
        // A small message is one record, whatever the room; one that does not fit is cut, not lost.
        assert!(seal(&mut records, &[7; 64], 65_536).len() <= 64 + OVERHEAD);
        let _ = said_by(&mut peer, &[1]);
    }
}

#[test]
fn little_room_loses_nothing() {
    for (suite, ours) in [(TLS12, Ours::Server), (TLS13, Ours::Client)] {
        let (mut records, mut peer) = Configs::new(suite).connect(ours);
        let data = pattern(50_000);
        let wire = seal(&mut records, &data, OVERHEAD + KEY_UPDATE.len() + 1000);
        assert!(heard_by(&mut peer, &wire) == data);
    }
}

#[test]
fn ciphertext_may_be_cut_anywhere() {
    for (suite, ours) in suites().flat_map(|suite| SIDES.map(|ours| (suite, ours))) {
        let (mut records, mut peer) = Configs::new(suite).connect(ours);
        let messages = [pattern(1), pattern(40), pattern(300)];
        let mut len = 1;
        while len < 450 {
            let wire: Vec<u8> = messages.iter().flat_map(|data| said_by(&mut peer, data)).collect();
            assert_eq!(open(&mut records, &wire, len), messages.concat(), "{suite:?}, {ours:?}, cut at {len}");
            len += 1;
        }
    }
}

#[test]
fn a_handshake_may_be_cut_anywhere_and_data_may_follow_at_once() {
    for (suite, ours) in [TLS12, TLS13].into_iter().flat_map(|suite| SIDES.map(|ours| (suite, ours))) {
        let configs = Configs::new(suite);
        for cut in [1, 2, 3, 5, 7, 64, 333, 1000, 4096, usize::MAX] {
            let early = pattern(40_000);
            let (mut records, mut peer, received) = configs.connect_cut(ours, cut, &early);
            assert!(received == early, "{suite:?}, {ours:?}, cut {cut}");
            let wire = seal(&mut records, b"hello", 65_536);
            assert_eq!(heard_by(&mut peer, &wire), b"hello");
        }
    }
}

#[test]
fn the_peer_may_change_its_keys_and_ask_for_ours_at_any_time() {
    for (suite, ours) in suites().take(3).flat_map(|suite| SIDES.map(|ours| (suite, ours))) {
        let (mut records, mut peer) = Configs::new(suite).connect(ours);
        for cut in [1, 3, 10, 1000, usize::MAX] {
            let mut wire = said_by(&mut peer, b"before ");
            peer.refresh_traffic_keys().unwrap();
            peer.refresh_traffic_keys().unwrap();
            wire.extend(said_by(&mut peer, b"behind"));
            assert_eq!(open(&mut records, &wire, cut), b"before behind", "{suite:?}, {ours:?}");
            // Ours goes out with the next data, once.
            assert!(!records.has_unsent());
            let plain = HEADER + 5 + 1 + TAG;
            let wire = seal(&mut records, b"hello", 65_536);
            assert_eq!(wire.len(), plain + KEY_UPDATE.len() + HEADER + 1 + TAG);
            assert_eq!(heard_by(&mut peer, &wire), b"hello");
            let wire = seal(&mut records, b"again", 65_536);
            assert_eq!(wire.len(), plain);
            assert_eq!(heard_by(&mut peer, &wire), b"again");
        }
    }
}

#[test]
fn keys_are_changed_before_they_are_used_up() {
    let configs = Configs::new(limited(TLS13, 5));
    for ours in SIDES {
        let (mut records, mut peer) = configs.connect(ours);
        for n in 0..50 {
            let data = pattern(n * 1000);
            let wire = seal(&mut records, &data, 65_536);
            assert!(heard_by(&mut peer, &wire) == data, "{ours:?}, {n}");
            let wire = said_by(&mut peer, &data);
            assert!(open(&mut records, &wire, usize::MAX) == data, "{ours:?}, {n}");
        }
    }
    // TLS 1.2 has no way to, so that is the end.
    let (mut records, _peer) = Configs::new(limited(TLS12, 5)).connect(Ours::Server);
    let mut out = [0; 100];
    let sealed = (0..10).take_while(|_| records.seal_data(b"x", &mut out).is_ok()).count();
    assert_eq!(sealed, 3, "one of five was Finished, and one is for the last words");
    records.close();
    assert!(records.has_unsent());
}

#[test]
fn a_peer_that_changes_its_keys_without_end_is_stopped() {
    let (mut records, mut peer) = Configs::new(TLS13).connect(Ours::Server);
    let mut update = |data: &[u8]| {
        peer.refresh_traffic_keys().unwrap();
        let wire = if data.is_empty() { say(&mut peer) } else { said_by(&mut peer, data) };
        open(&mut records, &wire, usize::MAX);
        records.end().is_none()
    };
    assert!((0..100).all(|_| update(b"data between")));
    assert_eq!((0..100).take_while(|_| update(b"")).count(), usize::from(KEY_UPDATES));
    let misbehaved = Error::PeerMisbehaved(PeerMisbehaved::TooManyKeyUpdateRequests);
    assert!(matches!(records.end(), Some(End::Broken(error)) if *error == misbehaved));
}

#[test]
fn close_notify_ends_what_comes_in_front_of_it() {
    for (suite, ours) in [TLS12, TLS13].into_iter().flat_map(|suite| SIDES.map(|ours| (suite, ours))) {
        let (mut records, mut peer) = Configs::new(suite).connect(ours);
        let mut wire = said_by(&mut peer, b"the last words");
        peer.send_close_notify();
        wire.extend(say(&mut peer));
        wire.extend_from_slice(b"whatever");
        let opened = records.open(&mut wire);
        assert_eq!(opened, Opened { plaintext: 14, consumed: wire.len() });
        assert_eq!(&wire[..14], b"the last words");
        assert!(matches!(records.end(), Some(End::Closed)));
        // Our side is still open, and its end is told once.
        let wire = seal(&mut records, b"more", 65_536);
        assert_eq!(heard_by(&mut peer, &wire), b"more");
        records.close();
        records.close();
        hear(&mut peer, &unsent(&mut records)).unwrap();
        assert!(!records.has_unsent());
        assert_eq!(peer.reader().read(&mut [0; 9]).unwrap(), 0, "close_notify has come");
    }
}

#[test]
fn what_comes_in_front_of_a_broken_record_counts() {
    for (suite, ours) in suites().flat_map(|suite| SIDES.map(|ours| (suite, ours))) {
        let (mut records, mut peer) = Configs::new(suite).connect(ours);
        let mut wire = said_by(&mut peer, b"good");
        let mut bad = said_by(&mut peer, b"bad");
        *bad.last_mut().unwrap() ^= 1;
        wire.extend(bad);
        wire.extend(said_by(&mut peer, b"behind"));
        let opened = records.open(&mut wire);
        assert_eq!(opened, Opened { plaintext: 4, consumed: wire.len() });
        assert_eq!(&wire[..4], b"good");
        assert!(matches!(records.end(), Some(End::Broken(Error::DecryptError))));
        let alert = unsent(&mut records);
        assert_eq!(hear(&mut peer, &alert), Err(Error::AlertReceived(AlertDescription::BadRecordMac)));
        // Nothing is said behind a fatal alert.
        assert_eq!(records.seal_data(b"x", &mut [0; 100]), Err(Error::DecryptError));
        records.close();
        assert!(!records.has_unsent());
    }
}

#[test]
fn what_is_no_record_is_answered_with_an_alert() {
    let cases: [(&[u8], Error, AlertDescription); 6] = [
        (b"GET / HTTP/1.1\r\n", InvalidMessage::InvalidContentType.into(), AlertDescription::DecodeError),
        (&[23, 4, 0, 0, 9], InvalidMessage::UnknownProtocolVersion.into(), AlertDescription::DecodeError),
        (&[21, 3, 3, 0, 0], InvalidMessage::InvalidEmptyPayload.into(), AlertDescription::DecodeError),
        (&[23, 3, 3, 0x48, 0], InvalidMessage::MessageTooLarge.into(), AlertDescription::DecodeError),
        (&[23, 3, 3, 0, 1, 0], Error::DecryptError, AlertDescription::BadRecordMac),
        (
            &[20, 3, 3, 0, 1, 1],
            Error::InappropriateMessage {
                expect_types: vec![ContentType::ApplicationData, ContentType::Handshake],
                got_type: ContentType::ChangeCipherSpec,
            },
            AlertDescription::UnexpectedMessage,
        ),
    ];
    for (suite, ours) in suites().flat_map(|suite| SIDES.map(|ours| (suite, ours))) {
        let configs = Configs::new(suite);
        for (bytes, error, alert) in &cases {
            let (mut records, mut peer) = configs.connect(ours);
            records.open(&mut bytes.to_vec());
            assert!(matches!(records.end(), Some(End::Broken(broken)) if broken == error), "{bytes:?}");
            let wire = unsent(&mut records);
            assert_eq!(hear(&mut peer, &wire), Err(Error::AlertReceived(*alert)), "{suite:?} {ours:?}");
        }
    }
}

#[test]
fn alerts_are_taken_as_they_are_meant() {
    let fatal = |description| (FATAL, description, Some(Error::AlertReceived(description)));
    for suite in [TLS12, TLS13] {
        let outlawed = Error::AlertReceived(AlertDescription::NoRenegotiation);
        let cases = [
            fatal(AlertDescription::HandshakeFailure),
            fatal(AlertDescription::Unknown(200)),
            (WARNING, AlertDescription::UserCanceled, None),
            (WARNING, AlertDescription::NoRenegotiation, (suite == TLS13).then_some(outlawed)),
            (3, AlertDescription::InternalError, Some(Error::AlertReceived(AlertDescription::InternalError))),
        ];
        let configs = Configs::new(suite);
        for (level, description, expected) in cases {
            let (mut records, mut peer) = ours_both(&configs);
            peer.alert(level, description);
            let mut wire = unsent(&mut peer);
            records.open(&mut wire);
            let error = records.end().map(|end| match end {
                End::Broken(error) => error.clone(),
                End::Closed => panic!("{level} {description:?} is no close_notify"),
            });
            assert_eq!(error, expected, "{suite:?}: {level} {description:?}");
        }
        let (mut records, mut peer) = ours_both(&configs);
        let harmless = (0..100).take_while(|_| {
            peer.alert(WARNING, AlertDescription::UserCanceled);
            records.open(&mut unsent(&mut peer));
            records.end().is_none()
        });
        assert_eq!(harmless.count(), usize::from(WARNINGS));
    }
}

#[test]
fn nobody_negotiates_again() {
    let (mut client, mut server) = ours_both(&Configs::new(TLS12));
    let hello_request = [0, 0, 0, 0];
    for n in 0..2 {
        let mut record = vec![0; 100];
        let len = server.sealing.seal(ContentType::Handshake, &hello_request, &mut record).unwrap();
        client.open(&mut record[..len]);
        assert_eq!(client.end().is_none(), n == 0, "once is answered with a warning, twice is too often");
        server.open(&mut unsent(&mut client));
    }
    assert_eq!(server.warnings, 1);
    assert!(matches!(server.end(), Some(End::Broken(Error::AlertReceived(AlertDescription::UnexpectedMessage)))));
}

#[test]
fn handshake_messages_are_put_together_and_must_not_be_mixed_with_others() {
    use ContentType::{ApplicationData, Handshake};
    let configs = Configs::new(TLS13);
    let part = |server: &mut Records, typ, bytes: &[u8]| {
        let mut record = vec![0; 100];
        let len = server.sealing.seal(typ, bytes, &mut record).unwrap();
        record.truncate(len);
        record
    };
    // A key_update byte by byte.
    let (mut client, mut server) = ours_both(&configs);
    for byte in KEY_UPDATE {
        client.open(&mut part(&mut server, Handshake, &[byte]));
        assert!(client.end().is_none());
    }
    server.sealing = Sealing::new(server.keys.suite(), server.keys.next_to_seal().unwrap()).unwrap();
    let wire = seal(&mut server, b"new keys", 1000);
    assert_eq!(open(&mut client, &wire, usize::MAX), b"new keys");

    let broken = |records: &[(ContentType, &[u8])]| {
        let (mut client, mut server) = ours_both(&configs);
        for (typ, bytes) in records {
            client.open(&mut part(&mut server, *typ, bytes));
        }
        match client.end() {
            Some(End::Broken(error)) => error.clone(),
            other => panic!("{records:?}: {other:?}"),
        }
    };
    let mixed = broken(&[(Handshake, &[24, 0, 0]), (ApplicationData, b"x")]);
    assert_eq!(mixed, PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
    let behind = broken(&[(Handshake, &[24, 0, 0, 1, 0, 24])]);
    assert_eq!(behind, PeerMisbehaved::KeyEpochWithPendingFragment.into());
    assert_eq!(broken(&[(Handshake, &[24, 0, 0, 1, 2])]), InvalidMessage::InvalidKeyUpdate.into());
    assert_eq!(broken(&[(Handshake, &[4, 1, 0, 0])]), InvalidMessage::HandshakePayloadTooLarge.into());
    assert!(matches!(broken(&[(Handshake, &[1, 0, 0, 0])]), Error::InappropriateHandshakeMessage { .. }));
    let empty = [(Handshake, &[][..]); EMPTY_RECORDS as usize + 1];
    assert_eq!(broken(&empty), PeerMisbehaved::TooManyEmptyFragments.into());
    // What begins a message that never ends takes no more than a message may have.
    let (mut client, mut server) = ours_both(&configs);
    client.open(&mut part(&mut server, Handshake, &[4, 0, 255, 255]));
    assert!(client.end().is_none() && client.message.capacity() <= 64);
}

/// A client and a server that are both ours.
fn ours_both(configs: &Configs) -> (Records, Records) {
    let (mut client, _) = configs.begin(Ours::Client);
    let (mut server, _) = configs.begin(Ours::Server);
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let (mut client_complete, mut server_complete) = (client.advance(&[], &mut to_server).unwrap(), false);
    while !(client_complete && server_complete) {
        server_complete |= server.advance(&std::mem::take(&mut to_server), &mut to_client).unwrap();
        if !client_complete {
            client_complete = client.advance(&std::mem::take(&mut to_client), &mut to_server).unwrap();
        }
    }
    let (mut client, server) = (client.finish().unwrap(), server.finish().unwrap().records);
    client.rest.extend(to_client);
    let opened = client.records.open(&mut client.rest);
    assert_eq!(opened, Opened { plaintext: 0, consumed: client.rest.len() });
    (client.records, server)
}

#[test]
fn sessions_are_resumed_by_tickets() {
    for suite in [TLS12, TLS13] {
        let mut configs = Configs::new(suite);
        let mut server = ServerConfig::clone(&configs.server);
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        configs.server = Arc::new(server);
        for ours in SIDES {
            let (_, first) = configs.connect(ours);
            let (_, second) = configs.connect(ours);
            assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed), "{suite:?}, {ours:?}");
            drop(first);
        }
    }
}

#[test]
fn whoever_is_refused_in_the_handshake_is_told() {
    for suite in [TLS12, TLS13] {
        let (one, other) = (Configs::new(suite), Configs::new(suite));
        // Our client does not trust that server.
        let (mut client, _) = one.begin(Ours::Client);
        let (_, mut server) = other.begin(Ours::Client);
        let mut flight = Vec::new();
        assert_eq!(client.advance(&[], &mut flight), Ok(false));
        hear(&mut server, &std::mem::take(&mut flight)).unwrap();
        let refused = client.advance(&say(&mut server), &mut flight).unwrap_err();
        assert!(matches!(refused, Error::InvalidCertificate(_)), "{refused:?}");
        assert!(matches!(hear(&mut server, &flight), Err(Error::AlertReceived(_))));
        // It does not trust ours.
        let (mut server, _) = one.begin(Ours::Server);
        let (_, mut client) = other.begin(Ours::Server);
        let mut flight = Vec::new();
        server.advance(&say(&mut client), &mut flight).unwrap();
        hear(&mut client, &flight).unwrap_err();
        let told = server.advance(&say(&mut client), &mut Vec::new()).unwrap_err();
        assert!(matches!(told, Error::AlertReceived(_)), "{told:?}");
    }
    // No TLS at all, whole or in pieces.
    let configs = Configs::new(TLS13);
    for cut in [1, 100] {
        let (mut server, mut flight) = (configs.begin(Ours::Server).0, Vec::new());
        let mut parts = b"SSH-2.0-OpenSSH_9.9\r\n".chunks(cut);
        let error = parts.find_map(|part| server.advance(part, &mut flight).err()).unwrap();
        assert_eq!(error, InvalidMessage::InvalidContentType.into());
        assert_eq!(flight, [21, 3, 3, 0, 2, FATAL, AlertDescription::DecodeError.into()]);
    }
}

#[test]
fn a_handshake_that_never_ends_takes_little_memory() {
    let (mut server, mut flight) = (Configs::new(TLS13).begin(Ours::Server).0, Vec::new());
    // A client hello of 64 KiB, one byte to a record.
    let mut wire = [22, 3, 1, 0, 4, 1, 0, 255, 255].to_vec();
    wire.extend([22, 3, 1, 0, 1, 0].repeat(65_000));
    let taken = wire.chunks(1000).take_while(|part| server.advance(part, &mut flight).is_ok()).count();
    assert!(taken <= 100, "{taken} KB");
}

#[test]
fn an_idle_connection_is_small() {
    // Besides what is on the heap: a decrypter, and rustls' secrets.
    let size = size_of::<crate::relay::tls::Tls>();
    assert!(size <= 1536, "{size} bytes");
}
