//! ringway relays WebSockets: a client connects to a gateway, names a target in one JSON message, and the
//! gateway passes every frame between the two through an agent.
//!
//! ```text
//!     worker thread (one a core: own monoio runtime, own ring, own SO_REUSEPORT listener, own buffers)
//!     ┌──────────────────────────────────────────────────────────────────────────────────────────┐
//!     │ accept -> HTTP/1.1 upgrade -> connect message -> key, bucket -> dial the target           │  gateway/, agent/
//!     │                                                                  │                        │
//!     │     client socket  <=== relay: bytes as they are, headers scanned ===>  target socket     │  relay/
//!     └──────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A session never leaves its worker and no frame crosses a thread. `protocol` decides, without I/O and without a
//! clock; `relay` moves bytes; `gateway` and `agent` set sessions up; `runtime` owns threads, sockets and signals.
pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
pub mod echo;
pub mod gateway;
pub mod protocol;
pub mod relay;
pub mod runtime;
pub mod telemetry;
