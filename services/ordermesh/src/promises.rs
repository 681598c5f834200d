//! The promises 1 to 4 as queries over the stores of a whole system and the gateway's ledger.
//!
//! The same code is used by `ordermesh verify`, on a running system, and by the crash suite, after every step. A
//! running system changes while it is read: an apparent violation is checked again, alone, between two reads of the
//! same version, before it counts; and events not yet delivered are in the outboxes, which are read before the store
//! that they are delivered to.
//!
//! # Layout
//! - here: what is read, and in which order
//! - [`mod@case`]: the rules, pure: one order with its payment, its charge and its events
//! - [`report`]: the results

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use data::invariants::TraceEventStore;
use kernel::{OrderId, SessionId, Timestamp};
use payment::payment::order_of;
use payment::ports::{Charge, Gateway, NoResponse};
use storage::outbox::Outbox;
use telemetry::TraceEvent;
use user::invariants::Store as UserStore;
use uuid::Uuid;

pub mod case;
pub mod report;

use case::Case;
pub use report::{Gauges, Promise, Report, Violation};

/// The page size of reads.
const PAGE: u64 = 500;
/// How often data that changes while it is read is read again.
const LOOKS: usize = 20;
/// The interval between two checks while effects are pending.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The stores and the ledger of a system.
#[derive(Clone)]
pub struct Sources {
    /// The Order Service's store.
    pub orders: order::store::Store,
    /// The Payment Service's store.
    pub payments: payment::store::Store,
    pub gateway: Arc<dyn Gateway>,
    /// The outboxes of all services.
    pub outboxes: Vec<Outbox>,
    /// The Data Service's store of events; `None`: events stay in the outboxes.
    pub events: Option<TraceEventStore>,
    /// The User Service's sessions.
    pub sessions: Option<UserStore>,
    /// How long something due may stay unleased before it is a violation.
    pub patience: Duration,
    /// Changes before this time may have lost their events to the retention.
    pub events_since: Timestamp,
}

/// Why the promises cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum Unchecked {
    /// A store cannot be read.
    #[error("a store cannot be read")]
    Store(#[from] storage::Error),
    /// The gateway's ledger cannot be read.
    #[error("the gateway's ledger cannot be read: {0}")]
    Ledger(NoResponse),
}

/// Whether a page is the last: it is not full.
fn is_last(count: usize) -> bool {
    u64::try_from(count).is_ok_and(|count| count < PAGE)
}

