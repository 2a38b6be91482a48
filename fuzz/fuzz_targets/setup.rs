//! A client's frames up to the connect message, and those held behind it, mean the same wherever they are cut.
#![no_main]
use libfuzzer_sys::fuzz_target;
use ringway::protocol::setup::{Event, Held, MAX_HELD, MAX_MESSAGE, Setup, Watch};
use ringway_fuzz::Input;

/// With this bit, one event is asked for as each piece comes, and the others at the end.
const ONE_EVENT_A_PIECE: u8 = 1;
/// With this bit, the stream begins behind the connect message.
const HELD_ONLY: u8 = 2;

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let pieces: Vec<&[u8]> = input.pieces().collect();
    if input.options & HELD_ONLY != 0 {
        held(&input.stream, &pieces);
        return;
    }
    let (events, left, _) = set_up(&[&input.stream], false);
    let (cut_events, cut_left, not_come) = set_up(&pieces, input.options & ONE_EVENT_A_PIECE != 0);
    assert_eq!(cut_events, events);
    assert_eq!([&cut_left[..], &not_come.concat()].concat(), left);

    for event in &events {
        match event {
            Event::Ping(payload) => assert!(payload.len() <= 125),
            Event::Message(message) => assert!(message.len() <= MAX_MESSAGE),
            _ => {}
        }
    }
    if matches!(events.last(), Some(Event::Message(_))) {
        // What has come together with the message is the first that is held.
        held(&left, &[&[&cut_left[..]], not_come].concat());
    }
});

/// The events of a stream up to the last, what of the input that has come they left, and the pieces behind it.
fn set_up<'p, 'a>(pieces: &'p [&'a [u8]], one_event_a_piece: bool) -> (Vec<Event>, Vec<u8>, &'p [&'a [u8]]) {
    let mut setup = Setup::default();
    let (mut events, mut input) = (Vec::new(), Vec::new());
    for (index, piece) in pieces.iter().enumerate() {
        input.extend_from_slice(piece);
        loop {
            let event = setup.next(&mut input);
            if event == Event::Incomplete {
                break;
            }
            let is_ping = matches!(event, Event::Ping(_));
            events.push(event);
            if !is_ping {
                return (events, input, &pieces[index + 1..]);
            }
            if one_event_a_piece && index + 1 < pieces.len() {
                break;
            }
        }
    }
    (events, input, &[])
}

fn held(stream: &[u8], pieces: &[&[u8]]) {
    let (first, rest) = pieces.split_first().map_or((&[][..], &[][..]), |(first, rest)| (*first, rest));
    let mut held = Held::new(first.to_vec());
    for piece in rest {
        // As the gateway does: it reads no more when there is nothing more to be known.
        if held.watch() != Watch::On {
            break;
        }
        held.push(piece);
    }
    let watch = held.watch();
    assert!(watch != Watch::On || held.room() > 0);
    let bytes = held.into_bytes();
    assert!(stream.starts_with(&bytes));
    assert!(watch != Watch::On || bytes.len() == stream.len());
    assert_eq!(Held::new(bytes).watch(), watch);
    if stream.len() <= MAX_HELD {
        // What has not been read any more changes nothing.
        assert_eq!(Held::new(stream.to_vec()).watch(), watch);
    }
}
