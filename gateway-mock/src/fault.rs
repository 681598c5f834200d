//! Fault injection, by token and by settings.
//!
//! # By token
//! | token | effect |
//! |---|---|
//! | `pm_gateway_noAnswer` | never charged, no response: the call hangs until the client cancels it |
//! | `pm_gateway_answerLost` | charged durably; that response is never sent; a repeated key replays it |
//! | `pm_gateway_unavailable3` | UNAVAILABLE, GATEWAY_UNAVAILABLE, three times per key; then charged |
//! | `pm_gateway_slow` | charged after `fault-slow-ms`, even if the client has cancelled; a tombstone written before wins |
//! | `pm_gateway_refundRefused` | charged; the first refund key is refused, later ones are accepted |
//! | `pm_gateway_refundRefusedAlways` | charged; every refund is refused |
//!
//! A token's fault affects only CreateCharge, and only while its key has no row.
//!
//! # By settings
//! [`FaultSettings`]: how many of a thousand writing calls (CreateCharge, CancelCharge, RefundCharge) get each fault,
//! whatever the token and whether or not the response is a replay; and a delay before every call.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::time::Duration;

use clap::value_parser;
use parking_lot::Mutex;

use crate::charge::{RefundRule, Token};
use crate::error::Error;

/// An injected fault of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing is done, and there is no response.
    NoResponse,
    /// The work is done, but its response is lost.
    ResponseLost,
    /// Nothing is done, and the response is UNAVAILABLE.
    Unavailable,
    /// The work is done late.
    Slow,
}

/// Faults by settings, each a flag and an environment variable.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct FaultSettings {
    /// Of 1000 writing calls, how many are not executed and get no response (per mille)
    #[arg(long, alias = "fault-no-answer-per-mille", env = "GATEWAY_FAULT_NO_RESPONSE_PER_MILLE", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000))]
    pub fault_no_response_per_mille: u16,
    /// Of 1000 writing calls, how many are executed and get no response (per mille)
    #[arg(long, alias = "fault-answer-lost-per-mille", env = "GATEWAY_FAULT_RESPONSE_LOST_PER_MILLE", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000))]
    pub fault_response_lost_per_mille: u16,
    /// Of 1000 writing calls, how many fail with UNAVAILABLE (per mille)
    #[arg(long, env = "GATEWAY_FAULT_UNAVAILABLE_PER_MILLE", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000))]
    pub fault_unavailable_per_mille: u16,
    /// Of 1000 writing calls, how many are slow (per mille)
    #[arg(long, env = "GATEWAY_FAULT_SLOW_PER_MILLE", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000))]
    pub fault_slow_per_mille: u16,
    /// Of 1000 refunds, how many are refused (per mille)
    #[arg(long, env = "GATEWAY_FAULT_REFUND_REFUSED_PER_MILLE", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000))]
    pub fault_refund_refused_per_mille: u16,
    /// How long a slow call takes, in milliseconds
    #[arg(long, env = "GATEWAY_FAULT_SLOW_MS", default_value_t = 3_000)]
    pub fault_slow_ms: u64,
    /// Delay before every call, in milliseconds
    #[arg(long, env = "GATEWAY_FAULT_LATENCY_MS", default_value_t = 0)]
    pub fault_latency_ms: u64,
}

/// How often `pm_gateway_unavailable3` fails with UNAVAILABLE per key.
const UNAVAILABLE_TIMES: u32 = 3;

/// Maximum number of keys whose attempts are counted; further keys are served without the fault.
const MAX_COUNTED_KEYS: usize = 100_000;

/// The rule for refunds of a token of this file; `None` for every other token.
pub(crate) fn refund_rule(token: &str) -> Option<RefundRule> {
    match token {
        "pm_gateway_refundRefused" => Some(RefundRule::RefuseFirst),
        "pm_gateway_refundRefusedAlways" => Some(RefundRule::RefuseAlways),
        "pm_gateway_noAnswer" | "pm_gateway_answerLost" | "pm_gateway_unavailable3" | "pm_gateway_slow" => {
            Some(RefundRule::Accept)
        }
        _ => None,
    }
}

/// Whether a charge of this token may get a fault by its token.
pub(crate) fn has_fault(token: &Token) -> bool {
    refund_rule(token.expose()) == Some(RefundRule::Accept)
}

/// Decides which call gets which fault.
pub(crate) struct Faults {
    settings: FaultSettings,
    /// The UNAVAILABLE responses per key of `pm_gateway_unavailable3`. In memory: a restart resets them.
    attempts: Mutex<HashMap<String, u32>>,
}

