//! Inventory. Invariant: reserved is the sum of the held and allocated lines, and 0 ≤ reserved ≤ on_hand.

use kernel::{OrderId, RequestId};
use sea_orm::{ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, Value};
use storage::{Backend, Tx};
use telemetry::{Operation, Outcome};

use super::Store;
use crate::SeedStock;
use crate::entity::{stock, stock_adjustment};
use crate::error::Error;
use crate::inventory::{AdjustStock, Stock};
use crate::order::Line;

/// The result of adjusting a SKU's stock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adjustment {
    /// The stock after the adjustment.
    pub stock: Stock,
    /// The number of order lines whose stock was written off.
    pub lost_lines: i32,
}

#[derive(FromQueryResult)]
struct Quantity {
    sku: String,
    quantity: i64,
}

#[derive(FromQueryResult)]
struct Sku {
    sku: String,
}

#[derive(FromQueryResult)]
struct HeldLine {
    order_id: uuid::Uuid,
    line: i32,
    quantity: i64,
}

impl Store {
    /// Inserts stock into an empty inventory.
    pub(crate) async fn seed(&self, seed: &[SeedStock]) -> Result<(), storage::Error> {
        if seed.is_empty() || stock::Entity::find().one(self.db.read()).await?.is_some() {
            return Ok(());
        }
        self.db
            .transact_with((self.clone(), seed.to_vec()), |tx, (store, seed)| {
                Box::pin(async move {
                    for SeedStock { sku, on_hand } in seed {
                        let sql =
                            "INSERT INTO stock (sku, on_hand, reserved) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING";
                        tx.conn().execute_raw(store.statement(sql, [sku.into(), on_hand.into()])).await?;
                    }
                    Ok::<_, storage::Error>(())
                })
            })
            .await
    }

    /// The stock of SKUs, in the requested order; unknown ones are zero.
    pub(crate) async fn stock(&self, skus: &[String]) -> Result<Vec<Stock>, storage::Error> {
        let rows = stock::Entity::find().filter(stock::Column::Sku.is_in(skus)).all(self.db.read()).await?;
        let of =
            |sku: &String| rows.iter().find(|row| row.sku == *sku).map_or((0, 0), |row| (row.on_hand, row.reserved));
        Ok(skus
            .iter()
            .map(|sku| {
                let (on_hand, reserved) = of(sku);
                Stock { sku: sku.clone(), on_hand, reserved }
            })
            .collect())
    }

    /// Reserves stock for new lines.
    pub(super) async fn reserve(&self, tx: &Tx, lines: &[Line]) -> Result<(), Error> {
        let wanted: Vec<(String, i64)> =
            lines.iter().map(|line| (line.sku.clone(), i64::from(line.quantity))).collect();
        let reserved = self.add_reserved(tx, &wanted).await?;
        let short: Vec<&str> =
            wanted.iter().map(|(sku, _)| sku.as_str()).filter(|sku| !reserved.iter().any(|have| have == sku)).collect();
        if short.is_empty() { Ok(()) } else { Err(Error::InsufficientStock { skus: short.join(", ") }) }
    }

    /// Releases what an order still reserves: exactly its held and allocated lines, so that releasing is idempotent.
    pub(super) async fn release(&self, tx: &Tx, id: OrderId) -> Result<(), storage::Error> {
        let sql = "UPDATE order_line SET state = 'RELEASED' \
                   WHERE order_id = $1 AND state IN ('HELD', 'ALLOCATED') RETURNING sku, quantity";
        let statement = self.statement(sql, [id.as_uuid().into()]);
        let released = Quantity::find_by_statement(statement).all(tx.conn()).await?;
        let back: Vec<(String, i64)> = released.into_iter().map(|row| (row.sku, -row.quantity)).collect();
        if !back.is_empty() {
            self.add_reserved(tx, &back).await?;
        }
        Ok(())
    }

    /// Adds to `reserved` where there is enough on hand; returns the SKUs where there was. PostgreSQL locks the rows in
    /// SKU order first: without that, two orders of the same SKUs may deadlock. SQLite has one writer.
    async fn add_reserved(&self, tx: &Tx, quantities: &[(String, i64)]) -> Result<Vec<String>, storage::Error> {
        let rows: Vec<String> = (0..quantities.len())
            .map(|index| format!("(CAST(${} AS TEXT), CAST(${} AS BIGINT))", 2 * index + 1, 2 * index + 2))
            .collect();
        let rows = rows.join(", ");
        let sql = match self.db.backend() {
            Backend::Sqlite => format!(
                "WITH v (sku, n) AS (VALUES {rows}) UPDATE stock SET reserved = reserved + v.n FROM v \
                 WHERE stock.sku = v.sku AND on_hand - reserved >= v.n RETURNING stock.sku AS sku"
            ),
            Backend::Postgres => format!(
                "WITH v (sku, n) AS (VALUES {rows}), l AS (SELECT s.sku, v.n FROM stock s JOIN v ON v.sku = s.sku \
                 ORDER BY s.sku FOR NO KEY UPDATE OF s) UPDATE stock SET reserved = stock.reserved + l.n FROM l \
                 WHERE stock.sku = l.sku AND stock.on_hand - stock.reserved >= l.n RETURNING stock.sku AS sku"
            ),
        };
        let values: Vec<Value> =
            quantities.iter().flat_map(|(sku, n)| [Value::from(sku.clone()), Value::from(*n)]).collect();
        let rows = Sku::find_by_statement(self.statement(sql, values)).all(tx.conn()).await?;
        Ok(rows.into_iter().map(|row| row.sku).collect())
    }

