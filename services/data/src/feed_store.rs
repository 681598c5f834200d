//! The queries of WatchTraceEvents and of the event sink: the end of the order of events, and the events after a position.
//!
//! On PostgreSQL only events whose transaction's id is below `pg_snapshot_xmin` are read: every earlier transaction has
//! ended, so nothing will be inserted before them. An open transaction delays later events, and none is missed. On
//! SQLite a rowid is not reused: the retention keeps the highest one.

use std::sync::Arc;

use sea_orm::{DbErr, FromQueryResult, QueryResult, Statement, Value};
use storage::{Backend, Database};
use telemetry::TraceEvent;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::entity::trace_event::Model;
use crate::error::Error;
use crate::feed::{HighWaterMark, Position};
use crate::trace_event::Filter;
use crate::trace_event_store::{COLUMNS, event, status_name};

/// Maximum events in a read.
pub(crate) const MAX_EVENTS: usize = 200;
/// Maximum events that are scanned for matches in a read.
const MAX_SCANNED: usize = 5_000;
/// Maximum WatchTraceEvents streams of an instance that read concurrently: lookups and appends use the same connections.
const MAX_READERS: usize = 2;

const POSTGRES_MARK: &str = "SELECT CAST(newest.ingest AS TEXT) || ' ' || CAST(newest.event_id AS TEXT) AS position, \
     CAST(pg_snapshot_xmax(now.snapshot) AS TEXT) AS upper \
     FROM (SELECT pg_current_snapshot() AS snapshot) AS now LEFT JOIN LATERAL \
     (SELECT ingest, event_id FROM trace_event WHERE ingest < pg_snapshot_xmin(now.snapshot) \
     ORDER BY ingest DESC, event_id DESC LIMIT 1) AS newest ON TRUE";
const SQLITE_MARK: &str = "SELECT MAX(rowid) || ' 00000000-0000-0000-0000-000000000000' AS position, \
     CAST(COALESCE(MAX(rowid), 0) + 1 AS TEXT) AS upper FROM trace_event";

/// The SQL that differs between the databases.
struct Dialect {
    /// The column of [`Position::serial`].
    serial: &'static str,
    /// A row's position in the form that [`Position`] parses, for a query in which the serial is called `serial`.
    position: &'static str,
    /// After $1, up to $2.
    range: &'static str,
    order: &'static str,
}

const POSTGRES: Dialect = Dialect {
    serial: "ingest",
    position: "CAST(serial AS TEXT) || ' ' || CAST(event_id AS TEXT)",
    // The index is partial: `IS NOT NULL` makes it usable.
    range: "ingest IS NOT NULL AND (ingest, event_id) > (CAST($1 AS xid8), $2) \
         AND (ingest, event_id) <= (CAST($3 AS xid8), $4)",
    order: "ingest, event_id",
};
const SQLITE: Dialect = Dialect {
    serial: "rowid",
    position: "serial || ' 00000000-0000-0000-0000-000000000000'",
    range: "rowid > $1 AND rowid <= $2",
    order: "rowid",
};

/// Events after a position, in order.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Block {
    /// At most [`MAX_EVENTS`].
    pub(crate) events: Vec<(Position, TraceEvent)>,
    /// No matching event is left between the last of them and this position.
    pub(crate) reached: Position,
}

/// The order of events in the database.
#[derive(Clone, Debug)]
pub(crate) struct FeedStore {
    db: Database,
    readers: Arc<Semaphore>,
}

#[derive(FromQueryResult)]
struct MarkRow {
    position: Option<String>,
    upper: String,
}

#[derive(FromQueryResult)]
struct PositionRow {
    position: String,
}

#[derive(FromQueryResult)]
struct IdRow {
    event_id: Uuid,
}

#[derive(FromQueryResult)]
struct CountRow {
    events: i64,
}

struct EventRow {
    position: String,
    model: Model,
}

impl FromQueryResult for EventRow {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        Ok(Self { position: row.try_get(prefix, "position")?, model: Model::from_query_result(row, prefix)? })
    }
}

impl FeedStore {
    pub(crate) fn new(db: Database) -> Self {
        Self { db, readers: Arc::new(Semaphore::new(MAX_READERS)) }
    }