impl Faults {
    pub(crate) fn new(settings: FaultSettings) -> Self {
        Self { settings, attempts: Mutex::default() }
    }

    /// The fault of a charge whose key has no row yet, by its token.
    pub(crate) fn of_charge(&self, key: &str, token: &Token) -> Option<Fault> {
        match token.expose().as_str() {
            "pm_gateway_noAnswer" => Some(Fault::NoResponse),
            "pm_gateway_answerLost" => Some(Fault::ResponseLost),
            "pm_gateway_slow" => Some(Fault::Slow),
            "pm_gateway_unavailable3" if self.is_unavailable_again(key) => Some(Fault::Unavailable),
            _ => None,
        }
    }

    /// The fault of a writing call, by the settings.
    pub(crate) fn at_random(&self) -> Option<Fault> {
        let settings = &self.settings;
        let odds = [
            (settings.fault_no_response_per_mille, Fault::NoResponse),
            (settings.fault_response_lost_per_mille, Fault::ResponseLost),
            (settings.fault_unavailable_per_mille, Fault::Unavailable),
            (settings.fault_slow_per_mille, Fault::Slow),
        ];
        odds.into_iter().find(|(per_mille, _)| happens(*per_mille)).map(|(_, fault)| fault)
    }

    /// Whether a refund is refused, by the settings.
    pub(crate) fn refuses_refund(&self) -> bool {
        happens(self.settings.fault_refund_refused_per_mille)
    }

    /// The delay before every call.
    pub(crate) async fn latency(&self) {
        if self.settings.fault_latency_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.settings.fault_latency_ms)).await;
        }
    }

    /// Does the work of a call, with its fault. A hanging call holds no resources, and ends when it is cancelled.
    pub(crate) async fn inject<T, W>(&self, fault: Option<Fault>, key: &str, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        if let Some(fault) = fault {
            tracing::info!(target: "ordermesh", charge_key = key, ?fault, "injecting a fault");
        }
        match fault {
            None => work.await,
            Some(Fault::NoResponse) => pending().await,
            Some(Fault::Unavailable) => Err(Error::Unavailable),
            Some(Fault::ResponseLost) => {
                work.await?;
                pending().await
            }
            Some(Fault::Slow) => {
                let slow = Duration::from_millis(self.settings.fault_slow_ms);
                // A separate task: a real gateway does not stop when its client disconnects.
                let late = tokio::spawn(async move {
                    tokio::time::sleep(slow).await;
                    work.await
                });
                match late.await {
                    Ok(result) => result,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The process is shutting down.
                        Err(_) => Err(Error::Unavailable),
                    },
                }
            }
        }
    }

    /// Forgets the attempts of a key that has a row now.
    pub(crate) fn forget(&self, key: &str) {
        self.attempts.lock().remove(key);
    }

    fn is_unavailable_again(&self, key: &str) -> bool {
        let mut attempts = self.attempts.lock();
        if attempts.len() >= MAX_COUNTED_KEYS && !attempts.contains_key(key) {
            return false;
        }
        let count = attempts.entry(key.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        *count <= UNAVAILABLE_TIMES
    }
}

fn happens(per_mille: u16) -> bool {
    per_mille > 0 && rand::random_range(0..1000) < per_mille
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Token {
        Token::new(text.to_owned())
    }

    #[test]
    fn a_key_is_unavailable_three_times_and_then_served() {
        let faults = Faults::new(FaultSettings::default());
        let token = token("pm_gateway_unavailable3");
        for _ in 0..3 {
            assert_eq!(faults.of_charge("a", &token), Some(Fault::Unavailable));
        }
        assert_eq!(faults.of_charge("a", &token), None);
        assert_eq!(faults.of_charge("b", &token), Some(Fault::Unavailable), "keys are counted separately");
        faults.forget("a");
        faults.forget("b");
        assert_eq!(faults.attempts.lock().len(), 0);
    }

    #[test]
    fn a_per_mille_of_0_never_happens_and_one_of_1000_always_does() {
        assert!(!(0..5_000).any(|_| happens(0)));
        assert!((0..5_000).all(|_| happens(1000)));
    }

    #[test]
    fn ordinary_tokens_get_no_fault() {
        let faults = Faults::new(FaultSettings::default());
        assert_eq!(faults.of_charge("a", &token("pm_card_visa")), None);
        assert_eq!(faults.at_random(), None);
    }
}
