//! The stored form of an operation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::class::ErrorClass;

/// How what the event tells of ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventStatus {
    /// It was done.
    Success,
    /// It was refused, or failed.
    Failed,
}

impl EventStatus {
    /// Its word in spans, logs, metrics and the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
        }
    }
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventError {
    /// The name of an [`ErrorClass`], or of one that another release knows.
    pub kind: String,
    /// The reason, as in the answer's ErrorInfo.
    pub reason: String,
    /// A sentence. Never a secret.
    pub message: String,
}

impl EventError {
    /// An error of a class.
    pub fn new(class: ErrorClass, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: class.name().to_owned(), reason: reason.into(), message: message.into() }
    }
}

/// One operation, stored: one span, at most one event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceEvent {
    /// UUIDv7, made by the operation.
    pub event_id: Uuid,
    /// For example `order_creation`.
    pub event_type: String,
    /// How it ended.
    pub status: EventStatus,
    /// The service that tells it.
    pub service: String,
    /// The service's instance.
    pub instance: String,
    /// The span's name.
    pub operation: String,
    /// 32 lower-case hex digits.
    pub trace_id: String,
    /// 16 lower-case hex digits.
    pub span_id: String,
    /// When the operation began: microseconds since the epoch.
    pub start_micros: i64,
    /// How long it took, in microseconds.
    pub duration_micros: i64,
    /// The order that it is of.
    pub order_id: Option<Uuid>,
    /// The user that it is of.
    pub user_id: Option<Uuid>,
    /// Present when failed.
    pub error: Option<EventError>,
    /// Facts.
    pub attributes: BTreeMap<String, String>,
    /// How many events like this one were left out before it.
    pub suppressed_count: i32,
}
