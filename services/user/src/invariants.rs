//! What `ordermesh verify` checks of this service: each open session has the event of its log-in. The queries are in
//! `store::invariants`.

use kernel::{SessionId, Timestamp, UserId};

pub use crate::store::Store;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenSession {
    /// Also the attribute `session.id` of its log-in's event.
    pub id: SessionId,
    pub user: UserId,
    /// When it was opened.
    pub created: Timestamp,
}
