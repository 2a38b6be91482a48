//! The connect message.
