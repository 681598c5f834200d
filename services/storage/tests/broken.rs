//! Unresponsive or broken connections, and servers that become read-only: the pool recovers without help.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, FromQueryResult, Statement, Value};
use storage::{Database, Error, Migration, Options};
use telemetry::ErrorType;
use testkit::{End, Proxy, Server};
use tokio::sync::oneshot;

const SCHEMA: &[Migration] = &[Migration {
    version: 1,
    name: "create t",
    statements: &["CREATE TABLE t (n BIGINT PRIMARY KEY)"],
    postgres: &[],
}];

/// The size of the pool: all these connections are in use concurrently.
const CONNECTIONS: u32 = 4;

/// The statement timeout, to which two seconds are added: for tests in which it must expire.
const SHORT: Duration = Duration::from_millis(300);
/// Longer than a test: something other than the timeout must end the wait.
const LONG: Duration = Duration::from_secs(3_600);

async fn open(address: SocketAddr, statement_timeout: Duration) -> Database {
    open_url(&format!("postgres://postgres@{address}/postgres"), statement_timeout, Duration::from_secs(20)).await
}

async fn open_url(url: &str, statement_timeout: Duration, acquire_timeout: Duration) -> Database {
    let options =
        Options { max_connections: CONNECTIONS, acquire_timeout, statement_timeout, schema: Some("broken".to_owned()) };
    let db = Database::connect(url, &options).await.expect("a database");
    db.migrate(SCHEMA).await.expect("a schema");
    db
}

fn address_of(server: &Server) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.port()))
}

