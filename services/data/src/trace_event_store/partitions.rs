//! On PostgreSQL, trace events are partitioned by day: a day past its retention is dropped, not deleted row by row.
//!
//! The key is the event's id, a UUIDv7, which begins with its time (RFC 9562, 5.7): so the primary key stays as it is, and
//! copies of an event meet in one partition. Each instance prepares the next days ahead. What no day contains, because
//! a clock is wrong or an event was late, is in the default partition. Start reading at [`TraceEventStore::partition`].
//!
//! The first preparation makes an ordinary table the partition before the first day, without a pause: its rows stay
//! where they are until they expire. It needs the table's owner; for another role the table stays ordinary.

use std::time::Duration;

use kernel::{Timestamp, first_id_at};
use sea_orm::{FromQueryResult, Statement};
use storage::{Backend, Error};
use uuid::Uuid;

use crate::trace_event_store::TraceEventStore;

/// Statements of others queue behind a lock that is awaited: it is given up soon, and tried again at the next sweep.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// The days that are prepared, from today on.
const DAYS_AHEAD: i64 = 3;
/// An ordinary table with rows becomes the partition up to this day, while events go on being stored in it.
const FIRST_DAY_AHEAD: i64 = 3;
/// An unfinished preparation is begun anew rather than reach its day, from which on it would reject events.
const MIN_DAYS_LEFT: i64 = 1;
const DAY: i64 = 86_400_000_000;

/// A day, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Day(i64);

impl Day {
    fn of(instant: Timestamp) -> Self {
        Self(instant.as_micros().div_euclid(DAY))
    }

    fn plus(self, days: i64) -> Self {
        Self(self.0 + days)
    }

    /// The lowest id of its events.
    fn first_id(self) -> Uuid {
        first_id_at(Timestamp::from_micros(self.0 * DAY))
    }

    /// As in the names of tables.
    fn text(self) -> String {
        let date = epoch() + time::Duration::days(self.0);
        format!("{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
    }

    fn parse(text: &str) -> Option<Self> {
        let part = |range: std::ops::Range<usize>| text.get(range)?.parse().ok();
        let month = u8::try_from(part(4..6)?).ok()?.try_into().ok()?;
        let date = time::Date::from_calendar_date(part(0..4)?, month, u8::try_from(part(6..8)?).ok()?).ok()?;
        (text.len() == 8).then(|| Self((date - epoch()).whole_days()))
    }
}

fn epoch() -> time::Date {
    time::OffsetDateTime::UNIX_EPOCH.date()
}

/// A partition, by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Partition {
    /// Everything before the day: the table of an earlier release.
    Before(Day),
    Day(Day),
    /// What no other partition contains.
    Default,
}

impl Partition {
    fn name(self) -> String {
        match self {
            Self::Before(day) => format!("trace_event_before_{}", day.text()),
            Self::Day(day) => format!("trace_event_{}", day.text()),
            Self::Default => "trace_event_default".to_owned(),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("trace_event_")?;
        match rest.strip_prefix("before_") {
            Some(day) => Day::parse(day).map(Self::Before),
            None if rest == "default" => Some(Self::Default),
            None => Day::parse(rest).map(Self::Day),
        }
    }

    /// No event in it has this id or a higher one; `None` for the default partition.
    fn end(self) -> Option<Uuid> {
        match self {
            Self::Before(day) => Some(day.first_id()),
            Self::Day(day) => Some(day.plus(1).first_id()),
            Self::Default => None,
        }
    }
}

/// The table as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Shape {
    /// With the constraint that prepares it, if there is one, and whether all rows are known to satisfy it.
    Ordinary { constraint: Option<(Day, bool)>, is_empty: bool },
    /// Those that this module makes; ascending.
    Partitioned(Vec<Partition>),
}

#[derive(FromQueryResult)]
struct ShapeRow {
    is_partitioned: bool,
    constraint_name: Option<String>,
    is_validated: Option<bool>,
    is_empty: bool,
}

const SHAPE: &str = "SELECT relkind = 'p' AS is_partitioned, conname::text AS constraint_name, \
     convalidated AS is_validated, NOT EXISTS (SELECT FROM trace_event) AS is_empty \
     FROM pg_class LEFT JOIN pg_constraint ON conrelid = pg_class.oid AND conname LIKE 'trace_event_before_%' \
     WHERE pg_class.oid = 'trace_event'::regclass";
