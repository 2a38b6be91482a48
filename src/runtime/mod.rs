//! What the process is made of: threads, monoio set-up, resolver, signals, listening sockets.
pub mod resolver;
