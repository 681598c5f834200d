//! Orders: creating, reading, cancelling, retrying. What happens to one afterwards is the [`crate::driver`]'s.

use std::collections::BTreeSet;
use std::sync::Arc;

use chassis::Fields;
use kernel::{Clock, IdSource, Money, OrderId, RequestId, UserId};
use mesh::About;
use telemetry::Operation;

use crate::driver::Driver;
use crate::error::Error;
use crate::lifecycle::{self, Answer, Input, State};
use crate::order::{CreateOrder, HistoryEntry, Line, LineState, Order, Scope};
use crate::ports::{Catalog, Product};
use crate::store::Store;

/// The reasons in the history of steps that were asked for. Each has an audit event; a release that wrote none had other words.
pub(crate) mod asked {
    /// CancelOrder by its customer.
    pub(crate) const CUSTOMER_TO_CANCEL: &str = "the customer asked to cancel";
    /// CancelOrder by an operator.
    pub(crate) const OPERATOR_TO_CANCEL: &str = "an operator asked to cancel";
    /// RetryOrder.
    pub(crate) const OPERATOR_TO_RETRY: &str = "an operator asked to retry";
}

/// The orders, as the contract's handlers see them.
#[derive(Clone)]
pub struct Orders {
    /// Its tables.
    pub store: Store,
    /// The Data Service.
    pub catalog: Arc<dyn Catalog>,
    /// What drives orders on.
    pub driver: Driver,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// New ids.
    pub ids: Arc<dyn IdSource>,
}

impl Orders {
    /// Begins a creation: the order's id comes first, so that a refusal's event carries it too.
    pub fn begin(&self, operation: &Operation, user: UserId) -> OrderId {
        let id = OrderId::from_uuid(self.ids.uuid());
        operation.set_order(id.as_uuid());
        operation.set_user(user.as_uuid());
        id
    }

    /// Looks everything up, records the order with its stock held, and sends it on its way.
    ///
    /// # Errors
    /// Every refusal of CreateOrder; then nothing has changed.
    pub async fn create(
        &self,
        operation: &Operation,
        id: OrderId,
        user: UserId,
        command: CreateOrder,
    ) -> Result<Order, Error> {
        let (request, fingerprint) = (command.request_id, command.fingerprint());
        let refusal = match self.create_new(operation, id, user, command, fingerprint.clone()).await {
            Ok(Some(order)) => return Ok(order),
            Ok(None) => Error::RequestIdReused,
            Err(refusal) => refusal,
        };
        // A request that has its order gets it again, whatever would be refused by now. It is looked for last, because
        // nearly every request is new.
        self.replay(operation, user, request, &fingerprint).await?.ok_or(refusal)
    }

    /// `None` when the request has an order already.
    async fn create_new(
        &self,
        operation: &Operation,
        id: OrderId,
        user: UserId,
        command: CreateOrder,
        fingerprint: String,
    ) -> Result<Option<Order>, Error> {
        let about = About { order_id: Some(id.as_uuid()), user_id: Some(user.as_uuid()) };
        let skus = command.items.iter().map(|(sku, _)| sku.clone()).collect();
        let country = command.address.country_code.clone();
        let postal_code = command.address.postal_code.clone();
        let (products, transit) =
            tokio::join!(self.catalog.products(about, skus), self.catalog.transit(about, country, postal_code));
        let lines = lines(&command.items, &products?)?;
        let total = total(&lines)?;
        check_expected(command.expected_total, total)?;
        let transit = transit?;
        let now = self.clock.now();
        let order = Order {
            id,
            user,
            state: State::Created,
            version: 1,
            lines,
            total,
            address: command.address,
            contact_email: command.contact_email,
            payment_method: Some(command.payment_method),
            transit,
            refund_attempt: 1,
            payment_failure: None,
            fulfillment: None,
            attempt: 0,
            next_attempt_time: Some(now),
            last_error: None,
            place: operation.place(),
            create_time: now,
            update_time: now,
        };
        self.record(operation, order, command.request_id, fingerprint).await
    }

    /// Records an order and starts to drive it: both, also when the caller is cut off in between.
    async fn record(
        &self,
        operation: &Operation,
        order: Order,
        request: RequestId,
        fingerprint: String,
    ) -> Result<Option<Order>, Error> {
        let (store, driver, operation) = (self.store.clone(), self.driver.clone(), operation.clone());
        self.driver
            .detached(async move {
                let created = store.create(&operation, &order, request, &fingerprint, driver.lease()).await?;
                if let Some(order) = &created {
                    driver.start(order.clone());
                }
                Ok(created)
            })
            .await
    }

    async fn replay(
        &self,
        operation: &Operation,
        user: UserId,
        request_id: RequestId,
        fingerprint: &str,
    ) -> Result<Option<Order>, Error> {
        let Some((order, of)) = self.store.find_request(user, request_id).await? else { return Ok(None) };
        if of != fingerprint {
            return Err(Error::RequestIdReused);
        }
        operation.set_order(order.id.as_uuid());
        operation.replayed();
        Ok(Some(order))
    }

    /// An order and its newest steps, oldest first.
    ///
    /// # Errors
    /// There is none in this scope.
    pub async fn get(&self, scope: Scope, id: OrderId) -> Result<(Order, Vec<HistoryEntry>), Error> {
        let order = self.store.get(scope, id).await?.ok_or(Error::OrderNotFound)?;
        let history = self.store.history(id).await?;
        Ok((order, history))
    }