const PARTITIONS: &str = "SELECT relname::text AS name FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
     WHERE inhparent = 'trace_event'::regclass";

#[derive(FromQueryResult)]
struct Name {
    name: String,
}

impl TraceEventStore {
    /// On PostgreSQL: makes the table a partitioned one, if it is not yet, and the next days' partitions. Any number of
    /// instances may do so at once.
    ///
    /// # Errors
    /// The role does not own the table, a lock was not had in time, or the database failed. What is done is kept, and
    /// the rest is for the next call.
    pub(crate) async fn partition(&self, now: Timestamp) -> Result<(), Error> {
        if self.db.backend() == Backend::Sqlite {
            return Ok(());
        }
        let today = Day::of(now);
        let partitions = loop {
            match self.shape().await? {
                Shape::Partitioned(partitions) => break partitions,
                Shape::Ordinary { constraint, is_empty } => self.convert(today, constraint, is_empty).await?,
            }
        };
        let is_covered = |day: Day| {
            partitions.iter().any(|partition| match partition {
                Partition::Before(first) => day < *first,
                Partition::Day(known) => day == *known,
                Partition::Default => false,
            })
        };
        for day in (0..DAYS_AHEAD).map(|days| today.plus(days)).filter(|day| !is_covered(*day)) {
            self.db.alter(&create(day), LOCK_TIMEOUT).await?;
        }
        Ok(())
    }

