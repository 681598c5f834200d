//! This service's own events: they need no outbox, because their store is here.

use std::sync::Arc;

use chassis::events::Store;
use storage::outbox::Outbox;

use crate::convert_event;
use crate::trace_event::TraceEvents;

/// Stores events directly; those that are not accepted from other services either are left to the relay, which keeps
/// them.
pub(crate) fn store(events: &TraceEvents, outbox: Outbox) -> Store {
    let events = events.clone();
    Arc::new(move |own| {
        let (events, outbox) = (events.clone(), outbox.clone());
        Box::pin(async move {
            let (mut accepted, rejected): (Vec<_>, Vec<_>) = own.into_iter().partition(convert_event::is_accepted);
            accepted.sort_by_key(|event| event.event_id);
            events.store(accepted).await?;
            if rejected.is_empty() { Ok(()) } else { outbox.put(rejected).await }
        })
    })
}

#[cfg(test)]
mod tests {
    use kernel::{SystemClock, Timestamp};
    use storage::{Database, Options};
    use telemetry::TraceEvent;

    use super::*;
    use crate::migration::MIGRATIONS;
    use crate::sample::event;
    use crate::trace_event::Filter;
    use crate::trace_event_store::TraceEventStore;

    #[tokio::test]
    async fn own_events_are_stored_directly_and_those_that_would_be_rejected_are_left_to_the_relay() {
        let db = Database::connect("sqlite::memory:", &Options::default()).await.expect("a database");
        db.migrate(MIGRATIONS).await.expect("migrated");
        let of_store = TraceEventStore::new(db.clone());
        let store = store(&TraceEvents::new(of_store.clone(), Arc::new(SystemClock)), db.outbox());
        let time = Timestamp::from_micros(1_795_392_000_000_000);
        let (first, second) = (event(time, 1), event(time, 2));
        let rejected = TraceEvent { operation: "a\0b".into(), ..event(time, 3) };
        store(vec![second.clone(), rejected.clone(), first.clone()]).await.expect("stored");
        // As after a commit whose response was lost.
        store(vec![first.clone()]).await.expect("stored");
        let page = of_store.page(Filter::default(), None, 10).await.expect("read");
        assert_eq!(page, [second, first]);
        assert_eq!(db.outbox().all().await.expect("read").waiting, [rejected]);
    }
}
