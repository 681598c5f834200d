//! Final orders in `order_archive`: one row for each, with all its rows of the other tables.
//!
//! A final order never changes, so its copy is exact. It is moved in one transaction: a reader that finds an order's row,
//! but not what belongs to it, finds that in the archive. With the row the order's request id is forgotten.

use std::collections::{BTreeMap, HashMap, HashSet};

use chassis::archive::{Batch, to_json};
use kernel::{OrderId, Timestamp, UserId, first_id_at};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait};
use serde::{Deserialize, Serialize};
use storage::{Error, Rows, Tx};
use uuid::Uuid;

use super::{Store, corrupt, history_entry, in_state, order};
use crate::entity::{fulfillment, order_archive, order_history, order_line, orders};
use crate::lifecycle::{STATES, State, is_final};
use crate::order::{HistoryEntry, LineState, Order, Scope};

/// The most orders that are moved in one transaction.
const BATCH: u64 = 256;
/// The most transitions of these orders, unless one order has more.
const MAX_TRANSITIONS: i64 = 10_000;

/// All rows of an order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Archived {
    pub(super) order: orders::Model,
    pub(super) lines: Vec<order_line::Model>,
    /// All transitions, from the first.
    pub(super) history: Vec<order_history::Model>,
    pub(super) fulfillment: Option<fulfillment::Model>,
}

impl Archived {
    fn read(row: &order_archive::Model) -> Result<Self, Error> {
        serde_json::from_str(&row.record).map_err(|_| corrupt("archived order", row.order_id))
    }

    /// Whether everything that belongs to the order's row was read with it.
    fn is_complete(&self) -> bool {
        let is_started = self.order.state == State::FulfillmentStarted.name();
        !self.lines.is_empty()
            && self.history.last().is_some_and(|last| last.version == self.order.version)
            && self.fulfillment.is_some() == is_started
    }

    pub(super) fn user(&self) -> UserId {
        UserId::from_uuid(self.order.user_id)
    }

    pub(super) fn order(self) -> Result<Order, Error> {
        order(self.order, self.lines, self.fulfillment)
    }

    /// The transitions after a version, oldest first.
    pub(super) fn history_after(self, version: i64) -> Result<Vec<HistoryEntry>, Error> {
        self.history.into_iter().filter(|row| row.version > version).map(history_entry).collect()
    }
}

#[derive(FromQueryResult)]
struct Key {
    order_id: Uuid,
}

impl Store {
    /// Archives orders that became final before an instant: the next 256 at most, in the order of their ids.
    pub async fn archive_before(self, before: Timestamp, after: Option<OrderId>) -> Result<Batch, Error> {
        let names = STATES.into_iter().filter(|state| is_final(*state)).map(State::name);
        let mut rows = orders::Entity::find()
            .apply_if(after, |find, after| find.filter(orders::Column::OrderId.gt(after.as_uuid())))
            // By the primary key: a younger order has not been final for as long.
            .filter(orders::Column::OrderId.lt(first_id_at(before)))
            .filter(orders::Column::UpdateTime.lt(before.as_micros()))
            .filter(orders::Column::State.is_in(names))
            .order_by_asc(orders::Column::OrderId)
            .limit(BATCH)
            .all(self.db.read())
            .await?;
        let is_last = u64::try_from(rows.len()).is_ok_and(|count| count < BATCH);
        let mut transitions = 0;
        let fitting = rows.iter().take_while(|row| {
            transitions += row.version;
            transitions <= MAX_TRANSITIONS
        });
        let fitting = fitting.count().max(1);
        let is_last = is_last && fitting >= rows.len();
        rows.truncate(fitting);
        let last = rows.last().filter(|_| !is_last).map(|row| OrderId::from_uuid(row.order_id));
        let mut records = self.records(rows).await?;
        // Another instance has moved the others since their rows were read.
        records.retain(Archived::is_complete);
        if records.is_empty() {
            return Ok(Batch { archived: 0, last });
        }
        let archived = self.db.transact_rows(records, |tx, records| Box::pin(archive(tx, records))).await?;
        Ok(Batch { archived, last })
    }