    /// Orders, newest first, older than `after`.
    ///
    /// # Errors
    /// The database.
    pub async fn list(
        &self,
        scope: Scope,
        state: Option<State>,
        after: Option<OrderId>,
        limit: u64,
    ) -> Result<Vec<Order>, Error> {
        Ok(self.store.list(scope, state, after, limit).await?)
    }

    /// Turns an order towards CANCELLED, in its own transaction, calling nobody.
    ///
    /// # Errors
    /// There is none in this scope, or it is too late.
    pub async fn cancel(&self, operation: &Operation, scope: Scope, id: OrderId) -> Result<Order, Error> {
        let refuse = |state: State| Error::OrderNotCancellable { state: state.name() };
        let reason = match scope {
            Scope::Of(_) => asked::CUSTOMER_TO_CANCEL,
            Scope::All => asked::OPERATOR_TO_CANCEL,
        };
        self.turn(operation, scope, id, Input::CancelAsked, reason, refuse).await
    }

    /// Takes an order out of NEEDS_ATTENTION, with a fresh refund attempt.
    ///
    /// # Errors
    /// There is none, or it is not in NEEDS_ATTENTION.
    pub async fn retry(&self, operation: &Operation, id: OrderId) -> Result<Order, Error> {
        let refuse = |state: State| Error::OrderNotRetryable { state: state.name() };
        self.turn(operation, Scope::All, id, Input::RetryAsked, asked::OPERATOR_TO_RETRY, refuse).await
    }

    async fn turn(
        &self,
        operation: &Operation,
        scope: Scope,
        id: OrderId,
        input: Input,
        reason: &'static str,
        refuse: impl Fn(State) -> Error,
    ) -> Result<Order, Error> {
        operation.set_order(id.as_uuid());
        loop {
            let order = self.store.get(scope, id).await?.ok_or(Error::OrderNotFound)?;
            operation.set_user(order.user.as_uuid());
            // A trace of its own, linked both ways: the order's later steps link back (see the driver).
            operation.link(order.place);
            match lifecycle::next(order.state, input) {
                Answer::Stays => return Ok(order),
                Answer::No => return Err(refuse(order.state)),
                Answer::To(state) => {
                    let (store, driver, operation) = (self.store.clone(), self.driver.clone(), operation.clone());
                    // Turned and driven on: both, also when the caller is cut off in between.
                    let turned = self.driver.detached(async move {
                        let turned = store.turn(&operation, &order, state, reason, driver.lease()).await?;
                        if let Some(turned) = &turned {
                            driver.start_linked(turned.clone(), operation.place());
                        }
                        Ok(turned)
                    });
                    // Lost the compare-and-set: somebody moved the order; look again.
                    let Some(turned) = turned.await? else { continue };
                    return Ok(turned);
                }
            }
        }
    }
}

fn lines(items: &[(String, u32)], products: &[Product]) -> Result<Vec<Line>, Error> {
    let mut fields = Fields::default();
    let mut lines = Vec::with_capacity(items.len());
    for (index, (sku, quantity)) in items.iter().enumerate() {
        match products.iter().find(|product| product.sku == *sku) {
            Some(product) => lines.push(Line {
                sku: sku.clone(),
                name: product.name.clone(),
                quantity: *quantity,
                unit_price: product.price,
                state: LineState::Held,
            }),
            None => fields.refuse(format!("items[{index}].sku"), "UNKNOWN_SKU", sku.clone()),
        }
    }
    fields.finish(Some(lines)).map_err(Error::UnknownSku)
}

fn total(lines: &[Line]) -> Result<Money, Error> {
    let currencies: BTreeSet<String> = lines.iter().map(|line| line.unit_price.currency().to_string()).collect();
    if currencies.len() > 1 {
        return Err(Error::MixedCurrencies { currencies: currencies.into_iter().collect::<Vec<_>>().join(", ") });
    }
    let mut total: Option<Money> = None;
    for line in lines {
        let sum = line.unit_price.checked_mul(line.quantity).map_err(|_| Error::AmountTooLarge)?;
        total = Some(match total {
            Some(total) => total.checked_add(sum).map_err(|_| Error::AmountTooLarge)?,
            None => sum,
        });
    }
    total.ok_or(Error::AmountTooLarge)
}

fn check_expected(expected: Option<Money>, total: Money) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != total => {
            Err(Error::PriceChanged { total: total.to_string(), expected: expected.to_string() })
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eur(minor_units: i64) -> Money {
        Money::new("EUR".parse().expect("a currency"), minor_units)
    }

    fn line(price: Money, quantity: u32) -> Line {
        Line { sku: "A".into(), name: "A".into(), quantity, unit_price: price, state: LineState::Held }
    }

    #[test]
    fn the_total_is_the_sum_of_the_lines_in_one_currency() {
        assert_eq!(total(&[line(eur(250), 2), line(eur(1), 3)]).expect("a total"), eur(503));
        let usd = Money::new("USD".parse().expect("a currency"), 1);
        let mixed = total(&[line(eur(1), 1), line(usd, 1), line(eur(1), 1)]);
        assert!(matches!(mixed, Err(Error::MixedCurrencies { currencies }) if currencies == "EUR, USD"));
        assert!(matches!(total(&[line(eur(i64::MAX), 2)]), Err(Error::AmountTooLarge)));
    }

    #[test]
    fn a_changed_price_is_refused_only_when_the_customer_said_what_he_saw() {
        assert!(check_expected(None, eur(5)).is_ok());
        assert!(check_expected(Some(eur(5)), eur(5)).is_ok());
        assert!(matches!(check_expected(Some(eur(4)), eur(5)), Err(Error::PriceChanged { .. })));
    }
}
