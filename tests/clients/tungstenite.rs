//! tokio-tungstenite: `tungstenite '{"url": …, "headers": …, "first": …}'`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        protocol::{
            CloseFrame,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn open(asked: &Value) -> Socket {
    let mut request = asked["url"].as_str().unwrap().into_client_request().unwrap();
    for (name, value) in asked["headers"].as_object().unwrap() {
        let name = tokio_tungstenite::tungstenite::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().insert(name, value.as_str().unwrap().parse().unwrap());
    }
    let (mut socket, _) = connect_async(request).await.unwrap();
    if let Some(first) = asked["first"].as_str() {
        socket.send(Message::text(first)).await.unwrap();
        let answer: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
        assert_eq!(answer["type"], "connected", "{answer}");
    }
    socket
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
    let mut socket = open(&asked).await;
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
    let mut socket = open(&asked).await;
    socket.send(Message::text("close 4002 enough")).await.unwrap();
    let target = closed(&mut socket).await;
    // Its answer goes out with what is read behind it.
    while let Some(Ok(_)) = socket.next().await {}
    println!("{}", json!({ "passed": passed, "compressed": false, "own": own, "target": target }));
}
