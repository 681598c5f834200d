//! From the outbox to the Data Service: at-least-once delivery, and each event is stored once.
//!
//! Commits of this process wake it; a jittered sweep adopts the events of crashed instances. Its calls create no spans.

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::common::v1::EventType;
use contracts::data::v1 as data;
use contracts::data::v1::append_result::Outcome;
use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use futures_util::FutureExt;
use kernel::backoff::backoff;
use kernel::{Clock, SystemClock, Timestamp};
use mesh::Channel;
use prost::Message;
use storage::Database;
use telemetry::{EventStatus, TraceEvent};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::to_proto;

/// Maximum events in a call.
const MAX_BATCH: usize = 500;
/// Maximum bytes in a call, well below the limit of a message; a larger event is sent alone.
const MAX_BATCH_BYTES: usize = 256 * 1_024;
/// How long it collects events before it sends them: under load a call carries many events instead of one.
const LINGER: Duration = Duration::from_millis(25);
/// The average interval of the sweep for events of other instances.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The age at which an event of another instance is adopted.
const ADOPTION_AGE: Duration = Duration::from_secs(15);
/// How often rejected events are sent again: a newer release of the store may accept them.
const RESEND_INTERVAL: Duration = Duration::from_secs(3_600);
/// The time limit for the last events when the service stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends the events of one instance.
#[derive(Clone, Debug)]
pub struct Relay {
    db: Database,
    instance: String,
    store: TraceEventServiceClient<Channel>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the outbox cannot be read or updated")]
    Outbox(#[from] storage::Error),
    #[error("the Data Service acknowledged none of the events")]
    NoneAcknowledged,
    #[error("the Data Service did not accept the events")]
    Store(#[from] Box<tonic::Status>),
}

impl Relay {
    /// A relay from a database to the Data Service.
    pub fn new(db: Database, instance: &str, data: Channel) -> Self {
        Self { db, instance: instance.to_owned(), store: TraceEventServiceClient::new(data) }
    }

    /// Sends until `stop`, and then what is left, for a few seconds at most.
    pub async fn run(self, stop: CancellationToken) {
        let outbox = self.db.outbox();
        let mut failures = 0;
        let mut resend = tokio::time::interval(RESEND_INTERVAL.mul_f64(0.9 + 0.2 * rand::random::<f64>()));
        resend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let period = SWEEP_INTERVAL.mul_f64(0.5 + rand::random::<f64>());
        let mut sweep = tokio::time::interval_at(Instant::now() + period, period);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Also while this process writes events without a pause.
            if sweep.tick().now_or_never().is_some() {
                self.adopt().await;
            }
            // Immediately at the start, and then hourly.
            if resend.tick().now_or_never().is_some() {
                self.requeue().await;
            }
            match self.send_all().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    let wait = backoff(failures, Duration::from_millis(100), Duration::from_secs(5), rand::random());
                    tracing::debug!(target: "ordermesh", error = ?error, "the events cannot be sent yet");
                    if tokio::time::timeout(wait, stop.cancelled()).await.is_ok() {
                        break;
                    }
                    continue;
                }
            }
            tokio::select! {
                () = outbox.written() => {
                    let _ = tokio::time::timeout(LINGER, stop.cancelled()).await;
                }
                _ = sweep.tick() => self.adopt().await,
                () = stop.cancelled() => break,
            }
        }
        if let Err(error) = tokio::time::timeout(FLUSH_TIMEOUT, self.flush()).await.unwrap_or(Ok(())) {
            tracing::info!(target: "ordermesh", error = ?error, "events stay in the outbox");
        }
    }

    async fn requeue(&self) {
        match self.db.outbox().requeue(&self.instance).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(target: "ordermesh", count, "rejected events are sent again"),
            Err(error) => tracing::debug!(target: "ordermesh", error = ?error, "rejected events cannot be sent again"),
        }
    }

    async fn adopt(&self) {
        let before = SystemClock.now().minus(ADOPTION_AGE);
        match self.db.outbox().adopt(&self.instance, before).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(target: "ordermesh", count, "events of another instance adopted"),
            Err(error) => {
                tracing::debug!(target: "ordermesh", error = ?error, "events of other instances cannot be adopted")
            }
        }
    }

    /// Sends until no events wait.
    async fn flush(&self) -> Result<(), Error> {
        while !self.db.outbox().waiting(&self.instance, 1).await?.is_empty() {
            self.send_all().await?;
        }
        Ok(())
    }

    /// Sends the events that wait now. Those that are written meanwhile are left to the next run: under load each call
    /// would carry the few events that were written during the one before.
    async fn send_all(&self) -> Result<(), Error> {
        loop {
            let events = self.db.outbox().waiting(&self.instance, MAX_BATCH).await?;
            let count = events.len();
            // Events that do not fit into the call are sent by the next one.
            if count == 0 || self.send(events).await? == count && count < MAX_BATCH {
                return Ok(());
            }
        }
    }

    /// Returns the number of events that were settled.
    async fn send(&self, events: Vec<TraceEvent>) -> Result<usize, Error> {
        let mut bytes = 0;
        let fits = |event: &data::TraceEvent| {
            let first = bytes == 0;
            bytes += event.encoded_len();
            first || bytes <= MAX_BATCH_BYTES
        };
        let request =
            data::AppendTraceEventsRequest { events: events.iter().map(encode_event).take_while(fits).collect() };
        let response = self.store.clone().append_trace_events(mesh::untraced(request)).await.map_err(Box::new)?;
        let mut by_id: BTreeMap<String, TraceEvent> =
            events.into_iter().map(|event| (event.event_id.to_string(), event)).collect();
        let (mut done, mut rejected) = (Vec::new(), Vec::new());
        for result in response.into_inner().results {
            let Some(event) = by_id.remove(&result.event_id) else { continue };
            match result.outcome() {
                Outcome::Stored | Outcome::Duplicate => done.push(event.event_id),
                Outcome::Refused => {
                    rejected.push((event, result.refusal));
                }
                Outcome::Unspecified => {}
            }
        }
        if let Some((event, refusal)) = rejected.first() {
            tracing::warn!(target: "ordermesh", count = rejected.len(), event_id = %event.event_id, %refusal,
                "events were rejected by the store: they are kept, and sent again at the next start and hourly");
        }
        if done.is_empty() && rejected.is_empty() {
            return Err(Error::NoneAcknowledged);
        }
        let settled = done.len() + rejected.len();
        self.db.outbox().settle(done, rejected).await?;
        Ok(settled)
    }
}