    /// The orders of rows, with all that belongs to them.
    pub(super) async fn records(&self, rows: Vec<orders::Model>) -> Result<Vec<Archived>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let ids = || rows.iter().map(|row| row.order_id);
        let (db, mut lines, mut history) = (self.db.read(), HashMap::new(), HashMap::new());
        let find = order_line::Entity::find().filter(order_line::Column::OrderId.is_in(ids()));
        for row in find.order_by_asc(order_line::Column::Line).all(db).await? {
            lines.entry(row.order_id).or_insert_with(Vec::new).push(row);
        }
        let find = order_history::Entity::find().filter(order_history::Column::OrderId.is_in(ids()));
        for row in find.order_by_asc(order_history::Column::Version).all(db).await? {
            history.entry(row.order_id).or_insert_with(Vec::new).push(row);
        }
        let find = fulfillment::Entity::find().filter(fulfillment::Column::OrderId.is_in(ids()));
        let started = find.all(db).await?.into_iter().map(|row| (row.order_id, row));
        let mut started: HashMap<Uuid, fulfillment::Model> = started.collect();
        let record = |order: orders::Model| Archived {
            lines: lines.remove(&order.order_id).unwrap_or_default(),
            history: history.remove(&order.order_id).unwrap_or_default(),
            fulfillment: started.remove(&order.order_id),
            order,
        };
        Ok(rows.into_iter().map(record).collect())
    }

    /// The archived ones among these orders.
    pub(super) async fn archived(&self, ids: impl IntoIterator<Item = OrderId>) -> Result<Vec<Archived>, Error> {
        let ids: Vec<Uuid> = ids.into_iter().map(OrderId::as_uuid).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let find = order_archive::Entity::find().filter(order_archive::Column::OrderId.is_in(ids));
        find.all(self.db.read()).await?.iter().map(Archived::read).collect()
    }

    /// The order, if it is archived.
    pub(super) async fn archived_one(&self, id: OrderId) -> Result<Option<Archived>, Error> {
        Ok(self.archived([id]).await?.pop())
    }

    /// The state and the version of an archived order in this scope.
    pub(super) async fn archived_state(&self, scope: Scope, id: OrderId) -> Result<Option<(State, i64)>, Error> {
        let mut find = order_archive::Entity::find_by_id(id.as_uuid());
        if let Scope::Of(user) = scope {
            find = find.filter(order_archive::Column::UserId.eq(user.as_uuid()));
        }
        let columns = [order_archive::Column::State, order_archive::Column::Version];
        let row: Option<(String, i64)> = find.select_only().columns(columns).into_tuple().one(self.db.read()).await?;
        row.map(|(state, version)| Ok((State::of(&state).ok_or_else(|| corrupt("state", &state))?, version)))
            .transpose()
    }

    /// The versions of the archived ones among these orders.
    pub(super) async fn archived_versions(&self, ids: &[OrderId]) -> Result<Vec<(OrderId, i64)>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid, i64)> = order_archive::Entity::find()
            .select_only()
            .columns([order_archive::Column::OrderId, order_archive::Column::Version])
            .filter(order_archive::Column::OrderId.is_in(ids.iter().map(|id| id.as_uuid())))
            .into_tuple()
            .all(self.db.read())
            .await?;
        Ok(rows.into_iter().map(|(id, version)| (OrderId::from_uuid(id), version)).collect())
    }

    /// Archived orders, newest first, older than `after` and not older than `until`.
    pub(super) async fn list_archived(
        &self,
        scope: Scope,
        state: Option<State>,
        after: Option<OrderId>,
        until: Option<OrderId>,
        limit: u64,
    ) -> Result<Vec<Archived>, Error> {
        if state.is_some_and(|state| !is_final(state)) {
            return Ok(Vec::new());
        }
        let mut find = order_archive::Entity::find().order_by_desc(order_archive::Column::OrderId).limit(limit);
        if let Scope::Of(user) = scope {
            find = find.filter(order_archive::Column::UserId.eq(user.as_uuid()));
        }
        if let Some(state) = state {
            find = find.filter(Expr::cust(in_state(state)));
        }
        if let Some(after) = after {
            find = find.filter(order_archive::Column::OrderId.lt(after.as_uuid()));
        }
        if let Some(until) = until {
            find = find.filter(order_archive::Column::OrderId.gte(until.as_uuid()));
        }
        find.all(self.db.read()).await?.iter().map(Archived::read).collect()
    }

    /// A page of all archived orders, ordered by id, after `after` and up to `until`.
    pub(super) async fn archive_page(
        &self,
        after: Option<OrderId>,
        until: Option<OrderId>,
        limit: u64,
    ) -> Result<Vec<Archived>, Error> {
        let find = order_archive::Entity::find()
            .apply_if(after, |find, after| find.filter(order_archive::Column::OrderId.gt(after.as_uuid())))
            .apply_if(until, |find, until| find.filter(order_archive::Column::OrderId.lte(until.as_uuid())))
            .order_by_asc(order_archive::Column::OrderId)
            .limit(limit);
        find.all(self.db.read()).await?.iter().map(Archived::read).collect()
    }
}

