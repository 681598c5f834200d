//! Random interleavings: cancellations, confirmations, retries, two drivers one after the other and concurrently, clock
//! jumps, crashes, stalls, and a gateway whose failure mode changes. A failing run is printed with its seed, and the
//! seed is kept in `random.regressions` next to this file: such seeds are run first.

use std::time::Duration;

use kernel::FAULT_POINTS;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestCaseError};

use crate::faults::{Injection, InjectionPlan, Spot};
use crate::gateway::{FailureMode, Ledger};
use crate::system::{LEASE, On, OrderInstance, System, Wire};

/// A step of a run.
#[derive(Clone, Debug)]
enum Step {
    Cancel,
    Retry,
    Confirm,
    WriteOff,
    /// One of the two drivers polls once.
    Drive(bool),
    /// Both poll concurrently.
    DriveBoth,
    MakeDue,
    Advance(u16),
    FailureMode(FailureMode),
    RefuseRefunds(usize),
    Crash(Spot),
    Stall(Spot),
    Resume,
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

fn step() -> impl Strategy<Value = Step> {
    let modes = [
        FailureMode::None,
        FailureMode::NoResponseOnce,
        FailureMode::ResponseLostOnce,
        FailureMode::NeverCharges,
        FailureMode::ChargeResponsesLost,
    ]
    .to_vec();
    prop_oneof![
        2 => Just(Step::Cancel),
        1 => Just(Step::Retry),
        2 => Just(Step::Confirm),
        1 => Just(Step::WriteOff),
        6 => any::<bool>().prop_map(Step::Drive),
        3 => Just(Step::DriveBoth),
        5 => Just(Step::MakeDue),
        2 => (1_u16..600).prop_map(Step::Advance),
        3 => prop::sample::select(modes).prop_map(Step::FailureMode),
        1 => (0_usize..3).prop_map(Step::RefuseRefunds),
        3 => spot().prop_map(Step::Crash),
        2 => spot().prop_map(Step::Stall),
        2 => Just(Step::Resume),
        3 => any::<bool>().prop_map(Step::Replace),
    ]
}

struct Run {
    system: System,
    drivers: [OrderInstance; 2],
}

impl Run {
    async fn new() -> Self {
        let system = System::new(On::Memory, Wire::Fine, Ledger::default(), InjectionPlan::new([])).await;
        let drivers = ["order-1", "order-2"].map(|name| system.order_instance(name));
        system.advance(LEASE);
        Self { system, drivers }
    }

    async fn apply(&mut self, step: &Step) {
        let Self { system, drivers } = self;
        match step {
            Step::Cancel => system.api.cancel().await,
            Step::Retry => system.api.retry().await,
            Step::Confirm => system.confirm().await,
            Step::WriteOff => system.api.write_off().await,
            Step::Drive(second) => system.drive_once(&drivers[usize::from(*second)]).await,
            Step::DriveBoth => {
                tokio::join!(system.drive_once(&drivers[0]), system.drive_once(&drivers[1]));
            }
            Step::MakeDue => system.make_due(),
            Step::Advance(seconds) => system.advance(Duration::from_secs((*seconds).into())),
            Step::FailureMode(failure_mode) => system.ledger.set_failure_mode(*failure_mode),
            Step::RefuseRefunds(count) => system.ledger.refuse_refunds(*count),
            Step::Crash(spot) => system.plan.add(*spot, Injection::Crash),
            Step::Stall(spot) if !system.has_stalled() => system.plan.add(*spot, Injection::Stall),
            Step::Stall(_) => {}
            Step::Resume if system.has_stalled() => system.resume().await,
            Step::Resume => {}
            Step::Replace(restarts) => {
                for driver in drivers {
                    system.replace_crashed(driver, *restarts).await;
                }
            }
        }
    }

    /// Ends all faults, and drives the order to its final state.
    async fn finish(mut self) -> Result<(), TestCaseError> {
        let system = &self.system;
        system.plan.forget();
        system.ledger.set_failure_mode(FailureMode::None);
        if system.has_stalled() {
            system.resume().await;
        }
        system.make_due();
        system.drive_to_completion(&mut self.drivers[0], false).await;
        let state = system.state().await;
        prop_assert_eq!(system.broken(), Vec::<String>::new());
        let report = system.report().await;
        prop_assert!(report.is_clean(), "{}", report);
        prop_assert!(order::lifecycle::is_final(state), "{:?}", state);
        prop_assert!(system.ledger.charge_count() <= 1);
        if system.api.cancelled.get().is_some() {
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
    fn the_promises_are_kept_in_random_interleavings(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut run = Run::new().await;
            for step in &steps {
                run.apply(step).await;
            }
            run.finish().await
        })?;
    }
}
