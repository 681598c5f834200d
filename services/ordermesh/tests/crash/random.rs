//! Random interleavings: cancellations, confirmations, retries, two drivers one after the other and concurrently, clock
//! jumps, crashes, stalls, and a gateway whose failure mode changes. A failing run is printed with its seed, and the
//! seed is kept in `random.regressions` next to this file: such seeds are run first.

use std::time::Duration;

use kernel::FAULT_POINTS;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestCaseError};

use crate::faults::{Act, Plan, Spot};
use crate::gateway::{Ledger, Mood};
use crate::world::{LEASE, On, OrderInstance, Wire, World};

/// A step of a run.
#[derive(Clone, Debug)]
enum Happening {
    Cancel,
    Retry,
    Confirm,
    WriteOff,
    /// One of the two drivers polls once.
    Drive(bool),
    /// Both poll concurrently.
    DriveBoth,
    Later,
    Advance(u16),
    Mood(Mood),
    RefuseRefunds(usize),
    Die(Spot),
    Stall(Spot),
    LetGo,
    Replace(bool),
}

const STATES: [(&str, &str); 13] = [
    ("order", "CREATED"),
    ("order", "CANCELLING"),
    ("order", "FULFILLMENT_STARTED"),
    ("order", "CANCELLED"),
    ("payment", "PENDING"),
    ("payment", "IN_DOUBT"),
    ("payment", "CANCELLING"),
    ("payment", "REFUNDING"),
    ("payment", "SUCCEEDED"),
    ("payment", "FAILED"),
    ("payment", "CANCELLED"),
    ("payment", "REFUNDED"),
    ("payment", "REFUND_REFUSED"),
];

fn spot() -> impl Strategy<Value = Spot> {
    let points = prop::sample::select(FAULT_POINTS.to_vec());
    (points, prop::sample::select(STATES.to_vec())).prop_map(|(point, (service, state))| (service, point, state))
}

fn happening() -> impl Strategy<Value = Happening> {
    let moods =
        [Mood::Fine, Mood::SilentOnce, Mood::AnswerLostOnce, Mood::NeverCharges, Mood::NeverAnswersCharges].to_vec();
    prop_oneof![
        2 => Just(Happening::Cancel),
        1 => Just(Happening::Retry),
        2 => Just(Happening::Confirm),
        1 => Just(Happening::WriteOff),
        6 => any::<bool>().prop_map(Happening::Drive),
        3 => Just(Happening::DriveBoth),
        5 => Just(Happening::Later),
        2 => (1_u16..600).prop_map(Happening::Advance),
        3 => prop::sample::select(moods).prop_map(Happening::Mood),
        1 => (0_usize..3).prop_map(Happening::RefuseRefunds),
        3 => spot().prop_map(Happening::Die),
        2 => spot().prop_map(Happening::Stall),
        2 => Just(Happening::LetGo),
        3 => any::<bool>().prop_map(Happening::Replace),
    ]
}

struct Run {
    world: World,
    drivers: [OrderInstance; 2],
}

impl Run {
    async fn new() -> Self {
        let world = World::new(On::Memory, Wire::Fine, Ledger::default(), Plan::new([])).await;
        let drivers = ["order-1", "order-2"].map(|name| world.order_instance(name));
        world.advance(LEASE);
        Self { world, drivers }
    }

    async fn happens(&mut self, happening: &Happening) {
        let Self { world, drivers } = self;
        match happening {
            Happening::Cancel => world.api.cancel().await,
            Happening::Retry => world.api.retry().await,
            Happening::Confirm => world.confirm().await,
            Happening::WriteOff => world.api.write_off().await,
            Happening::Drive(second) => world.drive_once(&drivers[usize::from(*second)]).await,
            Happening::DriveBoth => {
                tokio::join!(world.drive_once(&drivers[0]), world.drive_once(&drivers[1]));
            }
            Happening::Later => world.later(),
            Happening::Advance(seconds) => world.advance(Duration::from_secs((*seconds).into())),
            Happening::Mood(mood) => world.ledger.set_mood(*mood),
            Happening::RefuseRefunds(count) => world.ledger.refuses_refunds(*count),
            Happening::Die(spot) => world.plan.add(*spot, Act::Die),
            Happening::Stall(spot) if !world.is_standing() => world.plan.add(*spot, Act::Stall),
            Happening::Stall(_) => {}
            Happening::LetGo if world.is_standing() => world.let_go().await,
            Happening::LetGo => {}
            Happening::Replace(restarts) => {
                for driver in drivers {
                    world.replace_the_dead(driver, *restarts).await;
                }
            }
        }
    }

    /// Ends all faults, and drives the order to its final state.
    async fn heals(mut self) -> Result<(), TestCaseError> {
        let world = &self.world;
        world.plan.forget();
        world.ledger.set_mood(Mood::Fine);
        if world.is_standing() {
            world.let_go().await;
        }
        world.later();
        world.to_rest(&mut self.drivers[0], false).await;
        let state = world.state().await;
        prop_assert_eq!(world.broken(), Vec::<String>::new());
        let report = world.report().await;
        prop_assert!(report.is_clean(), "{}", report);
        prop_assert!(order::lifecycle::is_final(state), "{:?}", state);
        prop_assert!(world.ledger.taken() <= 1);
        if world.api.cancelled.get().is_some() {
            prop_assert_eq!(state, order::lifecycle::State::Cancelled);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        max_shrink_iters: 400,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_promises_are_kept_in_random_interleavings(happenings in prop::collection::vec(happening(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut run = Run::new().await;
            for happening in &happenings {
                run.happens(happening).await;
            }
            run.heals().await
        })?;
    }
}
