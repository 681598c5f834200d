//! Reads for [`crate::invariants`].

use std::collections::HashMap;

use kernel::{Money, OrderId, Timestamp, UserId};
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect};
use storage::Error;
use uuid::Uuid;

use super::{Store, corrupt};
use crate::entity::{fulfillment, order_history, order_line, orders};
use crate::invariants::{CheckedOrder, CheckedStock, CheckedTransition, requested_operation};
use crate::lifecycle::State;
use crate::order::LineState;

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
        self.to_check(find.all(self.db.read()).await?).await
    }

    /// The orders that exist among `ids`.
    pub async fn orders_to_check_by_id(&self, ids: &[OrderId]) -> Result<Vec<CheckedOrder>, Error> {
        let find = orders::Entity::find().filter(orders::Column::OrderId.is_in(ids.iter().map(|id| id.as_uuid())));
        self.to_check(find.all(self.db.read()).await?).await
    }

    /// The versions of the orders that exist among `ids`.
    pub async fn order_versions(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, i64>, Error> {
        self.versions(ids).await
    }

    /// The orders are read first; history read after them that belongs to a later version is left
    /// out. Lines and fulfilments may be later: the caller reads the versions again, and drops orders that have changed.
    async fn to_check(&self, rows: Vec<orders::Model>) -> Result<Vec<CheckedOrder>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let ids = || rows.iter().map(|row| row.order_id);
        let history = order_history::Entity::find()
            .filter(order_history::Column::OrderId.is_in(ids()))
            .order_by_asc(order_history::Column::Version)
            .all(self.db.read())
            .await?;
        let lines = order_line::Entity::find().filter(order_line::Column::OrderId.is_in(ids()));
        let lines = lines.all(self.db.read()).await?;
        let started = fulfillment::Entity::find().filter(fulfillment::Column::OrderId.is_in(ids()));
        let started = started.all(self.db.read()).await?;

        let mut steps_of: HashMap<Uuid, Vec<CheckedTransition>> = HashMap::new();
        for row in history {
            let state = State::of(&row.state).ok_or_else(|| corrupt("state", &row.state))?;
            let time = Timestamp::from_micros(row.time);
            let requested = requested_operation(&row.reason);
            let step = CheckedTransition { version: row.version, state, time, span_id: row.span_id, requested };
            steps_of.entry(row.order_id).or_default().push(step);
        }
        let mut lines_of: HashMap<Uuid, Vec<LineState>> = HashMap::new();
        for row in lines {
            let state = LineState::of(&row.state).ok_or_else(|| corrupt("line state", &row.state))?;
            lines_of.entry(row.order_id).or_default().push(state);
        }
        let mut started_of: HashMap<Uuid, i64> = HashMap::new();
        for row in started {
            *started_of.entry(row.order_id).or_default() += 1;
        }
        rows.into_iter()
            .map(|row| {
                let mut steps = steps_of.remove(&row.order_id).unwrap_or_default();
                steps.retain(|step| step.version <= row.version);
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
                    fulfillments: started_of.get(&row.order_id).copied().unwrap_or(0),
                    lines: lines_of.remove(&row.order_id).unwrap_or_default(),
                    steps,
                })
            })
            .collect()
    }

    /// All stock with the lines that reserve it: one statement, so one snapshot.
    pub async fn stock_to_check(&self) -> Result<Vec<CheckedStock>, Error> {
        let may_hold = "o.state IN ('CREATED', 'PAID', 'ALLOCATED', 'FULFILLMENT_STARTED')";
        let sql = format!(
            "WITH held AS (SELECT l.sku, CAST(SUM(CASE WHEN {may_hold} THEN l.quantity ELSE 0 END) AS BIGINT) AS held, \
             CAST(SUM(CASE WHEN {may_hold} THEN 0 ELSE l.quantity END) AS BIGINT) AS held_wrongly \
             FROM order_line l JOIN orders o ON o.order_id = l.order_id WHERE l.state IN ('HELD', 'ALLOCATED') GROUP BY l.sku) \
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
