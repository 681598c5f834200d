//! Processes that write one SQLite file take turns.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sea_orm::Statement;
use storage::{Database, Error, Options};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longer than anything takes unless it hangs.
const GUARD: Duration = Duration::from_secs(20);

async fn execute(db: &Database, sql: &str) -> Result<u64, Error> {
    let statement = Statement::from_string(db.read().get_database_backend(), sql);
    timeout(GUARD, db.execute(statement)).await.expect("no hang")
}

/// Begins a transaction; it ends when the sender is used or dropped.
async fn hold(db: &Database) -> oneshot::Sender<()> {
    let ((begun, is_begun), (release, released)) = (oneshot::channel(), oneshot::channel());
    let once = Arc::new(Mutex::new(Some((begun, released))));
    let db = db.clone();
    tokio::spawn(async move {
        db.transact(once, |_, once| {
            Box::pin(async move {
                let (begun, released) = once.lock().take().expect("a single run");
                let _ = begun.send(());
                let _ = released.await;
                Ok::<_, Error>(())
            })
        })
        .await
    });
    is_begun.await.expect("begun");
    release
}

#[tokio::test]
async fn a_transaction_holds_the_lock_and_the_next_process_gets_it_after_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.db");
    let url = format!("sqlite://{}", file.display());
    let options = Options::default();
    let open = || Database::connect(&url, &options);
    let (one, other) = (open().await.expect("connected"), open().await.expect("connected"));
    execute(&one, "CREATE TABLE t (n BIGINT PRIMARY KEY)").await.expect("created");
    let lock = File::options().write(true).open(folder.path().join("t.db.lock")).expect("its lock file");
    lock.try_lock().expect("free between transactions");
    lock.unlock().expect("unlocked");
    let release = hold(&one).await;
    lock.try_lock().expect_err("held");
    let writing = tokio::spawn(async move { execute(&other, "INSERT INTO t (n) VALUES (1)").await });
    drop(release);
    assert_eq!(writing.await.expect("no panic").expect("written"), 1);
    lock.try_lock().expect("free again");
}

#[tokio::test]
async fn a_process_that_never_releases_the_lock_only_delays_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let lock = File::create(folder.path().join("t.db.lock")).expect("created");
    lock.lock().expect("locked");
    let db = Database::connect(&url, &Options::default()).await.expect("connected");
    execute(&db, "CREATE TABLE t (n BIGINT PRIMARY KEY)").await.expect("created");
    for n in 0..3 {
        execute(&db, &format!("INSERT INTO t (n) VALUES ({n})")).await.expect("written");
    }
    lock.unlock().expect("unlocked");
    execute(&db, "INSERT INTO t (n) VALUES (3)").await.expect("written");
}

#[test]
fn a_waiter_does_not_keep_the_process_from_ending() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let lock = File::create(folder.path().join("t.db.lock")).expect("created");
    lock.lock().expect("locked");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let db = Database::connect(&url, &Options::default()).await.expect("connected");
        // It has waited for the lock; the thread still does.
        execute(&db, "CREATE TABLE t (n BIGINT PRIMARY KEY)").await.expect("created");
    });
    let (ended, has_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(runtime);
        let _ = ended.send(());
    });
    has_ended.recv_timeout(GUARD).expect("the runtime ends");
}
