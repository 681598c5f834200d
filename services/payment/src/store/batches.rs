//! Batches of new payments, and of results.
//!
//! A cancellation is a transaction of its own: it may lock a payment, and locks nothing else.

use futures_util::future::BoxFuture;
use kernel::OrderId;
use storage::batches::Results;
use storage::{Batched, Lease, Tx};

use super::write::PaymentUpdate;
use super::{Draft, Joined, OpenOperation, Store};
use crate::payment::Payment;

/// A payment to be recorded.
#[derive(Clone)]
pub(super) struct NewPayment {
    pub(super) draft: Draft,
    pub(super) lease: Option<Lease>,
    pub(super) open: OpenOperation,
}

/// Records payments.
pub(super) struct InsertPayments(pub(super) Store);

impl Batched for InsertPayments {
    type Command = NewPayment;
    type Key = OrderId;
    type Output = Joined;
    type Error = storage::Error;

    const NAME: &'static str = "open_payment";

    fn key(new: &NewPayment) -> OrderId {
        new.draft.order_id
    }

    fn rows(_new: &NewPayment) -> usize {
        2
    }

    fn run<'t>(&'t self, tx: &'t Tx, batch: &'t [NewPayment]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(async move {
            let joined = self.0.create_or_join_in(tx, batch).await?;
            Ok(joined.into_iter().map(Ok).collect())
        })
    }
}

/// Records the results of effects.
pub(super) struct UpdatePayments(pub(super) Store);

impl Batched for UpdatePayments {
    type Command = PaymentUpdate;
    type Key = OrderId;
    type Output = Option<Payment>;
    type Error = storage::Error;

    const NAME: &'static str = "record_payment";

    fn key(update: &PaymentUpdate) -> OrderId {
        update.before.order_id
    }

    fn rows(_update: &PaymentUpdate) -> usize {
        2
    }

    fn run<'t>(&'t self, tx: &'t Tx, batch: &'t [PaymentUpdate]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(async move { Ok(self.0.write(tx, batch).await?.into_iter().map(Ok).collect()) })
    }
}
