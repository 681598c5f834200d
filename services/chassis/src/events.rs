//! Which completed operations become events if no transaction has claimed their event, and their way into the database.
//!
//! Committed changes have written their event in their own transaction and do not pass through here. What a caller or
//! an outage can cause at an unlimited rate is bounded: `sums`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kernel::backoff::backoff;
use kernel::{Clock, SystemClock};
use opentelemetry::global;
use opentelemetry::metrics::Counter;
use storage::Database;
use telemetry::{Disposition, Ended, ErrorType, EventSink, EventStatus, Kind, LogLimit, TraceEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::sums::{SECOND, Sums};

mod sums;

/// Events waiting for the writer; any further one is lost, counted and logged.
const MAX_WAITING: usize = 16_384;
/// Maximum events that the writer puts in one transaction.
const MAX_BATCH: usize = 512;
/// Stored per second: lookups without an order, by method, status and error type.
const MAX_LOOKUPS_PER_SECOND: u32 = 1;
/// Stored per second: rejected requests that any caller can send at any rate, by method and reason.
const MAX_REJECTIONS_PER_SECOND: u32 = 10;
/// Stored per second: failures that are results of valid requests (a wrong password, insufficient stock), by method and
/// reason; more than regular use causes.
const MAX_NEGATIVE_RESULTS_PER_SECOND: u32 = 100;

/// Stored per second: further failures for orders whose first failure has an event, by method and reason. An outage
/// causes one for each waiting order.
const MAX_REPEATS_PER_SECOND: u32 = 1;

/// What an ended operation becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Nothing,
    Unchanged,
    /// Stored as a success: the failure is the lookup's result.
    Success,
}

/// The table: a row per event type and side of the call.
#[rustfmt::skip]
fn verdict(kind: Kind, event: &TraceEvent) -> Verdict {
    let error = event.error.as_ref();
    let error_type = error.and_then(|error| ErrorType::named(&error.error_type));
    let has_reason = |reason| error.is_some_and(|error| error.reason == reason);
    let (unreachable, injected) = (has_reason("UNREACHABLE"), has_reason(mesh::INJECTED_FAULT));
    match (event.event_type.as_str(), kind) {
        // A log-in needs no credentials, so a malformed one is only a metric and a span. Its success is written with
        // the session; a rejection by a limit is a metric too.
        ("user_login", Kind::Server) => match (error, error_type) {
            (None, _) | (_, Some(ErrorType::ValidationError | ErrorType::ResourceExhausted))  => Verdict::Nothing,
            (Some(_), _)                                                                => Verdict::Unchanged,
        },
        // The same, but malformed requests are stored too.
        ("order_creation" | "audit", Kind::Server) => match (error, error_type) {
            (None, _) | (_, Some(ErrorType::ResourceExhausted))       => Verdict::Nothing,
            (Some(_), _)                                              => Verdict::Unchanged,
        },
        // A lookup with a result is a success, even if the result is NOT_FOUND.
        ("data_lookup", Kind::Server) => match (error, error_type) {
            (None, _)                                                                   => Verdict::Unchanged,
            (_, Some(ErrorType::ValidationError | ErrorType::ResourceExhausted))        => Verdict::Nothing,
            (_, Some(ErrorType::NotFound | ErrorType::FailedPrecondition))              => Verdict::Success,
            (Some(_), _)                                                                => Verdict::Unchanged,
        },
        // The client's side is an event only when the peer did not respond.
        ("data_lookup" | "payment_processing", Kind::Client) if injected              => Verdict::Unchanged,
        ("data_lookup", Kind::Client) => match error_type {
            Some(ErrorType::Timeout | ErrorType::ConnectionError)                       => Verdict::Unchanged,
            Some(_) | None                                                              => Verdict::Nothing,
        },
        // Without a response, the outcome of a payment request is unknown, and that is no event: only a request that
        // was never sent is one.
        ("payment_processing", Kind::Client) if unreachable               => Verdict::Unchanged,
        // All other events are written in the transaction of their effect.
        _ => Verdict::Nothing,
    }
}

