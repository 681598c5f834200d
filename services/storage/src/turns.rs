//! Processes that write one SQLite file take turns: by a lock on a file of its own, `<database>.lock`.
//!
//! SQLite's own lock is polled, with pauses of up to 100 ms, so that a process that commits one transaction after the
//! other starves the others. A waiter for this lock is woken when it is released.
//!
//! It is not a file of the database, because to close one of those would drop SQLite's locks of this process (POSIX
//! advisory locks). Nothing rests on it: SQLite's own lock decides, and a turn that does not come in time is not waited for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long a turn is waited for.
const LIMIT: Duration = Duration::from_secs(1);

/// The lock that this process shares with others.
#[derive(Debug)]
pub(crate) struct Turns {
    file: Arc<File>,
    /// One thread waits at a time: a wait cannot be ended.
    waiter: Arc<Semaphore>,
}

/// This process's turn: until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<File>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(target: "ordermesh", "a lock file was not unlocked: {error}");
        }
    }
}

impl Turns {
    /// Of a database's file.
    pub(crate) fn open(database: &Path) -> io::Result<Self> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        Ok(Self { file: Arc::new(file), waiter: Arc::new(Semaphore::new(1)) })
    }

    /// Waits for this process's turn; `None` if it does not come in time.
    pub(crate) async fn take(&self) -> Option<Turn> {
        if self.file.try_lock().is_ok() {
            return Some(Turn(self.file.clone()));
        }
        let (waits, file) = (self.waiter.clone().try_acquire_owned().ok()?, self.file.clone());
        let waiting = tokio::task::spawn_blocking(move || {
            let _waits = waits;
            // A turn that comes too late is dropped with the task's result.
            file.lock().ok().map(|()| Turn(file))
        });
        timeout(LIMIT, waiting).await.ok()?.ok()?
    }
}
