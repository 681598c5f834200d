//! Slow statements are logged.

use sea_orm::{FromQueryResult, Statement};
use storage::Database;

#[derive(FromQueryResult)]
struct Count {
    #[expect(dead_code, reason = "what is counted does not matter")]
    count: i64,
}

/// The log, as lines of text.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_slow_statement_is_a_warning_and_its_parameters_are_not_in_it() {
    let Some(place) = testkit::postgres() else { return };
    let lines = Lines::default();
    let writer = lines.clone();
    // The only test of its process: a callsite that is first reached without a subscriber is cached as disabled.
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let options = storage::Options { schema: place.schema, ..storage::Options::default() };
    let db = Database::connect(&place.url, &options).await.expect("a database");
    for (seconds, secret) in [("0.01", "quick-secret"), ("0.7", "slow-secret")] {
        let sql = format!("SELECT COUNT(*) AS count FROM (SELECT pg_sleep({seconds})) s WHERE $1 <> ''");
        let select = Statement::from_sql_and_values(db.read().get_database_backend(), sql, [secret.into()]);
        Count::find_by_statement(select).one(db.read()).await.expect("a response");
    }
    let text = String::from_utf8(lines.0.lock().expect("not poisoned").clone()).expect("text");
    let warned: Vec<&str> =
        text.lines().filter(|line| line.contains("WARN") && line.contains("slow statement")).collect();
    assert_eq!(warned.len(), 1, "{text}");
    assert!(warned[0].contains("pg_sleep(0.7)") && !text.contains("-secret"), "{text}");
}