/// How many such events are stored per second; `None`: all. Accounts are free, so whatever a caller can cause at any
/// rate is bounded: a failure that is the result of a valid request less tightly than one that costs the caller
/// nothing.
#[rustfmt::skip]
fn max_per_second(event: &TraceEvent) -> Option<u32> {
    let error_type = event.error.as_ref().and_then(|error| ErrorType::named(&error.error_type));
    match (event.event_type.as_str(), error_type) {
        ("data_lookup", _) if event.order_id.is_none()                                              => Some(MAX_LOOKUPS_PER_SECOND),
        // Lookups for orders with a result are all stored. A failed one rejects its order, which is an event too.
        ("data_lookup", Some(_))                                                                    => Some(MAX_REJECTIONS_PER_SECOND),
        // Each order's first failure is stored, and its outcome; those in between are counted.
        ("payment_processing", Some(_)) if event.attributes.contains_key(mesh::ATTEMPT)             => Some(MAX_REPEATS_PER_SECOND),
        (_, Some(ErrorType::OutOfMemoryError | ErrorType::ValidationError))                         => Some(MAX_REJECTIONS_PER_SECOND),
        ("audit", Some(_))                                                                          => Some(MAX_REJECTIONS_PER_SECOND),
        ("user_login" | "order_creation", Some(ErrorType::Unauthenticated | ErrorType::FailedPrecondition))
                                                                                                    => Some(MAX_NEGATIVE_RESULTS_PER_SECOND),
        ("user_login" | "order_creation", Some(_))                                                  => Some(MAX_REJECTIONS_PER_SECOND),
        (_, _)                                                                                      => None,
    }
}

/// The event sink of a service's operations.
#[derive(Debug)]
pub struct Sink {
    service: String,
    instance: String,
    waiting: mpsc::Sender<TraceEvent>,
    sums: Arc<Sums>,
    lost: Counter<u64>,
}

/// The input of the sink's writer.
#[derive(Debug)]
pub struct Writer {
    waiting: mpsc::Receiver<TraceEvent>,
    sums: Arc<Sums>,
}

fn lost_counter() -> Counter<u64> {
    let description = "Events lost because they could not be written to the database";
    global::meter("ordermesh").u64_counter("ordermesh.events.lost").with_description(description).build()
}

impl Sink {
    /// A sink, and the input of its writer.
    pub fn new(service: &str, instance: &str) -> (Self, Writer) {
        let (waiting, receiver) = mpsc::channel(MAX_WAITING);
        let sums = Arc::new(Sums::default());
        let sink = Self {
            service: service.to_owned(),
            instance: instance.to_owned(),
            waiting,
            sums: sums.clone(),
            lost: lost_counter(),
        };
        // A counter that was never incremented is not exported, so no alert could use it.
        sink.lost.add(0, &[]);
        (sink, Writer { waiting: receiver, sums })
    }
}

impl EventSink for Sink {
    fn unclaimed(&self, ended: Ended) -> Disposition {
        let mut event = ended.event;
        match verdict(ended.kind, &event) {
            Verdict::Nothing => return Disposition::NoEvent,
            Verdict::Unchanged => {}
            Verdict::Success => {
                let reason = event.error.take().map(|error| error.reason).unwrap_or_default();
                event.attributes.insert("answer".to_owned(), reason);
                event.status = EventStatus::Success;
            }
        }
        match max_per_second(&event) {
            None => Disposition::Stored(event),
            Some(max) => self.sums.admit(event, max, SystemClock.now()),
        }
    }

    fn put(&self, event: TraceEvent) {
        // Bounded events have their own queue: they and the others never wait for each other.
        let lost = match max_per_second(&event) {
            Some(_) => self.sums.put(event).err().map(|_| "the writer has ended".to_owned()),
            None => self.waiting.try_send(event).err().map(|error| error.to_string()),
        };
        if let Some(lost) = lost {
            self.lost.add(1, &[]);
            static LOG_LIMIT: LogLimit = LogLimit::new();
            if let Some(occurrences) = LOG_LIMIT.count(Instant::now()) {
                tracing::error!(target: "ordermesh", occurrences, "an event was lost: the database does not keep up: {lost}");
            }
        }
    }

    fn origin(&self) -> (&str, &str) {
        (&self.service, &self.instance)
    }
}

/// How long the writer collects events before it writes.
const LINGER: Duration = Duration::from_millis(10);

/// Stores events that no transaction has written, all or none; it is called again after an error.
pub type Store = Arc<dyn Fn(Vec<TraceEvent>) -> BoxFuture<'static, Result<(), storage::Error>> + Send + Sync>;

/// Stores events in the outbox.
pub fn in_outbox(db: Database) -> Store {
    Arc::new(move |events| {
        let db = db.clone();
        Box::pin(async move { db.outbox().put(events).await })
    })
}

/// Stores the sink's events until `stop`, then those that are left.
pub async fn write(store: Store, writer: Writer, stop: CancellationToken) {
    let Writer { mut waiting, sums } = writer;
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut tick = tokio::time::interval(SECOND);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_open = true;
    while is_open {
        tokio::select! {
            biased;
            _ = tick.tick() => sums.flush(SystemClock.now()),
            // Events in the channel are still written; no further ones are accepted.
            () = stop.cancelled(), if !waiting.is_closed() => waiting.close(),
            count = waiting.recv_many(&mut batch, MAX_BATCH) => is_open = count > 0,
            () = sums.written() => {}
        }
        if !is_open {
            sums.close();
        }
        if batch.is_empty() && sums.is_empty() {
            continue;
        }
        let _ = tokio::time::timeout(LINGER, stop.cancelled()).await;
        while batch.len() < MAX_BATCH
            && let Ok(event) = waiting.try_recv()
        {
            batch.push(event);
        }
        for events in [std::mem::take(&mut batch), sums.take()] {
            if !events.is_empty() {
                put(&store, events, &stop).await;
            }
        }
    }
}

