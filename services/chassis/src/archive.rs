//! The task that moves what has been final for long into a service's archive.

use std::time::Duration;

use kernel::{OrderId, Timestamp};
use serde::Serialize;
use serde_json::Value;
use storage::Error;

use crate::Chassis;

/// The average interval; jittered, so that the instances of a database do not run it simultaneously.
const INTERVAL: Duration = Duration::from_secs(30);

/// The result of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// How many were archived.
    pub archived: u64,
    /// The last one that was examined; `None`: there are no more.
    pub last: Option<OrderId>,
}

/// A record in JSON, without the members that are null: most columns of a payment are.
///
/// # Errors
/// It has no form in JSON.
pub fn to_json(record: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(record)?;
    remove_nulls(&mut value);
    Ok(value.to_string())
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(remove_nulls);
        }
        Value::Array(elements) => elements.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Archives until shutdown. `archive` moves a batch of what became final before an instant, in the order of the ids, after
/// the last one of the previous batch. `what` is for the log, in the plural.
pub async fn run<F>(
    chassis: Chassis,
    what: &'static str,
    age: Duration,
    archive: impl Fn(Timestamp, Option<OrderId>) -> F,
) where
    F: Future<Output = Result<Batch, Error>>,
{
    loop {
        let wait = INTERVAL.mul_f64(0.5 + rand::random::<f64>());
        if tokio::time::timeout(wait, chassis.shutdown.cancelled()).await.is_ok() {
            return;
        }
        let before = chassis.clock.now().minus(age);
        let mut archived = 0;
        let all = async {
            let mut after = None;
            loop {
                match archive(before, after).await {
                    Ok(batch) => {
                        archived += batch.archived;
                        after = batch.last;
                    }
                    Err(error) => {
                        return tracing::warn!(target: "ordermesh", error = ?error, "{what} could not be archived");
                    }
                }
                if after.is_none() {
                    return;
                }
            }
        };
        let is_stopped = chassis.shutdown.run_until_cancelled(all).await.is_none();
        if archived > 0 {
            tracing::info!(target: "ordermesh", archived, "{what} were archived");
        }
        if is_stopped {
            return;
        }
    }
}
