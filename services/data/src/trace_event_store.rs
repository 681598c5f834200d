//! The trace events' queries; those of followers are in `feed_store`. Entities stay in these files.
//!
//! The append is the platform's hottest write: a full batch is one statement, built without a query builder.

mod invariants;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use kernel::Timestamp;
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Statement,
    Value,
};
use storage::{Backend, Database, Error};
use telemetry::{EventError, EventStatus, TraceEvent};
use uuid::Uuid;

use crate::entity::trace_event::{Column, Entity, Model};
use crate::trace_event::{EventCount, Filter, MAX_APPEND, first_id_at};

/// All columns but `ingest`, which the database fills.
pub(crate) const COLUMNS: &str = "event_id, event_type, status, service, instance, operation, trace_id, span_id, start_time, \
     duration_micros, order_id, user_id, error_type, error_reason, error_message, attributes, suppressed_count";
const COLUMN_COUNT: usize = 17;

/// An event's id is made after its operation began, by the same clock, unless that was set meanwhile.
const CLOCK_CORRECTION: Duration = Duration::from_secs(60);
/// No operation with an event takes longer.
const MAX_OPERATION_TIME: Duration = Duration::from_secs(3_600);

/// The prefix by which a summary distinguishes error types, and its maximum of counts: events may have any error type.
const MAX_ERROR_TYPE_CHARS: i32 = 200;
const MAX_COUNTS: i64 = 2_000;

/// The trace events in the database. Clones share their connections.
#[derive(Clone, Debug)]
pub struct TraceEventStore {
    db: Database,
}

const DELETE: &str = "DELETE FROM trace_event WHERE event_id IN \
     (SELECT event_id FROM trace_event WHERE event_id < $1 ORDER BY event_id LIMIT $2)";
const DELETE_EXCEPT_LAST: &str = "DELETE FROM trace_event WHERE event_id IN \
     (SELECT event_id FROM trace_event WHERE event_id < $1 \
     AND rowid < (SELECT MAX(rowid) FROM trace_event) ORDER BY event_id LIMIT $2)";

#[derive(FromQueryResult)]
struct Stored {
    event_id: Uuid,
}

#[derive(FromQueryResult)]
struct Count {
    event_type: String,
    status: String,
    error_type: String,
    events: i64,
}

impl TraceEventStore {
    /// On a database whose schema is up to date.
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    /// Stores events with distinct ids; returns the ids of those that are new.
    pub(crate) async fn insert(&self, events: Vec<TraceEvent>) -> Result<HashSet<Uuid>, Error> {
        self.db
            .transact(Arc::<[TraceEvent]>::from(events), |tx, events| {
                Box::pin(async move {
                    let mut stored = HashSet::with_capacity(events.len());
                    for block in blocks(&events) {
                        let insert = insert_statement(tx.conn().get_database_backend(), block);
                        let rows = Stored::find_by_statement(insert).all(tx.conn()).await?;
                        stored.extend(rows.into_iter().map(|row| row.event_id));
                    }
                    Ok(stored)
                })
            })
            .await
    }

    /// The matching events that ended last, after an event of the list.
    pub(crate) async fn page(&self, filter: Filter, after: Option<Uuid>, limit: u64) -> Result<Vec<TraceEvent>, Error> {
        let rows = Entity::find()
            .filter(condition(filter, after))
            .order_by_desc(Column::EventId)
            .limit(limit)
            .all(self.db.read())
            .await?;
        rows.into_iter().map(event).collect()
    }

    /// Counts the events that began in a window by type, status and error type: the largest counts, ordered by these.
    pub(crate) async fn count(&self, start: Timestamp, end: Timestamp) -> Result<Vec<EventCount>, Error> {
        let select = Statement::from_sql_and_values(
            self.db.read().get_database_backend(),
            "SELECT event_type, status, error_type, events FROM (\
             SELECT event_type, status, SUBSTR(COALESCE(error_type, ''), 1, $5) AS error_type, COUNT(*) AS events \
             FROM trace_event WHERE event_id >= $1 AND event_id < $2 AND start_time >= $3 AND start_time < $4 \
             GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT $6) AS largest ORDER BY 1, 2, 3",
            [
                min_id(start).into(),
                id_above(end).into(),
                start.as_micros().into(),
                end.as_micros().into(),
                MAX_ERROR_TYPE_CHARS.into(),
                MAX_COUNTS.into(),
            ],
        );
        let rows = Count::find_by_statement(select).all(self.db.read()).await?;
        let count = |row: Count| {
            let status = status(&row.status)?;
            Ok(EventCount { event_type: row.event_type, status, error_type: row.error_type, count: row.events })
        };
        rows.into_iter().map(count).collect()
    }

    /// Deletes at most `limit` of the oldest events with lower ids; returns how many. On SQLite the last stored event
    /// is kept until another is stored: its rowid would be reused, and followers rely on rowids.
    pub(crate) async fn delete_before(&self, before: Uuid, limit: u64) -> Result<u64, Error> {
        let sql = match self.db.backend() {
            Backend::Postgres => DELETE,
            Backend::Sqlite => DELETE_EXCEPT_LAST,
        };
        let delete = Statement::from_sql_and_values(
            self.db.read().get_database_backend(),
            sql,
            [before.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()],
        );
        self.db.execute(delete).await
    }
}

