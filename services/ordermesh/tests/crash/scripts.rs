//! The scripts of an order, and their expected final states.

use std::sync::Arc;

use kernel::FaultPoint;
use order::lifecycle::State;
use payment::payment::{DECLINE_CODES, DeclineCode};

use crate::faults::{Act, Plan, Spot};
use crate::gateway::{Ledger, Mood};
use crate::world::{On, OrderInstance, Wire, World};

/// The behaviour of the gateway and of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Weather {
    Fine,
    Declines(DeclineCode),
    Gateway(Mood),
    Wire(Wire),
    /// The first refund is refused.
    RefundRefused,
    /// Every message is duplicated, on both hops.
    Twice,
}

/// An action during the run, and its fault point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deed {
    None,
    Cancels(Spot),
    WritesOff(Spot),
}

/// A behaviour of the environment and an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Script {
    pub(crate) weather: Weather,
    pub(crate) deed: Deed,
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

/// Every script.
pub(crate) fn scripts() -> Vec<Script> {
    let plain = [
        Weather::Fine,
        Weather::Gateway(Mood::SilentOnce),
        Weather::Gateway(Mood::AnswerLostOnce),
        Weather::Gateway(Mood::NeverCharges),
        Weather::Gateway(Mood::NeverAnswersCharges),
        Weather::Wire(Wire::LosesFirst),
    ];
    let declines = DECLINE_CODES.into_iter().filter(|code| *code != DeclineCode::GatewayTimeout).map(Weather::Declines);
    let mut scripts: Vec<Script> =
        plain.into_iter().chain(declines).map(|weather| Script { weather, deed: Deed::None }).collect();
    let doubt = [
        ("payment", FaultPoint::AfterRecord, "IN_DOUBT"),
        ("payment", FaultPoint::BeforeEffect, "IN_DOUBT"),
        ("payment", FaultPoint::AfterEffect, "IN_DOUBT"),
        ("payment", FaultPoint::BeforeEffect, "CANCELLING"),
        ("payment", FaultPoint::AfterEffect, "CANCELLING"),
    ];
    for weather in plain.into_iter().chain([Weather::RefundRefused, Weather::Declines(DeclineCode::InsufficientFunds)])
    {
        scripts.extend(HAPPY_SPOTS.map(|spot| Script { weather, deed: Deed::Cancels(spot) }));
        if matches!(weather, Weather::Gateway(_)) {
            scripts.extend(doubt.map(|spot| Script { weather, deed: Deed::Cancels(spot) }));
        }
    }
    for weather in [Weather::Fine, Weather::RefundRefused, Weather::Gateway(Mood::AnswerLostOnce)] {
        scripts.extend(HAPPY_SPOTS.map(|spot| Script { weather, deed: Deed::WritesOff(spot) }));
    }
    scripts
}

impl Script {
    pub(crate) fn wire(self) -> Wire {
        match self.weather {
            Weather::Wire(wire) => wire,
            Weather::Twice => Wire::Twice,
            Weather::Fine | Weather::Declines(_) | Weather::Gateway(_) | Weather::RefundRefused => Wire::Fine,
        }
    }

    pub(crate) fn ledger(self) -> Ledger {
        let ledger = Ledger::default();
        match self.weather {
            Weather::Declines(code) => ledger.declines(code),
            Weather::Gateway(mood) => ledger.set_mood(mood),
            Weather::RefundRefused => ledger.refuses_refunds(1),
            Weather::Twice => ledger.calls_come_twice(),
            Weather::Fine | Weather::Wire(_) => {}
        }
        ledger
    }

    pub(crate) fn plan(self) -> Arc<Plan> {
        Plan::new(match self.deed {
            Deed::None => None,
            Deed::Cancels(spot) => Some((spot, Act::Cancel)),
            Deed::WritesOff(spot) => Some((spot, Act::WriteOff)),
        })
    }

    /// The world for this script, and the instance that drives first.
    pub(crate) async fn world(self, on: On) -> (World, OrderInstance) {
        let world = World::new(on, self.wire(), self.ledger(), self.plan()).await;
        let order = world.order_instance("order-1");
        world.advance(crate::world::LEASE);
        (world, order)
    }

    /// Checks the final state.
    pub(crate) async fn has_ended_right(self, world: &World, how: &str) {
        let (state, failure) = (world.state().await, world.failure().await);
        let said = format!("{self:?}, {how}: {state:?} {failure:?}");
        assert_eq!(world.broken(), [""; 0], "{said}");
        let report = world.report().await;
        assert!(report.is_clean(), "{said}: {report}");
        assert_eq!((report.orders(), report.unfinished), (1, 0), "{said}");
        assert!(world.ledger.taken() <= 1, "{said}: charged {} times", world.ledger.taken());
        let written_off = matches!(self.deed, Deed::WritesOff(_)) && state == State::Cancelled;
        if world.api.cancelled.get().is_some() || written_off {
            // An order whose cancellation was acknowledged is cancelled.
            assert_eq!(state, State::Cancelled, "{said}");
            return;
        }
        let reason = failure.map(|failure| failure.reason);
        match self.weather {
            Weather::Declines(_) => {
                assert_eq!((state, reason.as_deref()), (State::PaymentFailed, Some("PAYMENT_DECLINED")), "{said}");
            }
            Weather::Gateway(Mood::NeverCharges) => {
                assert_eq!((state, reason.as_deref()), (State::PaymentFailed, Some("GATEWAY_TIMEOUT")), "{said}");
            }
            Weather::Fine | Weather::Gateway(_) | Weather::Wire(_) | Weather::RefundRefused | Weather::Twice => {
                assert_eq!(state, State::FulfillmentStarted, "{said}");
            }
        }
    }
}