    /// Changes a SKU's stock, once per request.
    pub(crate) async fn adjust(&self, operation: &Operation, command: AdjustStock) -> Result<Adjustment, Error> {
        self.db
            .transact_with((self.clone(), operation.clone(), command), |tx, (store, operation, command)| {
                Box::pin(async move { store.write_adjustment(tx, &operation, command).await })
            })
            .await
    }

    async fn write_adjustment(
        &self,
        tx: &Tx,
        operation: &Operation,
        command: AdjustStock,
    ) -> Result<Adjustment, Error> {
        let AdjustStock { request_id, sku, delta, write_off } = &command;
        let fingerprint = command.fingerprint();
        let sql = "INSERT INTO stock (sku, on_hand, reserved) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING";
        tx.conn().execute_raw(self.statement(sql, [sku.clone().into()])).await.map_err(storage::Error::from)?;
        // A write first, so that the row is locked before it is read.
        let sql = "UPDATE stock SET on_hand = on_hand WHERE sku = $1 RETURNING sku, on_hand, reserved";
        let row = stock::Model::find_by_statement(self.statement(sql, [sku.clone().into()]))
            .one(tx.conn())
            .await
            .map_err(storage::Error::from)?
            .ok_or(storage::Error::Closed)?;
        // Behind the lock: of two concurrent retries of a request, the second sees the result of the first.
        if let Some(earlier) = self.earlier(tx, *request_id, &fingerprint).await? {
            operation.replayed();
            return Ok(earlier);
        }
        let on_hand = row.on_hand.saturating_add(*delta);
        if on_hand < 0 {
            return Err(Error::StockNegative { sku: sku.clone(), on_hand: row.on_hand });
        }
        let (mut reserved, mut lost_lines) = (row.reserved, 0);
        if on_hand < reserved {
            if !write_off {
                return Err(Error::StockReserved { sku: sku.clone(), reserved });
            }
            (reserved, lost_lines) = self.write_off(tx, sku, reserved, on_hand).await?;
            if on_hand < reserved {
                // The rest is allocated to orders whose fulfilment is under way.
                return Err(Error::StockReserved { sku: sku.clone(), reserved });
            }
        }
        let sql = "UPDATE stock SET on_hand = $1, reserved = $2 WHERE sku = $3";
        let values = [on_hand.into(), reserved.into(), sku.clone().into()];
        tx.conn().execute_raw(self.statement(sql, values)).await.map_err(storage::Error::from)?;
        let adjustment = stock_adjustment::ActiveModel {
            request_id: Set(request_id.as_uuid()),
            fingerprint: Set(fingerprint),
            sku: Set(sku.clone()),
            on_hand: Set(on_hand),
            reserved: Set(reserved),
            lost_lines: Set(lost_lines),
            create_time: Set(self.clock.now().as_micros()),
        };
        stock_adjustment::Entity::insert(adjustment)
            .exec_without_returning(tx.conn())
            .await
            .map_err(storage::Error::from)?;
        for (name, value) in [
            ("on_hand.before", row.on_hand),
            ("on_hand.after", on_hand),
            ("reserved.before", row.reserved),
            ("reserved.after", reserved),
            ("lost_lines", i64::from(lost_lines)),
        ] {
            operation.set(name, value.to_string());
        }
        tx.emit(operation, &Outcome::Success);
        Ok(Adjustment { stock: Stock { sku: sku.clone(), on_hand, reserved }, lost_lines })
    }

    async fn earlier(&self, tx: &Tx, request: RequestId, fingerprint: &str) -> Result<Option<Adjustment>, Error> {
        let earlier = stock_adjustment::Entity::find_by_id(request.as_uuid())
            .one(tx.conn())
            .await
            .map_err(storage::Error::from)?;
        let Some(row) = earlier else { return Ok(None) };
        if row.fingerprint != fingerprint {
            return Err(Error::RequestIdReused);
        }
        let stock = Stock { sku: row.sku, on_hand: row.on_hand, reserved: row.reserved };
        Ok(Some(Adjustment { stock, lost_lines: row.lost_lines }))
    }

    /// Takes held lines from their orders, newest first, until what is reserved fits the new stock.
    async fn write_off(&self, tx: &Tx, sku: &str, reserved: i64, on_hand: i64) -> Result<(i64, i32), storage::Error> {
        let sql =
            "SELECT order_id, line, quantity FROM order_line WHERE sku = $1 AND state = 'HELD' ORDER BY order_id DESC";
        let held = HeldLine::find_by_statement(self.statement(sql, [sku.into()])).all(tx.conn()).await?;
        let (mut reserved, mut lost_lines) = (reserved, 0);
        for HeldLine { order_id, line, quantity } in held {
            if reserved <= on_hand {
                break;
            }
            let sql = "UPDATE order_line SET state = 'LOST' WHERE order_id = $1 AND line = $2 AND state = 'HELD'";
            let lost = tx.conn().execute_raw(self.statement(sql, [order_id.into(), line.into()])).await?;
            if lost.rows_affected() == 1 {
                reserved -= quantity;
                lost_lines += 1;
            }
        }
        Ok((reserved, lost_lines))
    }
}
