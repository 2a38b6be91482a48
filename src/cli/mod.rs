//! cli
pub mod process;
