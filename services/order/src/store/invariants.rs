//! Reads for [`crate::invariants`].

use std::collections::HashMap;

use kernel::{Money, OrderId, Timestamp, UserId};
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect};
use storage::Error;

use super::{Store, corrupt};
use crate::entity::{order_history, order_line, orders};
use crate::invariants::{CheckedOrder, CheckedStock, CheckedTransition, requested_operation};
use crate::lifecycle::State;
use crate::order::LineState;
use crate::store::archive::Archived;

#[derive(FromQueryResult)]
struct StockRow {
    sku: String,
    on_hand: Option<i64>,
    reserved: i64,
    held: i64,
    held_wrongly: i64,
}

impl Store {
    /// The current time of the clock used for leases and due times.
    pub async fn now(&self) -> Result<Timestamp, Error> {
        self.leases.read_now().await
    }

    /// A page of all orders, ordered by id, after `after`.
    pub async fn orders_to_check(&self, after: Option<OrderId>, limit: u64) -> Result<Vec<CheckedOrder>, Error> {
        let mut find = orders::Entity::find().order_by_asc(orders::Column::OrderId).limit(limit);
        if let Some(after) = after {
            find = find.filter(orders::Column::OrderId.gt(after.as_uuid()));
        }
        let mut rows = self.records(find.all(self.db.read()).await?).await?;
        // Read last: an order that is moved meanwhile is in both, and complete in the archive.
        let is_full = u64::try_from(rows.len()).is_ok_and(|count| count >= limit);
        let until = rows.last().filter(|_| is_full).map(|last| OrderId::from_uuid(last.order.order_id));
        let archived = self.archive_page(after, until, limit).await?;
        rows.splice(0..0, archived);
        rows.sort_by_key(|record| record.order.order_id);
        rows.dedup_by_key(|record| record.order.order_id);
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        rows.into_iter().map(to_check).collect()
    }

    /// The orders that exist among `ids`.
    pub async fn orders_to_check_by_id(&self, ids: &[OrderId]) -> Result<Vec<CheckedOrder>, Error> {
        let find = orders::Entity::find().filter(orders::Column::OrderId.is_in(ids.iter().map(|id| id.as_uuid())));
        let mut rows = self.records(find.all(self.db.read()).await?).await?;
        let archived = self.archived(ids.iter().copied()).await?;
        rows.retain(|record| archived.iter().all(|archived| archived.order.order_id != record.order.order_id));
        rows.into_iter().chain(archived).map(to_check).collect()
    }

    /// The versions of the orders that exist among `ids`.
    pub async fn order_versions(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, i64>, Error> {
        self.versions(ids).await
    }

    /// All stock with the lines that reserve it: one statement, so one snapshot.
    pub async fn stock_to_check(&self) -> Result<Vec<CheckedStock>, Error> {
        let may_hold = "o.state IN ('CREATED', 'PAID', 'ALLOCATED', 'FULFILLMENT_STARTED')";
        let sql = format!(
            "WITH held AS (SELECT sku, CAST(SUM(held) AS BIGINT) AS held, CAST(SUM(held_wrongly) AS BIGINT) AS held_wrongly \
             FROM (SELECT l.sku, CASE WHEN {may_hold} THEN l.quantity ELSE 0 END AS held, \
             CASE WHEN {may_hold} THEN 0 ELSE l.quantity END AS held_wrongly \
             FROM order_line l JOIN orders o ON o.order_id = l.order_id WHERE l.state IN ('HELD', 'ALLOCATED') \
             UNION ALL SELECT sku, allocated, 0 FROM stock_archive) AS each GROUP BY sku) \
             SELECT s.sku, s.on_hand, s.reserved, COALESCE(h.held, 0) AS held, COALESCE(h.held_wrongly, 0) AS held_wrongly \
             FROM stock s LEFT JOIN held h ON h.sku = s.sku \
             UNION ALL SELECT h.sku, NULL, 0, h.held, h.held_wrongly FROM held h \
             WHERE NOT EXISTS (SELECT 1 FROM stock s WHERE s.sku = h.sku)"
        );
        let rows = StockRow::find_by_statement(self.statement(sql, [])).all(self.db.read()).await?;
        let stock = |row: StockRow| CheckedStock {
            sku: row.sku,
            on_hand: row.on_hand,
            reserved: row.reserved,
            held: row.held,
            held_wrongly: row.held_wrongly,
        };
        Ok(rows.into_iter().map(stock).collect())
    }
}

fn to_check(record: Archived) -> Result<CheckedOrder, Error> {
    let Archived { order: row, lines, history, fulfillment } = record;
    let step = |step: order_history::Model| {
        let state = State::of(&step.state).ok_or_else(|| corrupt("state", &step.state))?;
        let (time, requested) = (Timestamp::from_micros(step.time), requested_operation(&step.reason));
        Ok(CheckedTransition { version: step.version, state, time, span_id: step.span_id, requested })
    };
    let line = |line: order_line::Model| LineState::of(&line.state).ok_or_else(|| corrupt("line state", &line.state));
    let currency = row.currency.parse().map_err(|_| corrupt("currency", &row.currency))?;
    Ok(CheckedOrder {
        id: OrderId::from_uuid(row.order_id),
        user: UserId::from_uuid(row.user_id),
        state: State::of(&row.state).ok_or_else(|| corrupt("state", &row.state))?,
        version: row.version,
        total: Money::new(currency, row.total),
        keeps_token: row.payment_method.is_some(),
        due: row.next_attempt_time.map(Timestamp::from_micros),
        leased_until: row.lease_owner.map(|_| Timestamp::from_micros(row.lease_until)),
        created: Timestamp::from_micros(row.create_time),
        fulfillments: i64::from(fulfillment.is_some()),
        lines: lines.into_iter().map(line).collect::<Result<_, _>>()?,
        // The order was read first: later history belongs to a later version. Lines and fulfilments may be later too: the
        // caller reads the versions again, and drops orders that have changed.
        steps: history
            .into_iter()
            .filter(|step| step.version <= row.version)
            .map(step)
            .collect::<Result<_, Error>>()?,
    })
}