    /// On PostgreSQL: drops the partitions without an event that has this id or a higher one; returns how many.
    ///
    /// # Errors
    /// As [`Self::partition`].
    pub(crate) async fn drop_before(&self, before: Uuid) -> Result<u64, Error> {
        let mut dropped = 0;
        for partition in self.partitions().await? {
            if partition.end().is_some_and(|end| end <= before) {
                self.db.alter(&format!("DROP TABLE IF EXISTS {}", partition.name()), LOCK_TIMEOUT).await?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    /// An id up to which everything may be deleted, if everything below `before` has expired: a day is dropped as a whole.
    pub(crate) async fn cutoff(&self, before: Uuid) -> Result<Uuid, Error> {
        let kept = self.partitions().await?.into_iter().filter_map(|partition| match partition {
            Partition::Day(day) if day.plus(1).first_id() > before => Some(day.first_id()),
            Partition::Day(_) | Partition::Before(_) | Partition::Default => None,
        });
        Ok(kept.min().map_or(before, |first| first.min(before)))
    }

    /// None on SQLite, or of an ordinary table.
    async fn partitions(&self) -> Result<Vec<Partition>, Error> {
        if self.db.backend() == Backend::Sqlite {
            return Ok(vec![]);
        }
        let names = Name::find_by_statement(self.sql(PARTITIONS)).all(self.db.read()).await?;
        let mut partitions: Vec<_> = names.iter().filter_map(|row| Partition::parse(&row.name)).collect();
        partitions.sort_unstable();
        Ok(partitions)
    }

    async fn shape(&self) -> Result<Shape, Error> {
        let row = ShapeRow::find_by_statement(self.sql(SHAPE)).one(self.db.read()).await?;
        let Some(row) = row else { return Err(Error::Corrupt { what: "table", value: "trace_event".to_owned() }) };
        if row.is_partitioned {
            return Ok(Shape::Partitioned(self.partitions().await?));
        }
        let day = row.constraint_name.as_deref().and_then(Partition::parse).and_then(|partition| match partition {
            Partition::Before(day) => Some(day),
            Partition::Day(_) | Partition::Default => None,
        });
        Ok(Shape::Ordinary {
            constraint: day.map(|day| (day, row.is_validated.unwrap_or(false))),
            is_empty: row.is_empty,
        })
    }

    /// One step from an ordinary table to a partitioned one. A partition's bounds are checked while everything waits,
    /// unless a constraint says that they hold: this is added for new rows first, then validated while events are
    /// stored.
    async fn convert(&self, today: Day, constraint: Option<(Day, bool)>, is_empty: bool) -> Result<(), Error> {
        let step = match constraint {
            None if is_empty => swap(today),
            None => constrain(today.plus(FIRST_DAY_AHEAD)),
            Some((day, _)) if day < today.plus(MIN_DAYS_LEFT) => unconstrain(day),
            Some((day, false)) => validate(day),
            Some((day, true)) => swap(day),
        };
        self.db.alter(&step, LOCK_TIMEOUT).await
    }

    fn sql(&self, sql: &str) -> Statement {
        Statement::from_string(self.db.read().get_database_backend(), sql)
    }
}

// Each of these changes nothing if another instance has done the same meanwhile.

fn constrain(first: Day) -> String {
    let (name, id) = (Partition::Before(first).name(), first.first_id());
    format!(
        "DO $$ BEGIN LOCK TABLE trace_event IN ACCESS EXCLUSIVE MODE; \
         IF (SELECT relkind = 'r' AND NOT EXISTS (SELECT FROM pg_constraint \
         WHERE conrelid = pg_class.oid AND conname LIKE 'trace_event_before_%') FROM pg_class \
         WHERE oid = 'trace_event'::regclass) THEN \
         ALTER TABLE trace_event ADD CONSTRAINT {name} CHECK (event_id < '{id}') NOT VALID; \
         END IF; END $$"
    )
}

fn unconstrain(first: Day) -> String {
    format!("ALTER TABLE trace_event DROP CONSTRAINT IF EXISTS {}", Partition::Before(first).name())
}

/// Reads and appends go on.
fn validate(first: Day) -> String {
    let name = Partition::Before(first).name();
    format!(
        "DO $$ BEGIN LOCK TABLE trace_event IN SHARE UPDATE EXCLUSIVE MODE; \
         IF EXISTS (SELECT FROM pg_constraint \
         WHERE conrelid = 'trace_event'::regclass AND conname = '{name}' AND NOT convalidated) THEN \
         ALTER TABLE trace_event VALIDATE CONSTRAINT {name}; \
         END IF; END $$"
    )
}

/// The table becomes the partition before the first day; its indexes and permissions become the whole's.
fn swap(first: Day) -> String {
    let (old, id) = (Partition::Before(first).name(), first.first_id());
    let default = Partition::Default.name();
    format!(
        "DO $$ DECLARE permission record; BEGIN \
         LOCK TABLE trace_event IN ACCESS EXCLUSIVE MODE; \
         IF (SELECT relkind <> 'r' FROM pg_class WHERE oid = 'trace_event'::regclass) THEN RETURN; END IF; \
         ALTER TABLE trace_event RENAME TO {old}; \
         CREATE TABLE trace_event (LIKE {old} INCLUDING DEFAULTS INCLUDING INDEXES) PARTITION BY RANGE (event_id); \
         CREATE TABLE {default} (LIKE {old} INCLUDING DEFAULTS INCLUDING INDEXES); \
         ALTER TABLE trace_event ATTACH PARTITION {old} FOR VALUES FROM (MINVALUE) TO ('{id}'); \
         ALTER TABLE trace_event ATTACH PARTITION {default} DEFAULT; \
         FOR permission IN SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(grantee::regrole::text) END AS role, \
         privilege_type AS privilege FROM pg_class, aclexplode(relacl) \
         WHERE pg_class.oid = '{old}'::regclass AND grantee <> relowner LOOP \
         EXECUTE 'GRANT ' || permission.privilege || ' ON trace_event TO ' || permission.role; \
         END LOOP; END $$"
    )
}

/// The day's partition, with what the default partition has of it.
fn create(day: Day) -> String {
    let (name, default) = (Partition::Day(day).name(), Partition::Default.name());
    let (first, end) = (day.first_id(), day.plus(1).first_id());
    format!(
        "DO $$ BEGIN LOCK TABLE trace_event IN SHARE UPDATE EXCLUSIVE MODE; \
         IF to_regclass('{name}') IS NOT NULL THEN RETURN; END IF; \
         LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE; \
         CREATE TABLE {name} (LIKE trace_event INCLUDING DEFAULTS INCLUDING INDEXES); \
         WITH moved AS (DELETE FROM {default} WHERE event_id >= '{first}' AND event_id < '{end}' RETURNING *) \
         INSERT INTO {name} SELECT * FROM moved; \
         ALTER TABLE trace_event ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{end}'); \
         END $$"
    )
}

#[cfg(test)]
mod tests;
