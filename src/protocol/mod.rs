//! The core without I/O and without a clock: bytes and times go in, decisions come out.
//!
//! Owns what ringway knows of RFC 6455 and of its own client protocol. Must never touch a socket, a file, a timer
//! or a global: everything here is tested in memory, fuzzed, and simulated with seeds.
pub mod answer;
pub mod close;
pub mod connect;
pub mod drain;
pub mod frame;
pub mod link;
pub mod opening;
pub mod proxy;
pub mod session;
pub mod setup;
pub mod target;
pub mod transparent;