/// Writes a batch, with retries while the database is unavailable; if the service stops meanwhile, the batch is lost,
/// counted and logged.
async fn put(store: &Store, batch: Vec<TraceEvent>, stop: &CancellationToken) {
    let mut failures = 0;
    while let Err(error) = store(batch.clone()).await {
        failures += 1;
        tracing::warn!(target: "ordermesh", error = ?error, "events cannot be written: they are waiting");
        let wait = backoff(failures, Duration::from_millis(100), Duration::from_secs(5), rand::random());
        if tokio::time::timeout(wait, stop.cancelled()).await.is_ok() && failures > 3 {
            let count = batch.iter().map(|event| 1 + u64::try_from(event.suppressed_count).unwrap_or(0)).sum();
            lost_counter().add(count, &[]);
            tracing::error!(target: "ordermesh", count, "events were lost: they cannot be written");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use telemetry::EventError;

    fn event(event_type: &str, error_type: Option<&str>) -> TraceEvent {
        TraceEvent {
            event_id: kernel::IdSource::uuid(&kernel::SystemIds),
            event_type: event_type.to_owned(),
            status: if error_type.is_some() { EventStatus::Failed } else { EventStatus::Success },
            service: "order".into(),
            instance: "order-1".into(),
            operation: "op".into(),
            trace_id: String::new(),
            span_id: String::new(),
            start_micros: 0,
            duration_micros: 0,
            order_id: None,
            user_id: None,
            error: error_type.map(|error_type| EventError {
                error_type: error_type.into(),
                reason: "R".into(),
                message: "m".into(),
            }),
            attributes: BTreeMap::new(),
            suppressed_count: 0,
        }
    }

    #[test]
    fn the_table_of_events_without_a_transaction() {
        use Verdict::{Nothing, Success, Unchanged};
        let cases = [
            ("user_login", Kind::Server, None, Nothing),
            ("user_login", Kind::Server, Some("UNAUTHENTICATED"), Unchanged),
            ("user_login", Kind::Server, Some("RESOURCE_EXHAUSTED"), Nothing),
            ("user_login", Kind::Server, Some("ValidationError"), Nothing),
            ("user_login", Kind::Server, Some("OutOfMemoryError"), Unchanged),
            ("audit", Kind::Server, Some("ValidationError"), Unchanged),
            ("order_creation", Kind::Server, Some("ValidationError"), Unchanged),
            ("order_creation", Kind::Server, Some("OutOfMemoryError"), Unchanged),
            ("data_lookup", Kind::Server, None, Unchanged),
            ("data_lookup", Kind::Server, Some("NOT_FOUND"), Success),
            ("data_lookup", Kind::Server, Some("ValidationError"), Nothing),
            ("data_lookup", Kind::Server, Some("TIMEOUT"), Unchanged),
            ("data_lookup", Kind::Client, None, Nothing),
            ("data_lookup", Kind::Client, Some("ValidationError"), Nothing),
            ("data_lookup", Kind::Client, Some("TIMEOUT"), Unchanged),
            ("data_lookup", Kind::Client, Some("CONNECTION_ERROR"), Unchanged),
            ("payment_processing", Kind::Server, Some("ValidationError"), Nothing),
            ("payment_processing", Kind::Client, Some("CONNECTION_ERROR"), Nothing),
            ("payment_processing", Kind::Client, Some("TIMEOUT"), Nothing),
            ("payment_processing", Kind::Internal, None, Nothing),
            ("order_fulfillment", Kind::Server, Some("FAILED_PRECONDITION"), Nothing),
            ("audit", Kind::Server, None, Nothing),
            ("audit", Kind::Server, Some("FAILED_PRECONDITION"), Unchanged),
            ("audit", Kind::Server, Some("RESOURCE_EXHAUSTED"), Nothing),
            ("audit", Kind::Client, Some("CONNECTION_ERROR"), Nothing),
        ];
        for (event_type, kind, error, expected) in cases {
            assert_eq!(verdict(kind, &event(event_type, error)), expected, "{event_type} {kind:?} {error:?}");
        }
    }

    #[test]
    fn events_of_an_outage_are_bounded_and_events_of_orders_are_not() {
        let order = |event_type: &str, error: Option<&str>, attempt: Option<&str>| {
            let attributes =
                attempt.map(|attempt| (mesh::ATTEMPT.to_owned(), attempt.to_owned())).into_iter().collect();
            TraceEvent {
                order_id: Some(kernel::IdSource::uuid(&kernel::SystemIds)),
                attributes,
                ..event(event_type, error)
            }
        };
        #[rustfmt::skip]
        let cases = [
            (order("data_lookup", None, None),                                   None),
            (order("data_lookup", Some("TIMEOUT"), None),                        Some(MAX_REJECTIONS_PER_SECOND)),
            (order("data_lookup", Some("CONNECTION_ERROR"), None),               Some(MAX_REJECTIONS_PER_SECOND)),
            (order("order_creation", Some("CONNECTION_ERROR"), None),            Some(MAX_REJECTIONS_PER_SECOND)),
            (order("order_creation", Some("UNAVAILABLE"), None),                 Some(MAX_REJECTIONS_PER_SECOND)),
            (order("payment_processing", Some("CONNECTION_ERROR"), None),        None),
            (order("payment_processing", Some("CONNECTION_ERROR"), Some("2")),   Some(MAX_REPEATS_PER_SECOND)),
            (order("payment_processing", None, Some("2")),                       None),
            (event("user_login", Some("CONNECTION_ERROR")),                      Some(MAX_REJECTIONS_PER_SECOND)),
            (event("audit", Some("UNAVAILABLE")),                                Some(MAX_REJECTIONS_PER_SECOND)),
        ];
        for (event, max) in cases {
            assert_eq!(max_per_second(&event), max, "{event:?}");
        }
    }

    /// The events stored in one second for attempts of orders whose payment service is unreachable.
    fn stored_of(tries: impl Iterator<Item = (uuid::Uuid, u32)>) -> Vec<TraceEvent> {
        let (sink, mut writer) = Sink::new("order", "order-1");
        for (order, attempt) in tries {
            let mut event =
                TraceEvent { order_id: Some(order), ..event("payment_processing", Some("CONNECTION_ERROR")) };
            event.error.as_mut().expect("a failure").reason = "UNREACHABLE".into();
            if attempt > 1 {
                event.attributes.insert(mesh::ATTEMPT.to_owned(), attempt.to_string());
            }
            match sink.unclaimed(Ended { kind: Kind::Client, event }) {
                Disposition::Stored(event) => sink.put(event),
                Disposition::Summed(_) => {}
                Disposition::NoEvent => panic!("no event"),
            }
        }
        sink.sums.close();
        let mut stored = writer.sums.take();
        while let Ok(event) = writer.waiting.try_recv() {
            stored.push(event);
        }
        stored
    }

    #[test]
    fn an_outage_stores_the_first_failure_of_each_order_and_counts_the_rest() {
        let orders: Vec<_> = (0..50).map(|_| kernel::IdSource::uuid(&kernel::SystemIds)).collect();
        let tries = (1..=20).flat_map(|attempt| orders.iter().map(move |order| (*order, attempt)));
        let stored = stored_of(tries);
        let is_repeat = |event: &&TraceEvent| event.attributes.contains_key(mesh::ATTEMPT);
        let firsts: Vec<_> = stored.iter().filter(|event| !is_repeat(event)).collect();
        assert!(orders.iter().all(|order| firsts.iter().any(|event| event.order_id == Some(*order))));
        assert_eq!(firsts.len(), 50);
        let repeats: Vec<_> = stored.iter().filter(is_repeat).collect();
        // One more for each second boundary that this test happens to cross.
        assert!(repeats.len() < 10, "{} rows", repeats.len());
        assert_eq!(
            repeats.iter().map(|event| event.suppressed_count + 1).sum::<i32>(),
            950,
            "every failure is counted"
        );
    }

    #[test]
    fn an_unreachable_payment_service_is_an_event_and_an_unknown_outcome_is_not() {
        let mut unreachable = event("payment_processing", Some("CONNECTION_ERROR"));
        assert_eq!(verdict(Kind::Client, &unreachable), Verdict::Nothing);
        unreachable.error.as_mut().expect("a failure").reason = "UNREACHABLE".into();
        assert_eq!(verdict(Kind::Client, &unreachable), Verdict::Unchanged);
    }

    #[test]
    fn an_injected_fault_is_an_event_because_no_other_service_has_seen_the_call() {
        for event_type in ["data_lookup", "payment_processing"] {
            let mut injected = event(event_type, Some("INTERNAL"));
            assert_eq!(verdict(Kind::Client, &injected), Verdict::Nothing);
            injected.error.as_mut().expect("a failure").reason = mesh::INJECTED_FAULT.into();
            assert_eq!(verdict(Kind::Client, &injected), Verdict::Unchanged);
        }
    }
}
