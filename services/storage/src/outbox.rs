//! The outbox: events are written in the transaction of the change that they report, and wait here to be sent.
//!
//! Each row belongs to the instance that wrote it, which sends it as soon as it is committed; rows of a crashed
//! instance are adopted by another. There is no watermark: a row is deleted when its event is acknowledged. An event
//! that the store rejects is kept apart and sent again later: a store of an earlier release rejects what it does not
//! know yet.

use std::time::Duration;

use kernel::{Clock, SystemClock, Timestamp};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Set,
    Statement,
};
use telemetry::TraceEvent;
use uuid::{Builder, Uuid};

use crate::connect::Database;
use crate::connection::TxConnection;
use crate::error::Error;
use crate::migrate::Migration;
use crate::rows::Rows;
use crate::transact::BEGIN_SETTLE;

pub(crate) const MIGRATION: Migration = Migration {
    version: 0,
    name: "create outbox",
    statements: &[
        "CREATE TABLE outbox (event_id UUID PRIMARY KEY, owner TEXT NOT NULL, create_time BIGINT NOT NULL, body TEXT NOT NULL)",
        "CREATE INDEX outbox_by_owner ON outbox (owner, event_id)",
        "CREATE TABLE outbox_refused (event_id UUID PRIMARY KEY, create_time BIGINT NOT NULL, refusal TEXT NOT NULL, body TEXT NOT NULL)",
    ],
    postgres: &[],
};

mod row {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "outbox")]
    pub(super) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub event_id: Uuid,
        pub owner: String,
        pub create_time: i64,
        pub body: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(super) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The limit of counting: the count runs every few seconds, and a long outage fills the table.
pub const COUNTED: i64 = 100_000;

/// The size of the outbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backlog {
    /// Events waiting to be sent; at most [`COUNTED`].
    pub waiting: i64,
    /// When the oldest of them was written.
    pub oldest: Option<Timestamp>,
    /// Events that the store has rejected for longer than [`REFUSED_FOR_LONG`]; at most [`COUNTED`].
    pub refused: i64,
}

/// An event rejected for a shorter time may only be newer than a store that is upgraded next.
pub const REFUSED_FOR_LONG: Duration = Duration::from_secs(86_400);
/// The clocks of two machines differ by less.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// Rejected events that are requeued in one transaction.
const REQUEUE_CHUNK: usize = 500;

/// The contents of an outbox.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Waiting {
    /// Events to be sent.
    pub waiting: Vec<TraceEvent>,
    /// Events that the store has rejected; they are sent again later.
    pub refused: Vec<TraceEvent>,
}

#[derive(FromQueryResult)]
struct Counts {
    waiting: i64,
    oldest: Option<i64>,
    refused: i64,
}

/// The outbox of a database.
#[derive(Clone, Debug)]
pub struct Outbox {
    db: Database,
}

impl Outbox {
    pub(crate) fn new(db: Database) -> Self {
        Self { db }
    }

    /// Waits until this process has committed events since the last call.
    pub async fn written(&self) {
        self.db.0.events_written.notified().await;
    }

    /// Writes events that belong to no transaction.
    ///
    /// # Errors
    /// The database failed; nothing was written.
    pub async fn put(&self, events: Vec<TraceEvent>) -> Result<(), Error> {
        self.db
            .transact(events, |tx, events| {
                events.into_iter().for_each(|event| tx.enqueue(event));
                Box::pin(async { Ok(()) })
            })
            .await
    }

    /// The oldest events of an owner.
    ///
    /// # Errors
    /// The database failed, or a stored event cannot be decoded.
    pub async fn waiting(&self, owner: &str, limit: usize) -> Result<Vec<TraceEvent>, Error> {
        let rows = row::Entity::find()
            .filter(row::Column::Owner.eq(owner))
            .order_by_asc(row::Column::EventId)
            .limit(u64::try_from(limit).unwrap_or(u64::MAX))
            .all(self.db.read())
            .await?;
        rows.into_iter()
            .map(|row| serde_json::from_str(&row.body).map_err(|_| Error::Corrupt { what: "event", value: row.body }))
            .collect()
    }

    /// All waiting events, of every owner, and all rejected ones: for `ordermesh verify`.
    ///
    /// # Errors
    /// The database failed, or a stored event cannot be decoded.
    pub async fn all(&self) -> Result<Waiting, Error> {
        #[derive(FromQueryResult)]
        struct Row {
            body: String,
            refused: bool,
        }
        let select = Statement::from_string(
            self.db.read().get_database_backend(),
            "SELECT body, FALSE AS refused FROM outbox UNION ALL SELECT body, TRUE AS refused FROM outbox_refused",
        );
        let mut all = Waiting::default();
        for row in Row::find_by_statement(select).all(self.db.read()).await? {
            let event =
                serde_json::from_str(&row.body).map_err(|_| Error::Corrupt { what: "event", value: row.body })?;
            if row.refused { all.refused.push(event) } else { all.waiting.push(event) }
        }
        Ok(all)
    }