impl Sources {
    /// Verifies promises 1 to 4.
    ///
    /// # Errors
    /// A store or the ledger cannot be read.
    pub async fn check(&self) -> Result<Report, Unchecked> {
        let mut report = Report::default();
        self.check_stock(&mut report).await?;
        let ledger = self.read_ledger().await?;
        report.looked_at(Promise::ChargedOnce, "charges", ledger.len());
        // Where events stay in the outboxes, these are read from the start.
        let waiting = if self.events.is_none() { self.waiting(&mut report).await? } else { Vec::new() };
        let mut suspects: BTreeSet<OrderId> = BTreeSet::new();
        let mut known: BTreeSet<OrderId> = BTreeSet::new();
        let mut after = None;
        loop {
            let page = self.orders.orders_to_check(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            let ids: Vec<OrderId> = page.iter().map(|order| order.id).collect();
            known.extend(&ids);
            let now = self.orders.now().await?;
            for case in self.cases(&ids, page, &waiting, |id| ledger.get(&id).cloned()).await? {
                case.count(&mut report);
                if !case.violations(now, self).is_empty() {
                    suspects.insert(case.order.id);
                }
            }
            if is_last(ids.len()) {
                break;
            }
        }
        suspects.extend(self.without_an_order(&ledger, &known).await?);
        self.look_again(suspects.into_iter().collect(), &mut report).await?;
        self.check_logins(&mut report).await?;
        Ok(report)
    }

    /// Verifies repeatedly until no effect is pending, for `most` at most; returns the last report.
    ///
    /// # Errors
    /// As [`Sources::check`].
    pub async fn settled(&self, max: Duration) -> Result<Report, Unchecked> {
        let end = tokio::time::Instant::now() + max;
        loop {
            let report = self.check().await?;
            if report.unfinished == 0 && report.is_clean() || tokio::time::Instant::now() >= end {
                return Ok(report);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The values of the monitored gauges.
    ///
    /// # Errors
    /// A store cannot be read.
    pub async fn gauges(&self) -> Result<Gauges, Unchecked> {
        let (by_state, since) = self.orders.unfinished().await?;
        let now = self.orders.now().await?;
        let of = |is_attention: bool| -> i64 {
            let attention = order::lifecycle::State::NeedsAttention.name();
            let counted = by_state.iter().filter(|(state, _)| (state == attention) == is_attention);
            counted.map(|(_, count)| count).sum()
        };
        let mut gauges = Gauges {
            unfinished: of(false),
            oldest_unfinished_s: since.map_or(0, |since| now.since(since).as_secs()),
            needs_attention: of(true),
            in_doubt: self.payments.in_doubt().await?.count,
            ..Gauges::default()
        };
        for outbox in &self.outboxes {
            let backlog = outbox.backlog().await?;
            gauges.waiting += backlog.waiting;
            gauges.refused += backlog.refused;
        }
        Ok(gauges)
    }

    /// Promise 1, for acknowledged orders: each of them exists.
    ///
    /// # Errors
    /// The Order Service's store cannot be read.
    pub async fn check_acknowledged(&self, ids: &[OrderId], report: &mut Report) -> Result<(), Unchecked> {
        report.looked_at(Promise::NeverLost, "acknowledged", ids.len());
        for page in ids.chunks(usize::try_from(PAGE).unwrap_or(1)) {
            let there = self.orders.order_versions(page).await?;
            for id in page.iter().filter(|id| !there.contains_key(id)) {
                report.violated(
                    Promise::NeverLost,
                    id.to_string(),
                    "it was acknowledged, but does not exist".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// Promise 3: one statement, one snapshot.
    async fn check_stock(&self, report: &mut Report) -> Result<(), Unchecked> {
        let stock = self.orders.stock_to_check().await?;
        report.looked_at(Promise::StockAddsUp, "SKUs", stock.len());
        for sku in stock {
            for what in sku.problems() {
                report.violated(Promise::StockAddsUp, sku.sku.clone(), what);
            }
        }
        Ok(())
    }

    async fn read_ledger(&self) -> Result<HashMap<OrderId, Charge>, Unchecked> {
        let mut ledger = HashMap::new();
        let mut token = Some(String::new());
        while let Some(page_token) = token {
            let page = self.gateway.list_charges(page_token).await.map_err(Unchecked::Ledger)?;
            // Keys of another form belong to other merchants.
            ledger.extend(page.charges.into_iter().filter_map(|charge| Some((order_of(&charge.charge_key)?, charge))));
            token = page.next;
        }
        Ok(ledger)
    }

    /// Joins orders with their payments, charges and events. The comparison is correct because of the order of the
    /// reads: changes first, then the outboxes that their events were written to, then the store that these are
    /// delivered to.
    async fn cases(
        &self,
        ids: &[OrderId],
        orders: Vec<order::invariants::CheckedOrder>,
        waiting: &[TraceEvent],
        charge: impl Fn(OrderId) -> Option<Charge>,
    ) -> Result<Vec<Case>, Unchecked> {
        let mut payments: HashMap<OrderId, _> =
            self.payments.find_all(ids).await?.into_iter().map(|payment| (payment.order_id, payment)).collect();
        let mut attempts: HashMap<OrderId, Vec<_>> = HashMap::new();
        for (id, attempt) in self.payments.attempts_of(ids).await? {
            attempts.entry(id).or_default().push(attempt);
        }
        let uuids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let stored = match &self.events {
            Some(events) => events.of_orders(&uuids).await?,
            None => Vec::new(),
        };
        // An event that is being delivered is in both.
        let mut events: HashMap<Uuid, BTreeMap<Uuid, TraceEvent>> = HashMap::new();
        for event in waiting.iter().cloned().chain(stored) {
            let Some(order) = event.order_id else { continue };
            events.entry(order).or_default().insert(event.event_id, event);
        }
        let case = |order: order::invariants::CheckedOrder| {
            let payment = payments.remove(&order.id);
            let mut attempts = attempts.remove(&order.id).unwrap_or_default();
            // The payment was read first: a later attempt may have been added since.
            attempts.retain(|attempt| payment.as_ref().is_some_and(|payment| attempt.attempt <= payment.attempt));
            let events = events.remove(&order.id.as_uuid()).unwrap_or_default().into_values().collect();
            Case { charge: charge(order.id), payment, attempts, events, order }
        };
        Ok(orders.into_iter().map(case).collect())
    }

    /// Orders that have payments, charges or events, but were not among those read.
    async fn without_an_order(
        &self,
        ledger: &HashMap<OrderId, Charge>,
        known: &BTreeSet<OrderId>,
    ) -> Result<BTreeSet<OrderId>, Unchecked> {
        let mut unknown: BTreeSet<OrderId> = ledger.keys().filter(|id| !known.contains(id)).copied().collect();
        let mut after = None;
        loop {
            let page = self.payments.page(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.order_id);
            unknown.extend(page.iter().map(|payment| payment.order_id).filter(|id| !known.contains(id)));
            if is_last(page.len()) {
                break;
            }
        }
        if let Some(events) = &self.events {
            let mut after = Uuid::nil();
            loop {
                let page = events.orders_with_events(after, PAGE).await?;
                let Some(last) = page.last() else { break };
                after = *last;
                unknown.extend(page.into_iter().map(OrderId::from_uuid).filter(|id| !known.contains(id)));
            }
        }
        Ok(unknown)
    }

    /// Reads suspects again, until each is read between two equal versions.
    async fn look_again(&self, suspects: Vec<OrderId>, report: &mut Report) -> Result<(), Unchecked> {
        for batch in suspects.chunks(usize::try_from(PAGE).unwrap_or(1)) {
            let mut left = batch.to_vec();
            for _ in 0..LOOKS {
                left = self.look(&left, report).await?;
                if left.is_empty() {
                    break;
                }
            }
            report.changing(left.len());
        }
        Ok(())
    }

    /// Reads suspects once more; returns those that have changed meanwhile.
    async fn look(&self, ids: &[OrderId], report: &mut Report) -> Result<Vec<OrderId>, Unchecked> {
        let orders = self.orders.orders_to_check_by_id(ids).await?;
        let found: BTreeSet<OrderId> = orders.iter().map(|order| order.id).collect();
        let before = self.payment_versions(ids).await?;
        let waiting = self.waiting(report).await?;
        let mut charges = HashMap::new();
        for id in ids {
            match self.gateway.get_charge(payment::payment::charge_key(*id)).await {
                Ok(charge) => drop(charges.insert(*id, charge)),
                Err(error) if error.is_not_found => {}
                Err(error) => return Err(Unchecked::Ledger(error)),
            }
        }
        let cases = self.cases(ids, orders, &waiting, |id| charges.get(&id).cloned()).await?;
        let now = self.orders.now().await?;
        let versions = self.orders.order_versions(ids).await?;
        let after = self.payment_versions(ids).await?;
        let mut changed = Vec::new();
        for case in cases {
            let id = case.order.id;
            let is_as_read = versions.get(&id) == Some(&case.order.version) && before.get(&id) == after.get(&id);
            if !is_as_read {
                changed.push(id);
                continue;
            }
            for violation in case.violations(now, self) {
                report.violations.insert(violation);
            }
        }
        for id in ids.iter().filter(|id| !found.contains(id)) {
            if charges.contains_key(id) || after.contains_key(id) {
                report.violated(Promise::NeverLost, id.to_string(), "there is a payment without an order".to_owned());
            } else if !versions.contains_key(id) {
                report.violated(
                    Promise::OneEvent,
                    id.to_string(),
                    "there is an event of success without an order".to_owned(),
                );
            } else {
                changed.push(*id);
            }
        }
        Ok(changed)
    }

    /// All events in the outboxes, including those that the store has rejected permanently.
    async fn waiting(&self, report: &mut Report) -> Result<Vec<TraceEvent>, Unchecked> {
        let (mut events, mut rejected) = (Vec::new(), 0);
        for outbox in &self.outboxes {
            let all = outbox.all().await?;
            rejected += all.refused.len();
            events.extend(all.waiting);
            events.extend(all.refused);
        }
        report.refused_events(rejected);
        Ok(events)
    }

    async fn payment_versions(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, i64>, Unchecked> {
        let payments = self.payments.find_all(ids).await?;
        Ok(payments.into_iter().map(|payment| (payment.order_id, payment.version)).collect())
    }

    /// Promise 4, for log-ins: every open session has exactly one event.
    async fn check_logins(&self, report: &mut Report) -> Result<(), Unchecked> {
        let (Some(sessions), Some(events)) = (&self.sessions, &self.events) else { return Ok(()) };
        let mut after: Option<SessionId> = None;
        loop {
            let page = sessions.sessions(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            let waiting = self.waiting(report).await?;
            let users: BTreeSet<Uuid> = page.iter().map(|session| session.user.as_uuid()).collect();
            let stored = events.logins_of(&users.into_iter().collect::<Vec<_>>()).await?;
            let mut logins: HashMap<String, BTreeSet<Uuid>> = HashMap::new();
            for event in waiting.iter().chain(&stored) {
                if let Some(session) = event.attributes.get("session.id") {
                    logins.entry(session.clone()).or_default().insert(event.event_id);
                }
            }
            report.looked_at(Promise::OneEvent, "sessions", page.len());
            for session in page.iter().filter(|session| session.created >= self.events_since) {
                let id = session.id.to_string();
                let count = logins.get(&id).map_or(0, BTreeSet::len);
                if count != 1 {
                    let what = format!("the log-in that opened the session has {count} events");
                    report.violated(Promise::OneEvent, format!("session {id}"), what);
                }
            }
        }
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("patience", &self.patience).finish_non_exhaustive()
    }
}
