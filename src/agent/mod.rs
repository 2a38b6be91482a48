//! Reaching a target: egress policy, DNS, TCP, TLS, opening handshake.
pub mod dial;
pub mod egress;
pub mod handshake;
pub mod insecure;
pub mod tls;
