//! Reaching a target: egress policy, DNS, TCP, TLS, opening handshake.
pub mod egress;
