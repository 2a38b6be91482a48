//! What operators see of a running process: logs for now.
pub mod log;
