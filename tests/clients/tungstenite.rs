//! tokio-tungstenite: `tungstenite '{"relay": …, "target": …, "key": …, "form": …}'`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]
// docs: both
// For wss:// turn on one of the features of tokio-tungstenite that bring TLS.
use futures_util::{SinkExt, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
// docs: end

use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::{
    CloseFrame,
    frame::{
        Frame,
        coding::{CloseCode, Data, OpCode},
    },
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens a session in the form that is asked for.
async fn open(asked: &Value) -> Result<Socket, Box<dyn std::error::Error>> {
    let of = |name: &str| asked[name].as_str().unwrap();
    let (relay, target, key) = (of("relay"), of("target"), of("key"));
    if of("form") == "message" {
        // docs: message
        let (mut socket, _) = connect_async(relay).await?;
        socket.send(Message::text(json!({ "apiKey": key, "url": target }).to_string())).await?;
        let answer = socket.next().await.ok_or("the connection ended")??;
        // docs: end
        let answer: Value = serde_json::from_str(answer.to_text()?)?;
        assert_eq!(answer["type"], "connected", "{answer}");
        Ok(socket)
    } else {
        // docs: query
        let address = format!("{relay}?url={}", utf8_percent_encode(target, NON_ALPHANUMERIC));
        let mut request = address.into_client_request()?;
        request.headers_mut().insert("X-API-Key", key.parse()?);
        let (socket, _) = connect_async(request).await?;
        // docs: end
        Ok(socket)
    }
}

async fn next(socket: &mut Socket) -> Message {
    socket.next().await.unwrap().unwrap()
}

/// The code and reason of the Close that comes.
async fn closed(socket: &mut Socket) -> Value {
    loop {
        if let Message::Close(Some(frame)) = next(socket).await {
            return json!([u16::from(frame.code), frame.reason.as_str()]);
        }
    }
}

fn pattern(length: u32) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at.wrapping_mul(7) % 251).unwrap_or_default()).collect()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let asked: Value = serde_json::from_str(&std::env::args().nth(1).expect("what to do, in JSON")).unwrap();
    let mut passed = Vec::new();
    let mut socket = open(&asked).await.unwrap();
    for (name, message) in [
        ("text", Message::text("grüße \u{1F600}")),
        ("empty", Message::text("")),
        ("binary", Message::binary(pattern(256))),
        ("1 MiB", Message::binary(pattern(1 << 20))),
    ] {
        socket.send(message.clone()).await.unwrap();
        if next(&mut socket).await == message {
            passed.push(name);
        }
    }
    for (piece, opcode, last) in
        [("frag", Data::Text, false), ("men", Data::Continue, false), ("ts", Data::Continue, true)]
    {
        socket.send(Message::Frame(Frame::message(piece, OpCode::Data(opcode), last))).await.unwrap();
    }
    if next(&mut socket).await == Message::text("fragments") {
        passed.push("fragments sent");
    }
    socket.send(Message::text("fragment 5")).await.unwrap();
    if next(&mut socket).await == Message::text("0123456789".repeat(500)) {
        passed.push("fragments received");
    }
    socket.close(Some(CloseFrame { code: CloseCode::from(3001), reason: "bye".into() })).await.unwrap();
    let own = closed(&mut socket).await;
    let mut socket = open(&asked).await.unwrap();
    socket.send(Message::text("close 4002 enough")).await.unwrap();
    let target = closed(&mut socket).await;
    // Its answer goes out with what is read behind it.
    while let Some(Ok(_)) = socket.next().await {}
    println!("{}", json!({ "passed": passed, "compressed": false, "own": own, "target": target }));
}
