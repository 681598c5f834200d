//! The queries of `ordermesh verify`.

use kernel::{SessionId, Timestamp, UserId};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use storage::Error;

use super::Store;
use crate::entity::session;
use crate::invariants::OpenSession;

impl Store {
    /// A page of all sessions, by id: those after `after`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn sessions(&self, after: Option<SessionId>, limit: u64) -> Result<Vec<OpenSession>, Error> {
        let mut find = session::Entity::find().order_by_asc(session::Column::SessionId).limit(limit);
        if let Some(after) = after {
            find = find.filter(session::Column::SessionId.gt(after.as_uuid()));
        }
        let open = |row: session::Model| OpenSession {
            id: SessionId::from_uuid(row.session_id),
            user: UserId::from_uuid(row.user_id),
            created: Timestamp::from_micros(row.create_time),
        };
        Ok(find.all(self.db.read()).await?.into_iter().map(open).collect())
    }
}
