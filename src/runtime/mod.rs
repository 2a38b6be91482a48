//! What the process is made of: threads, monoio set-up, resolver, signals, listening sockets.
pub mod driver;
pub mod listen;
pub mod load;
pub mod memory;
pub mod reload;
pub mod resolver;
pub mod sockets;
pub mod sys;
pub mod systemd;
pub mod tasks;
pub mod threads;
