//! The trace events' queries; those of WatchTraceEvents are in `feed_store`. Entities stay in these files.
//!
//! The append is the platform's hottest write: a batch is one statement, built without a query builder.

mod invariants;
mod partitions;

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kernel::{Timestamp, first_id_at};
use sea_orm::{ColumnTrait, Condition, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Statement};
use storage::{Backend, Database, Error, Rows};
use telemetry::{EventError, EventStatus, TraceEvent};
use uuid::Uuid;

use crate::entity::trace_event::{Column, Entity, Model};
use crate::trace_event::{EventCount, Filter};

/// All columns but PostgreSQL's `ingest`, the id of the transaction that inserted the row, which is its default.
pub(crate) const COLUMNS: &str = "event_id, event_type, status, service, instance, operation, trace_id, span_id, start_time, \
     duration_micros, order_id, user_id, error_type, error_reason, error_message, attributes, suppressed_count";

/// An event's id is made after its operation began, by the same clock, unless that was set back meanwhile, by at most this.
const MAX_CLOCK_STEP: Duration = Duration::from_secs(60);
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

/// `v` is the common table expression of the batch's rows, which `query_rows` puts before the statement.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO trace_event ({COLUMNS}) SELECT {COLUMNS} FROM v WHERE TRUE \
         ON CONFLICT (event_id) DO NOTHING RETURNING event_id"
    )
});
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
                    let stored = tx.conn().query_rows(rows(&events), &INSERT).await?;
                    let ids = stored.iter().map(|row| Stored::from_query_result(row, "").map(|stored| stored.event_id));
                    Ok(ids.collect::<Result<_, _>>()?)
                })
            })
            .await
    }

    /// A page of the matching events, newest first (keyset pagination): those older than the page cursor `after`.
    pub(crate) async fn page(&self, filter: Filter, after: Option<Uuid>, limit: u64) -> Result<Vec<TraceEvent>, Error> {
        let rows = Entity::find()
            .filter(condition(filter, after))
            .order_by_desc(Column::EventId)
            .limit(limit)
            .all(self.db.read())
            .await?;
        rows.into_iter().map(event).collect()
    }

    /// Counts the events that began in a window: the largest counts, ordered by type, status and error type.
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
    /// is kept until another is stored: its rowid would be reused, and WatchTraceEvents relies on rowids.
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

/// The columns of [`COLUMNS`].
fn rows(events: &[TraceEvent]) -> Rows {
    let text = |get: fn(&TraceEvent) -> &str| events.iter().map(move |event| get(event).to_owned());
    let error =
        |get: fn(&EventError) -> &String| events.iter().map(move |event| event.error.as_ref().map(get).cloned());
    // A map of strings always has a JSON form.
    let attributes = |event: &TraceEvent| serde_json::to_string(&event.attributes).unwrap_or_default();
    Rows::new()
        .with("event_id", events.iter().map(|event| event.event_id))
        .with("event_type", text(|event| &event.event_type))
        .with("status", text(|event| status_name(event.status)))
        .with("service", text(|event| &event.service))
        .with("instance", text(|event| &event.instance))
        .with("operation", text(|event| &event.operation))
        .with("trace_id", text(|event| &event.trace_id))
        .with("span_id", text(|event| &event.span_id))
        .with("start_time", events.iter().map(|event| event.start_micros))
        .with("duration_micros", events.iter().map(|event| event.duration_micros))
        .with("order_id", events.iter().map(|event| event.order_id))
        .with("user_id", events.iter().map(|event| event.user_id))
        .with("error_type", error(|error| &error.error_type))
        .with("error_reason", error(|error| &error.reason))
        .with("error_message", error(|error| &error.message))
        .with("attributes", events.iter().map(attributes))
        .with("suppressed_count", events.iter().map(|event| event.suppressed_count))
}

/// No event that began at or after `start` has a lower id.
fn min_id(start: Timestamp) -> Uuid {
    first_id_at(start.minus(MAX_CLOCK_STEP))
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
        error: row.error_type.map(|error_type| EventError {
            error_type,
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
