//! A lock that processes take in turn to write one SQLite file: on a file of its own, `<database>.lock`.
//!
//! SQLite's own lock is polled, with pauses of up to 100 ms, so that a process that commits one transaction after the
//! other starves the others. A waiter for this lock is woken when it is released; the order of waiters is the kernel's.
//!
//! It is not a file of the database, because to close one of those would drop SQLite's locks of this process (POSIX
//! advisory locks). Nothing rests on it: SQLite's own lock decides, and this one is waited for only for a moment.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// How long the lock is waited for.
const LIMIT: Duration = Duration::from_secs(1);

/// The lock of a database.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: Arc<File>,
    /// One thread waits at a time: a wait cannot be ended. Until it has ended, the file is not locked by others either.
    waiter: Arc<Semaphore>,
}

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard(Arc<File>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(target: "ordermesh", "a lock file was not unlocked: {error}");
        }
    }
}

impl FileLock {
    /// The lock of a database's file.
    pub(crate) fn open(database: &Path) -> io::Result<Self> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        Ok(Self { file: Arc::new(file), waiter: Arc::new(Semaphore::new(1)) })
    }

    /// Takes the lock; `None` if it is not released in time.
    pub(crate) async fn take(&self) -> Option<Guard> {
        let waits = self.waiter.clone().try_acquire_owned().ok()?;
        if self.file.try_lock().is_ok() {
            return Some(Guard(self.file.clone()));
        }
        let ((sender, locked), file) = (oneshot::channel(), self.file.clone());
        // Not a thread of tokio's: the runtime would wait for it when the process ends.
        let thread = std::thread::Builder::new().name("file-lock".to_owned()).spawn(move || {
            let _waits = waits;
            if file.lock().is_ok() {
                // If it comes too late, the guard is dropped with the message.
                let _ = sender.send(Guard(file));
            }
        });
        thread.ok()?;
        timeout(LIMIT, locked).await.ok()?.ok()
    }
}
