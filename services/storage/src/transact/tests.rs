use std::sync::Arc;

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, FromQueryResult, Statement};
use telemetry::{Disposition, Ended, EventSink, Kind, Operation, Outcome, Parent, TraceEvent};

use crate::{Database, Error, Migration, Options};

const SCHEMA: &[Migration] = &[Migration {
    version: 1,
    name: "create t",
    statements: &["CREATE TABLE t (id UUID PRIMARY KEY, n BIGINT NOT NULL UNIQUE)"],
    postgres: &[],
}];

struct NoSink;
impl EventSink for NoSink {
    fn unclaimed(&self, _ended: Ended) -> Disposition {
        Disposition::NoEvent
    }
    fn put(&self, _event: TraceEvent) {}
    fn origin(&self) -> (&str, &str) {
        ("test", "test-1")
    }
}

fn operation() -> Operation {
    Operation::open(Kind::Internal, "put", Parent::Root, Some("data_lookup"), Some(Arc::new(NoSink)))
}

async fn put(db: &Database, n: i64, operation: Operation) -> Result<(), Error> {
    db.transact((), move |tx, ()| {
        let operation = operation.clone();
        Box::pin(async move {
            let insert = Statement::from_sql_and_values(
                tx.conn().get_database_backend(),
                "INSERT INTO t (id, n) VALUES ($1, $2)",
                [kernel::IdSource::uuid(&kernel::SystemIds).into(), n.into()],
            );
            tx.conn().execute_raw(insert).await?;
            tx.emit(&operation, &Outcome::Success);
            Ok(())
        })
    })
    .await
}

#[derive(FromQueryResult, PartialEq, Debug)]
struct Row {
    id: uuid::Uuid,
    n: i64,
}

async fn rows(db: &Database) -> Vec<Row> {
    let select = Statement::from_string(db.read().get_database_backend(), "SELECT id, n FROM t ORDER BY n");
    Row::find_by_statement(select).all(db.read()).await.expect("rows")
}

async fn file() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/deep/er/t.db", folder.path().display());
    (folder, url)
}

async fn open(url: &str) -> Database {
    let db = Database::connect(url, &Options::default()).await.expect("it opens");
    db.migrate(SCHEMA).await.expect("it migrates");
    db
}

