//! Inventory. Invariant: reserved is the sum of the held and allocated lines, and 0 ≤ reserved ≤ on_hand.

use kernel::RequestId;
use sea_orm::{ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter};
use storage::{Backend, Rows, Tx};
use telemetry::{Operation, Outcome};

use super::Store;
use crate::SeedStock;
use crate::entity::{stock, stock_adjustment};
use crate::error::Error;
use crate::inventory::{AdjustStock, Stock};

/// The result of adjusting a SKU's stock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adjustment {
    /// The stock after the adjustment.
    pub stock: Stock,
    /// The number of order lines whose stock was written off.
    pub lost_lines: i32,
}

#[derive(FromQueryResult)]
struct Free {
    sku: String,
    free: i64,
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
            .transact((self.clone(), seed.to_vec()), |tx, (store, seed)| {
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

    /// Changes a SKU's stock, once per request.
    pub(crate) async fn adjust(&self, operation: &Operation, command: AdjustStock) -> Result<Adjustment, Error> {
        self.db
            .transact((self.clone(), operation.clone(), command), |tx, (store, operation, command)| {
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
        let select =
            "SELECT order_id, line, quantity FROM order_line WHERE sku = $1 AND state = 'HELD' ORDER BY order_id DESC";
        let sql = match self.db.backend() {
            Backend::Sqlite => select.to_owned(),
            // A locked line is being allocated: it is not available any more, and its transaction may wait for another.
            Backend::Postgres => format!("{select} FOR NO KEY UPDATE SKIP LOCKED"),
        };
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

/// Locks the stock of SKUs, in SKU order; returns what is not reserved of those that are known.
pub(super) async fn lock(tx: &Tx, skus: impl Iterator<Item = String>) -> Result<Vec<(String, i64)>, storage::Error> {
    let select = "SELECT stock.sku AS sku, stock.on_hand - stock.reserved AS free \
                  FROM v JOIN stock ON stock.sku = v.sku ORDER BY stock.sku";
    let select = match tx.backend() {
        // The whole transaction holds the write lock.
        Backend::Sqlite => select.to_owned(),
        Backend::Postgres => format!("{select} FOR NO KEY UPDATE OF stock"),
    };
    let rows = tx.conn().query_rows(Rows::new().with("sku", skus), &select).await?;
    let free = rows.iter().map(|row| Free::from_query_result(row, "").map(|Free { sku, free }| (sku, free)));
    Ok(free.collect::<Result<_, _>>()?)
}

/// Adds to what is reserved. The rows are locked already; a check of the table rejects more than is on hand.
pub(super) async fn add_reserved(
    tx: &Tx,
    quantities: impl IntoIterator<Item = (String, i64)>,
) -> Result<(), storage::Error> {
    let (skus, sums): (Vec<String>, Vec<i64>) = quantities.into_iter().unzip();
    let rows = Rows::new().with("sku", skus).with("quantity", sums);
    let update = "UPDATE stock SET reserved = reserved + v.quantity FROM v WHERE stock.sku = v.sku";
    tx.conn().execute_rows(rows, update).await
}
