//! The scripts of an order, and their expected final states.

use std::sync::Arc;

use kernel::FaultPoint;
use order::lifecycle::State;
use payment::payment::{DECLINE_CODES, DeclineCode};

use crate::faults::{Injection, InjectionPlan, Spot};
use crate::gateway::{FailureMode, Ledger};
use crate::system::{On, OrderInstance, System, Wire};

/// The behaviour of the gateway and of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Environment {
    Healthy,
    Declines(DeclineCode),
    Gateway(FailureMode),
    Wire(Wire),
    /// The first refund is refused.
    RefundRefused,
    /// Every message is duplicated, on both hops.
    Twice,
}

/// An action during the run, and its fault point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    None,
    Cancels(Spot),
    WritesOff(Spot),
}

/// A behaviour of the environment and an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Script {
    pub(crate) environment: Environment,
    pub(crate) action: Action,
}

/// The fault points of an order without failures: actions are performed at these.
pub(crate) const HAPPY_SPOTS: [Spot; 6] = [
    ("order", FaultPoint::BeforeEffect, "CREATED"),
    ("payment", FaultPoint::BeforeEffect, "PENDING"),
    ("payment", FaultPoint::AfterEffect, "PENDING"),
    ("payment", FaultPoint::AfterRecord, "SUCCEEDED"),
    ("order", FaultPoint::AfterEffect, "CREATED"),
    ("order", FaultPoint::AfterRecord, "FULFILLMENT_STARTED"),
];

pub(crate) fn scripts() -> Vec<Script> {
    let plain = [
        Environment::Healthy,
        Environment::Gateway(FailureMode::NoResponseOnce),
        Environment::Gateway(FailureMode::ResponseLostOnce),
        Environment::Gateway(FailureMode::NeverCharges),
        Environment::Gateway(FailureMode::ChargeResponsesLost),
        Environment::Wire(Wire::LosesFirst),
    ];
    let declines =
        DECLINE_CODES.into_iter().filter(|code| *code != DeclineCode::GatewayTimeout).map(Environment::Declines);
    let mut scripts: Vec<Script> =
        plain.into_iter().chain(declines).map(|environment| Script { environment, action: Action::None }).collect();
    let doubt = [
        ("payment", FaultPoint::AfterRecord, "IN_DOUBT"),
        ("payment", FaultPoint::BeforeEffect, "IN_DOUBT"),
        ("payment", FaultPoint::AfterEffect, "IN_DOUBT"),
        ("payment", FaultPoint::BeforeEffect, "CANCELLING"),
        ("payment", FaultPoint::AfterEffect, "CANCELLING"),
    ];
    for environment in
        plain.into_iter().chain([Environment::RefundRefused, Environment::Declines(DeclineCode::InsufficientFunds)])
    {
        scripts.extend(HAPPY_SPOTS.map(|spot| Script { environment, action: Action::Cancels(spot) }));
        if matches!(environment, Environment::Gateway(_)) {
            scripts.extend(doubt.map(|spot| Script { environment, action: Action::Cancels(spot) }));
        }
    }
    for environment in
        [Environment::Healthy, Environment::RefundRefused, Environment::Gateway(FailureMode::ResponseLostOnce)]
    {
        scripts.extend(HAPPY_SPOTS.map(|spot| Script { environment, action: Action::WritesOff(spot) }));
    }
    scripts
}

impl Script {
    pub(crate) fn wire(self) -> Wire {
        match self.environment {
            Environment::Wire(wire) => wire,
            Environment::Twice => Wire::Twice,
            Environment::Healthy | Environment::Declines(_) | Environment::Gateway(_) | Environment::RefundRefused => {
                Wire::Fine
            }
        }
    }

    pub(crate) fn ledger(self) -> Ledger {
        let ledger = Ledger::default();
        match self.environment {
            Environment::Declines(code) => ledger.decline_with(code),
            Environment::Gateway(failure_mode) => ledger.set_failure_mode(failure_mode),
            Environment::RefundRefused => ledger.refuse_refunds(1),
            Environment::Twice => ledger.duplicate_calls(),
            Environment::Healthy | Environment::Wire(_) => {}
        }
        ledger
    }

    pub(crate) fn plan(self) -> Arc<InjectionPlan> {
        InjectionPlan::new(match self.action {
            Action::None => None,
            Action::Cancels(spot) => Some((spot, Injection::Cancel)),
            Action::WritesOff(spot) => Some((spot, Injection::WriteOff)),
        })
    }

    /// The system for this script, and the instance that drives first.
    pub(crate) async fn system(self, on: On) -> (System, OrderInstance) {
        let system = System::new(on, self.wire(), self.ledger(), self.plan()).await;
        let order = system.order_instance("order-1");
        system.advance(crate::system::LEASE);
        (system, order)
    }

    /// Checks the final state.
    pub(crate) async fn check_result(self, system: &System, how: &str) {
        let (state, failure) = (system.state().await, system.failure().await);
        let context = format!("{self:?}, {how}: {state:?} {failure:?}");
        assert_eq!(system.broken(), [""; 0], "{context}");
        let report = system.report().await;
        assert!(report.is_clean(), "{context}: {report}");
        assert_eq!((report.orders(), report.unfinished), (1, 0), "{context}");
        assert!(system.ledger.charge_count() <= 1, "{context}: charged {} times", system.ledger.charge_count());
        let written_off = matches!(self.action, Action::WritesOff(_)) && state == State::Cancelled;
        if system.api.cancelled.get().is_some() || written_off {
            // An order whose cancellation was acknowledged is cancelled.
            assert_eq!(state, State::Cancelled, "{context}");
            return;
        }
        let reason = failure.map(|failure| failure.reason);
        match self.environment {
            Environment::Declines(_) => {
                assert_eq!((state, reason.as_deref()), (State::PaymentFailed, Some("PAYMENT_DECLINED")), "{context}");
            }
            Environment::Gateway(FailureMode::NeverCharges) => {
                assert_eq!((state, reason.as_deref()), (State::PaymentFailed, Some("GATEWAY_TIMEOUT")), "{context}");
            }
            Environment::Healthy
            | Environment::Gateway(_)
            | Environment::Wire(_)
            | Environment::RefundRefused
            | Environment::Twice => {
                assert_eq!(state, State::FulfillmentStarted, "{context}");
            }
        }
    }
}
