//! Creating, reading, cancelling and retrying orders. Their later progress is up to [`crate::driver`].

use std::collections::BTreeSet;
use std::sync::Arc;

use chassis::{Decoded, Fields};
use kernel::{AmountLimits, Clock, Currency, IdSource, Money, OrderId, RequestId, UserId};
use mesh::CallAttributes;
use telemetry::{ORDER_ID, Operation, Outcome, USER_ID};

use crate::driver::{self, Driven, Driver};
use crate::error::Error;
use crate::lifecycle::{self, Decision, Input, State};
use crate::order::{CreateOrder, HistoryEntry, Line, LineState, Order, Scope};
use crate::ports::{Catalog, Product};
use crate::store::{Store, Transitions};

/// The reasons in the history of requested transitions. Each has an audit event; a release without these events used
/// other texts.
pub(crate) mod reasons {
    /// CancelOrder by its customer.
    pub(crate) const CANCEL_BY_CUSTOMER: &str = "the customer asked to cancel";
    /// CancelOrder by an operator.
    pub(crate) const CANCEL_BY_OPERATOR: &str = "an operator asked to cancel";
    /// RetryOrder.
    pub(crate) const RETRY_BY_OPERATOR: &str = "an operator asked to retry";
}

/// The operations on orders, for the contract's handlers.
#[derive(Clone)]
pub struct Orders {
    pub store: Store,
    pub catalog: Arc<dyn Catalog>,
    pub driver: Driver,
    /// The maximum total of an order.
    pub amount_limits: AmountLimits,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    /// The number of the cell that this system is.
    pub cell: u8,
}

impl Orders {
    /// The id of an order to be created: it comes first, so that the event of a rejected request carries it too.
    pub fn new_id(&self, operation: &Operation, user: UserId) -> OrderId {
        let id = OrderId::in_cell(self.ids.uuid(), self.cell);
        operation.set_order(id.as_uuid());
        operation.set_user(user.as_uuid());
        id
    }

    /// Looks up products and delivery, records the order with its stock reserved, and starts to drive it.
    ///
    /// # Errors
    /// Every error of CreateOrder; then nothing has changed.
    pub async fn create(
        &self,
        operation: &Operation,
        id: OrderId,
        user: UserId,
        command: CreateOrder,
    ) -> Result<Order, Error> {
        self.create_decoded(operation, id, user, Decoded { command, violations: None }).await
    }

    /// The same. A command that breaks only rules added by a later release may have its order already.
    pub(crate) async fn create_decoded(
        &self,
        operation: &Operation,
        id: OrderId,
        user: UserId,
        decoded: Decoded<CreateOrder>,
    ) -> Result<Order, Error> {
        let Decoded { command, violations } = decoded;
        let rejection = match violations {
            Some(invalid) => Error::Invalid(invalid),
            None => match self.create_new(operation, id, user, &command).await {
                Ok(Some(order)) => return Ok(order),
                Ok(None) => Error::RequestIdReused,
                Err(rejection) => rejection,
            },
        };
        // A retry gets its order even if the command would be rejected by now. The lookup comes last, because nearly
        // every request is new.
        self.replay(operation, user, &command).await?.ok_or(rejection)
    }

    /// `None` if the request has an order already.
    async fn create_new(
        &self,
        operation: &Operation,
        id: OrderId,
        user: UserId,
        command: &CreateOrder,
    ) -> Result<Option<Order>, Error> {
        let attributes = CallAttributes::new().with(ORDER_ID, id.as_uuid()).with(USER_ID, user.as_uuid());
        let skus = command.items.iter().map(|(sku, _)| sku.clone()).collect();
        let country = command.address.country_code.clone();
        let postal_code = command.address.postal_code.clone();
        let (products, transit) = tokio::join!(
            self.catalog.products(attributes.clone(), skus),
            self.catalog.transit(attributes, country, postal_code)
        );
        let lines = lines(&command.items, &products?)?;
        let total = total(&lines, &self.amount_limits)?;
        check_expected(command.expected_total, total)?;
        let transit = transit?;
        let now = self.clock.now();
        let order = Order {
            id,
            user,
            state: lifecycle::INITIAL,
            version: 1,
            lines,
            total,
            address: command.address.clone(),
            contact_email: command.contact_email.clone(),
            payment_method: Some(command.payment_method.clone()),
            transit,
            refund_attempt: 1,
            payment_failure: None,
            fulfillment: None,
            attempt: 0,
            next_attempt_time: Some(now),
            last_error: None,
            traceparent: operation.traceparent(),
            create_time: now,
            update_time: now,
        };
        self.record(operation, order, command.request_id, command.fingerprint()).await
    }

