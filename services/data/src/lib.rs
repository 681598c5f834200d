//! Data Service: the catalogue, delivery estimates, the trace-event store.
