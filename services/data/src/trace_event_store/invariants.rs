//! The queries of `ordermesh verify`.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use storage::Error;
use telemetry::{EventStatus, TraceEvent};
use uuid::Uuid;

use super::{TraceEventStore, event, status_name};
use crate::entity::trace_event::{Column, Entity};

impl TraceEventStore {
    /// All events of some orders.
    ///
    /// # Errors
    /// The database failed.
    pub async fn of_orders(&self, orders: &[Uuid]) -> Result<Vec<TraceEvent>, Error> {
        let rows = Entity::find().filter(Column::OrderId.is_in(orders.iter().copied())).all(self.db.read()).await?;
        rows.into_iter().map(event).collect()
    }

    /// Orders with a success event (other than lookups), by id: those after `after`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn orders_with_events(&self, after: Uuid, limit: u64) -> Result<Vec<Uuid>, Error> {
        let ids = Entity::find()
            .select_only()
            .column(Column::OrderId)
            .distinct()
            .filter(Column::OrderId.gt(after))
            .filter(Column::Status.eq(status_name(EventStatus::Success)))
            .filter(Column::EventType.ne("data_lookup"))
            .order_by_asc(Column::OrderId)
            .limit(limit);
        Ok(ids.into_tuple::<Option<Uuid>>().all(self.db.read()).await?.into_iter().flatten().collect())
    }

    /// All log-ins of some users.
    ///
    /// # Errors
    /// The database failed.
    pub async fn logins_of(&self, users: &[Uuid]) -> Result<Vec<TraceEvent>, Error> {
        let find = Entity::find()
            .filter(Column::UserId.is_in(users.iter().copied()))
            .filter(Column::EventType.eq("user_login"));
        find.all(self.db.read()).await?.into_iter().map(event).collect()
    }
}
