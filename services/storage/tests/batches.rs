//! Changes committed in batches, on SQLite and on a PostgreSQL server of the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use sea_orm::{FromQueryResult, Statement};
use storage::batches::{BatchError, Results};
use storage::{Batched, Batcher, Database, Error, Migration, Options, Rows, Tx};
use testkit::{AtCommit, Proxy};
use tokio::sync::Semaphore;

const SCHEMA: &[Migration] = &[Migration {
    version: 1,
    name: "create t",
    statements: &["CREATE TABLE t (n BIGINT PRIMARY KEY, word TEXT, is_even BOOLEAN NOT NULL)"],
    postgres: &[],
}];

/// Inserts numbers. Each batch takes a permit first, so that a test decides what gathers meanwhile.
struct Insert {
    may_run: Arc<Semaphore>,
    batches: Arc<Mutex<Vec<Vec<i64>>>>,
}

#[derive(Debug, PartialEq)]
enum Rejected {
    Negative,
    Storage(String),
}

impl From<Error> for Rejected {
    fn from(error: Error) -> Self {
        Self::Storage(format!("{error:?}"))
    }
}

impl storage::Failure for Rejected {
    fn storage(&self) -> Option<&Error> {
        None
    }
}

/// The database's own constraint rejects it a second time.
const TWICE: i64 = 1_000;
const PANICS: i64 = 2_000;
/// Panics in the batcher itself.
const KEYLESS: i64 = 4_000;
/// Is not performed with others.
const ALONE: i64 = 3_000;

impl Batched for Insert {
    type Command = i64;
    type Key = i64;
    type Output = i64;
    type Error = Rejected;

    const NAME: &'static str = "insert";

    fn key(n: &i64) -> i64 {
        assert!(*n != KEYLESS, "on purpose");
        *n
    }

    fn rows(_n: &i64) -> usize {
        1
    }

    fn run<'t>(&'t self, tx: &'t Tx, batch: &'t [i64]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(async move {
            self.may_run.acquire().await.expect("open").forget();
            self.batches.lock().push(batch.to_vec());
            assert!(!batch.contains(&PANICS), "on purpose");
            if batch.len() > 1
                && let Some(index) = batch.iter().position(|n| *n == ALONE)
            {
                return Err(BatchError::Split(vec![index]));
            }
            let good: Vec<i64> = batch.iter().copied().filter(|n| *n >= 0).collect();
            let rows = Rows::new()
                .with("n", good.clone())
                .with("word", good.iter().map(|n| (*n != 3).then(|| n.to_string())))
                .with("is_even", good.iter().map(|n| n % 2 == 0));
            tx.conn().execute_rows(rows, "INSERT INTO t (n, word, is_even) SELECT n, word, is_even FROM v").await?;
            Ok(batch.iter().map(|n| if *n < 0 { Err(Rejected::Negative) } else { Ok(*n) }).collect())
        })
    }
}

struct Fixture {
    db: Database,
    batcher: Batcher<Insert>,
    may_run: Arc<Semaphore>,
    batches: Arc<Mutex<Vec<Vec<i64>>>>,
}

/// On both stores; PostgreSQL says itself when it is skipped.
async fn fixtures() -> Vec<Fixture> {
    let sqlite = testkit::TestDatabase { url: "sqlite::memory:".to_owned(), schema: None };
    let mut fixtures = Vec::new();
    for database in std::iter::once(sqlite).chain(testkit::postgres()) {
        let options = Options { schema: database.schema, max_connections: 4, ..Options::default() };
        fixtures.push(Fixture::on(Database::connect(&database.url, &options).await.expect("connected")).await);
    }
    fixtures
}

#[derive(FromQueryResult, Debug, PartialEq)]
struct Row {
    n: i64,
    word: Option<String>,
    is_even: bool,
}

