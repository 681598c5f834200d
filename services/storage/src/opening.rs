//! Start-up while the database is still starting.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::connect::Database;
use crate::error::Error;

/// How long start-up waits for a database that does not answer, and how often it retries.
const TIMEOUT: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(2);

/// Opens a database that may not have started yet; calls `waits` with the reason before each retry. Errors that a retry cannot
/// cure (a wrong password, a file that is not a database) are returned immediately.
///
/// # Errors
/// The last error of `open`.
pub async fn retry_until_reachable<F>(open: impl Fn() -> F, mut waits: impl FnMut(&Error)) -> Result<Database, Error>
where
    F: Future<Output = Result<Database, Error>>,
{
    let end = Instant::now() + TIMEOUT;
    loop {
        match open().await {
            Err(error) if error.may_come_up() && Instant::now() < end => {
                waits(&error);
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
    async fn start_up_waits_for_a_database_that_does_not_listen_yet() {
        let away = || async { Err(Error::Connect(DbErr::Conn(RuntimeErr::Internal("nothing listens".to_owned())))) };
        let began = Instant::now();
        let mut reasons = Vec::new();
        assert!(retry_until_reachable(away, |why| reasons.push(why.to_string())).await.is_err());
        assert!(
            reasons.len() > 20 && reasons[0].contains("could not be opened"),
            "each retry has a reason: {reasons:?}"
        );
        assert!((60..63).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn permanent_errors_are_returned_immediately() {
        let began = Instant::now();
        assert!(retry_until_reachable(|| Database::connect("mysql://x", &OPTIONS), |_| {}).await.is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("no.db");
        std::fs::write(&file, "this is no database, and will not become one by waiting").expect("written");
        let url = format!("sqlite://{}", file.display());
        let opened = retry_until_reachable(|| Database::connect(&url, &OPTIONS), |_| {}).await;
        assert!(opened.is_err_and(|error| error.is_configuration()), "another start fails in the same way");
        assert!(began.elapsed() < AGAIN, "{:?}", began.elapsed());
    }
}
