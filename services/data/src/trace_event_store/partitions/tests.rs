use std::sync::Arc;

use kernel::ManualClock;
use sea_orm::ConnectionTrait;
use storage::{Database, Options};
use telemetry::TraceEvent;

use super::*;
use crate::feed::Position;
use crate::feed_store::FeedStore;
use crate::migration::MIGRATIONS;
use crate::sample::event;
use crate::trace_event::{Expired, Filter, TraceEvents};

/// 2026-11-23, 00:00 UTC.
const NOW: Timestamp = Timestamp::from_micros(1_795_392_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// `None`: PostgreSQL is not installed.
async fn store() -> Option<TraceEventStore> {
    let test_database = testkit::postgres()?;
    let options = Options { schema: test_database.schema, ..Options::default() };
    let db = Database::connect(&test_database.url, &options).await.expect("a database");
    db.migrate(MIGRATIONS).await.expect("migrated");
    Some(TraceEventStore::new(db))
}

async fn insert(store: &TraceEventStore, events: &[&TraceEvent]) -> usize {
    store.insert(events.iter().copied().cloned().collect()).await.expect("stored").len()
}

/// All events, newest first.
async fn all(store: &TraceEventStore) -> Vec<Uuid> {
    let page = store.page(Filter::default(), None, 1_000).await.expect("a page");
    page.into_iter().map(|event| event.event_id).collect()
}

/// The partition of an event.
async fn partition_of(store: &TraceEventStore, event: &TraceEvent) -> Partition {
    let id = event.event_id;
    let sql = format!("SELECT tableoid::regclass::text AS name FROM trace_event WHERE event_id = '{id}'");
    let row = Name::find_by_statement(store.sql(&sql)).one(store.db.read()).await.expect("read").expect("stored");
    Partition::parse(row.name.rsplit('.').next().expect("a name")).unwrap_or_else(|| panic!("{}", row.name))
}

async fn execute(store: &TraceEventStore, sql: &str) {
    store.db.execute(store.sql(sql)).await.expect(sql);
}

fn today() -> Day {
    Day::of(NOW)
}

#[test]
fn a_partition_is_parsed_from_its_name() {
    assert_eq!(Partition::Day(today()).name(), "trace_event_20261123");
    for partition in [Partition::Before(Day(0)), Partition::Day(today().plus(400)), Partition::Default] {
        assert_eq!(Partition::parse(&partition.name()), Some(partition));
    }
    for name in ["trace_event", "trace_event_", "trace_event_20261341", "trace_event_2026112", "trace_event_by_type"] {
        assert_eq!(Partition::parse(name), None, "{name}");
    }
}

#[test]
fn a_day_contains_the_ids_of_its_milliseconds() {
    let last = first_id_at(NOW.plus(DAY).minus(Duration::from_millis(1)));
    assert!(today().first_id() < last && last < today().plus(1).first_id());
    assert_eq!(Day::of(NOW.minus(Duration::from_micros(1))), today().plus(-1));
}

#[tokio::test]
async fn an_empty_table_has_the_next_days_at_once() {
    let Some(store) = store().await else { return };
    store.partition(NOW).await.expect("prepared");
    store.partition(NOW).await.expect("nothing to do");
    let days = (0..DAYS_AHEAD).map(|ahead| Partition::Day(today().plus(ahead)));
    let expected: Vec<_> = [Partition::Before(today())].into_iter().chain(days).chain([Partition::Default]).collect();
    assert_eq!(store.partitions().await.expect("partitions"), expected);
    let event = event(NOW, 0);
    assert_eq!(insert(&store, &[&event]).await, 1);
    assert_eq!(partition_of(&store, &event).await, Partition::Day(today()));
}

#[tokio::test]
async fn a_table_with_rows_becomes_the_partition_before_the_first_day() {
    let Some(store) = store().await else { return };
    let (old, new) = (event(NOW.minus(DAY * 5), 0), event(NOW, 1));
    insert(&store, &[&old, &new]).await;
    execute(&store, "GRANT SELECT ON trace_event TO pg_read_all_stats").await;
    store.partition(NOW).await.expect("prepared");
    let before = Partition::Before(today().plus(FIRST_DAY_AHEAD));
    assert_eq!(partition_of(&store, &old).await, before);
    assert_eq!(partition_of(&store, &new).await, before);
    assert_eq!(all(&store).await, [new.event_id, old.event_id]);
    assert_eq!(insert(&store, &[&old, &new]).await, 0, "a copy is recognized");
    let granted = "SELECT CASE WHEN has_table_privilege('pg_read_all_stats', 'trace_event', 'SELECT') \
         THEN 'granted' ELSE 'lost' END AS name";
    let row = Name::find_by_statement(store.sql(granted)).one(store.db.read()).await.expect("read");
    assert_eq!(row.expect("a row").name, "granted");
    // From its end on there are days.
    let later = NOW.plus(DAY * u32::try_from(FIRST_DAY_AHEAD).expect("a few"));
    store.partition(later).await.expect("prepared");
    let event = event(later, 2);
    insert(&store, &[&event]).await;
    assert_eq!(partition_of(&store, &event).await, Partition::Day(Day::of(later)));
}

#[tokio::test]
async fn an_event_of_no_day_is_stored_and_moves_to_its_day() {
    let Some(store) = store().await else { return };
    store.partition(NOW).await.expect("prepared");
    let early = event(NOW.plus(DAY * 5), 0);
    insert(&store, &[&early]).await;
    assert_eq!(partition_of(&store, &early).await, Partition::Default);
    store.partition(NOW.plus(DAY * 4)).await.expect("prepared");
    assert_eq!(partition_of(&store, &early).await, Partition::Day(today().plus(5)));
    assert_eq!(all(&store).await, [early.event_id]);
    assert_eq!(insert(&store, &[&early]).await, 0, "a copy is recognized");
}

#[tokio::test]
async fn whole_days_are_dropped_and_others_deleted() {
    let Some(store) = store().await else { return };
    let clock = Arc::new(ManualClock::at(NOW));
    let events = TraceEvents::new(store.clone(), clock.clone());
    store.partition(NOW).await.expect("prepared");
    let (first, second, late) = (event(NOW, 0), event(NOW.plus(DAY), 1), event(NOW.minus(DAY * 9), 2));
    insert(&store, &[&first, &second, &late]).await;
    let expired = async || events.expire(WEEK).await.expect("expired");
    // The row before the first day; its partition has ended long ago but for today's retention.
    assert_eq!(expired().await, Expired { partitions: 0, events: 1 });
    clock.advance(WEEK + DAY - Duration::from_millis(1));
    assert_eq!(expired().await, Expired { partitions: 1, events: 0 }, "the partition before the first day");
    clock.advance(Duration::from_millis(1));
    assert_eq!(expired().await, Expired { partitions: 1, events: 0 }, "the first day");
    assert_eq!(all(&store).await, [second.event_id]);
    // Late for a day that is gone.
    let late = event(NOW, 3);
    insert(&store, &[&late]).await;
    assert_eq!(partition_of(&store, &late).await, Partition::Default);
    assert_eq!(expired().await, Expired { partitions: 0, events: 1 });
}

#[tokio::test]
async fn any_number_of_instances_prepare_at_once_while_events_are_stored() {
    let Some(store) = store().await else { return };
    insert(&store, &[&event(NOW, 0)]).await;
    let prepare = || async {
        // An instance that does not get a lock in time tries again at the next sweep.
        while let Err(error) = store.partition(NOW).await {
            assert!(format!("{error:?}").contains("55P03"), "lock_not_available: {error:?}");
        }
    };
    let append = async {
        let mut stored = 1;
        for number in 1..40 {
            stored += insert(&store, &[&event(NOW, number)]).await;
        }
        stored
    };
    let (stored, ..) = tokio::join!(append, prepare(), prepare(), prepare(), prepare());
    assert_eq!(stored, 40);
    assert_eq!(all(&store).await.len(), 40);
    let partitions = store.partitions().await.expect("partitions");
    assert_eq!(partitions, [Partition::Before(today().plus(FIRST_DAY_AHEAD)), Partition::Default]);
}

#[tokio::test]
async fn a_lock_that_another_transaction_holds_is_not_awaited_for_long() {
    let Some(store) = store().await else { return };
    insert(&store, &[&event(NOW, 0)]).await;
    let reader = store.clone();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let (held, is_held) = tokio::sync::oneshot::channel();
    let released = Arc::new(tokio::sync::Mutex::new(Some((held, released))));
    let holder = tokio::spawn(async move {
        let held: Result<(), Error> = reader
            .db
            .transact(released, |tx, released| {
                Box::pin(async move {
                    tx.conn().execute_unprepared("LOCK TABLE trace_event IN ACCESS SHARE MODE").await?;
                    if let Some((held, released)) = released.lock().await.take() {
                        let _ = held.send(());
                        let _ = released.await;
                    }
                    Ok(())
                })
            })
            .await;
        held.expect("committed");
    });
    is_held.await.expect("locked");
    let error = store.partition(NOW).await.expect_err("the table is in use");
    assert!(format!("{error:?}").contains("55P03"), "lock_not_available: {error:?}");
    assert_eq!(insert(&store, &[&event(NOW, 1)]).await, 1, "events go on being stored");
    release.send(()).expect("the holder waits");
    holder.await.expect("it ends");
    store.partition(NOW).await.expect("prepared");
    assert_eq!(all(&store).await.len(), 2);
}

#[tokio::test]
async fn an_unfinished_preparation_is_begun_anew_before_it_rejects_events() {
    let Some(store) = store().await else { return };
    insert(&store, &[&event(NOW.minus(DAY * 3), 0)]).await;
    store.db.alter(&constrain(today()), LOCK_TIMEOUT).await.expect("as if an instance had ended here");
    store.partition(NOW).await.expect("prepared");
    assert_eq!(insert(&store, &[&event(NOW, 1)]).await, 1);
    assert_eq!(all(&store).await.len(), 2);
}

#[tokio::test]
async fn followers_read_all_partitions_in_the_order_of_storing() {
    let Some(store) = store().await else { return };
    let old = event(NOW, 0);
    insert(&store, &[&old]).await;
    store.partition(NOW).await.expect("prepared");
    store.partition(NOW.plus(DAY * 3)).await.expect("prepared");
    let (new, late) = (event(NOW.plus(DAY * 4), 1), event(NOW.minus(DAY), 2));
    insert(&store, &[&new]).await;
    insert(&store, &[&late]).await;
    let feed = FeedStore::new(store.db.clone());
    // The mark is below the oldest open transaction of the server, which other tests use too.
    let read = async {
        loop {
            let mark = feed.high_water_mark().await.expect("a mark");
            let block = feed.read(&Filter::default(), Position::START, mark.newest).await.expect("read");
            if block.events.len() == 3 {
                return block.events.into_iter().map(|(_, event)| event.event_id).collect::<Vec<_>>();
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(30), read).await.expect("all are read");
    assert_eq!(read, [old.event_id, new.event_id, late.event_id]);
}
