//! The stored form of an operation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How what the event tells of ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventStatus {
    /// It was done.
    Success,
    /// It was refused, or failed.
    Failed,
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventError {
    /// The class, for example `ValidationError`, `OutOfMemoryError`, `TIMEOUT`, `CONNECTION_ERROR`.
    pub kind: String,
    /// The reason, as in the answer's ErrorInfo.
    pub reason: String,
    /// A sentence. Never a secret.
    pub message: String,
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

impl TraceEvent {
    /// Writes the event's one WARN line when it failed.
    pub(crate) fn log_if_failed(&self) {
        if let Some(error) = &self.error {
            tracing::warn!(
                target: "ordermesh",
                event = %self.event_type,
                operation = %self.operation,
                order_id = self.order_id.map(|id| id.to_string()),
                user_id = self.user_id.map(|id| id.to_string()),
                error.type = %error.kind,
                reason = %error.reason,
                "{} failed: {}", self.event_type, error.message,
            );
        }
    }
}
