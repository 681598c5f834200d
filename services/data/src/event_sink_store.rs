//! The event sink's tables: its row, with the position up to which events were published and the lease of the instance
//! that publishes, and the events that were refused.

use std::sync::Arc;
use std::time::Duration;

use kernel::Clock;
use sea_orm::{ConnectionTrait, FromQueryResult, Statement, Value};
use storage::leases::micros;
use storage::{Database, Error, Leases, Rows};
use telemetry::TraceEvent;
use uuid::Uuid;

use crate::entity::trace_event::Model;
use crate::feed::Position;
use crate::trace_event_store::{COLUMNS, event};

/// How long another instance waits after a crash. The cursor is moved, and the lease renewed, at least three times in
/// it while NATS answers.
pub(crate) const LEASE: Duration = Duration::from_secs(15);
/// A lease that ends later than this from now was written by a clock that was set back since.
const LONGEST_LEASE: Duration = Duration::from_secs(75);

/// Refused events in a read.
const MAX_REFUSED: u32 = 100;

/// The sink's cursor and lease. Clones share their connections.
#[derive(Clone)]
pub(crate) struct EventSinkStore {
    db: Database,
    clock: Arc<dyn Clock>,
    /// For the time of leases, which is the database's on PostgreSQL.
    leases: Leases,
    instance: String,
}

#[derive(FromQueryResult)]
struct Row {
    position: String,
}

#[derive(FromQueryResult)]
struct Count {
    refused: i64,
}

impl EventSinkStore {
    pub(crate) fn new(db: Database, clock: Arc<dyn Clock>, instance: &str) -> Self {
        let leases = Leases::new(db.clone(), clock.clone(), "event_sink");
        Self { db, clock, leases, instance: instance.to_owned() }
    }

    /// By the given clock on PostgreSQL too.
    #[cfg(test)]
    pub(crate) fn by_given_clock(db: Database, clock: Arc<dyn Clock>, instance: &str) -> Self {
        let store = Self::new(db, clock, instance);
        Self { leases: store.leases.by_given_clock(), ..store }
    }

    /// Takes or renews the lease, and returns the cursor; `None`: another instance has it.
    pub(crate) async fn claim(&self) -> Result<Option<Position>, Error> {
        let now = self.leases.now_sql();
        let claim = self.leases.timed(
            format!(
                "UPDATE event_sink SET lease_owner = $2, lease_until = {now} + $3 WHERE name = 'nats' AND \
                 (lease_owner = $2 OR lease_until <= {now} OR lease_until > {now} + $4) RETURNING position"
            ),
            [self.instance.clone().into(), micros(LEASE).into(), micros(LONGEST_LEASE).into()],
        );
        let row: Option<Row> = self
            .db
            .transact(claim, |tx, claim| {
                Box::pin(async move { Ok::<_, Error>(Row::find_by_statement(claim).one(tx.conn()).await?) })
            })
            .await?;
        row.map(|row| position(&row.position)).transpose()
    }

    /// Moves the cursor with the lease, and keeps what was refused on the way; false: another instance has the lease.
    pub(crate) async fn advance(
        &self,
        from: Position,
        to: Position,
        refused: Vec<(Uuid, String)>,
    ) -> Result<bool, Error> {
        let now = self.leases.now_sql();
        let update = self.leases.timed(
            format!(
                "UPDATE event_sink SET position = $2, lease_until = {now} + $3 \
                 WHERE name = 'nats' AND lease_owner = $4 AND position = $5"
            ),
            [to.to_string().into(), micros(LEASE).into(), self.instance.clone().into(), from.to_string().into()],
        );
        let time = self.clock.now().as_micros();
        self.db
            .transact((update, refused), move |tx, (update, refused): (Statement, Vec<(Uuid, String)>)| {
                Box::pin(async move {
                    let moved = tx.conn().execute_raw(update).await?.rows_affected() > 0;
                    if moved && !refused.is_empty() {
                        let rows = Rows::new()
                            .with("event_id", refused.iter().map(|(event_id, _)| *event_id))
                            .with("refusal", refused.iter().map(|(_, refusal)| refusal.clone()))
                            .with("create_time", refused.iter().map(|_| time));
                        let insert = "INSERT INTO event_sink_refused (event_id, refusal, create_time) \
                             SELECT event_id, refusal, create_time FROM v WHERE TRUE ON CONFLICT DO NOTHING";
                        tx.conn().execute_rows(rows, insert).await?;
                    }
                    Ok(moved)
                })
            })
            .await
    }

    /// Frees the lease, so that another instance continues immediately.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let sql = "UPDATE event_sink SET lease_owner = NULL, lease_until = 0 WHERE lease_owner = $1";
        self.db.execute(self.statement(sql, [self.instance.clone().into()])).await.map(drop)
    }

    /// The cursor.
    pub(crate) async fn position(&self) -> Result<Position, Error> {
        let select = self.statement("SELECT position FROM event_sink WHERE name = 'nats'", []);
        let row = Row::find_by_statement(select).one(self.db.read()).await?;
        row.map_or(Ok(Position::START), |row| position(&row.position))
    }

    /// The first stored events after an id that were refused.
    pub(crate) async fn refused(&self, after: Uuid) -> Result<Vec<TraceEvent>, crate::error::Error> {
        let select = format!(
            "SELECT {COLUMNS} FROM trace_event WHERE event_id IN (SELECT event_id FROM event_sink_refused \
             WHERE event_id > $1 ORDER BY event_id LIMIT {MAX_REFUSED}) ORDER BY event_id"
        );
        let rows = Model::find_by_statement(self.statement(&select, [after.into()])).all(self.db.read()).await?;
        rows.into_iter().map(|row| Ok(event(row)?)).collect()
    }

    /// Forgets refused events that were published since.
    pub(crate) async fn forget(&self, published: Vec<Uuid>) -> Result<(), Error> {
        self.db
            .transact(published, |tx, published| {
                Box::pin(async move {
                    let rows = Rows::new().with("event_id", published);
                    let delete = "DELETE FROM event_sink_refused WHERE event_id IN (SELECT event_id FROM v)";
                    tx.conn().execute_rows(rows, delete).await.map(drop)
                })
            })
            .await
    }

    /// Forgets refused events that retention has deleted.
    pub(crate) async fn forget_before(&self, before: Uuid) -> Result<(), Error> {
        let delete = self.statement("DELETE FROM event_sink_refused WHERE event_id < $1", [before.into()]);
        self.db.execute(delete).await.map(drop)
    }

    /// The number of refused events.
    pub(crate) async fn count_refused(&self) -> Result<i64, Error> {
        let select = self.statement("SELECT COUNT(*) AS refused FROM event_sink_refused", []);
        Ok(Count::find_by_statement(select).one(self.db.read()).await?.map_or(0, |count| count.refused))
    }

    fn statement(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
        Statement::from_sql_and_values(self.db.read().get_database_backend(), sql, values)
    }
}

fn position(text: &str) -> Result<Position, Error> {
    text.parse().map_err(|()| Error::Corrupt { what: "position", value: text.to_owned() })
}
