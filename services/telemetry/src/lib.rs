//! OpenTelemetry set-up, and operations: spans that may become trace events.
//!
//! Knows nothing of gRPC, of databases or of orders. Start reading at [`operation`].
//!
//! # Layout
//! - [`operation`]: a span and its one event slot
//! - [`event`]: the stored form of an operation; [`class`]: the classes of its error
//! - [`announce`]: how an event shows on its span, in the log, as a log record and in a counter
//! - [`context`]: W3C trace context (`traceparent`)
//! - [`setup`]: traces and metrics by OTLP, logs on stdout
//! - [`log`]: how a log line looks

pub mod announce;
pub mod class;
pub mod context;
pub mod event;
pub mod log;
pub mod operation;
pub mod setup;

pub use class::ErrorClass;
pub use context::TraceParent;
pub use event::{EventError, EventStatus, TraceEvent};
pub use operation::{Ended, EventSink, Fate, Kind, Operation, Outcome, Parent};
pub use setup::{Settings, SetupError, Telemetry};
