//! Orders: creating, reading, cancelling, retrying. What happens to one afterwards is the [`crate::driver`]'s.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use chassis::{Fields, Fingerprint};
use contracts::payment::v1 as payment;
use kernel::{Clock, FulfillmentId, IdSource, Money, OrderId, RequestId, Timestamp, UserId};
use mesh::About;
use serde::{Deserialize, Serialize};
use telemetry::{Operation, TraceParent};

use crate::driver::Driver;
use crate::error::Error;
use crate::lifecycle::{self, Answer, Input, State};
use crate::ports::{Catalog, Product, Transit};
use crate::store::Store;

/// The token of a payment method. Never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PaymentMethod(String);

impl PaymentMethod {
    /// Of the token.
    pub fn new(token: String) -> Self {
        Self(token)
    }

    /// The token, for the one who needs it.
    pub fn into_inner(self) -> String {
        self.0
    }
}

impl fmt::Debug for PaymentMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentMethod(..)")
    }
}

/// A postal address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Address {
    /// Who receives it.
    pub recipient: String,
    /// Street and number.
    pub lines: Vec<String>,
    /// City.
    pub city: String,
    /// As the country writes it.
    pub postal_code: String,
    /// ISO 3166-1 alpha-2.
    pub country_code: String,
}

/// What became of a line's stock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineState {
    /// Reserved for the order.
    Held,
    /// Allocated to the order.
    Allocated,
    /// Given back.
    Released,
    /// Written off.
    Lost,
}

impl LineState {
    /// Its name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "HELD",
            Self::Allocated => "ALLOCATED",
            Self::Released => "RELEASED",
            Self::Lost => "LOST",
        }
    }

    /// The state of a name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Held, Self::Allocated, Self::Released, Self::Lost].into_iter().find(|state| state.name() == name)
    }
}

/// A line of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Stock keeping unit.
    pub sku: String,
    /// The product's name at creation.
    pub name: String,
    /// How many.
    pub quantity: u32,
    /// The price of one at creation.
    pub unit_price: Money,
    /// What became of its stock.
    pub state: LineState,
}

/// Why a payment failed, as the customer may know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PaymentFailure {
    /// `PAYMENT_DECLINED`, `GATEWAY_TIMEOUT`, `PAYMENT_CANCELLED` or `REFUND_REFUSED`.
    pub reason: String,
    /// For example `INSUFFICIENT_FUNDS`.
    pub decline_code: String,
    /// For example `USE_OTHER_METHOD`.
    pub advice: String,
    /// A sentence.
    pub message: String,
}

impl PaymentFailure {
    /// Of a payment that was refused. Lost, stolen and fraudulent are not told to the customer, who may be the thief.
    pub(crate) fn from_payment(payment: &payment::Payment) -> Self {
        use payment::DeclineCode as Code;
        let code = payment.decline_code();
        let told_the_thief = matches!(code, Code::LostCard | Code::StolenCard | Code::Fraudulent);
        let shown = if told_the_thief { Code::GenericDecline } else { code };
        let advice = named(payment.advice().as_str_name(), "DECLINE_ADVICE_");
        let (reason, message) = match shown {
            Code::GatewayTimeout => ("GATEWAY_TIMEOUT", "the payment gateway did not answer; nothing was charged"),
            Code::Unspecified => ("PAYMENT_CANCELLED", "the payment was cancelled; nothing was charged"),
            Code::InsufficientFunds => ("PAYMENT_DECLINED", "the payment method has not enough money"),
            Code::ExpiredCard => ("PAYMENT_DECLINED", "the card has expired"),
            Code::IncorrectCvc => ("PAYMENT_DECLINED", "the card's security code is wrong"),
            Code::ProcessingError => ("PAYMENT_DECLINED", "the issuer could not process the payment"),
            Code::InvalidPaymentDetails => ("PAYMENT_DECLINED", "the payment details are invalid"),
            Code::InvalidAmount => ("PAYMENT_DECLINED", "the amount cannot be charged"),
            Code::GenericDecline | Code::LostCard | Code::StolenCard | Code::Fraudulent => {
                ("PAYMENT_DECLINED", "the issuer declined the payment")
            }
        };
        Self {
            reason: reason.into(),
            decline_code: named(shown.as_str_name(), "DECLINE_CODE_"),
            advice,
            message: message.into(),
        }
    }

    /// Of a refund that the gateway refuses.
    pub(crate) fn refund_refused() -> Self {
        Self {
            reason: "REFUND_REFUSED".into(),
            decline_code: String::new(),
            advice: String::new(),
            message: "the payment gateway refuses to give the money back; an operator has to look".into(),
        }
    }
}

/// An enum value's name without its prefix; empty when there is none.
fn named(name: &str, prefix: &str) -> String {
    let name = name.trim_start_matches(prefix);
    if name == "UNSPECIFIED" { String::new() } else { name.to_owned() }
}

/// A fulfilment that has started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fulfillment {
    /// Its id.
    pub id: FulfillmentId,
    /// The day of delivery: `YYYY-MM-DD`.
    pub delivery_date: String,
}

