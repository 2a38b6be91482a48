//! The files a user writes: gateway.toml and keys.toml, with errors that say where and what to write instead.
pub mod gateway;
pub mod keys;
