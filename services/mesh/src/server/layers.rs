//! The layers of the server's stack: one file each. Their order is on the page, [`crate::server()`].

pub(crate) mod auth;
pub(crate) mod concurrency;
pub(crate) mod deadline;
pub(crate) mod error_details;
pub(crate) mod memory;
pub(crate) mod metadata;
pub(crate) mod panic;
pub(crate) mod rate_limit;
pub(crate) mod stream_drain;
pub(crate) mod telemetry;
