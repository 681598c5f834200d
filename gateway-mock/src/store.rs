//! The ledger's queries. Decisions inside a transaction are made by `charge.rs`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use kernel::{Money, Timestamp};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, FromQueryResult, IntoActiveModel, PaginatorTrait, QueryFilter,
    QueryOrder, QuerySelect, Set,
};
use storage::batches::Results;
use storage::{Batched, Batcher, Database, Rows, Tx};

use crate::charge::{self, Charge, Decline, RefundCommand, RefundResult, RefundRule, Status};
use crate::entity;
use crate::error::Error;

/// The ledger. Clones share its connections.
#[derive(Clone)]
pub(crate) struct Store {
    db: Database,
    insert_charges: Arc<OnceLock<Batcher<InsertCharges>>>,
}

impl Store {
    pub(crate) fn new(db: Database) -> Self {
        Self { db, insert_charges: Arc::default() }
    }

    /// The row of a key.
    pub(crate) async fn find(&self, key: &str) -> Result<Option<Charge>, storage::Error> {
        let row = entity::charge::Entity::find_by_id(key).one(self.db.read()).await?;
        row.map(Charge::try_from).transpose()
    }

    /// A page, ordered by charge key.
    pub(crate) async fn page(&self, after: Option<String>, count: u64) -> Result<Vec<Charge>, storage::Error> {
        let mut query = entity::charge::Entity::find().order_by_asc(entity::charge::Column::ChargeKey).limit(count);
        if let Some(after) = after {
            query = query.filter(entity::charge::Column::ChargeKey.gt(after));
        }
        query.all(self.db.read()).await?.into_iter().map(Charge::try_from).collect()
    }

    /// Stores a row unless its key has one, and returns the key's row: the first to commit stays. Rows are committed in
    /// batches.
    pub(crate) async fn insert_if_absent(&self, charge: Charge) -> Result<Charge, storage::Error> {
        self.insert_charges.get_or_init(|| Batcher::start(self.db.clone(), InsertCharges)).commit(charge).await
    }

    /// Decides on a refund, once per refund key.
    pub(crate) async fn refund(
        &self,
        command: RefundCommand,
        now: Timestamp,
        refused_at_random: bool,
    ) -> Result<RefundResult, Error> {
        self.db.transact(command, move |tx, command| Box::pin(refund(tx, command, now, refused_at_random))).await
    }
}

/// Rows of the ledger: the first of a key to commit stays.
struct InsertCharges;

impl Batched for InsertCharges {
    type Command = Charge;
    type Key = String;
    type Output = Charge;
    type Error = storage::Error;

    const NAME: &'static str = "charge";

    fn key(charge: &Charge) -> String {
        charge.key.clone()
    }

    fn rows(_charge: &Charge) -> usize {
        1
    }

    fn run<'t>(&'t self, tx: &'t Tx, batch: &'t [Charge]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(async move {
            let inserted = insert(tx, batch).await?;
            let others = batch.iter().filter(|charge| !inserted.contains(&charge.key));
            let kept = kept(tx, others).await?;
            let stored = |charge: &Charge| {
                let kept = if inserted.contains(&charge.key) { Some(charge) } else { kept.get(&charge.key) };
                kept.cloned().ok_or(storage::Error::Corrupt { what: "charge", value: charge.key.clone() })
            };
            Ok(batch.iter().map(stored).collect())
        })
    }
}