impl Fixture {
    async fn on(db: Database) -> Self {
        db.migrate(SCHEMA).await.expect("migrated");
        let (may_run, batches) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::default()));
        let batcher = Batcher::start(db.clone(), Insert { may_run: may_run.clone(), batches: batches.clone() });
        Self { db, batcher, may_run, batches }
    }

    /// Commits the commands in this order; none is performed before all are queued.
    async fn commit(&self, commands: &[i64]) -> Vec<Result<i64, Rejected>> {
        let all = join_all(commands.iter().map(|n| self.batcher.commit(*n)));
        let release = async {
            // The first batch is running when the others are queued.
            while self.may_run.available_permits() == 0 {
                self.may_run.add_permits(1_000);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(all, release).0 }).await.expect("answered")
    }

    async fn rows(&self) -> Vec<Row> {
        let backend = self.db.read().get_database_backend();
        let select = Statement::from_string(backend, "SELECT n, word, is_even FROM t ORDER BY n");
        Row::find_by_statement(select).all(self.db.read()).await.expect("rows")
    }

    async fn numbers(&self) -> Vec<i64> {
        self.rows().await.iter().map(|row| row.n).collect()
    }
}

#[tokio::test]
async fn commands_that_wait_are_committed_together_and_each_gets_its_own_result() {
    for fixture in fixtures().await {
        let commands: Vec<i64> = (0..100).map(|n| if n == 50 { -1 } else { n }).collect();
        let results = fixture.commit(&commands).await;
        for (n, result) in commands.iter().zip(results) {
            assert_eq!(result, if *n < 0 { Err(Rejected::Negative) } else { Ok(*n) });
        }
        assert_eq!(fixture.numbers().await, commands.iter().copied().filter(|n| *n >= 0).collect::<Vec<_>>());
        let sizes: Vec<usize> = fixture.batches.lock().iter().map(Vec::len).collect();
        assert!(sizes.len() <= 4 && sizes.iter().all(|size| *size <= 64), "{sizes:?}");
        let row = |n: i64, word: Option<&str>| Row { n, word: word.map(Into::into), is_even: n % 2 == 0 };
        assert_eq!(fixture.rows().await[2..4], [row(2, Some("2")), row(3, None)]);
    }
}

#[tokio::test]
async fn a_batch_holds_one_command_of_a_key() {
    for fixture in fixtures().await {
        let results = fixture.commit(&[1, 2, TWICE, TWICE, 3]).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 4, "{results:?}");
        assert!(matches!(&results[3], Err(Rejected::Storage(_))), "{results:?}");
        for batch in fixture.batches.lock().iter() {
            assert!(batch.iter().filter(|n| **n == TWICE).count() <= 1, "{batch:?}");
        }
        assert_eq!(fixture.numbers().await, [1, 2, 3, TWICE]);
    }
}