    /// Records an order and starts to drive it: both happen even if the caller's connection breaks in between.
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
                let created = store.create(&operation, &order, request, &fingerprint, driver.context().lease()).await?;
                if let Some(order) = &created {
                    driver::start(&driver, order.clone().into());
                }
                Ok(created)
            })
            .await?
    }

    async fn replay(&self, operation: &Operation, user: UserId, command: &CreateOrder) -> Result<Option<Order>, Error> {
        let Some((order, fingerprint)) = self.store.find_request(user, command.request_id).await? else {
            return Ok(None);
        };
        let skus: Vec<&str> = order.lines.iter().map(|line| line.sku.as_str()).collect();
        if fingerprint != command.fingerprint_in_order_of(&skus) {
            return Err(Error::RequestIdReused);
        }
        operation.set_order(order.id.as_uuid());
        operation.replayed();
        Ok(Some(order))
    }

    /// An order and its newest transitions, oldest first.
    ///
    /// # Errors
    /// The order does not exist in this scope.
    pub async fn get(&self, scope: Scope, id: OrderId) -> Result<(Order, Vec<HistoryEntry>), Error> {
        let order = self.store.get(scope, id).await?.ok_or(Error::OrderNotFound)?;
        let history = self.store.history(id).await?;
        Ok((order, history))
    }

    /// Orders, newest first, older than `after`.
    pub async fn list(
        &self,
        scope: Scope,
        state: Option<State>,
        after: Option<OrderId>,
        limit: u64,
    ) -> Result<Vec<Order>, Error> {
        Ok(self.store.list(scope, state, after, limit).await?)
    }

    /// Moves an order towards CANCELLED, in its own transaction, without calling another service.
    ///
    /// # Errors
    /// The order does not exist in this scope, or its state does not permit cancellation.
    pub async fn cancel(&self, operation: &Operation, scope: Scope, id: OrderId) -> Result<Order, Error> {
        let rejection = |state: State| Error::OrderNotCancellable { state: state.name() };
        let reason = match scope {
            Scope::Of(_) => reasons::CANCEL_BY_CUSTOMER,
            Scope::All => reasons::CANCEL_BY_OPERATOR,
        };
        self.request(operation, scope, id, Input::CancelRequested, reason, rejection).await
    }

    /// Takes an order out of NEEDS_ATTENTION, with a fresh refund attempt.
    ///
    /// # Errors
    /// The order does not exist, or is not in NEEDS_ATTENTION.
    pub async fn retry(&self, operation: &Operation, id: OrderId) -> Result<Order, Error> {
        let rejection = |state: State| Error::OrderNotRetryable { state: state.name() };
        self.request(operation, Scope::All, id, Input::RetryRequested, reasons::RETRY_BY_OPERATOR, rejection).await
    }

    async fn request(
        &self,
        operation: &Operation,
        scope: Scope,
        id: OrderId,
        input: Input,
        reason: &'static str,
        rejection: impl Fn(State) -> Error,
    ) -> Result<Order, Error> {
        operation.set_order(id.as_uuid());
        loop {
            let order = self.store.get(scope, id).await?.ok_or(Error::OrderNotFound)?;
            operation.set_user(order.user.as_uuid());
            // A separate trace, linked in both directions: the order's later operations link back (see the driver).
            operation.link(order.traceparent);
            let table = self.driver.work().table;
            match table(order.state, input) {
                Decision::Stays => return Ok(order),
                Decision::Rejected => return Err(rejection(order.state)),
                Decision::To(_) => {
                    let (store, driver, operation) = (self.store.clone(), self.driver.clone(), operation.clone());
                    let mut transitions = Transitions::of(table, &order);
                    let applied = transitions.apply_with_event(input, reason, &operation, Outcome::Success);
                    applied.map_err(|_| rejection(order.state))?;
                    // The transition and the start of the driver both happen even if the caller's connection breaks in
                    // between.
                    let recorded = self.driver.detached(async move {
                        let recorded =
                            store.record_request(&order, input, transitions, driver.context().lease()).await?;
                        if let Some(recorded) = &recorded {
                            let link = Some(operation.traceparent());
                            driver::start(&driver, Driven { order: recorded.clone(), link });
                        }
                        Ok::<_, Error>(recorded)
                    });
                    // Lost the compare-and-set to a concurrent transition: read the order again.
                    let Some(recorded) = recorded.await?? else { continue };
                    return Ok(recorded);
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
            None => fields.reject(format!("items[{index}].sku"), "UNKNOWN_SKU", sku.clone()),
        }
    }
    fields.finish(Some(lines)).map_err(Error::UnknownSku)
}

/// The sum of the lines, which must be in one currency and within its limit.
fn total(lines: &[Line], limits: &AmountLimits) -> Result<Money, Error> {
    let currencies: BTreeSet<Currency> = lines.iter().map(|line| line.unit_price.currency()).collect();
    let mut each = currencies.iter();
    let (Some(currency), None) = (each.next(), each.next()) else {
        let currencies: Vec<String> = currencies.iter().map(Currency::to_string).collect();
        return Err(Error::MixedCurrencies { currencies: currencies.join(", ") });
    };
    let sum = lines
        .iter()
        .try_fold(Money::new(*currency, 0), |sum, line| sum.checked_add(line.unit_price.checked_mul(line.quantity)?));
    match sum {
        Ok(total) if !limits.are_exceeded_by(total) => Ok(total),
        // A sum that overflows is above every limit.
        Ok(_) | Err(_) => Err(Error::AmountTooLarge { total: sum.ok(), limit: limits.of(*currency) }),
    }
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
        let total = |lines: &[Line]| total(lines, &AmountLimits::default());
        assert_eq!(total(&[line(eur(250), 2), line(eur(1), 3)]).expect("a total"), eur(503));
        let usd = Money::new("USD".parse().expect("a currency"), 1);
        let mixed = total(&[line(eur(1), 1), line(usd, 1), line(eur(1), 1)]);
        assert!(matches!(mixed, Err(Error::MixedCurrencies { currencies }) if currencies == "EUR, USD"));
    }

    #[test]
    fn a_total_above_the_limit_of_its_currency_is_rejected() {
        let of = |code: &str, minor_units| Money::new(code.parse().expect("a currency"), minor_units);
        let limits: AmountLimits = "KWD=5000".parse().expect("limits");
        for (price, quantity) in
            [(eur(10_000_000), 1), (of("VND", 12_000_000), 9), (of("IDR", 25_000_000), 9), (of("KWD", 5_000_000), 1)]
        {
            assert!(total(&[line(price, quantity)], &limits).is_ok(), "{price}");
        }
        let rejected = |price| total(&[line(price, 2)], &limits).expect_err("above the limit");
        let limit_of = |price| {
            let rejection = rejected(price);
            let Error::AmountTooLarge { total, limit } = rejection else { panic!("{rejection}") };
            (total, limit)
        };
        assert_eq!(limit_of(eur(5_000_001)), (Some(eur(10_000_002)), eur(10_000_000)));
        assert_eq!(limit_of(of("KWD", 2_500_001)), (Some(of("KWD", 5_000_002)), of("KWD", 5_000_000)));
        assert_eq!(limit_of(eur(i64::MAX)), (None, eur(10_000_000)));
    }

    #[test]
    fn a_changed_price_is_rejected_only_if_the_request_has_an_expected_total() {
        assert!(check_expected(None, eur(5)).is_ok());
        assert!(check_expected(Some(eur(5)), eur(5)).is_ok());
        assert!(matches!(check_expected(Some(eur(4)), eur(5)), Err(Error::PriceChanged { .. })));
    }
}
