//! Commits of other processes: two `Database`s stand for two processes.

use std::net::SocketAddr;
use std::time::Duration;

use sea_orm::Statement;
use storage::{Database, Listener, Options};
use testkit::{End, Proxy, Server};
use tokio::time::timeout;

/// Longer than anything takes unless it hangs.
const GUARD: Duration = Duration::from_secs(20);
/// Longer than an announcement takes: what has not arrived by then was not sent.
const QUIET: Duration = Duration::from_millis(300);

async fn is_notified(changes: &mut Listener) {
    timeout(GUARD, changes.notified()).await.expect("a change");
}

async fn is_not_notified(changes: &mut Listener) {
    timeout(QUIET, changes.notified()).await.expect_err("no change");
}

async fn execute(db: &Database, sql: &str) {
    db.execute(Statement::from_string(db.read().get_database_backend(), sql)).await.expect("executed");
}

#[tokio::test]
async fn on_postgres_an_announcement_notifies_the_other_processes_and_not_its_own() {
    let Some(database) = testkit::postgres() else { return };
    let options = Options { schema: database.schema, ..Options::default() };
    let open = || Database::connect(&database.url, &options);
    let (one, other) = (open().await.expect("connected"), open().await.expect("connected"));
    let ((notifier, mut own), (reply, mut others)) = (one.notifications("t"), other.notifications("t"));
    let (_unrelated, mut unrelated) = other.notifications("u");
    // What was announced before they listened is unknown.
    for changes in [&mut own, &mut others, &mut unrelated] {
        is_notified(changes).await;
    }
    for _ in 0..100 {
        notifier.notify();
    }
    is_notified(&mut others).await;
    is_not_notified(&mut own).await;
    is_not_notified(&mut unrelated).await;
    reply.notify();
    is_notified(&mut own).await;
}

#[tokio::test]
async fn on_postgres_a_broken_listener_reconnects_and_reports_a_change() {
    let Some(server) = Server::start_on_tcp(&[]) else { return };
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await;
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let db = Database::connect(&url, &Options::default()).await.expect("connected");
    let other = Database::connect(&server.url(), &Options::default()).await.expect("connected");
    let ((_own, mut changes), (notifier, _changes)) = (db.notifications("t"), other.notifications("t"));
    is_notified(&mut changes).await;
    for end in [End::Closed, End::Reset] {
        proxy.end(end);
        is_notified(&mut changes).await;
        notifier.notify();
        is_notified(&mut changes).await;
    }
}

#[tokio::test]
async fn on_postgres_a_listener_finds_the_next_primary_without_other_connections() {
    let Some(primary) = Server::start_on_tcp(&[]) else { return };
    let standby = primary.standby();
    let url = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", primary.port(), standby.port());
    let db = Database::connect(&url, &Options::default()).await.expect("connected");
    let (_own, mut changes) = db.notifications("t");
    is_notified(&mut changes).await;
    primary.end();
    standby.promote();
    is_notified(&mut changes).await;
    let other = Database::connect(&standby.url(), &Options::default()).await.expect("connected");
    let (notifier, _changes) = other.notifications("t");
    notifier.notify();
    is_notified(&mut changes).await;
}

#[tokio::test]
async fn on_sqlite_the_commits_of_another_process_are_noticed_and_not_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let one = Database::connect(&url, &Options::default()).await.expect("connected");
    execute(&one, "CREATE TABLE t (n BIGINT PRIMARY KEY)").await;
    let other = Database::connect(&url, &Options::default()).await.expect("connected");
    let (_announcer, mut changes) = one.notifications("t");
    // What was committed before the first call is unknown.
    is_notified(&mut changes).await;
    execute(&one, "INSERT INTO t (n) VALUES (1)").await;
    is_not_notified(&mut changes).await;
    execute(&other, "INSERT INTO t (n) VALUES (2)").await;
    is_notified(&mut changes).await;
    // Its own transaction begins after the other's commit.
    execute(&other, "INSERT INTO t (n) VALUES (3)").await;
    execute(&one, "INSERT INTO t (n) VALUES (4)").await;
    is_notified(&mut changes).await;
    is_not_notified(&mut changes).await;
}