#[tokio::test]
async fn only_a_failed_unit_is_rolled_back_with_its_event() {
    for url in ["sqlite::memory:".to_owned(), file().await.1] {
        let db = open(&url).await;
        // Queued together: one group, with a duplicate number.
        let results = join_all([1, 2, 2, 3].map(|n| put(&db, n, operation()))).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
        assert!(results.iter().any(|result| matches!(result, Err(error) if error.is_unique_violation())));
        assert_eq!(rows(&db).await.iter().map(|row| row.n).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(db.outbox().waiting("test-1", 10).await.expect("events").len(), 3);
    }
}

#[tokio::test]
async fn a_commit_claims_the_event_slot_and_a_rollback_does_not() {
    let db = open("sqlite::memory:").await;
    let (first, second) = (operation(), operation());
    put(&db, 1, first.clone()).await.expect("committed");
    put(&db, 1, second.clone()).await.expect_err("refused");
    assert_eq!(first.event(&Outcome::Success), None);
    assert!(second.event(&Outcome::Success).is_some());
}

/// As SQLite does on a full disk and on an I/O error: it rolls the whole transaction back.
const FULL_DISK: &str = "CREATE TRIGGER full_disk BEFORE INSERT ON t WHEN NEW.n >= 1000 \
     BEGIN SELECT RAISE(ROLLBACK, 'as on a full disk'); END";

#[tokio::test]
async fn work_answered_after_a_full_disk_is_committed() {
    let (_folder, url) = file().await;
    let db = open(&url).await;
    db.read().execute_unprepared(FULL_DISK).await.expect("a trigger");
    put(&db, 1, operation()).await.expect("the disk has space");
    put(&db, 1000, operation()).await.expect_err("the disk is full");
    put(&db, 1, operation()).await.expect_err("a duplicate");
    put(&db, 2, operation()).await.expect("the disk has space again");
    assert_eq!(rows(&db).await.len(), 2, "visible to another connection");
    assert_eq!(rows(&open(&url).await).await.len(), 2, "visible to another process");
}

#[tokio::test]
async fn a_panic_in_the_work_is_an_error_and_the_writer_survives() {
    let db = open("sqlite::memory:").await;
    let panicked = db.transact((), |_, ()| Box::pin(async { panic!("on purpose") })).await;
    assert!(matches!(panicked, Err::<(), _>(Error::Panicked)));
    put(&db, 1, operation()).await.expect("the writer is still running");
}

#[tokio::test]
async fn two_processes_can_write_to_one_file() {
    let (_folder, url) = file().await;
    let (one, two) = (open(&url).await, open(&url).await);
    let writes = (0..100).map(|n| put(if n % 2 == 0 { &one } else { &two }, n, operation()));
    for result in join_all(writes).await {
        result.expect("no write fails as busy");
    }
    assert_eq!(rows(&one).await.len(), 100);
}

#[tokio::test]
async fn eight_instances_can_start_concurrently_on_an_empty_database() {
    let (_folder, url) = file().await;
    join_all((0..8).map(|_| open(&url))).await;
}

#[tokio::test]
async fn a_newer_schema_is_left_as_it_is() {
    let (_folder, url) = file().await;
    let db = open(&url).await;
    // PostgreSQL's statements would fail here.
    let newer = Migration {
        version: 2,
        name: "add m",
        statements: &["ALTER TABLE t ADD COLUMN m BIGINT"],
        postgres: &["ALTER TABLE t ALTER COLUMN m SET DEFAULT 1"],
    };
    db.migrate(&[SCHEMA[0], newer]).await.expect("it migrates");
    let old = open(&url).await;
    put(&old, 1, operation()).await.expect("the old program can use it");
}

#[tokio::test]
async fn a_rejected_event_is_kept_apart_counted_after_a_day_and_sent_again() {
    let db = open("sqlite::memory:").await;
    put(&db, 1, operation()).await.expect("committed");
    let event = db.outbox().waiting("test-1", 10).await.expect("events").remove(0);
    let outbox = db.outbox();
    let refuse = |event: TraceEvent| outbox.settle(vec![], vec![(event, "an unknown type".into())]);
    refuse(event.clone()).await.expect("settled");
    let backlog = db.outbox().backlog().await.expect("counts");
    assert_eq!((backlog.waiting, backlog.refused), (0, 0), "the store may just be of an earlier release");
    assert_eq!(db.outbox().requeue("test-2").await.expect("requeued"), 1);
    assert_eq!(db.outbox().waiting("test-2", 10).await.expect("events"), std::slice::from_ref(&event));
    assert_eq!(db.outbox().requeue("test-2").await.expect("no rejected events"), 0);
    // Two days old by its id: a later rejection does not make it younger.
    let day = std::time::Duration::from_secs(86_400);
    let millis = kernel::Clock::now(&kernel::SystemClock).minus(day * 2).as_micros() / 1_000;
    let millis = u64::try_from(millis).expect("after 1970");
    let event_id = uuid::Builder::from_unix_timestamp_millis(millis, &[7; 10]).into_uuid();
    refuse(TraceEvent { event_id, ..event }).await.expect("settled");
    assert_eq!(db.outbox().backlog().await.expect("counts").refused, 1);
}

#[tokio::test]
async fn a_settled_event_is_deleted_and_an_abandoned_one_is_adopted() {
    let db = open("sqlite::memory:").await;
    put(&db, 1, operation()).await.expect("committed");
    put(&db, 2, operation()).await.expect("committed");
    let events = db.outbox().waiting("test-1", 10).await.expect("events");
    db.outbox().settle(vec![events[0].event_id], vec![]).await.expect("settled");
    let later = kernel::Timestamp::from_micros(i64::MAX);
    assert_eq!(db.outbox().adopt("test-2", later).await.expect("adopted"), 1);
    assert_eq!(db.outbox().waiting("test-2", 10).await.expect("events"), events[1..]);
    let past = kernel::Timestamp::default();
    assert_eq!(db.outbox().adopt("test-3", past).await.expect("a query"), 0, "written after that");
    let hour = std::time::Duration::from_secs(3_600).as_micros();
    let sql = format!("UPDATE outbox SET create_time = create_time + {hour}");
    sea_orm::ConnectionTrait::execute_unprepared(db.read(), &sql).await.expect("the clock was set back since");
    assert_eq!(db.outbox().adopt("test-2", past).await.expect("its own"), 0);
    assert_eq!(db.outbox().adopt("test-3", past).await.expect("adopted"), 1);
    db.outbox().settle(vec![], vec![(events[1].clone(), "no such type".into())]).await.expect("settled");
    assert_eq!(db.outbox().backlog().await.expect("counts").waiting, 0);
    assert_eq!(db.outbox().all().await.expect("events").refused, events[1..]);
}
