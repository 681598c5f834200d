//! Bodies that wrap others.

pub(crate) mod holding;
pub(crate) mod incoming;
