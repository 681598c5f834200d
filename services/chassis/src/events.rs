//! Which operations that nobody has taken become events when they end, and their way into the outbox.
//!
//! Changes that were committed have written their event in their own transaction and never come here.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use kernel::backoff::full_jitter;
use kernel::{Clock, SystemClock, Timestamp};
use opentelemetry::global;
use opentelemetry::metrics::Counter;
use storage::Database;
use telemetry::{Ended, EventError, EventSink, EventStatus, Kind, TraceEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that wait for the writer; a further one is counted as lost, and said so in the log.
const MAX_WAITING: usize = 16_384;
/// The most events that the writer puts in one transaction.
const MAX_BATCH: usize = 512;
/// Refusals for memory that become events, in a second.
const MAX_MEMORY_EVENTS_PER_SECOND: u32 = 10;

/// What becomes of an ended operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Nothing,
    AsItIs,
    Answered,
}

/// The table: a row per event type and side of the call.
#[rustfmt::skip]
fn verdict(kind: Kind, event: &TraceEvent) -> Verdict {
    let error = event.error.as_ref();
    let no_answer = error.is_some_and(|error| matches!(error.kind.as_str(), "TIMEOUT" | "CONNECTION_ERROR"));
    let unreachable = error.is_some_and(|error| error.reason == "UNREACHABLE");
    match (event.event_type.as_str(), kind) {
        // Success is written with the session or the order. A refusal by a limit is a metric, not an event.
        ("user_login" | "order_creation", Kind::Server) => match error {
            Some(error) if error.kind != "RESOURCE_EXHAUSTED" => Verdict::AsItIs,
            Some(_) | None                                    => Verdict::Nothing,
        },
        // A lookup that answered is a success, also when the answer is "there is none".
        ("data_lookup", Kind::Server) => match error.map(|error| error.kind.as_str()) {
            None                                                     => Verdict::AsItIs,
            Some("ValidationError" | "RESOURCE_EXHAUSTED")           => Verdict::Nothing,
            Some("NOT_FOUND" | "FAILED_PRECONDITION")                => Verdict::Answered,
            Some(_)                                                  => Verdict::AsItIs,
        },
        // The caller's side tells of it only when the peer could not.
        ("data_lookup", Kind::Client) if no_answer                        => Verdict::AsItIs,
        // A payment that was asked for and not answered is in doubt, and doubt is no event: only one that never left is.
        ("payment_processing", Kind::Client) if unreachable               => Verdict::AsItIs,
        // Everything else is told by what it commits.
        _ => Verdict::Nothing,
    }
}

/// The sink of a service's operations.
#[derive(Debug)]
pub struct Sink {
    service: String,
    instance: String,
    waiting: mpsc::Sender<TraceEvent>,
    memory: Mutex<MemoryEvents>,
    lost: Counter<u64>,
}

fn lost_counter() -> Counter<u64> {
    let description = "Events that were lost, because the outbox could not be written";
    global::meter("ordermesh").u64_counter("ordermesh.events.lost").with_description(description).build()
}

/// Spares the store when everything is refused for memory.
#[derive(Debug, Default)]
struct MemoryEvents {
    second: Timestamp,
    told: u32,
    suppressed: i32,
}

