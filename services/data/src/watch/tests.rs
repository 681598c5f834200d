//! Followers on SQLite, and on PostgreSQL if it is available.

use std::pin::Pin;

use futures_util::StreamExt;
use kernel::{ManualClock, Timestamp};
use mesh::Role;
use parking_lot::Mutex;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use storage::{Database, Options};
use telemetry::EventStatus;
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

use super::*;
use crate::migration::MIGRATIONS;
use crate::sample::event;
use crate::trace_event::{Received, TraceEvents};
use crate::trace_event_store::TraceEventStore;

const DAY: Duration = Duration::from_secs(86_400);
/// 2026-11-23, 00:00 UTC.
const NOW: Timestamp = Timestamp::from_micros(1_795_392_000_000_000);
/// Longer than any working step takes: a test that reaches it has failed.
const GUARD: Duration = Duration::from_secs(20);
const FAST: Pace = Pace { bookmark: Duration::from_millis(20), send_timeout: GUARD };

/// An instance with its own database.
struct World {
    db: Database,
    clock: Arc<ManualClock>,
    events: TraceEvents,
    watch: Watch,
    _poller: DropGuard,
}

type Stream = Pin<Box<dyn futures_util::Stream<Item = Result<Update, Error>> + Send>>;

impl World {
    async fn on(test_database: testkit::TestDatabase) -> Self {
        let options = Options { schema: test_database.schema, max_connections: 4, ..Options::default() };
        let db = Database::connect(&test_database.url, &options).await.expect("a database");
        db.migrate(MIGRATIONS).await.expect("migrated");
        let clock = Arc::new(ManualClock::at(NOW));
        let events = TraceEvents::new(TraceEventStore::new(db.clone()), clock.clone());
        let store = FeedStore::new(db.clone());
        let stop = CancellationToken::new();
        let watch = Watch {
            feed: Feed::new(store.clone(), events.stored.clone()),
            store,
            clock: clock.clone(),
            retention: DAY * 7,
            permits: Arc::new(Semaphore::new(2)),
            pace: Pace { bookmark: GUARD * 2, send_timeout: GUARD },
            tasks: TaskTracker::new(),
            shutdown: stop.clone(),
        };
        tokio::spawn(watch.feed.clone().poll(stop.clone()));
        Self { db, clock, events, watch, _poller: stop.drop_guard() }
    }

    /// One on SQLite, and one on PostgreSQL if it is available.
    async fn everywhere() -> Vec<Self> {
        let sqlite = testkit::TestDatabase { url: "sqlite::memory:".into(), schema: None };
        let mut worlds = vec![Self::on(sqlite).await];
        if let Some(postgres) = testkit::postgres() {
            worlds.push(Self::on(postgres).await);
        }
        worlds
    }

    async fn append(&self, events: &[TraceEvent]) {
        for batch in events.chunks(500) {
            let sent = batch.iter().map(|event| Received { event_id: String::new(), event: Ok(event.clone()) });
            self.events.append(sent.collect()).await.expect("stored");
        }
    }