#[tokio::test]
async fn a_command_that_fails_changes_nothing_for_the_others() {
    for fixture in fixtures().await {
        fixture.commit(&[TWICE]).await.pop().expect("a result").expect("the first time");
        for bad in [TWICE, PANICS] {
            let base = bad * 10;
            let commands: Vec<i64> = (base..base + 9).chain([bad]).chain(base + 10..base + 20).collect();
            let results = fixture.commit(&commands).await;
            for (n, result) in commands.iter().zip(results) {
                assert_eq!(result.is_ok(), *n != bad, "{n}: {result:?}");
            }
        }
        let expected = (10_000..10_020).chain(20_000..20_020).filter(|n| ![10_009, 20_009].contains(n));
        assert_eq!(fixture.numbers().await, std::iter::once(TWICE).chain(expected).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_panic_of_the_batcher_ends_the_queued_commands_and_not_the_batcher() {
    for fixture in fixtures().await {
        let results = fixture.commit(&[1, KEYLESS, 2]).await;
        assert!(matches!(&results[1], Err(Rejected::Storage(error)) if error == "Closed"), "{results:?}");
        assert_eq!(fixture.commit(&[3]).await, [Ok(3)]);
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_performed_with_others_is_performed_alone() {
    for fixture in fixtures().await {
        let results = fixture.commit(&[1, 2, 3, ALONE, 5]).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert!(fixture.batches.lock().contains(&vec![ALONE]));
        assert!(
            fixture.batches.lock().len() <= 4,
            "expected the others to stay together: {:?}",
            fixture.batches.lock()
        );
        assert_eq!(fixture.numbers().await, [1, 2, 3, 5, ALONE]);
    }
}

#[tokio::test]
async fn a_batch_whose_commit_has_no_response_is_committed_whole_or_not_at_all_and_is_not_run_again() {
    let Some(server) = testkit::Server::start_on_tcp(&[]) else { return };
    for (at, is_committed) in [(AtCommit::NotSent, false), (AtCommit::ResponseLost, true)] {
        let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await;
        let url = format!("postgres://postgres@{}/postgres", proxy.address());
        let options = Options { schema: Some(testkit::unique("commit")), ..Options::default() };
        let fixture = Fixture::on(Database::connect(&url, &options).await.expect("connected")).await;
        proxy.cut(at);
        let results = fixture.commit(&(0..20).collect::<Vec<_>>()).await;
        assert!(proxy.has_cut());
        let batches = fixture.batches.lock().clone();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [20], "it is run once");
        for result in results {
            assert!(matches!(result, Err(Rejected::Storage(_))), "{at:?}: {result:?}");
        }
        let all: Vec<i64> = (0..20).collect();
        assert_eq!(fixture.numbers().await, if is_committed { all } else { vec![] }, "{at:?}");
        assert_eq!(fixture.commit(&[100]).await, [Ok(100)], "the batcher goes on");
    }
}

#[tokio::test]
async fn an_unavailable_database_fails_a_batch_once() {
    let Some(server) = testkit::Server::start(&[]) else { return };
    let options = Options { acquire_timeout: Duration::from_millis(300), ..Options::default() };
    let fixture = Fixture::on(Database::connect(&server.url(), &options).await.expect("connected")).await;
    drop(server);
    let results = fixture.commit(&(0..64).collect::<Vec<_>>()).await;
    assert!(results.iter().all(|result| matches!(result, Err(Rejected::Storage(_)))), "{results:?}");
    assert!(fixture.batches.lock().len() <= 8, "expected not to be halved: {:?}", fixture.batches.lock().len());
}

#[tokio::test]
async fn a_command_that_is_alone_gets_the_error_itself() {
    for fixture in fixtures().await {
        fixture.commit(&[TWICE]).await.pop().expect("a result").expect("the first time");
        let again = fixture.commit(&[TWICE]).await.pop().expect("a result");
        assert!(matches!(&again, Err(Rejected::Storage(error)) if error.starts_with("Statement")), "{again:?}");
    }
}

/// A transaction that has inserted a number and is rolled back on a signal.
async fn hold(db: &Database, n: i64) -> (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), Error>>) {
    let (inserted, is_inserted) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel();
    let once = Arc::new(Mutex::new(Some((inserted, released))));
    let db = db.clone();
    let holding = tokio::spawn(async move {
        db.transact(once, move |tx, once| {
            Box::pin(async move {
                let (inserted, released) = once.lock().take().expect("a single run");
                let rows = Rows::new().with("n", [n]);
                tx.conn().execute_rows(rows, "INSERT INTO t (n, word, is_even) SELECT n, NULL, TRUE FROM v").await?;
                let _ = inserted.send(());
                let _ = released.await;
                Err(Error::Closed)
            })
        })
        .await
    });
    is_inserted.await.expect("inserted");
    (release, holding)
}

#[tokio::test]
async fn a_command_that_waits_for_a_lock_delays_no_other() {
    for fixture in fixtures().await.into_iter().filter(|fixture| fixture.db.backend() == storage::Backend::Postgres) {
        let (release, holding) = hold(&fixture.db, 77).await;
        let batcher = fixture.batcher.clone();
        let locked = tokio::spawn(async move { batcher.commit(77).await });
        let results = fixture.commit(&[1, 2, 3]).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert!(!locked.is_finished(), "it waits");
        let _ = release.send(());
        holding.await.expect("no panic").expect_err("rolled back");
        assert_eq!(locked.await.expect("no panic"), Ok(77));
        assert_eq!(fixture.numbers().await, [1, 2, 3, 77]);
    }
}
