//! Sets of new payments, and of results.
//!
//! A cancellation is a transaction of its own: it may lock a payment, and locks nothing else.

use futures_util::future::BoxFuture;
use kernel::OrderId;
use storage::sets::Results;
use storage::{Lease, SetOf, Tx};

use super::write::Change;
use super::{Draft, OpenOperation, Opened, Store};
use crate::payment::Payment;

/// A payment to be recorded.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) draft: Draft,
    pub(super) lease: Option<Lease>,
    pub(super) open: OpenOperation,
}

/// Records payments.
pub(super) struct Openings(pub(super) Store);

impl SetOf for Openings {
    type Command = Opening;
    type Key = OrderId;
    type Output = Opened;
    type Error = storage::Error;

    const NAME: &'static str = "open_payment";

    fn key(opening: &Opening) -> OrderId {
        opening.draft.order_id
    }

    fn rows(_opening: &Opening) -> usize {
        2
    }

    fn run<'t>(&'t self, tx: &'t Tx, set: &'t [Opening]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(async move {
            let opened = self.0.open_in(tx, set).await?;
            Ok(opened.into_iter().map(Ok).collect())
        })
    }
}

/// Records the results of effects.
pub(super) struct Changes(pub(super) Store);

impl SetOf for Changes {
    type Command = Change;
    type Key = OrderId;
    type Output = Option<Payment>;
    type Error = storage::Error;

    const NAME: &'static str = "record_payment";

    fn key(change: &Change) -> OrderId {
        change.before.order_id
    }

    fn rows(_change: &Change) -> usize {
        2
    }

    fn run<'t>(&'t self, tx: &'t Tx, set: &'t [Change]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(async move { Ok(self.0.write(tx, set).await?.into_iter().map(Ok).collect()) })
    }
}
