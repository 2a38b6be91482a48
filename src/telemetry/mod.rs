//! What operators see of a running process: logs, counters, and the counters as Prometheus reads them.
pub mod counters;
pub mod log;
pub mod prometheus;