/// Moves orders; returns how many. Those that another instance has moved meanwhile are not counted again.
async fn archive(tx: &Tx, records: Vec<Archived>) -> Result<u64, Error> {
    let each = || records.iter().map(|record| &record.order);
    let text = |record: &Archived| to_json(record).map_err(|_| corrupt("order to archive", record.order.order_id));
    let rows = Rows::new()
        .with("order_id", each().map(|order| order.order_id))
        .with("user_id", each().map(|order| order.user_id))
        .with("state", each().map(|order| order.state.clone()))
        .with("version", each().map(|order| order.version))
        .with("record", records.iter().map(text).collect::<Result<Vec<_>, _>>()?);
    let insert = "INSERT INTO order_archive (order_id, user_id, state, version, record) \
                  SELECT order_id, user_id, state, version, record FROM v WHERE TRUE \
                  ON CONFLICT (order_id) DO NOTHING RETURNING order_id";
    let inserted = tx.conn().query_rows(rows, insert).await?;
    let inserted = inserted.iter().map(|row| Key::from_query_result(row, "").map(|key| key.order_id));
    let moved: HashSet<Uuid> = inserted.collect::<Result<_, _>>()?;
    // By SKU, so that two instances do not deadlock.
    let mut allocated: BTreeMap<&str, i64> = BTreeMap::new();
    let lines = records.iter().filter(|record| moved.contains(&record.order.order_id)).flat_map(|record| &record.lines);
    for line in lines.filter(|line| line.state == LineState::Allocated.name()) {
        *allocated.entry(&line.sku).or_default() += line.quantity;
    }
    let rows = Rows::new()
        .with("sku", allocated.keys().map(|sku| (*sku).to_owned()))
        .with("allocated", allocated.values().copied());
    let add = "INSERT INTO stock_archive (sku, allocated) SELECT sku, allocated FROM v WHERE TRUE \
               ON CONFLICT (sku) DO UPDATE SET allocated = stock_archive.allocated + excluded.allocated";
    tx.conn().execute_rows(rows, add).await?;
    for table in ["order_line", "order_history", "fulfillment", "orders"] {
        let delete = format!("DELETE FROM {table} WHERE order_id IN (SELECT order_id FROM v)");
        tx.conn().execute_rows(Rows::new().with("order_id", moved.iter().copied()), &delete).await?;
    }
    Ok(u64::try_from(moved.len()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As release 0.2.0 writes it: later releases must read it.
    const RECORD: &str = include_str!("archive/record.json");

    #[test]
    fn a_record_of_release_0_2_0_is_read_and_an_incomplete_one_is_noticed() {
        let archived: Archived = serde_json::from_str(RECORD).expect("a record");
        assert!(archived.is_complete());
        let written: serde_json::Value = serde_json::from_str(&to_json(&archived).expect("JSON")).expect("JSON");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(RECORD).expect("JSON"));
        let parts: [fn(&mut Archived); 3] =
            [|record| record.lines.clear(), |record| drop(record.history.pop()), |record| record.fulfillment = None];
        for remove in parts {
            let mut incomplete = archived.clone();
            remove(&mut incomplete);
            assert!(!incomplete.is_complete(), "{incomplete:?}");
        }
        archived.order().expect("an order");
    }
}
