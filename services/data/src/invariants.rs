//! What `ordermesh verify` reads of this service: the stored events of orders and of log-ins. The queries are in
//! `trace_event_store::invariants`; the rules belong to orders and sessions.

pub use crate::trace_event_store::TraceEventStore;