/// Inserts rows, sorted by key, so that two batches with the same keys do not deadlock; returns the keys that had none.
async fn insert(tx: &Tx, batch: &[Charge]) -> Result<HashSet<String>, storage::Error> {
    let mut models: Vec<entity::charge::Model> = batch.iter().cloned().map(Into::into).collect();
    models.sort_by(|one, other| one.charge_key.cmp(&other.charge_key));
    let rows = Rows::new()
        .with("charge_key", models.iter().map(|row| row.charge_key.clone()))
        .with("charge_id", models.iter().map(|row| row.charge_id))
        .with("status", models.iter().map(|row| row.status.clone()))
        .with("decline_code", models.iter().map(|row| row.decline_code.clone()))
        .with("currency", models.iter().map(|row| row.currency.clone()))
        .with("minor_units", models.iter().map(|row| row.minor_units))
        .with("refund_rule", models.iter().map(|row| row.refund_rule.clone()))
        .with("create_time", models.iter().map(|row| row.create_time));
    let insert = "INSERT INTO charge \
                  (charge_key, charge_id, status, decline_code, currency, minor_units, refund_rule, create_time) \
                  SELECT charge_key, charge_id, status, decline_code, currency, minor_units, refund_rule, create_time \
                  FROM v WHERE TRUE ON CONFLICT (charge_key) DO NOTHING RETURNING charge_key";
    let inserted = tx.conn().query_rows(rows, insert).await?;
    Ok(inserted.iter().map(|row| row.try_get("", "charge_key")).collect::<Result<_, _>>()?)
}

/// The rows of charges' keys.
async fn kept(tx: &Tx, charges: impl Iterator<Item = &Charge>) -> Result<HashMap<String, Charge>, storage::Error> {
    let rows = Rows::new().with("charge_key", charges.map(|charge| charge.key.clone()));
    let select = "SELECT charge.* FROM v JOIN charge ON charge.charge_key = v.charge_key";
    let kept = tx.conn().query_rows(rows, select).await?;
    let kept = kept.iter().map(|row| {
        let charge = Charge::try_from(entity::charge::Model::from_query_result(row, "")?)?;
        Ok((charge.key.clone(), charge))
    });
    kept.collect()
}

async fn refund(tx: &Tx, command: RefundCommand, now: Timestamp, at_random: bool) -> Result<RefundResult, Error> {
    let RefundCommand { charge_key, refund_key } = command;
    // Locked (on databases with concurrent writers): concurrent refund keys are decided one after the other.
    let row = entity::charge::Entity::find_by_id(charge_key.as_str()).lock_exclusive().one(tx.conn()).await;
    let mut charge = Charge::try_from(row.map_err(storage::Error::from)?.ok_or(Error::ChargeNotFound)?)?;
    let decided = entity::refund::Entity::find_by_id((charge_key.clone(), refund_key.clone())).one(tx.conn()).await;
    if let Some(decided) = decided.map_err(storage::Error::from)? {
        return Ok(RefundResult { charge, refusal: decided.refusal });
    }
    let of_the_charge =
        entity::refund::Entity::find().filter(entity::refund::Column::ChargeKey.eq(charge_key.as_str()));
    let tried_before = of_the_charge.count(tx.conn()).await.map_err(storage::Error::from)? > 0;
    let refusal = charge::decide_refund(&charge, tried_before, at_random)?;
    let row = entity::refund::Model { charge_key, refund_key, refusal: refusal.clone(), create_time: now.as_micros() };
    let insert = entity::refund::Entity::insert(row.into_active_model()).exec_without_returning(tx.conn()).await;
    insert.map_err(storage::Error::from)?;
    if refusal.is_none() && charge.status == Status::Succeeded {
        charge.status = Status::Refunded;
        charge.refunded = Some(now);
        let refunded = entity::charge::ActiveModel {
            charge_key: Set(charge.key.clone()),
            status: Set("REFUNDED".to_owned()),
            refund_time: Set(Some(now.as_micros())),
            ..Default::default()
        };
        refunded.update(tx.conn()).await.map_err(storage::Error::from)?;
    }
    Ok(RefundResult { charge, refusal })
}