/// An order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Its id; also the key of its payment.
    pub id: OrderId,
    /// Whose it is.
    pub user: UserId,
    /// Where it is.
    pub state: State,
    /// Counts the steps.
    pub version: i64,
    /// As ordered.
    pub lines: Vec<Line>,
    /// The sum of the lines.
    pub total: Money,
    /// Where it goes.
    pub address: Address,
    /// Who is written to.
    pub contact_email: String,
    /// How to pay; forgotten once the payment is decided.
    pub payment_method: Option<PaymentMethod>,
    /// How long the delivery takes.
    pub transit: Transit,
    /// Which refund is being tried, from 1.
    pub refund_attempt: i32,
    /// Why the payment failed.
    pub payment_failure: Option<PaymentFailure>,
    /// The fulfilment, once it has started.
    pub fulfillment: Option<Fulfillment>,
    /// How often the owed effect came to nothing.
    pub attempt: i32,
    /// When the owed effect is due; `None` when none is owed.
    pub next_attempt_time: Option<Timestamp>,
    /// Why the last try came to nothing.
    pub last_error: Option<String>,
    /// The trace that it is followed by.
    pub place: TraceParent,
    /// When it was recorded.
    pub create_time: Timestamp,
    /// When it last changed.
    pub update_time: Timestamp,
}

/// A step of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The version after it.
    pub version: i64,
    /// The state after it.
    pub state: State,
    /// When it was committed.
    pub time: Timestamp,
    /// Why.
    pub reason: String,
    /// The trace in which it happened.
    pub trace_id: String,
    /// The span in which it happened.
    pub span_id: String,
}

/// What a customer asks for, decoded.
#[derive(Clone, Debug)]
pub struct CreateOrder {
    /// The customer's id of the request.
    pub request_id: RequestId,
    /// Each SKU once, with how many.
    pub items: Vec<(String, u32)>,
    /// How to pay.
    pub payment_method: PaymentMethod,
    /// Where it goes.
    pub address: Address,
    /// Who is written to.
    pub contact_email: String,
    /// What the customer saw.
    pub expected_total: Option<Money>,
}

impl CreateOrder {
    /// Is a repeated request the same command?
    pub fn fingerprint(&self) -> String {
        let Self { request_id: _, items, payment_method, address, contact_email, expected_total } = self;
        let mut print = Fingerprint::of("CreateOrder/1")
            .part("payment_method", &payment_method.0)
            .part("contact_email", contact_email)
            .part("expected_total", expected_total.map_or(String::new(), |total| total.to_string()))
            .part("recipient", &address.recipient)
            .part("city", &address.city)
            .part("postal_code", &address.postal_code)
            .part("country_code", &address.country_code);
        for line in &address.lines {
            print = print.part("line", line);
        }
        for (sku, quantity) in items {
            print = print.part("sku", sku).part("quantity", quantity);
        }
        print.finish()
    }
}

/// Whose orders somebody may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// A customer's own.
    Of(UserId),
    /// Everybody's: an operator.
    All,
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
                if !store.create(&operation, &order, request, &fingerprint, driver.lease()).await? {
                    return Ok(None);
                }
                driver.start(order.clone());
                Ok(Some(order))
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

    /// An order and its history.
    ///
    /// # Errors
    /// There is none in this scope.
    pub async fn get(&self, scope: Scope, id: OrderId) -> Result<(Order, Vec<HistoryEntry>), Error> {
        let order = self.store.get(scope, id).await?.ok_or(Error::OrderNotFound)?;
        let history = self.store.history(id, 0).await?;
        Ok((order, history))
    }

    /// A page of orders, newest first, and the last id of it when there is another.
    ///
    /// # Errors
    /// The database.
    pub async fn list(
        &self,
        scope: Scope,
        state: Option<State>,
        after: Option<OrderId>,
        size: u32,
    ) -> Result<(Vec<Order>, Option<OrderId>), Error> {
        let mut orders = self.store.list(scope, state, after, u64::from(size) + 1).await?;
        let more = orders.len() > usize::try_from(size).unwrap_or(usize::MAX);
        orders.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        let last = orders.last().filter(|_| more).map(|order| order.id);
        Ok((orders, last))
    }

    /// Turns an order towards CANCELLED, in its own transaction, calling nobody.
    ///
    /// # Errors
    /// There is none in this scope, or it is too late.
    pub async fn cancel(&self, operation: &Operation, scope: Scope, id: OrderId) -> Result<Order, Error> {
        let refuse = |state: State| Error::OrderNotCancellable { state: state.name() };
        self.turn(operation, scope, id, Input::CancelAsked, "cancellation asked", refuse).await
    }

    /// Takes an order out of NEEDS_ATTENTION, with a fresh refund attempt.
    ///
    /// # Errors
    /// There is none, or it is not in NEEDS_ATTENTION.
    pub async fn retry(&self, operation: &Operation, id: OrderId) -> Result<Order, Error> {
        let refuse = |state: State| Error::OrderNotRetryable { state: state.name() };
        self.turn(operation, Scope::All, id, Input::RetryAsked, "retry asked by an operator", refuse).await
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

    #[test]
    fn customers_do_not_learn_that_a_card_is_stolen() {
        for code in [payment::DeclineCode::LostCard, payment::DeclineCode::StolenCard, payment::DeclineCode::Fraudulent]
        {
            let payment = payment::Payment { decline_code: code.into(), ..Default::default() };
            assert_eq!(PaymentFailure::from_payment(&payment).decline_code, "GENERIC_DECLINE");
        }
    }
}