/// Cuts a batch into blocks of few different lengths. Each length is a statement that every connection keeps prepared;
/// 500 of them would take more memory than the rest of the service.
fn blocks(mut events: &[TraceEvent]) -> Vec<&[TraceEvent]> {
    let mut blocks = Vec::new();
    while !events.is_empty() {
        // A full batch in one block, else powers of two.
        let length = if events.len() == MAX_APPEND { MAX_APPEND } else { 1 << events.len().ilog2() };
        let (block, rest) = events.split_at(length);
        blocks.push(block);
        events = rest;
    }
    blocks
}

pub(crate) fn insert_statement(backend: DbBackend, events: &[TraceEvent]) -> Statement {
    let mut sql = String::with_capacity(256 + events.len() * COLUMN_COUNT * 6);
    let mut values = Vec::with_capacity(events.len() * COLUMN_COUNT);
    // Writing to a String cannot fail.
    let _ = write!(sql, "INSERT INTO trace_event ({COLUMNS}) VALUES ");
    for (row, event) in events.iter().enumerate() {
        sql.push_str(if row == 0 { "(" } else { ",(" });
        for column in 1..=COLUMN_COUNT {
            let separator = if column == 1 { "" } else { "," };
            let _ = write!(sql, "{separator}${}", row * COLUMN_COUNT + column);
        }
        sql.push(')');
        values.extend(values_of(event));
    }
    sql.push_str(" ON CONFLICT (event_id) DO NOTHING RETURNING event_id");
    Statement::from_sql_and_values(backend, sql, values)
}

/// In the order of [`COLUMNS`].
fn values_of(event: &TraceEvent) -> [Value; COLUMN_COUNT] {
    let error = event.error.as_ref();
    // A map of strings always has a JSON form.
    let attributes = serde_json::to_string(&event.attributes).unwrap_or_default();
    [
        event.event_id.into(),
        event.event_type.as_str().into(),
        status_name(event.status).into(),
        event.service.as_str().into(),
        event.instance.as_str().into(),
        event.operation.as_str().into(),
        event.trace_id.as_str().into(),
        event.span_id.as_str().into(),
        event.start_micros.into(),
        event.duration_micros.into(),
        event.order_id.into(),
        event.user_id.into(),
        error.map(|error| error.kind.clone()).into(),
        error.map(|error| error.reason.clone()).into(),
        error.map(|error| error.message.clone()).into(),
        attributes.into(),
        event.suppressed_count.into(),
    ]
}

/// No event that began at or after `start` has a lower id.
fn min_id(start: Timestamp) -> Uuid {
    first_id_at(start.minus(CLOCK_CORRECTION))
}

/// Every event that began before `end` has a lower id.
fn id_above(end: Timestamp) -> Uuid {
    first_id_at(end.plus(MAX_OPERATION_TIME))
}

fn condition(filter: Filter, after: Option<Uuid>) -> Condition {
    Condition::all()
        .add_option(filter.event_type.map(|event_type| Column::EventType.eq(event_type)))
        .add_option(filter.status.map(|status| Column::Status.eq(status_name(status))))
        .add_option(filter.service.map(|service| Column::Service.eq(service)))
        .add_option(filter.order_id.map(|order_id| Column::OrderId.eq(order_id)))
        .add_option(filter.user_id.map(|user_id| Column::UserId.eq(user_id)))
        .add_option(filter.trace_id.map(|trace_id| Column::TraceId.eq(trace_id)))
        .add_option(filter.start.map(|start| Column::StartTime.gte(start.as_micros())))
        .add_option(filter.end.map(|end| Column::StartTime.lt(end.as_micros())))
        // Implied by the two above; lets an index be used.
        .add_option(filter.start.map(|start| Column::EventId.gte(min_id(start))))
        .add_option(filter.end.map(|end| Column::EventId.lt(id_above(end))))
        .add_option(after.map(|after| Column::EventId.lt(after)))
}

pub(crate) fn event(row: Model) -> Result<TraceEvent, Error> {
    let Ok(attributes) = serde_json::from_str(&row.attributes) else {
        return Err(Error::Corrupt { what: "map of attributes", value: row.attributes });
    };
    Ok(TraceEvent {
        event_id: row.event_id,
        event_type: row.event_type,
        status: status(&row.status)?,
        service: row.service,
        instance: row.instance,
        operation: row.operation,
        trace_id: row.trace_id,
        span_id: row.span_id,
        start_micros: row.start_time,
        duration_micros: row.duration_micros,
        order_id: row.order_id,
        user_id: row.user_id,
        error: row.error_type.map(|kind| EventError {
            kind,
            reason: row.error_reason.unwrap_or_default(),
            message: row.error_message.unwrap_or_default(),
        }),
        attributes,
        suppressed_count: row.suppressed_count,
    })
}

pub(crate) fn status_name(status: EventStatus) -> &'static str {
    match status {
        EventStatus::Success => "success",
        EventStatus::Failed => "failed",
    }
}

fn status(word: &str) -> Result<EventStatus, Error> {
    match word {
        "success" => Ok(EventStatus::Success),
        "failed" => Ok(EventStatus::Failed),
        _ => Err(Error::Corrupt { what: "event status", value: word.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sample::event;

    #[test]
    fn a_batch_of_any_length_is_cut_into_few_lengths_without_loss() {
        let events = vec![event(Timestamp::default(), 0); MAX_APPEND];
        let mut lengths = BTreeSet::new();
        for count in 0..=MAX_APPEND {
            let cut: Vec<usize> = blocks(&events[..count]).into_iter().map(<[_]>::len).collect();
            assert_eq!(cut.iter().sum::<usize>(), count);
            lengths.extend(cut);
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 128, 256, MAX_APPEND]);
    }
}
