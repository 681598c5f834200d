//! One timeline out of all that is known of an order: its history, its payment's attempts, the events, and what the
//! gateway's ledger says. The gateway is never called from here: the Payment Service tells.

use std::sync::Arc;

use chassis::encode;
use contracts::order::v1 as proto;
use kernel::OrderId;

use crate::convert;
use crate::error::Error;
use crate::order::Scope;
use crate::ports::{GrpcEvents, GrpcPayments};
use crate::store::Store;

/// Explains orders.
#[derive(Clone)]
pub struct Explainer {
    /// The tables.
    pub store: Store,
    /// The Payment Service.
    pub payments: Arc<GrpcPayments>,
    /// The Data Service's events.
    pub events: GrpcEvents,
}

impl Explainer {
    /// The order's timeline, oldest first. What could not be asked is named, and the rest is told.
    ///
    /// # Errors
    /// There is no such order.
    pub async fn explain(&self, id: OrderId) -> Result<proto::ExplainOrderResponse, Error> {
        let order = self.store.get(Scope::All, id).await?.ok_or(Error::OrderNotFound)?;
        let history = self.store.history(id, 0).await?;
        let (payment, events) = tokio::join!(self.payments.get(id), self.events.of_order(id));
        let mut timeline: Vec<proto::TimelineEntry> = history
            .into_iter()
            .map(|entry| proto::TimelineEntry {
                time: Some(encode::timestamp(entry.time)),
                source: "history".into(),
                summary: format!("{} (version {}): {}", entry.state.name(), entry.version, entry.reason),
                trace_id: entry.trace_id,
                span_id: entry.span_id,
            })
            .collect();
        let mut gaps = Vec::new();
        let mut gateway_ledger = String::new();
        match payment {
            Ok(payment) => {
                gateway_ledger = payment.gateway_ledger;
                timeline.extend(payment.attempts.into_iter().map(|attempt| proto::TimelineEntry {
                    summary: format!(
                        "attempt {}: {} → {} (payment {})",
                        attempt.attempt,
                        attempt.effect,
                        attempt.outcome,
                        attempt.state().as_str_name().trim_start_matches("PAYMENT_STATE_"),
                    ),
                    time: attempt.time,
                    source: "payment".into(),
                    trace_id: attempt.trace_id,
                    span_id: attempt.span_id,
                }));
            }
            Err(status) if status.code() == tonic::Code::NotFound => gateway_ledger = "no payment".into(),
            Err(status) => gaps.push(format!("payment: {:?}: {}", status.code(), status.message())),
        }
        match events {
            Ok((events, more)) => {
                if more {
                    gaps.push(format!("events: the newest {} only", events.len()));
                }
                timeline.extend(events.into_iter().map(event));
            }
            Err(status) => gaps.push(format!("events: {:?}: {}", status.code(), status.message())),
        }
        timeline.sort_by_key(|entry| entry.time.map_or((0, 0), |time| (time.seconds, time.nanos)));
        Ok(proto::ExplainOrderResponse {
            order: Some(convert::order(Scope::All, &order)),
            timeline,
            gateway_ledger,
            gaps,
        })
    }
}

fn event(event: contracts::data::v1::TraceEvent) -> proto::TimelineEntry {
    let kind = event.r#type().as_str_name().trim_start_matches("EVENT_TYPE_").to_ascii_lowercase();
    let status = event.status().as_str_name().trim_start_matches("EVENT_STATUS_").to_ascii_lowercase();
    let error = event.error.as_ref().map(|error| format!(": {} {}: {}", error.r#type, error.reason, error.message));
    // The event is told of when it ended.
    let time = event.start_time.zip(event.duration).map(|(start, took)| {
        let nanos = i64::from(start.nanos) + i64::from(took.nanos);
        prost_types::Timestamp {
            seconds: start.seconds + took.seconds + nanos / 1_000_000_000,
            nanos: i32::try_from(nanos % 1_000_000_000).unwrap_or(0),
        }
    });
    proto::TimelineEntry {
        time,
        source: "event".into(),
        summary: format!("{kind} {status} by {} in {}{}", event.instance, event.operation, error.unwrap_or_default()),
        trace_id: event.trace_id,
        span_id: event.span_id,
    }
}
