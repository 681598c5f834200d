//! Storage on a PostgreSQL server of the test: concurrent starts, deadlocks, an unavailable server, TLS.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, FromQueryResult, Statement};
use storage::{Database, Error, Migration, Options};
use testkit::Server;

const SCHEMA: &[Migration] = &[
    Migration {
        version: 1,
        name: "create t",
        statements: &["CREATE TABLE t (n BIGINT PRIMARY KEY, v BIGINT NOT NULL)"],
        postgres: &[],
    },
    // Fails if it runs twice.
    Migration {
        version: 2,
        name: "fill t",
        statements: &["INSERT INTO t (n, v) VALUES (-1, 0), (-2, 0)"],
        // SQLite has no such statement.
        postgres: &["ALTER TABLE t ALTER COLUMN v SET DEFAULT 7"],
    },
];

fn options(schema: &str) -> Options {
    Options { schema: Some(schema.to_owned()), max_connections: 4, ..Options::default() }
}

async fn open(url: &str, schema: &str) -> Result<Database, Error> {
    let db = Database::connect(url, &options(schema)).await?;
    db.migrate(SCHEMA).await?;
    Ok(db)
}

async fn execute(db: &Database, sql: &'static str, values: Vec<sea_orm::Value>) -> Result<u64, Error> {
    db.transact((), move |tx, ()| {
        let statement = Statement::from_sql_and_values(tx.conn().get_database_backend(), sql, values.clone());
        Box::pin(async move { Ok(tx.conn().execute_raw(statement).await?.rows_affected()) })
    })
    .await
}

