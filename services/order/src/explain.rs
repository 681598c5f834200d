//! One timeline of an order: its history, its payment's attempts, its events, and the gateway's ledger. The gateway is
//! never called from here: its ledger is read through the Payment Service.

use std::sync::Arc;

use chassis::{page, to_proto};
use contracts::order::v1 as proto;
use kernel::OrderId;

use crate::convert;
use crate::error::Error;
use crate::order::Scope;
use crate::ports::{GrpcEvents, GrpcPayments};
use crate::store::{MAX_HISTORY, Store};

/// Maximum bytes of an entry's summary: an event's texts may be longer.
const MAX_SUMMARY_BYTES: usize = 2_048;
/// Maximum bytes of a gap's text.
const MAX_GAP_BYTES: usize = 512;

/// Builds timelines of orders.
#[derive(Clone)]
pub struct Explainer {
    pub store: Store,
    pub payments: Arc<GrpcPayments>,
    /// The Data Service's events.
    pub events: GrpcEvents,
}

impl Explainer {
    /// The order's timeline, oldest first. A source that does not respond is listed in `gaps`; the rest is returned.
    ///
    /// # Errors
    /// The order does not exist.
    pub async fn explain(&self, id: OrderId) -> Result<proto::ExplainOrderResponse, Error> {
        let order = self.store.get(Scope::All, id).await?.ok_or(Error::OrderNotFound)?;
        let history = self.store.history(id).await?;
        let (payment, events) = tokio::join!(self.payments.get(id), self.events.of_order(id));
        let mut timeline: Vec<proto::TimelineEntry> = history
            .into_iter()
            .map(|entry| proto::TimelineEntry {
                time: Some(to_proto::timestamp(entry.time)),
                source: "history".into(),
                summary: format!("{} (version {}): {}", entry.state.name(), entry.version, entry.reason),
                trace_id: entry.trace_id,
                span_id: entry.span_id,
            })
            .collect();
        let mut gaps = Vec::new();
        if timeline.len() >= usize::try_from(MAX_HISTORY).unwrap_or(usize::MAX) {
            gaps.push(format!("history: at most the newest {} transitions", timeline.len()));
        }
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
            Err(status) => gaps.push(no_response("payment", &status)),
        }
        match events {
            Ok((events, more)) => {
                if more {
                    gaps.push(format!("events: the newest {} only", events.len()));
                }
                timeline.extend(events.into_iter().map(event_entry));
            }
            Err(status) => gaps.push(no_response("events", &status)),
        }
        let timeline = newest_that_fit(timeline, &mut gaps);
        Ok(proto::ExplainOrderResponse {
            order: Some(convert::order(Scope::All, &order)),
            timeline,
            gateway_ledger,
            gaps,
        })
    }
}

fn no_response(source: &str, status: &tonic::Status) -> String {
    shortened(&format!("{source}: {:?}: {}", status.code(), status.message()), MAX_GAP_BYTES)
}

/// Oldest first. If the timeline does not fit into a message, only the newest entries are kept, and a gap says so.
fn newest_that_fit(mut timeline: Vec<proto::TimelineEntry>, gaps: &mut Vec<String>) -> Vec<proto::TimelineEntry> {
    for entry in &mut timeline {
        if entry.summary.len() > MAX_SUMMARY_BYTES {
            entry.summary = shortened(&entry.summary, MAX_SUMMARY_BYTES);
        }
    }
    timeline.sort_by_key(|entry| entry.time.map_or((0, 0), |time| (time.seconds, time.nanos)));
    let fitting = page::count_fitting(timeline.iter().rev());
    if fitting < timeline.len() {
        gaps.push(format!("timeline: the newest {fitting} of {} entries", timeline.len()));
    }
    timeline.split_off(timeline.len() - fitting)
}

/// At most `max` bytes of a text, with an ellipsis where it is cut.
fn shortened(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

fn event_entry(event: contracts::data::v1::TraceEvent) -> proto::TimelineEntry {
    let kind = event.r#type().as_str_name().trim_start_matches("EVENT_TYPE_").to_ascii_lowercase();
    let status = event.status().as_str_name().trim_start_matches("EVENT_STATUS_").to_ascii_lowercase();
    let error = event.error.as_ref().map(|error| format!(": {} {}: {}", error.r#type, error.reason, error.message));
    // An event is listed at the time it ended.
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn entry(second: i64, bytes: usize) -> proto::TimelineEntry {
        let time = Some(prost_types::Timestamp { seconds: second, nanos: 0 });
        proto::TimelineEntry { time, summary: "ä".repeat(bytes / 2), ..Default::default() }
    }

    #[test]
    fn a_timeline_that_fits_is_sorted_and_complete() {
        let mut gaps = Vec::new();
        let timeline = newest_that_fit(vec![entry(2, 10), entry(1, MAX_SUMMARY_BYTES)], &mut gaps);
        assert_eq!(timeline, [entry(1, MAX_SUMMARY_BYTES), entry(2, 10)]);
        assert_eq!(gaps, [] as [String; 0]);
    }

    #[test]
    fn the_longest_timeline_fits_into_the_default_message_limit_and_reports_the_omitted_entries() {
        // The maximum number of transitions, attempts and events, each with the longest text.
        let all: Vec<_> = (0..2_500).map(|second| entry(second, 65_536)).collect();
        let mut gaps = Vec::new();
        let timeline = newest_that_fit(all, &mut gaps);
        assert_eq!(gaps, [format!("timeline: the newest {} of 2500 entries", timeline.len())]);
        assert_eq!(timeline.last().and_then(|last| last.time).map(|time| time.seconds), Some(2_499));
        assert!(timeline[0].summary.ends_with('…') && timeline[0].summary.len() <= MAX_SUMMARY_BYTES);
        gaps.extend(
            ["payment", "events"].map(|source| no_response(source, &tonic::Status::internal("ä".repeat(9_000)))),
        );
        let order = Some(convert::tests::largest_order());
        let response = proto::ExplainOrderResponse { order, timeline, gaps, gateway_ledger: "DECLINED x".into() };
        assert!(response.encoded_len() < 4_194_304, "{}", response.encoded_len());
    }
}