impl MemoryEvents {
    /// How many were left out before this one; `None` when this one is left out too.
    fn admit(&mut self, now: Timestamp) -> Option<i32> {
        if now.since(self.second) >= Duration::from_secs(1) {
            (self.second, self.told) = (now, 0);
        }
        if self.told == MAX_MEMORY_EVENTS_PER_SECOND {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Sink {
    /// A sink, and what its writer reads from.
    pub fn new(service: &str, instance: &str) -> (Self, mpsc::Receiver<TraceEvent>) {
        let (waiting, writer) = mpsc::channel(MAX_WAITING);
        let sink = Self {
            service: service.to_owned(),
            instance: instance.to_owned(),
            waiting,
            memory: Mutex::default(),
            lost: lost_counter(),
        };
        // A counter that is never touched is not there to be alerted on.
        sink.lost.add(0, &[]);
        (sink, writer)
    }
}

impl EventSink for Sink {
    fn untaken(&self, ended: Ended) {
        let mut event = ended.event;
        match verdict(ended.kind, &event) {
            Verdict::Nothing => return,
            Verdict::AsItIs => {}
            Verdict::Answered => {
                let said = event.error.take().map(|error| error.reason).unwrap_or_default();
                event.attributes.insert("answer".to_owned(), said);
                event.status = EventStatus::Success;
            }
        }
        if matches!(&event.error, Some(EventError { kind, .. }) if kind == "OutOfMemoryError") {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(suppressed) = memory.admit(SystemClock.now()) else { return };
            event.suppressed_count = suppressed;
        }
        if let Some(error) = &event.error {
            tracing::warn!(target: "ordermesh", event = %event.event_type, operation = %event.operation, error.type = %error.kind,
                reason = %error.reason, "{} failed: {}", event.event_type, error.message);
        }
        if let Err(lost) = self.waiting.try_send(event) {
            self.lost.add(1, &[]);
            tracing::error!(target: "ordermesh", "an event was lost, because the database does not keep up: {lost}");
        }
    }

    fn teller(&self) -> (&str, &str) {
        (&self.service, &self.instance)
    }
}

/// How long the writer collects before it writes.
const LINGER: Duration = Duration::from_millis(10);

/// Puts what the sink takes into the outbox, until `stop`; then what is left.
pub async fn write(db: Database, mut waiting: mpsc::Receiver<TraceEvent>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        tokio::select! {
            biased;
            count = waiting.recv_many(&mut batch, MAX_BATCH) => if count == 0 { return },
            // What is in the channel is still written; then there is nothing more to come.
            () = stop.cancelled() => waiting.close(),
        }
        if batch.is_empty() {
            continue;
        }
        let _ = tokio::time::timeout(LINGER, stop.cancelled()).await;
        while batch.len() < MAX_BATCH
            && let Ok(event) = waiting.try_recv()
        {
            batch.push(event);
        }
        put(&db, std::mem::take(&mut batch), &stop).await;
    }
}

/// Writes a batch, again and again while the database is away; when the service ends meanwhile, it is lost, and said so.
async fn put(db: &Database, batch: Vec<TraceEvent>, stop: &CancellationToken) {
    let mut failures = 0;
    while let Err(error) = db.outbox().put(batch.clone()).await {
        failures += 1;
        tracing::warn!(target: "ordermesh", error = ?error, "events wait: the outbox cannot be written");
        let wait = full_jitter(failures, Duration::from_millis(100), Duration::from_secs(5), rand::random());
        if tokio::time::timeout(wait, stop.cancelled()).await.is_ok() && failures > 3 {
            lost_counter().add(u64::try_from(batch.len()).unwrap_or(u64::MAX), &[]);
            tracing::error!(target: "ordermesh", count = batch.len(), "events were lost: the outbox cannot be written");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn event(event_type: &str, error_kind: Option<&str>) -> TraceEvent {
        TraceEvent {
            event_id: kernel::IdSource::uuid(&kernel::SystemIds),
            event_type: event_type.to_owned(),
            status: if error_kind.is_some() { EventStatus::Failed } else { EventStatus::Success },
            service: "order".into(),
            instance: "order-1".into(),
            operation: "op".into(),
            trace_id: String::new(),
            span_id: String::new(),
            start_micros: 0,
            duration_micros: 0,
            order_id: None,
            user_id: None,
            error: error_kind.map(|kind| EventError { kind: kind.into(), reason: "R".into(), message: "m".into() }),
            attributes: BTreeMap::new(),
            suppressed_count: 0,
        }
    }

    #[test]
    fn the_table_of_events_that_nobody_committed() {
        use Verdict::{Answered, AsItIs, Nothing};
        let cases = [
            ("user_login", Kind::Server, None, Nothing),
            ("user_login", Kind::Server, Some("UNAUTHENTICATED"), AsItIs),
            ("user_login", Kind::Server, Some("RESOURCE_EXHAUSTED"), Nothing),
            ("order_creation", Kind::Server, Some("ValidationError"), AsItIs),
            ("order_creation", Kind::Server, Some("OutOfMemoryError"), AsItIs),
            ("data_lookup", Kind::Server, None, AsItIs),
            ("data_lookup", Kind::Server, Some("NOT_FOUND"), Answered),
            ("data_lookup", Kind::Server, Some("ValidationError"), Nothing),
            ("data_lookup", Kind::Server, Some("TIMEOUT"), AsItIs),
            ("data_lookup", Kind::Client, None, Nothing),
            ("data_lookup", Kind::Client, Some("ValidationError"), Nothing),
            ("data_lookup", Kind::Client, Some("TIMEOUT"), AsItIs),
            ("data_lookup", Kind::Client, Some("CONNECTION_ERROR"), AsItIs),
            ("payment_processing", Kind::Server, Some("ValidationError"), Nothing),
            ("payment_processing", Kind::Client, Some("CONNECTION_ERROR"), Nothing),
            ("payment_processing", Kind::Client, Some("TIMEOUT"), Nothing),
            ("payment_processing", Kind::Internal, None, Nothing),
            ("order_fulfillment", Kind::Server, Some("FAILED_PRECONDITION"), Nothing),
        ];
        for (event_type, kind, error, expected) in cases {
            assert_eq!(verdict(kind, &event(event_type, error)), expected, "{event_type} {kind:?} {error:?}");
        }
    }

    #[test]
    fn a_payment_service_that_cannot_be_reached_is_an_event_and_doubt_is_none() {
        let mut unreachable = event("payment_processing", Some("CONNECTION_ERROR"));
        assert_eq!(verdict(Kind::Client, &unreachable), Verdict::Nothing);
        unreachable.error.as_mut().expect("it failed").reason = "UNREACHABLE".into();
        assert_eq!(verdict(Kind::Client, &unreachable), Verdict::AsItIs);
    }

    #[test]
    fn refusals_for_memory_are_ten_a_second_and_the_rest_is_counted() {
        let mut memory = MemoryEvents::default();
        let now = Timestamp::from_micros(5_000_000);
        let told = (0..25).filter(|_| memory.admit(now).is_some()).count();
        assert_eq!(told, 10);
        assert_eq!(memory.admit(now.plus(Duration::from_secs(1))), Some(15));
        assert_eq!(memory.admit(now.plus(Duration::from_secs(1))), Some(0));
    }
}
