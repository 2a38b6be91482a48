//! The files a user writes: gateway.toml and keys.toml, with errors that say where and what to write instead.