/// The event as a message of the contract.
pub fn encode_event(event: &TraceEvent) -> data::TraceEvent {
    let duration = Duration::from_micros(u64::try_from(event.duration_micros).unwrap_or(0));
    let name = format!("EVENT_TYPE_{}", event.event_type.to_ascii_uppercase());
    data::TraceEvent {
        event_id: event.event_id.to_string(),
        r#type: EventType::from_str_name(&name).unwrap_or_default().into(),
        status: match event.status {
            EventStatus::Success => data::EventStatus::Success.into(),
            EventStatus::Failed => data::EventStatus::Failed.into(),
        },
        service: event.service.clone(),
        instance: event.instance.clone(),
        operation: event.operation.clone(),
        trace_id: event.trace_id.clone(),
        span_id: event.span_id.clone(),
        start_time: Some(to_proto::timestamp(Timestamp::from_micros(event.start_micros))),
        duration: Some(to_proto::duration(duration)),
        order_id: event.order_id.map(|id| id.to_string()).unwrap_or_default(),
        user_id: event.user_id.map(|id| id.to_string()).unwrap_or_default(),
        error: event.error.as_ref().map(|error| data::EventError {
            r#type: error.error_type.clone(),
            reason: error.reason.clone(),
            message: error.message.clone(),
        }),
        attributes: event.attributes.clone().into_iter().collect(),
        suppressed_count: event.suppressed_count,
    }
}
