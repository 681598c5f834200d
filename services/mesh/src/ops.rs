//! For operators and tools.

pub(crate) mod admin;
pub(crate) mod gauges;
pub(crate) mod health;
pub(crate) mod reflection;
