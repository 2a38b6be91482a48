//! Request heads are the same wherever they are cut, and nothing of the stream is lost between them.
#![no_main]
use libfuzzer_sys::fuzz_target;
use ringway::gateway::http::{BadRequest, HeadReader, MAX_HEAD, Request, Response};
use ringway_fuzz::Input;

type Read = Result<Option<Request>, BadRequest>;

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let (requests, end, left) = read([&input.stream[..]].into_iter());
    let (cut_requests, cut_end, cut_left) = read(input.pieces());

    assert_eq!(cut_requests, requests);
    requests.iter().for_each(use_request);
    match (end, cut_end) {
        (Ok(()), Ok(())) => assert_eq!(cut_left, left),
        (Err(bad), Err(cut_bad)) => {
            // A limit is not reached when what came before it is no request already.
            let no_request = BadRequest::Broken("not an HTTP/1.1 request");
            let limit = !matches!(bad, BadRequest::Broken(_));
            assert!(cut_bad == bad || (limit && cut_bad == no_request), "{cut_bad:?} {bad:?}");
            assert!(Response::from(bad).to_bytes(false).starts_with(b"HTTP/1.1 4"));
        }
        // Half a head is not looked at with every piece.
        (Err(_), Ok(())) => assert!(!has_end(&left), "{:?}", left.escape_ascii().to_string()),
        (Ok(()), Err(bad)) => panic!("refused when cut: {bad:?}"),
    }
});

/// The requests of a stream up to what is none, what that is, and what was left.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Request>, Result<(), BadRequest>, Vec<u8>) {
    let mut reader = HeadReader::default();
    let (mut requests, mut end) = (Vec::new(), Ok(()));
    let mut input = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        while end.is_ok() {
            let before = input.clone();
            let read = reader.next(&mut input);
            check_taken(&before, &input, &read);
            match read {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(bad) => end = Err(bad),
            }
        }
    }
    (requests, end, input)
}

/// A head that is taken is all of what httparse takes for one; without a head, only empty lines in front are taken.
fn check_taken(before: &[u8], after: &[u8], read: &Read) {
    assert!(before.ends_with(after));
    let taken = &before[..before.len() - after.len()];
    let empty = taken.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let head = &taken[empty..];
    match read {
        Ok(Some(_)) => {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let parsed = httparse::Request::new(&mut headers).parse(head);
            assert_eq!(parsed, Ok(httparse::Status::Complete(head.len())), "{:?}", head.escape_ascii().to_string());
            assert!(head.len() <= MAX_HEAD);
        }
        Ok(None) | Err(_) => assert!(head.is_empty(), "lost: {:?}", head.escape_ascii().to_string()),
    }
}

/// Whether there is an empty line, so that a head is whole.
fn has_end(head: &[u8]) -> bool {
    head.windows(2).any(|two| two == b"\n\n") || head.windows(3).any(|three| three == b"\n\r\n")
}

fn use_request(request: &Request) {
    let word = |text: &str| !text.contains(|c: char| c.is_ascii_control() || c == ' ');
    assert!(word(&request.method) && word(&request.path), "{request:?}");
    assert!(request.query.as_deref().is_none_or(word), "{request:?}");
    assert!(!(request.keep_alive && (request.has_body || request.lists("connection", "close"))), "{request:?}");
    for name in ["host", "x-api-key", "upgrade"] {
        let value = request.header(name);
        assert!(value.is_none_or(|value| !value.contains(['\r', '\n', '\0'])), "{value:?}");
        assert!(request.has(name) || value.is_none());
    }
    let _ = (request.wants_websocket(), request.is_version_13());
    if let Ok(accept) = request.websocket_accept() {
        assert_eq!(accept.len(), 28, "{accept}");
    }
}
