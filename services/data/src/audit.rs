//! The stored trace events, as read by `ordermesh verify`.

use storage::{Database, Error};
use telemetry::TraceEvent;
use uuid::Uuid;

use crate::error::Error as Refusal;
use crate::trace_event_store::TraceEventStore;

/// The stored trace events. Clones share their connections.
#[derive(Clone, Debug)]
pub struct StoredEvents(TraceEventStore);

impl StoredEvents {
    /// Reads from a database whose schema is up to date.
    pub fn new(db: Database) -> Self {
        Self(TraceEventStore::new(db))
    }

    /// All events of some orders.
    ///
    /// # Errors
    /// The database failed.
    pub async fn of_orders(&self, orders: &[Uuid]) -> Result<Vec<TraceEvent>, Error> {
        self.0.of_orders(orders).await.map_err(of_the_database)
    }

    /// Orders with a success event (other than lookups), by id: those after `after`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn orders_with_events(&self, after: Uuid, limit: u64) -> Result<Vec<Uuid>, Error> {
        self.0.orders_with_events(after, limit).await.map_err(of_the_database)
    }

    /// All log-ins of some users.
    ///
    /// # Errors
    /// The database failed.
    pub async fn logins_of(&self, users: &[Uuid]) -> Result<Vec<TraceEvent>, Error> {
        self.0.of_users("user_login", users).await.map_err(of_the_database)
    }
}

/// Reading events fails only with a database error.
fn of_the_database(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Storage(error) => error,
        Refusal::Invalid(_)
        | Refusal::NoDeliveryZone { .. }
        | Refusal::EtagMismatch { .. }
        | Refusal::CursorExpired
        | Refusal::Draining
        | Refusal::TokenExpired
        | Refusal::TooManyFollowers
        | Refusal::FollowerTooSlow(_)
        | Refusal::TooManySearches
        | Refusal::Refused => Error::Corrupt { what: "event", value: refusal.to_string() },
    }
}