    /// The same, and waits until a new follower would begin after them: on PostgreSQL other tests' open transactions
    /// hold the high-water mark back.
    async fn append_below_the_mark(&self, events: &[TraceEvent]) {
        self.append(events).await;
        let last = events.last().map(|event| event.event_id);
        let visible = async {
            loop {
                let mark = self.watch.feed.refresh().await.expect("read").newest;
                let block = self.watch.store.read(&all(), Position::START, mark).await.expect("read");
                if block.events.iter().any(|(_, event)| Some(event.event_id) == last) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(GUARD, visible).await.expect("visible in time");
    }

    async fn try_follow(&self, filter: Filter, after: Option<Cursor>) -> Result<Stream, Error> {
        let caller = Caller::User {
            user_id: Uuid::from_u128(1),
            role: Role::Operator,
            token_expires: self.clock.now().plus(DAY),
            session_id: None,
        };
        self.try_follow_as(&caller, filter, after).await
    }

    async fn try_follow_as(&self, caller: &Caller, filter: Filter, after: Option<Cursor>) -> Result<Stream, Error> {
        let watch = WatchTraceEvents { filter, cursors: cursors(), after };
        Ok(Box::pin(self.watch.follow(caller, watch).await?))
    }

    async fn follow(&self, filter: Filter, after: Option<Cursor>) -> Stream {
        self.try_follow(filter, after).await.expect("it follows")
    }

    async fn run(&self, sql: &str) {
        self.db.read().execute_unprepared(sql).await.expect("a statement");
    }
}

fn cursors() -> Cursors {
    Cursors::of(chassis::Fingerprint::of("test"))
}

fn read_cursor(text: &str) -> Cursor {
    cursors().decode(&mut chassis::Fields::default(), text).expect("a cursor")
}

fn all() -> Filter {
    Filter::default()
}

fn failures() -> Filter {
    Filter { status: Some(EventStatus::Failed), ..all() }
}

fn failed(event: TraceEvent) -> TraceEvent {
    TraceEvent { status: EventStatus::Failed, ..event }
}

/// Events of successive seconds.
fn many(count: u16) -> Vec<TraceEvent> {
    (0..count).map(|number| event(NOW.plus(Duration::from_secs(number.into())), number)).collect()
}

async fn next(stream: &mut Stream) -> Option<Result<Update, Error>> {
    tokio::time::timeout(GUARD, stream.next()).await.expect("a message in time")
}

async fn bookmark(stream: &mut Stream) -> Cursor {
    let update = next(stream).await.expect("no end").expect("no error");
    assert_eq!(update.event, None);
    read_cursor(&update.cursor)
}

/// The next events and the last one's cursor; bookmarks are skipped.
async fn take(stream: &mut Stream, count: usize) -> (Vec<TraceEvent>, Option<Cursor>) {
    let (mut events, mut last) = (Vec::new(), None);
    while events.len() < count {
        let update = next(stream).await.expect("no end").expect("no error");
        if let Some(event) = update.event {
            events.push(event);
            last = Some(read_cursor(&update.cursor));
        }
    }
    (events, last)
}

/// The reason of the stream's end, which is its last item.
async fn end(stream: &mut Stream) -> Error {
    loop {
        if let Err(error) = next(stream).await.expect("a reason") {
            assert!(next(stream).await.is_none());
            return error;
        }
    }
}

#[tokio::test]
async fn the_first_message_is_a_bookmark_and_earlier_events_are_not_sent() {
    for world in World::everywhere().await {
        let events = many(4);
        world.append_below_the_mark(&events[..2]).await;
        let mut stream = world.follow(all(), None).await;
        let cursor = bookmark(&mut stream).await;
        world.append(&events[2..]).await;
        assert_eq!(take(&mut stream, 2).await.0, events[2..]);
        // A client that has received only the bookmark can resume.
        let mut again = world.follow(all(), Some(cursor)).await;
        bookmark(&mut again).await;
        assert_eq!(take(&mut again, 2).await.0, events[2..]);
    }
}

/// The insert of the previous release, on PostgreSQL.
fn insert_statement(event: &TraceEvent) -> Statement {
    let TraceEvent { event_type, service, instance, operation, trace_id, span_id, .. } = event;
    Statement::from_sql_and_values(
        DbBackend::Postgres,
        "INSERT INTO trace_event (event_id, event_type, status, service, instance, operation, trace_id, span_id, \
         start_time, duration_micros, attributes, suppressed_count) \
         VALUES ($1, $2, 'success', $3, $4, $5, $6, $7, $8, 0, '{}', 0)",
        [
            event.event_id.into(),
            event_type.into(),
            service.into(),
            instance.into(),
            operation.into(),
            trace_id.into(),
            span_id.into(),
            event.start_micros.into(),
        ],
    )
}

/// A transaction that has run a statement and commits on a signal from the sender.
async fn open_transaction(
    db: &Database,
    statement: Statement,
) -> (tokio::task::JoinHandle<Result<(), storage::Error>>, oneshot::Sender<()>) {
    let (ran, has_run) = oneshot::channel();
    let (commit, to_commit) = oneshot::channel();
    let (db, once) = (db.clone(), Arc::new(Mutex::new(Some((ran, to_commit)))));
    let open = tokio::spawn(async move {
        db.transact((statement, once), |tx, (statement, once)| {
            Box::pin(async move {
                let (ran, to_commit) = once.lock().take().expect("a single run");
                tx.conn().execute_raw(statement).await?;
                let _ = ran.send(());
                let _ = to_commit.await;
                Ok(())
            })
        })
        .await
    });
    has_run.await.expect("it has run");
    (open, commit)
}

#[tokio::test]
async fn an_open_transaction_delays_later_events_and_none_is_lost() {
    let Some(test_database) = testkit::postgres() else { return };
    let mut world = World::on(test_database).await;
    world.watch.pace = FAST;
    let mut stream = world.follow(all(), None).await;
    let begun = bookmark(&mut stream).await;
    let events = many(4);
    // The statement names its columns without `ingest`, as in the previous release.
    let insert = insert_statement(&events[3]);
    let (open, commit) = open_transaction(&world.db, insert).await;
    for event in &events[..3] {
        world.append(std::slice::from_ref(event)).await;
    }
    let stored = TraceEventStore::new(world.db.clone()).page(all(), None, 10).await.expect("read");
    assert_eq!(stored.len(), 3, "visible to all");
    assert_eq!(world.watch.feed.refresh().await.expect("read").newest, begun.position);
    for _ in 0..3 {
        assert_eq!(bookmark(&mut stream).await.position, begun.position);
    }
    commit.send(()).expect("an open transaction");
    open.await.expect("no panic").expect("committed");
    let (sent, last) = take(&mut stream, 4).await;
    let order: Vec<_> = sent.iter().map(|event| event.event_id).collect();
    assert_eq!(order, [3, 0, 1, 2].map(|index: usize| events[index].event_id));
    loop {
        let current = bookmark(&mut stream).await;
        if Some(current.position) == last.map(|last| last.position) {
            break;
        }
    }
}

#[tokio::test]
async fn bookmarks_advance_past_events_that_do_not_match_and_stay_current() {
    for mut world in World::everywhere().await {
        world.watch.pace = FAST;
        let mut stream = world.follow(failures(), None).await;
        let first = bookmark(&mut stream).await;
        world.clock.advance(DAY);
        world.append_below_the_mark(&many(3)).await;
        let newest = world.watch.feed.refresh().await.expect("read").newest;
        assert!(newest > first.position);
        let past = loop {
            let cursor = bookmark(&mut stream).await;
            if cursor.position == newest {
                break cursor;
            }
        };
        assert_eq!(past.made, NOW.plus(DAY));
        let failure = failed(event(NOW, 77));
        world.append(std::slice::from_ref(&failure)).await;
        let mut again = world.follow(failures(), Some(past)).await;
        assert_eq!(take(&mut again, 1).await.0, [failure]);
    }
}

#[tokio::test]
async fn a_cursor_is_as_old_as_its_position_until_the_follower_is_up_to_date() {
    for mut world in World::everywhere().await {
        world.watch.pace = FAST;
        world.append(&many(3)).await;
        let made = NOW.minus(DAY * 6);
        let old = Cursor { made, position: Position::START };
        let mut stream = world.follow(all(), Some(old)).await;
        let (_, cursor) = take(&mut stream, 1).await;
        assert_eq!(cursor.expect("a cursor").made, made, "later events may be deleted tomorrow");
        take(&mut stream, 2).await;
        assert_eq!(bookmark(&mut stream).await.made, NOW, "no later events");
    }
}

#[tokio::test]
async fn each_matching_event_is_sent_once_wherever_it_is() {
    for world in World::everywhere().await {
        // At both edges of the scanned blocks.
        let fit = [0, 4_999, 5_000, 5_001, 9_999, 10_000, 11_999];
        let number = |index: usize| u16::try_from(index).expect("few");
        let at = |index: usize| NOW.plus(Duration::from_secs(u64::from(number(index))));
        let events: Vec<_> = (0..12_000)
            .map(|index| event(at(index), number(index)))
            .enumerate()
            .map(|(index, event)| if fit.contains(&index) { failed(event) } else { event })
            .collect();
        world.append(&events).await;
        let begin = Some(Cursor { made: NOW, position: Position::START });
        let mut stream = world.follow(failures(), begin).await;
        let (sent, last) = take(&mut stream, fit.len()).await;
        assert_eq!(sent, fit.map(|index| events[index].clone()));
        assert_eq!(last.map(|last| last.position), Some(world.watch.feed.refresh().await.expect("read").newest));
        // Control: without a filter, all of them are sent.
        let (sent, _) = take(&mut world.follow(all(), begin).await, events.len()).await;
        assert!(sent == events);
    }
}

#[tokio::test]
async fn an_emptied_database_is_followed_from_its_start() {
    let world = World::on(testkit::TestDatabase { url: "sqlite::memory:".into(), schema: None }).await;
    let events = many(6);
    world.append(&events[..4]).await;
    let mut stream = world.follow(all(), Some(Cursor { made: NOW, position: Position::START })).await;
    let (_, last) = take(&mut stream, 4).await;
    world.run("DELETE FROM trace_event").await;
    world.append(&events[4..5]).await;
    assert_eq!(take(&mut stream, 1).await.0, events[4..5]);
    world.append(&events[5..]).await;
    let mut again = world.follow(all(), last).await;
    assert_eq!(take(&mut again, 2).await.0, events[4..]);
}

#[tokio::test]
async fn an_unread_stream_is_ended_after_its_buffered_messages() {
    for mut world in World::everywhere().await {
        world.watch.pace.send_timeout = Duration::from_millis(50);
        let events = many(100);
        let mut stream = world.follow(all(), None).await;
        world.append(&events).await;
        world.watch.tasks.close();
        tokio::time::timeout(GUARD, world.watch.tasks.wait()).await.expect("the task ends");
        assert_eq!(world.watch.permits.available_permits(), 2);
        let mut sent = Vec::new();
        let (error, last) = loop {
            match next(&mut stream).await.expect("no end") {
                Ok(update) => sent.push(update),
                Err(error) => break (error, sent.last().map(|last| read_cursor(&last.cursor))),
            }
        };
        assert!(matches!(error, Error::FollowerTooSlow(_)), "{error}");
        assert!(next(&mut stream).await.is_none());
        assert_eq!(sent.len(), MAX_WAITING);
        // Control: a stream that is read resumes where it ended.
        let mut again = world.follow(all(), last).await;
        let rest = take(&mut again, events.len() - (MAX_WAITING - 1)).await.0;
        let sent: Vec<_> = sent.into_iter().filter_map(|update| update.event).chain(rest).collect();
        assert_eq!(sent, events);
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_token_its_instance_or_its_reader() {
    let world = World::on(testkit::database()).await;
    let token_expires = NOW.plus(Duration::from_millis(20));
    let caller = Caller::User { user_id: Uuid::from_u128(1), role: Role::Operator, token_expires, session_id: None };
    let mut short = world.try_follow_as(&caller, all(), None).await.expect("it follows");
    assert!(matches!(end(&mut short).await, Error::TokenExpired));
    let dropped = world.follow(all(), None).await;
    let mut stays = world.follow(all(), None).await;
    assert!(matches!(world.try_follow(all(), None).await.err(), Some(Error::TooManyFollowers)));
    drop(dropped);
    // The permit is returned when the task has ended.
    let _permit = tokio::time::timeout(GUARD, world.watch.permits.acquire()).await.expect("it ends");
    bookmark(&mut stays).await;
    world.watch.shutdown.cancel();
    assert!(matches!(end(&mut stays).await, Error::Draining));
}

#[tokio::test]
async fn an_expired_cursor_is_rejected() {
    for world in World::everywhere().await {
        let cursor = bookmark(&mut world.follow(all(), None).await).await;
        world.clock.advance(DAY * 6);
        bookmark(&mut world.follow(all(), Some(cursor)).await).await;
        world.clock.advance(DAY);
        assert!(matches!(world.try_follow(all(), Some(cursor)).await.err(), Some(Error::CursorExpired)));
    }
}

async fn file_of_the_table(db: &Database) -> i64 {
    let sql = "SELECT CAST(pg_relation_filenode('trace_event') AS BIGINT) AS file";
    let select = Statement::from_string(DbBackend::Postgres, sql);
    let row = db.read().query_one_raw(select).await.expect("read").expect("a row");
    row.try_get("", "file").expect("a number")
}

#[tokio::test]
async fn the_column_is_added_without_a_rewrite_and_old_rows_stay_without_it() {
    let Some(test_database) = testkit::postgres() else { return };
    let options = Options { schema: test_database.schema.clone(), max_connections: 1, ..Options::default() };
    let db = Database::connect(&test_database.url, &options).await.expect("a database");
    let before = MIGRATIONS.iter().position(|step| !step.postgres.is_empty()).expect("the migration that adds it");
    db.migrate(&MIGRATIONS[..before]).await.expect("the schema of the previous release");
    let events = many(2);
    db.read().execute_raw(insert_statement(&events[0])).await.expect("inserted");
    let filled = file_of_the_table(&db).await;
    drop(db);
    let world = World::on(test_database).await;
    let db = &world.db;
    assert_eq!(file_of_the_table(db).await, filled, "the table's file is unchanged");
    let mut stream = world.follow(all(), Some(Cursor { made: NOW, position: Position::START })).await;
    db.read().execute_raw(insert_statement(&events[1])).await.expect("inserted");
    assert_eq!(take(&mut stream, 1).await.0, events[1..]);
    let stored = TraceEventStore::new(db.clone()).page(all(), None, 10).await.expect("read");
    assert_eq!(stored.len(), 2);
}