    fn dialect(&self) -> &'static Dialect {
        match self.db.backend() {
            Backend::Postgres => &POSTGRES,
            Backend::Sqlite => &SQLITE,
        }
    }

    fn statement(&self, sql: impl Into<String>, values: Vec<Value>) -> Statement {
        Statement::from_sql_and_values(self.db.read().get_database_backend(), sql, values)
    }

    /// The current high-water mark.
    pub(crate) async fn high_water_mark(&self) -> Result<HighWaterMark, Error> {
        let sql = match self.db.backend() {
            Backend::Postgres => POSTGRES_MARK,
            Backend::Sqlite => SQLITE_MARK,
        };
        let Some(row) = MarkRow::find_by_statement(self.statement(sql, vec![])).one(self.db.read()).await? else {
            return Ok(HighWaterMark::default());
        };
        let newest = row.position.as_deref().map(position).transpose()?.unwrap_or(Position::START);
        let limit = row.upper.parse().map_err(|_| corrupt(&row.upper))?;
        Ok(HighWaterMark { newest, limit })
    }

    /// The first matching events after a position. Only positions up to a high-water mark may be read.
    pub(crate) async fn read(&self, filter: &Filter, after: Position, until: Position) -> Result<Block, Error> {
        let _one_of_few = self.readers.acquire().await.map_err(|_| storage::Error::Closed)?;
        let equal = equal(filter);
        // A query scans at most a block, however few events match.
        let (end, inner) =
            if equal.is_empty() { (until, MAX_EVENTS) } else { (self.block_end(after, until).await?, MAX_SCANNED) };
        let Dialect { serial, position: written, range, order } = self.dialect();
        let mut values = self.between(after, end);
        let mut matches = String::new();
        for (column, value) in equal {
            values.push(value);
            let keyword = if matches.is_empty() { "WHERE" } else { "AND" };
            matches.push_str(&format!("{keyword} {column} = ${} ", values.len()));
        }
        // The inner LIMIT makes the planner use the order's index: with any other it would read and sort all matching
        // events.
        let sql = format!(
            "SELECT {written} AS position, {COLUMNS} FROM (SELECT {serial} AS serial, {COLUMNS} FROM trace_event \
             WHERE {range} ORDER BY {order} LIMIT {inner}) AS block {matches}ORDER BY serial, event_id LIMIT {MAX_EVENTS}"
        );
        let rows = EventRow::find_by_statement(self.statement(sql, values)).all(self.db.read()).await?;
        let read = |row: EventRow| Ok((position(&row.position)?, event(row.model)?));
        let events = rows.into_iter().map(read).collect::<Result<Vec<_>, Error>>()?;
        let reached = events.last().filter(|_| events.len() == MAX_EVENTS).map_or(end, |(position, _)| *position);
        Ok(Block { events, reached })
    }

    /// The id of the first event after a position.
    pub(crate) async fn first(&self, after: Position, until: Position) -> Result<Option<Uuid>, Error> {
        let Dialect { range, order, .. } = self.dialect();
        let sql = format!("SELECT event_id FROM trace_event WHERE {range} ORDER BY {order} LIMIT 1");
        let first = IdRow::find_by_statement(self.statement(sql, self.between(after, until)));
        Ok(first.one(self.db.read()).await?.map(|row| row.event_id))
    }

    /// The number of events after a position whose ids are lower than `before`.
    pub(crate) async fn count(&self, after: Position, before: Uuid) -> Result<u64, Error> {
        let mut values = self.between(after, Position::END);
        values.push(before.into());
        let sql = format!(
            "SELECT COUNT(*) AS events FROM trace_event WHERE {} AND event_id < ${}",
            self.dialect().range,
            values.len()
        );
        let count = CountRow::find_by_statement(self.statement(sql, values)).one(self.db.read()).await?;
        Ok(count.and_then(|row| u64::try_from(row.events).ok()).unwrap_or(0))
    }

    /// The position of the last event of a block.
    async fn block_end(&self, after: Position, until: Position) -> Result<Position, Error> {
        let Dialect { serial, position: written, range, order } = self.dialect();
        let sql = format!(
            "SELECT {written} AS position FROM (SELECT {serial} AS serial, event_id FROM trace_event \
             WHERE {range} ORDER BY {order} LIMIT 1 OFFSET {}) AS last",
            MAX_SCANNED - 1
        );
        let select = self.statement(sql, self.between(after, until));
        let last = PositionRow::find_by_statement(select).one(self.db.read()).await?;
        last.map_or(Ok(until), |row| position(&row.position))
    }

    /// The values of [`Dialect::range`].
    fn between(&self, after: Position, until: Position) -> Vec<Value> {
        match self.db.backend() {
            Backend::Postgres => [after, until]
                .into_iter()
                .flat_map(|position| [position.serial.to_string().into(), position.event_id.into()])
                .collect(),
            Backend::Sqlite => [after, until]
                .into_iter()
                .map(|position| i64::try_from(position.serial).unwrap_or(i64::MAX).into())
                .collect(),
        }
    }
}

/// The columns that must have a value, and the values.
fn equal(filter: &Filter) -> Vec<(&'static str, Value)> {
    let Filter { event_type, status, service, order_id, user_id, trace_id, start: _, end: _ } = filter;
    let all = [
        ("event_type", event_type.clone().map(Value::from)),
        ("status", status.map(status_name).map(Value::from)),
        ("service", service.clone().map(Value::from)),
        ("order_id", order_id.map(Value::from)),
        ("user_id", user_id.map(Value::from)),
        ("trace_id", trace_id.clone().map(Value::from)),
    ];
    all.into_iter().filter_map(|(column, value)| value.map(|value| (column, value))).collect()
}

fn position(text: &str) -> Result<Position, Error> {
    text.parse().map_err(|()| corrupt(text))
}

fn corrupt(text: &str) -> Error {
    storage::Error::Corrupt { what: "position", value: text.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kernel::Timestamp;
    use storage::Options;

    use super::*;
    use crate::migration::MIGRATIONS;
    use crate::sample;
    use crate::trace_event_store::TraceEventStore;

    #[tokio::test]
    async fn the_number_of_reading_followers_is_bounded() {
        let db = Database::connect("sqlite::memory:", &Options::default()).await.expect("a database");
        db.migrate(MIGRATIONS).await.expect("migrated");
        let stored = sample::event(Timestamp::default(), 1);
        TraceEventStore::new(db.clone()).insert(vec![stored.clone()]).await.expect("stored");
        let store = FeedStore::new(db);
        let until = store.high_water_mark().await.expect("read").newest;
        let filter = Filter::default();
        let read = || store.read(&filter, Position::START, until);
        let all = store.readers.acquire_many(2).await.expect("two permits");
        assert!(tokio::time::timeout(Duration::from_millis(100), read()).await.is_err(), "two followers are reading");
        drop(all);
        assert_eq!(read().await.expect("read").events, [(until, stored)]);
    }
}
