//! OpenTelemetry set-up, and operations: spans that may become trace events.
//!
//! Does not depend on databases; gRPC is only a transport of OTLP here. Start reading at [`operation`]; for what is
//! exported, at [`setup`].
//!
//! # Layout
//! - [`operation`]: a span and its one event slot
//! - [`event`]: the stored form of an operation; [`error_type`]: the types of its error
//! - [`announce`]: an event on its span, in the log, as a log record and in a counter
//! - [`context`]: W3C trace context (`traceparent`)
//! - [`propagation`]: the headers beside it (`tracestate`, `baggage`)
//! - [`setup`]: traces, metrics and logs by OTLP, log lines on stdout
//! - [`environment`]: OpenTelemetry's variables, each supported or rejected by name
//! - [`providers`]: tracer, meter and logger providers, made from the variables
//! - `transport.rs`: connections to a collector; `reachability.rs`: logs when exports begin to fail and recover
//! - [`mask`]: masks secrets in texts from other sources
//! - [`log`]: the format of log lines; `log_records.rs`: lines as log records; `log_limit.rs`: bounds repeated lines

pub mod announce;
pub mod context;
pub mod environment;
pub mod error_type;
pub mod event;
pub mod log;
mod log_limit;
mod log_records;
pub mod mask;
pub mod operation;
pub mod propagation;
pub mod providers;
mod reachability;
pub mod setup;
mod transport;

pub use context::TraceParent;
pub use environment::{Environment, VariableError};
pub use error_type::ErrorType;
pub use event::{EventError, EventStatus, TraceEvent};
pub use log_limit::LogLimit;
pub use mask::{Masked, masked};
pub use operation::{COLUMNS, Disposition, Ended, EventSink, Kind, ORDER_ID, Operation, Outcome, Parent, USER_ID};
pub use propagation::{Propagation, RemoteContext};
pub use providers::Providers;
pub use setup::{Settings, SetupError, Telemetry};
