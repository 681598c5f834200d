//! The open sessions, as read by `ordermesh verify`.

use kernel::{SessionId, Timestamp, UserId};
use storage::{Database, Error};

use crate::store::Store;

/// An open session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditedSession {
    /// Its id: also the attribute `session.id` of its log-in's event.
    pub id: SessionId,
    /// Its owner.
    pub user: UserId,
    /// When it was opened.
    pub created: Timestamp,
}

/// The open sessions. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Sessions(Store);

impl Sessions {
    /// Reads from a database whose schema is up to date.
    pub fn new(db: Database) -> Self {
        Self(Store::new(db))
    }

    /// A page of all sessions, by id: those after `after`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn page(&self, after: Option<SessionId>, limit: u64) -> Result<Vec<AuditedSession>, Error> {
        self.0.sessions(after, limit).await
    }
}
