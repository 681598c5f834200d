//! A start beside a database that starts too.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::connect::Database;
use crate::error::Error;

/// How long a start waits for a database that does not answer yet, and how often it asks.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(2);

/// Opens a database that may not be there yet. What waiting does not cure (a wrong password, a file that is no database) is
/// told at once.
///
/// # Errors
/// As the opening's, at last.
pub async fn patiently<F>(open: impl Fn() -> F) -> Result<Database, Error>
where
    F: Future<Output = Result<Database, Error>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        match open().await {
            Err(error) if error.may_come_up() && Instant::now() < end => {
                let cause = telemetry::Masked(&error).to_string();
                tracing::warn!(target: "ordermesh", "the database does not answer yet, it is asked again: {cause}");
                sleep(AGAIN).await;
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::{DbErr, RuntimeErr};

    use super::*;
    use crate::Options;

    const OPTIONS: Options = Options {
        max_connections: 1,
        acquire_timeout: Duration::from_millis(500),
        statement_timeout: Duration::from_secs(1),
        schema: None,
    };

    #[tokio::test(start_paused = true)]
    async fn a_database_that_is_not_there_yet_is_waited_for() {
        let away = || async { Err(Error::Connect(DbErr::Conn(RuntimeErr::Internal("nobody listens".to_owned())))) };
        let began = Instant::now();
        assert!(patiently(away).await.is_err());
        assert!((60..63).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_waiting_does_not_cure_is_told_at_once() {
        let began = Instant::now();
        assert!(patiently(|| Database::connect("mysql://x", &OPTIONS)).await.is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("no.db");
        std::fs::write(&file, "this is no database, and will not become one by waiting").expect("written");
        let url = format!("sqlite://{}", file.display());
        assert!(patiently(|| Database::connect(&url, &OPTIONS)).await.is_err());
        assert!(began.elapsed() < AGAIN, "{:?}", began.elapsed());
    }
}
