//! What health checks, tools and monitoring read.

pub(crate) mod admin;
pub(crate) mod health;
pub(crate) mod limit_metrics;
pub(crate) mod observed_server;
pub(crate) mod reflection;