async fn put(db: &Database, n: i64) -> Result<u64, Error> {
    execute(db, "INSERT INTO t (n, v) VALUES ($1, 0)", vec![n.into()]).await
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

async fn count(db: &Database) -> Result<i64, Error> {
    let select =
        Statement::from_string(db.read().get_database_backend(), "SELECT COUNT(*) AS count FROM t WHERE n >= 0");
    Ok(Count::find_by_statement(select).one(db.read()).await?.map_or(0, |row| row.count))
}

/// Eight concurrent starts on an empty database, on a migrated one, and on one whose schema is newer than the program.
async fn eight_at_once(url: &str, schema: &str) {
    for state in ["empty", "migrated", "newer"] {
        if state == "newer" {
            let db = Database::connect(url, &options(schema)).await.expect("connected");
            execute(
                &db,
                "INSERT INTO schema_version (version, name, applied_time) VALUES (99, 'tomorrow''s', 0)",
                vec![],
            )
            .await
            .expect("a newer schema");
            execute(&db, "ALTER TABLE t ADD COLUMN tomorrow BIGINT", vec![]).await.expect("an added column");
        }
        let starts = (0..8).map(|_| {
            let (url, schema) = (url.to_owned(), schema.to_owned());
            tokio::spawn(async move { open(&url, &schema).await })
        });
        for started in join_all(starts).await {
            let db = started.expect("no panic").unwrap_or_else(|error| panic!("{state}: {error:?}"));
            execute(&db, "UPDATE t SET v = v + 1 WHERE n = -1", vec![]).await.expect("updated");
        }
    }
    let db = Database::connect(url, &options(schema)).await.expect("connected");
    let select = "SELECT CAST(v AS BIGINT) AS count FROM t WHERE n = -1";
    let select = Statement::from_string(db.read().get_database_backend(), select);
    let worked = Count::find_by_statement(select).one(db.read()).await.expect("read").expect("a row");
    assert_eq!(worked.count, 24, "all starts used the same table, which was filled once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_instances_start_concurrently_twenty_times_on_postgresql() {
    let Some(place) = testkit::postgres() else { return };
    for _ in 0..20 {
        eight_at_once(&place.url, &testkit::unique("start")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_instances_start_concurrently_twenty_times_on_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    for round in 0..20 {
        let url = format!("sqlite://{}/start-{round}.db", folder.path().display());
        eight_at_once(&url, "").await;
    }
}

#[tokio::test]
async fn a_migration_can_have_statements_for_postgresql_only() {
    let insert = "INSERT INTO t (n) VALUES (1)";
    let sqlite = open("sqlite::memory:", "").await.expect("SQLite skips them");
    let refused = execute(&sqlite, insert, vec![]).await.expect_err("no default");
    assert!(format!("{refused:?}").contains("NOT NULL"), "{refused:?}");
    let Some(place) = testkit::postgres() else { return };
    let schema = place.schema.expect("PostgreSQL has schemas");
    let postgres = open(&place.url, &schema).await.expect("PostgreSQL runs them");
    execute(&postgres, insert, vec![]).await.expect("a default");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_deadlocks_victim_is_retried() {
    let Some(place) = testkit::postgres() else { return };
    let schema = place.schema.expect("PostgreSQL has schemas");
    // A connection for each, however long the detection of a deadlock takes.
    let all = Options { max_connections: 16, acquire_timeout: Duration::from_secs(60), ..options(&schema) };
    let db = Database::connect(&place.url, &all).await.expect("a database");
    db.migrate(SCHEMA).await.expect("a schema");
    // Both rows, in opposite orders, held for a short time: one of each pair is a deadlock's victim.
    let both = |first: i64, second: i64| {
        let db = db.clone();
        tokio::spawn(async move {
            db.transact((), move |tx, ()| {
                Box::pin(async move {
                    for n in [first, second] {
                        let sql = "UPDATE t SET v = v + 1 WHERE n = $1";
                        let backend = tx.conn().get_database_backend();
                        let update = Statement::from_sql_and_values(backend, sql, [n.into()]);
                        tx.conn().execute_raw(update).await?;
                        let wait = Statement::from_string(backend, "SELECT pg_sleep(0.02)");
                        tx.conn().execute_raw(wait).await?;
                    }
                    Ok::<_, Error>(())
                })
            })
            .await
        })
    };
    let all = (0..3).flat_map(|_| [both(-1, -2), both(-2, -1)]);
    for done in join_all(all).await {
        done.expect("no panic").expect("retried until it succeeds");
    }
    let victims =
        testkit::shared().expect("the server").sql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'");
    assert_ne!(victims, "0", "no deadlocks occurred");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stopped_server_is_unavailable_and_calls_succeed_after_its_restart() {
    let Some(server) = Server::start(&[]) else { return };
    let options = Options { acquire_timeout: Duration::from_millis(500), ..options("away") };
    let db = Database::connect(&server.url(), &options).await.expect("a database");
    db.migrate(SCHEMA).await.expect("a schema");
    let mut acknowledged = 0;
    for round in 0..3 {
        // More writes than the pool has connections, so that all of them are open before the server stops.
        for done in join_all((0..8).map(|n| put(&db, round * 100 + n))).await {
            done.expect("the server is running");
            acknowledged += 1;
        }
        server.end();
        let refused = put(&db, round * 100 + 50).await.expect_err("the server is stopped");
        assert!(refused.is_unavailable(), "{refused:?}");
        let refused = count(&db).await.expect_err("the server is stopped");
        assert!(refused.is_unavailable(), "{refused:?}");
        server.begin();
        for done in join_all((0..8).map(|n| put(&db, round * 100 + 60 + n))).await {
            done.expect("no call fails after the restart");
            acknowledged += 1;
        }
        assert_eq!(count(&db).await.expect("the server is running"), acknowledged, "nothing is lost");
    }
}

#[tokio::test]
async fn a_missing_database_or_user_is_a_configuration_error_without_retries() {
    let Some(server) = Server::start(&[]) else { return };
    let url = server.url();
    for (right, wrong) in [("/postgres?", "/nowhere?"), ("postgres@", "nobody@")] {
        let wrong = url.replace(right, wrong);
        let began = Instant::now();
        let opened = storage::retry_until_reachable(|| open(&wrong, "wrong"), |why| panic!("not awaited: {why}")).await;
        let error = opened.expect_err("no such user or database");
        assert!(error.is_configuration() && !error.may_come_up(), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn the_probe_knows_whether_commits_wait_for_a_standby() {
    let Some(server) = Server::start(&[("synchronous_commit", "on")]) else { return };
    let admin = open(&server.url(), "synchronous").await.expect("a database");
    let execute = async |sql: &str| admin.read().execute_unprepared(sql).await.map(drop).expect(sql);
    // Its role may not write a WAL record: the commit would wait, because there is no standby.
    execute("REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM PUBLIC").await;
    execute("CREATE ROLE probe LOGIN").await;
    let url = server.url().replace("postgres@", "probe@");
    let db = Database::connect(&url, &Options::default()).await.expect("a database");
    let mut probe = db.probe();
    assert_eq!(probe.is_synchronous(), None);
    for (names, expected) in [("", false), ("ANY 1 (*)", true), ("", false)] {
        execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await;
        execute("SELECT pg_reload_conf()").await;
        let seen = async {
            while probe.is_synchronous() != Some(expected) {
                probe.check().await.expect("writable");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), seen).await.expect("seen");
    }
}

/// A server with TLS, and the file of its certificate.
fn with_tls() -> Option<(Server, String)> {
    let mut server = Server::start(&[])?;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate = server.write_private("server.crt", &made.cert.pem());
    let key = server.write_private("server.key", &made.signing_key.serialize_pem());
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let trusted = certificate.display().to_string();
    server.end();
    let key = key.display().to_string();
    let settings =
        [("listen_addresses", "localhost"), ("ssl", "on"), ("ssl_cert_file", &trusted), ("ssl_key_file", &key)];
    server.set(port, &settings);
    server.begin();
    Some((server, trusted))
}

#[tokio::test]
async fn the_url_can_require_encryption_and_verification_of_the_server() {
    let Some((server, trusted)) = with_tls() else { return };
    let url = format!("postgres://postgres@localhost:{}/postgres?sslmode=verify-full&sslrootcert=", server.port());
    let db = open(&format!("{url}{trusted}"), "tls").await.expect("the trusted server");
    let sql = "SELECT CAST(COUNT(*) AS BIGINT) AS count FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
    let select = Statement::from_string(db.read().get_database_backend(), sql);
    let encrypted = Count::find_by_statement(select).one(db.read()).await.expect("read").expect("a row");
    assert_eq!(encrypted.count, 1);
    let other_client = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let other = server.write_private("other.crt", &other_client.cert.pem());
    let began = Instant::now();
    let refused = open(&format!("{url}{}", other.display()), "tls").await.expect_err("an untrusted certificate");
    assert!(matches!(refused, Error::Connect(_)), "{refused:?} after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_serialization_failure_is_retried() {
    let Some(place) = testkit::postgres() else { return };
    let schema = place.schema.expect("PostgreSQL has schemas");
    let db = open(&place.url, &schema).await.expect("a database");
    // A sequence is not rolled back with its transaction: it counts the attempts.
    let refuse_twice = "CREATE FUNCTION refuse_twice() RETURNS BIGINT LANGUAGE plpgsql AS $$ \
         DECLARE n BIGINT := nextval('tries'); \
         BEGIN IF n < 3 THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '40001'; END IF; RETURN n; END $$";
    for sql in ["CREATE SEQUENCE tries", refuse_twice] {
        execute(&db, sql, vec![]).await.expect("created");
    }
    execute(&db, "INSERT INTO t (n, v) SELECT 7, refuse_twice()", vec![]).await.expect("the third attempt succeeds");
    let select = Statement::from_string(db.read().get_database_backend(), "SELECT v AS count FROM t WHERE n = 7");
    let tries = Count::find_by_statement(select).one(db.read()).await.expect("read").expect("committed once");
    assert_eq!(tries.count, 3);
}

/// A role that owns its schema, and another that may only read and write in it; neither may create a schema.
#[tokio::test]
async fn only_the_owner_of_a_schema_migrates_it_and_a_user_of_it_can_start() {
    let Some(place) = testkit::postgres() else { return };
    let server = testkit::shared().expect("the server");
    let (owner, user) = (testkit::unique("owner"), testkit::unique("user"));
    server.sql(&format!(
        "CREATE ROLE {owner} LOGIN; CREATE ROLE {user} LOGIN; CREATE SCHEMA {owner} AUTHORIZATION {owner}; \
         GRANT USAGE ON SCHEMA {owner} TO {user}; \
         ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {owner} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {user};"
    ));
    let url_of = |role: &str| place.url.replace("postgres://postgres@", &format!("postgres://{role}@"));
    let refused = open(&url_of(&user), &owner).await.expect_err("no schema yet, and no permission to create it");
    assert!(refused.to_string().contains("permission denied") || format!("{refused:?}").contains("permission denied"));
    let db = open(&url_of(&owner), &owner).await.expect("its own schema");
    put(&db, 1).await.expect("written");
    let db = open(&url_of(&user), &owner).await.expect("nothing to migrate");
    put(&db, 2).await.expect("written");
    assert_eq!(count(&db).await.expect("read"), 2);
}

#[tokio::test]
async fn an_instance_with_nothing_to_migrate_does_not_wait_for_a_migration() {
    let Some(place) = testkit::postgres() else { return };
    let (first, second) = (testkit::unique("migrated"), testkit::unique("migrating"));
    open(&place.url, &first).await.expect("a database");
    let other = open(&place.url, &second).await.expect("a database");
    let (locked, is_locked) = tokio::sync::oneshot::channel();
    let (done, is_done) = tokio::sync::oneshot::channel::<()>();
    let both = std::sync::Mutex::new(Some((locked, is_done)));
    let migrating = tokio::spawn(async move {
        other
            .transact((), move |tx, ()| {
                let (locked, is_done) = both.lock().expect("not poisoned").take().expect("a single attempt");
                Box::pin(async move {
                    tx.conn().execute_unprepared("SELECT pg_advisory_xact_lock(7251011620)").await?;
                    let _ = locked.send(());
                    let _ = is_done.await;
                    Ok::<_, Error>(())
                })
            })
            .await
    });
    is_locked.await.expect("locked");
    open(&place.url, &first).await.expect("opened without waiting");
    done.send(()).expect("still locked");
    migrating.await.expect("no panic").expect("committed");
}

#[tokio::test]
async fn a_locked_outbox_blocks_nothing_else() {
    let Some(place) = testkit::postgres() else { return };
    let schema = place.schema.expect("PostgreSQL has schemas");
    let short = Options { statement_timeout: Duration::from_millis(300), ..options(&schema) };
    let db = Database::connect(&place.url, &short).await.expect("a database");
    db.migrate(SCHEMA).await.expect("a schema");
    let asked = db.clone();
    db.transact((), move |tx, ()| {
        let asked = asked.clone();
        Box::pin(async move {
            tx.conn().execute_unprepared("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE").await?;
            asked.probe().check().await.expect("writable");
            let locked = asked.outbox().backlog().await.expect_err("a locked table");
            assert!(format!("{locked:?}").contains("statement timeout"), "{locked:?}");
            Ok::<_, Error>(())
        })
    })
    .await
    .expect("committed");
    assert_eq!(db.outbox().backlog().await.expect("unlocked").waiting, 0);
}