    /// Deletes acknowledged events, and moves rejected ones aside. If a crash undoes this, they are sent again.
    ///
    /// # Errors
    /// The database failed; the events stay and are sent again.
    pub async fn settle(&self, done: Vec<Uuid>, refused: Vec<(TraceEvent, String)>) -> Result<(), Error> {
        self.db
            .transact_begun(BEGIN_SETTLE, (done, refused), |tx, (done, refused): (Vec<Uuid>, Vec<_>)| {
                Box::pin(async move {
                    for (event, refusal) in &refused {
                        let insert = Statement::from_sql_and_values(
                            tx.conn().get_database_backend(),
                            "INSERT INTO outbox_refused (event_id, create_time, refusal, body) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                            [
                                event.event_id.into(),
                                SystemClock.now().as_micros().into(),
                                refusal.clone().into(),
                                body(event).into(),
                            ],
                        );
                        tx.conn().execute_raw(insert).await?;
                    }
                    let ids = done.into_iter().chain(refused.iter().map(|(event, _)| event.event_id));
                    let rows = Rows::new().with("event_id", ids);
                    let delete = "DELETE FROM outbox WHERE event_id IN (SELECT event_id FROM v)";
                    tx.conn().execute_rows(rows, delete).await
                })
            })
            .await
    }

    /// Moves all rejected events back to those that `owner` sends; returns how many.
    ///
    /// # Errors
    /// The database failed; events that were not moved stay rejected.
    pub async fn requeue(&self, owner: &str) -> Result<usize, Error> {
        let mut requeued = 0;
        loop {
            let count = self
                .db
                .transact(owner.to_owned(), |tx, owner| Box::pin(async move { requeue(tx.conn(), owner).await }))
                .await?;
            requeued += count;
            if count < REQUEUE_CHUNK {
                return Ok(requeued);
            }
        }
    }

    /// Makes `owner` the owner of other owners' events from before `before`; returns how many. Events dated in the
    /// future were written before a clock was set back, and are adopted too.
    ///
    /// # Errors
    /// The database failed.
    pub async fn adopt(&self, owner: &str, before: Timestamp) -> Result<u64, Error> {
        let beyond = SystemClock.now().max(before).plus(CLOCK_TOLERANCE);
        let is_left = move || {
            let written = row::Column::CreateTime;
            Condition::any().add(written.lt(before.as_micros())).add(written.gt(beyond.as_micros()))
        };
        let left = row::Entity::find()
            .filter(row::Column::Owner.ne(owner))
            .filter(is_left())
            .limit(1)
            .all(self.db.read())
            .await?;
        if left.is_empty() {
            return Ok(0);
        }
        self.db
            .transact(owner.to_owned(), move |tx, owner| {
                Box::pin(async move {
                    let adopted = row::Entity::update_many()
                        .col_expr(row::Column::Owner, owner.clone().into())
                        .filter(row::Column::Owner.ne(owner))
                        .filter(is_left())
                        .exec(tx.conn())
                        .await?;
                    Ok::<_, Error>(adopted.rows_affected)
                })
            })
            .await
    }

    /// The size of the outbox.
    ///
    /// # Errors
    /// The database failed.
    pub async fn backlog(&self) -> Result<Backlog, Error> {
        // The oldest by the key, since ids begin with their time and the time column has no index.
        let select = format!(
            "SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM outbox LIMIT {COUNTED}) AS counted) AS waiting, \
             (SELECT create_time FROM outbox ORDER BY event_id LIMIT 1) AS oldest, \
             (SELECT COUNT(*) FROM (SELECT 1 FROM outbox_refused WHERE event_id < $1 LIMIT {COUNTED}) AS counted) AS refused",
        );
        // By the key here too: the row is written again at each rejection, but the event's id stays.
        let before = first_id_at(SystemClock.now().minus(REFUSED_FOR_LONG));
        let backend = self.db.read().get_database_backend();
        let select = Statement::from_sql_and_values(backend, select, [before.into()]);
        let counts = Counts::find_by_statement(select).one(self.db.read()).await?;
        let counts = counts.unwrap_or(Counts { waiting: 0, oldest: None, refused: 0 });
        Ok(Backlog {
            waiting: counts.waiting,
            oldest: counts.oldest.map(Timestamp::from_micros),
            refused: counts.refused,
        })
    }
}

#[derive(FromQueryResult)]
struct Refused {
    event_id: Uuid,
    body: String,
}

async fn requeue(conn: &impl ConnectionTrait, owner: String) -> Result<usize, Error> {
    let delete = Statement::from_sql_and_values(
        conn.get_database_backend(),
        "DELETE FROM outbox_refused WHERE event_id IN \
         (SELECT event_id FROM outbox_refused ORDER BY event_id LIMIT $1) RETURNING event_id, body",
        [i64::try_from(REQUEUE_CHUNK).unwrap_or(i64::MAX).into()],
    );
    let refused = Refused::find_by_statement(delete).all(conn).await?;
    let count = refused.len();
    if count > 0 {
        let now = SystemClock.now().as_micros();
        let rows = refused.into_iter().map(|row| row::ActiveModel {
            event_id: Set(row.event_id),
            owner: Set(owner.clone()),
            create_time: Set(now),
            body: Set(row.body),
        });
        row::Entity::insert_many(rows).on_conflict_do_nothing().exec_without_returning(conn).await?;
    }
    Ok(count)
}

/// The lowest UUIDv7 of an instant: ids created before it are lower (RFC 9562, section 5.7).
fn first_id_at(instant: Timestamp) -> Uuid {
    let millis = u64::try_from(instant.as_micros() / 1_000).unwrap_or(0);
    Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

fn body(event: &TraceEvent) -> String {
    // A struct of strings and numbers always has a JSON form.
    serde_json::to_string(event).unwrap_or_default()
}

/// Writes events in a transaction, in one statement.
pub(crate) async fn insert(conn: &TxConnection, events: &[TraceEvent]) -> Result<(), Error> {
    let now = SystemClock.now().as_micros();
    let rows = Rows::new()
        .with("event_id", events.iter().map(|event| event.event_id))
        .with("owner", events.iter().map(|event| event.instance.clone()))
        .with("create_time", events.iter().map(|_| now))
        .with("body", events.iter().map(body));
    let insert =
        "INSERT INTO outbox (event_id, owner, create_time, body) SELECT event_id, owner, create_time, body FROM v";
    conn.execute_rows(rows, insert).await
}