impl From<Charge> for entity::charge::Model {
    fn from(charge: Charge) -> Self {
        let (status, decline) = match charge.status {
            Status::Succeeded => ("SUCCEEDED", None),
            Status::Declined(decline) => ("DECLINED", Some(decline)),
            Status::Cancelled => ("CANCELLED", None),
            Status::Refunded => ("REFUNDED", None),
        };
        Self {
            charge_key: charge.key,
            charge_id: charge.id,
            status: status.to_owned(),
            decline_code: decline.map(|decline| decline_name(decline).to_owned()),
            currency: charge.amount.map(|amount| amount.currency().code().to_owned()),
            minor_units: charge.amount.map(Money::minor_units),
            refund_rule: refund_rule_name(charge.refund_rule).to_owned(),
            create_time: charge.created.as_micros(),
            refund_time: charge.refunded.map(Timestamp::as_micros),
        }
    }
}

impl TryFrom<entity::charge::Model> for Charge {
    type Error = storage::Error;

    fn try_from(row: entity::charge::Model) -> Result<Self, storage::Error> {
        let status = match (row.status.as_str(), row.decline_code) {
            ("SUCCEEDED", None) => Status::Succeeded,
            ("DECLINED", Some(decline)) => Status::Declined(named(&DECLINES, decline_name, "decline code", decline)?),
            ("CANCELLED", None) => Status::Cancelled,
            ("REFUNDED", None) => Status::Refunded,
            (_, _) => return Err(storage::Error::Corrupt { what: "charge's status", value: row.status }),
        };
        let amount = match (row.currency, row.minor_units) {
            (Some(code), Some(minor_units)) => {
                let currency =
                    code.parse().map_err(|_| storage::Error::Corrupt { what: "currency", value: code.clone() })?;
                Some(Money::new(currency, minor_units))
            }
            (_, _) => None,
        };
        Ok(Self {
            id: row.charge_id,
            key: row.charge_key,
            status,
            amount,
            refund_rule: named(&REFUND_RULES, refund_rule_name, "refund rule", row.refund_rule)?,
            created: Timestamp::from_micros(row.create_time),
            refunded: row.refund_time.map(Timestamp::from_micros),
        })
    }
}

/// Every decline code, to look one up by name.
const DECLINES: [Decline; 9] = [
    Decline::GenericDecline,
    Decline::InsufficientFunds,
    Decline::ExpiredCard,
    Decline::IncorrectCvc,
    Decline::LostCard,
    Decline::StolenCard,
    Decline::ProcessingError,
    Decline::InvalidPaymentMethod,
    Decline::Fraudulent,
];

/// The stored name of a decline code.
fn decline_name(decline: Decline) -> &'static str {
    match decline {
        Decline::GenericDecline => "GENERIC_DECLINE",
        Decline::InsufficientFunds => "INSUFFICIENT_FUNDS",
        Decline::ExpiredCard => "EXPIRED_CARD",
        Decline::IncorrectCvc => "INCORRECT_CVC",
        Decline::LostCard => "LOST_CARD",
        Decline::StolenCard => "STOLEN_CARD",
        Decline::ProcessingError => "PROCESSING_ERROR",
        Decline::InvalidPaymentMethod => "INVALID_PAYMENT_METHOD",
        Decline::Fraudulent => "FRAUDULENT",
    }
}

/// Every refund rule, to look one up by name.
const REFUND_RULES: [RefundRule; 3] = [RefundRule::Accept, RefundRule::RefuseFirst, RefundRule::RefuseAlways];

/// The stored name of a refund rule.
fn refund_rule_name(rule: RefundRule) -> &'static str {
    match rule {
        RefundRule::Accept => "ACCEPT",
        RefundRule::RefuseFirst => "REFUSE_FIRST",
        RefundRule::RefuseAlways => "REFUSE_ALWAYS",
    }
}

fn named<T: Copy>(
    all: &[T],
    name_of: fn(T) -> &'static str,
    what: &'static str,
    name: String,
) -> Result<T, storage::Error> {
    let found = all.iter().copied().find(|value| name_of(*value) == name);
    found.ok_or(storage::Error::Corrupt { what, value: name })
}
