//! The target's address.