async fn put(db: &Database, n: i64) -> Result<(), Error> {
    db.transact((), move |tx, ()| {
        let insert = Statement::from_sql_and_values(
            tx.conn().get_database_backend(),
            "INSERT INTO t (n) VALUES ($1)",
            [n.into()],
        );
        Box::pin(async move { Ok(tx.conn().execute_raw(insert).await.map(drop)?) })
    })
    .await
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

async fn count(db: &Database) -> Result<i64, Error> {
    let select = Statement::from_string(db.read().get_database_backend(), "SELECT COUNT(*) AS count FROM t");
    Ok(Count::find_by_statement(select).one(db.read()).await?.map_or(0, |row| row.count))
}

/// Opens all of the pool's connections; they are idle afterwards.
async fn fill(db: &Database) {
    let (all, opened) = (tokio::sync::Barrier::new(CONNECTIONS as usize), (0..CONNECTIONS));
    let all = std::sync::Arc::new(all);
    let each = opened.map(|_| {
        let all = all.clone();
        db.transact((), move |_, ()| {
            let all = all.clone();
            Box::pin(async move {
                all.wait().await;
                Ok::<_, Error>(())
            })
        })
    });
    for done in join_all(each).await {
        done.expect("a connection");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_broken_or_unresponsive_connections_each_read_and_write_succeeds() {
    let Some(server) = Server::start_on_tcp(&[]) else { return };
    for (round, end) in [End::Blackhole, End::Closed, End::Reset].into_iter().enumerate() {
        let proxy = Proxy::start(address_of(&server)).await;
        let db = open(proxy.address(), SHORT).await;
        fill(&db).await;
        proxy.end(end);
        let before = count(&db).await.unwrap_or_else(|error| panic!("{end:?}: a read: {error:?}"));
        let first = i64::try_from(round).expect("few") * 100;
        for done in join_all((0..8).map(|n| put(&db, first + n))).await {
            done.unwrap_or_else(|error| panic!("{end:?}: a write: {error:?}"));
        }
        for read in join_all((0..8).map(|_| count(&db))).await {
            assert_eq!(read.unwrap_or_else(|error| panic!("{end:?}: a read: {error:?}")), before + 8);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_cancelled_on_unresponsive_connections_free_their_places_in_the_pool() {
    let Some(server) = Server::start_on_tcp(&[]) else { return };
    let proxy = Proxy::start(address_of(&server)).await;
    let db = open(proxy.address(), SHORT).await;
    for _ in 0..3 {
        fill(&db).await;
        proxy.end(End::Blackhole);
        let acquired = db.probe().progress().0;
        let reads: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let db = db.clone();
                tokio::spawn(async move { count(&db).await })
            })
            .collect();
        // Wait until all of them have a connection, so that each waits on an unresponsive one.
        while db.probe().progress().0 < acquired + u64::from(CONNECTIONS) {
            tokio::task::yield_now().await;
        }
        for read in &reads {
            read.abort();
        }
        for read in reads {
            assert!(read.await.is_err_and(|error| error.is_cancelled()), "cancelled");
        }
    }
    count(&db).await.expect("a free slot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_finds_unresponsive_connections_and_unblocks_their_callers() {
    let Some(server) = Server::start_on_tcp(&[]) else { return };
    let proxy = Proxy::start(address_of(&server)).await;
    let db = open(proxy.address(), LONG).await;
    let mut probe = db.probe();
    probe.check().await.expect("writable");
    fill(&db).await;
    proxy.end(End::Blackhole);
    let writes = futures_util::future::join_all((0..i64::from(CONNECTIONS)).map(|n| put(&db, n)));
    // As in a service: checked again and again, for a connection may become unresponsive right after a check.
    let checks = async {
        loop {
            probe.check().await.expect("a new connection answers");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = checks => {}
        writes = writes => writes.into_iter().for_each(|write| write.expect("retried on a new connection")),
    }
    assert_eq!(count(&db).await.expect("read"), i64::from(CONNECTIONS), "each write once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_works_while_the_pool_is_exhausted() {
    let Some(server) = Server::start_on_tcp(&[]) else { return };
    let db = open(address_of(&server), LONG).await;
    let mut probe = db.probe();
    let mut ends = vec![];
    let mut held = vec![];
    for _ in 0..CONNECTIONS {
        let (begun, has_begun) = oneshot::channel();
        let (end, to_end) = oneshot::channel::<()>();
        let once = std::sync::Mutex::new(Some((begun, to_end)));
        let db = db.clone();
        held.push(tokio::spawn(async move {
            db.transact((), move |_, ()| {
                let (begun, to_end) = once.lock().expect("not poisoned").take().expect("a single run");
                Box::pin(async move {
                    let _ = begun.send(());
                    let _ = to_end.await;
                    Ok::<_, Error>(())
                })
            })
            .await
        }));
        has_begun.await.expect("a connection");
        ends.push(end);
    }
    probe.check().await.expect("a connection of its own");
    drop(ends);
    for held in held {
        held.await.expect("no panic").expect("committed");
    }
}

/// Returns when the standby has all that the primary has written.
fn catch_up(standby: &Server, primary: &Server) {
    let written = primary.sql("SELECT pg_current_wal_lsn()");
    while standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")) != "t" {}
}

/// Sets it for all sessions; returns when new sessions have it.
fn set_read_only(server: &Server, value: &str) {
    let set = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
    server.sql_each(&["SET default_transaction_read_only = off", &set, "SELECT pg_reload_conf()"]);
    while server.sql("SHOW default_transaction_read_only") != value {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_server_is_unavailable_and_not_ready_until_it_is_writable_again() {
    let Some(server) = Server::start_on_tcp(&[]) else { return };
    let db = open(address_of(&server), LONG).await;
    let mut probe = db.probe();
    let mut next = 0..;
    let mut write = async || put(&db, next.next().expect("endless")).await;
    for _ in 0..2 {
        fill(&db).await;
        probe.check().await.expect("writable");
        set_read_only(&server, "on");
        // A session applies the setting with a delay.
        let refused = loop {
            if let Err(error) = write().await {
                break error;
            }
        };
        assert!(refused.is_unavailable(), "{refused:?}");
        let refused = probe.check().await.expect_err("read-only");
        assert!(refused.is_unavailable(), "{refused:?}");
        count(&db).await.expect("readable");
        set_read_only(&server, "off");
        write().await.expect("written on a new connection");
        probe.check().await.expect("writable");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_each_write_goes_to_the_new_primary() {
    let Some(primary) = Server::start_on_tcp(&[]) else { return };
    let proxy = Proxy::start(address_of(&primary)).await;
    let db = open(proxy.address(), LONG).await;
    let mut servers = vec![primary];
    // The old primary stays, but read-only; the next one crashes.
    for (round, crashes) in [false, true].into_iter().enumerate() {
        let first = i64::try_from(round).expect("few") * 100;
        put(&db, first).await.expect("written to the primary");
        fill(&db).await;
        let standby = servers.last().expect("a server").standby();
        let old = servers.last().expect("a server");
        put(&db, first + 1).await.expect("written to the primary");
        catch_up(&standby, old);
        if crashes {
            old.crash();
        } else {
            set_read_only(old, "on");
        }
        standby.promote();
        proxy.lead_to(address_of(&standby));
        for done in join_all((10..18).map(|n| put(&db, first + n))).await {
            // A session of the old primary may not have applied the setting yet: its writes are not on the new one.
            done.expect("written without help");
        }
        let mut probe = db.probe();
        probe.check().await.expect("writable");
        count(&db).await.expect("read");
        assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "f");
        put(&db, first + 50).await.expect("written to the new primary");
        assert_eq!(standby.sql(&format!("SELECT COUNT(*) FROM broken.t WHERE n = {}", first + 50)), "1");
        servers.push(standby);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_slow_failover_no_read_goes_to_the_old_primary() {
    let Some(old) = Server::start_on_tcp(&[]) else { return };
    let proxy = Proxy::start(address_of(&old)).await;
    let db = open(proxy.address(), LONG).await;
    let mut probe = db.probe();
    probe.check().await.expect("writable");
    fill(&db).await;
    let new = old.standby();
    set_read_only(&old, "on");
    let refused = probe.check().await.expect_err("no primary yet");
    assert!(matches!(refused, Error::ReadOnly), "{refused:?}");
    new.promote();
    proxy.lead_to(address_of(&new));
    probe.check().await.expect("a primary");
    for _ in 0..2 * CONNECTIONS {
        let sql = "SELECT CAST(inet_server_port() AS BIGINT) AS count";
        let select = Statement::from_string(db.read().get_database_backend(), sql);
        let read = Count::find_by_statement(select).one(db.read()).await.expect("read").expect("a row");
        assert_eq!(read.count, i64::from(new.port()));
    }
}

/// The end of a primary.
#[derive(Clone, Copy, Debug)]
enum EndOfPrimary {
    /// It becomes read-only, and serves.
    Demoted,
    Crashed,
    /// Its connections, and new ones, get no answer.
    CutOff,
    /// It does not know of its successor, and accepts writes.
    Unaware,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_several_hosts_a_write_goes_to_the_one_that_accepts_writes() {
    // It accepts connections, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    for end in [EndOfPrimary::Demoted, EndOfPrimary::Crashed, EndOfPrimary::CutOff, EndOfPrimary::Unaware] {
        let Some(primary) = Server::start_on_tcp(&[]) else { return };
        let standby = primary.standby();
        let (to_primary, to_standby) =
            (Proxy::start(address_of(&primary)).await, Proxy::start(address_of(&standby)).await);
        // The standby is asked first.
        let hosts = format!("{},{}", to_standby.address(), to_primary.address());
        let url = format!("postgres://postgres@{hosts}/postgres?target_session_attrs=read-write");
        let db = open_url(&url, LONG, Duration::from_secs(20)).await;
        let mut probe = db.probe();
        probe.check().await.expect("writable");
        put(&db, 1).await.expect("written to the primary");
        fill(&db).await;
        catch_up(&standby, &primary);
        match end {
            EndOfPrimary::Demoted => set_read_only(&primary, "on"),
            EndOfPrimary::Crashed => primary.crash(),
            EndOfPrimary::CutOff => {
                to_primary.end(End::Blackhole);
                to_primary.lead_to(silent.local_addr().expect("an address"));
            }
            EndOfPrimary::Unaware => {}
        }
        standby.promote();
        for _ in 0..5 {
            while let Err(error) = probe.check().await {
                assert!(error.is_unavailable(), "{end:?}: {error:?}");
            }
        }
        for done in join_all((10..18).map(|n| put(&db, n))).await {
            done.unwrap_or_else(|error| panic!("{end:?}: {error:?}"));
        }
        assert_eq!(standby.sql("SELECT COUNT(*) FROM broken.t"), "9", "{end:?}: on the new primary");
        assert_eq!(count(&db).await.expect("read"), 9, "{end:?}: and read there");
    }
}

/// Its commits wait for a standby that has left it: a connection to it breaks, and a new one would too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_probe_an_unaware_primary_is_left_once_it_does_not_answer() {
    let Some(primary) = Server::start_on_tcp(&[("synchronous_commit", "on")]) else { return };
    let standby = primary.standby();
    let hosts = [&primary, &standby].map(|server| address_of(server).to_string()).join(",");
    let db = open_url(&format!("postgres://postgres@{hosts}/postgres"), SHORT, Duration::from_secs(20)).await;
    put(&db, 1).await.expect("written to the primary");
    catch_up(&standby, &primary);
    standby.promote();
    // The checkpointer puts the setting into effect.
    primary.sql_each(&["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()", "CHECKPOINT"]);
    while primary.sql("SHOW synchronous_standby_names") != "*" {}
    // Before the setting is in effect the old primary commits; from then on its commits wait.
    for n in 2.. {
        let written = put(&db, n).await.is_ok();
        if standby.sql(&format!("SELECT COUNT(*) FROM broken.t WHERE n = {n}")) == "1" {
            assert!(written, "{n}");
            break;
        }
        assert!(n < 1_000, "still at the old primary");
    }
}

/// A transaction that began at a primary does not commit there once its successor is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_in_flight_at_an_old_primary_is_run_again_at_the_new_one() {
    let Some(primary) = Server::start_on_tcp(&[]) else { return };
    let standby = primary.standby();
    let hosts = [&primary, &standby].map(|server| address_of(server).to_string()).join(",");
    let db = open_url(&format!("postgres://postgres@{hosts}/postgres"), LONG, Duration::from_secs(20)).await;
    catch_up(&standby, &primary);
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let (end, ended) = tokio::sync::watch::channel(false);
    let in_flight = tokio::spawn({
        let db = db.clone();
        async move {
            db.transact((), move |tx, ()| {
                let (begun, mut ended) = (begun.clone(), ended.clone());
                Box::pin(async move {
                    tx.conn().execute_unprepared("INSERT INTO t (n) VALUES (1)").await?;
                    let _ = begun.send(());
                    let _ = ended.wait_for(|ended| *ended).await;
                    tx.conn().execute_unprepared("INSERT INTO t (n) VALUES (2)").await.map(drop)?;
                    Ok::<_, Error>(())
                })
            })
            .await
        }
    });
    has_begun.recv().await.expect("a transaction");
    standby.promote();
    let mut probe = db.probe();
    for _ in 0..5 {
        probe.check().await.expect("writable");
    }
    end.send_replace(true);
    in_flight.await.expect("no panic").expect("run again");
    assert_eq!(standby.sql("SELECT array_agg(n ORDER BY n) FROM broken.t"), "{1,2}");
    assert_eq!(primary.sql("SELECT COUNT(*) FROM broken.t"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_primaries_on_one_timeline_nothing_is_written_until_one_is_gone() {
    let Some(first) = Server::start_on_tcp(&[]) else { return };
    let standbys = [first.standby(), first.standby()];
    let hosts = [&first, &standbys[0], &standbys[1]].map(|server| address_of(server).to_string()).join(",");
    let acquire_timeout = Duration::from_secs(2);
    let db = open_url(&format!("postgres://postgres@{hosts}/postgres"), SHORT, acquire_timeout).await;
    let mut probe = db.probe();
    probe.check().await.expect("writable");
    fill(&db).await;
    standbys.iter().for_each(|standby| catch_up(standby, &first));
    first.crash();
    standbys[0].promote();
    while probe.check().await.is_err() {}
    put(&db, 1).await.expect("written to the new primary");
    fill(&db).await;
    standbys[1].promote();
    let split = loop {
        match probe.check().await {
            Err(error) if format!("{error:?}").contains("split brain") => break error,
            Err(_) | Ok(()) => {}
        }
    };
    let [one, other] = standbys.each_ref().map(address_of);
    assert!(
        format!("{split:?}").contains(&format!("split brain: {one} and {other} are primaries on timeline 2")),
        "{split:?}"
    );
    let refused = put(&db, 2).await.expect_err("two primaries");
    assert!(refused.is_unavailable(), "{refused:?}");
    count(&db).await.expect_err("nothing is read either");
    standbys[1].crash();
    probe.check().await.expect("one primary");
    put(&db, 3).await.expect("written to the one that is left");
    assert_eq!(standbys[0].sql("SELECT array_agg(n) FROM broken.t"), "{1,3}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_host_that_accepts_writes_nothing_is_opened_and_the_error_names_one() {
    let Some(server) = Server::start_on_tcp(&[]) else { return };
    set_read_only(&server, "on");
    let url = format!("postgres://postgres@{}/postgres?target_session_attrs=read-write", address_of(&server));
    let options = Options { acquire_timeout: Duration::from_secs(2), ..Options::default() };
    let refused = Database::connect(&url, &options).await.expect_err("read-only");
    let chain = format!("{refused:?}");
    assert!(chain.contains(&format!("127.0.0.1:{} is read-only", server.port())), "{chain}");
}

/// PostgreSQL's appendix "Error Codes".
#[tokio::test]
async fn temporary_server_errors_are_unavailable_and_permanent_ones_are_not() {
    let Some(place) = testkit::postgres() else { return };
    let options = Options { schema: place.schema.clone(), ..Options::default() };
    let db = Database::connect(&place.url, &options).await.expect("a database");
    let raise = async |code: &str| {
        let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{code}'; END $$");
        let refused = db.transact((), move |tx, ()| {
            let raise = raise.clone();
            Box::pin(async move { Ok::<_, Error>(tx.conn().execute_unprepared(&raise).await.map(drop)?) })
        });
        refused.await.expect_err("on purpose")
    };
    let not_now = ["08006", "25006", "53000", "53100", "53200", "53300", "53400", "55006", "57000", "57P01", "57P03"];
    for code in not_now.into_iter().chain(["58000", "58030", "40001", "40P01"]) {
        let refused = raise(code).await;
        assert!(refused.is_unavailable(), "{code}: {refused:?}");
        assert!(matches!(refused.error_type(), Some(ErrorType::Unavailable | ErrorType::ConnectionError)), "{code}");
    }
    for code in ["57014", "55P03"] {
        assert_eq!(raise(code).await.error_type(), Some(ErrorType::Timeout), "{code}");
    }
    for code in ["22012", "22021", "22P05", "23505", "23514", "42601", "42P01", "42501", "XX000", "XX001", "P0001"] {
        let refused = raise(code).await;
        assert!(!refused.is_unavailable() && refused.error_type().is_none(), "{code}: {refused:?}");
    }
}

/// A NUL in a text (22021), and more values than the protocol allows: neither is an error of the connection.
#[tokio::test]
async fn a_statement_that_fails_for_its_data_is_not_unavailable_and_keeps_the_connection() {
    let Some(place) = testkit::postgres() else { return };
    let options = Options { schema: place.schema.clone(), max_connections: 1, ..Options::default() };
    let db = Database::connect(&place.url, &options).await.expect("a database");
    let process = async || {
        let select = Statement::from_string(db.read().get_database_backend(), "SELECT pg_backend_pid() AS pid");
        let row = db.read().query_one_raw(select).await.expect("a response").expect("a row");
        row.try_get::<i32>("", "pid").expect("a process")
    };
    let before = process().await;
    let many = vec![Value::from(1_i32); 65_536];
    for (sql, values) in [("SELECT $1::text", vec![Value::from("a\0b")]), ("SELECT $1", many)] {
        let select = Statement::from_sql_and_values(db.read().get_database_backend(), sql, values);
        let refused = Error::from(db.read().query_one_raw(select.clone()).await.expect_err(sql));
        assert!(
            !refused.is_unavailable() && refused.error_type().is_none() && !refused.may_come_up(),
            "{sql}: {refused:?}"
        );
        let refused = db.transact((), move |tx, ()| {
            let select = select.clone();
            Box::pin(async move { Ok::<_, Error>(tx.conn().query_one_raw(select).await.map(drop)?) })
        });
        assert!(!refused.await.expect_err(sql).is_unavailable(), "{sql}");
        assert_eq!(process().await, before, "{sql}: the pool still has the same connection");
    }
}
