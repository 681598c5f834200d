//! Injects faults at the drivers' fault points: a crash, a cancellation, a stall, a write-off of stock. The promises
//! are verified at each of them.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kernel::{FaultPoint, FaultSite, Faults};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::system::Api;

/// A fault point of the order's or the payment's driver: service, point, state.
pub(crate) type Spot = (&'static str, FaultPoint, &'static str);

/// A fault or an action at a fault point, once.
#[derive(Clone, Debug)]
pub(crate) enum Injection {
    /// The driver's process crashes.
    Crash,
    Cancel,
    /// The stock is written off.
    WriteOff,
    /// The driver stalls until it is resumed.
    Stall,
}

/// The plan of a run. Each injection is performed once, when its fault point is first visited.
#[derive(Default)]
pub(crate) struct InjectionPlan {
    injections: Mutex<VecDeque<(Spot, Injection)>>,
    visited: Mutex<BTreeSet<Spot>>,
    crashed: watch::Sender<BTreeSet<String>>,
    stalled: watch::Sender<Option<String>>,
    gate: Notify,
    /// Verifies the promises and performs actions: set once there is a system.
    pub(crate) api: Mutex<Option<Api>>,
}

impl InjectionPlan {
    pub(crate) fn new(injections: impl IntoIterator<Item = (Spot, Injection)>) -> Arc<Self> {
        Arc::new(Self { injections: Mutex::new(injections.into_iter().collect()), ..Self::default() })
    }

    pub(crate) fn add(&self, spot: Spot, injection: Injection) {
        self.injections.lock().push_back((spot, injection));
    }

    /// The fault points visited.
    pub(crate) fn visited(&self) -> BTreeSet<Spot> {
        self.visited.lock().clone()
    }

    /// Whether every planned injection was performed.
    pub(crate) fn is_over(&self) -> bool {
        self.injections.lock().is_empty()
    }

    /// Drops the injections that were not performed.
    pub(crate) fn forget(&self) {
        self.injections.lock().clear();
    }

    pub(crate) fn has_crashed(&self, instance: &str) -> bool {
        self.crashed.borrow().contains(instance)
    }

    /// Its process was restarted.
    pub(crate) fn restarted(&self, instance: &str) {
        self.crashed.send_modify(|crashed| {
            crashed.remove(instance);
        });
    }

    pub(crate) fn is_stalled(&self, instance: &str) -> bool {
        self.stalled.borrow().as_deref() == Some(instance)
    }

    pub(crate) fn is_any_stalled(&self) -> bool {
        self.stalled.borrow().is_some()
    }

    /// Completes when this instance has crashed or stalled.
    pub(crate) async fn is_gone(&self, instance: &str) {
        let (mut crashed, mut stalled) = (self.crashed.subscribe(), self.stalled.subscribe());
        tokio::select! {
            _ = crashed.wait_for(|crashed| crashed.contains(instance)) => {}
            _ = stalled.wait_for(|stalled| stalled.as_deref() == Some(instance)) => {}
        }
    }

    /// Completes when this instance has stalled.
    pub(crate) async fn is_stalled_now(&self, instance: &str) {
        let mut stalled = self.stalled.subscribe();
        let _ = stalled.wait_for(|stalled| stalled.as_deref() == Some(instance)).await;
    }

    /// Resumes the stalled driver, which runs to its end without another stall.
    pub(crate) fn resume(&self) {
        self.injections.lock().retain(|(_, injection)| !matches!(injection, Injection::Stall));
        self.stalled.send_replace(None);
        self.gate.notify_one();
    }

    fn take(&self, spot: Spot) -> Vec<Injection> {
        self.visited.lock().insert(spot);
        let mut injections = self.injections.lock();
        let mut taken = Vec::new();
        while let Some(index) = injections.iter().position(|(at, _)| *at == spot) {
            let Some((_, injection)) = injections.remove(index) else { break };
            let ends = matches!(injection, Injection::Crash | Injection::Stall);
            taken.push(injection);
            // A second one here is for the next driver that visits this point: a driver stalls once.
            if ends {
                break;
            }
        }
        taken
    }
}

impl Faults for InjectionPlan {
    fn at<'a>(&'a self, site: FaultSite<'a>) -> BoxFuture<'a, ControlFlow<()>> {
        Box::pin(async move {
            let service = if site.instance.starts_with("order") { "order" } else { "payment" };
            let spot = (service, site.point, site.state);
            let api = self.api.lock().clone().expect("a system");
            api.check(&format!("{} comes to {spot:?}", site.instance)).await;
            for injection in self.take(spot) {
                match injection {
                    Injection::Crash => {
                        self.crashed.send_modify(|crashed| {
                            crashed.insert(site.instance.to_owned());
                        });
                        return ControlFlow::Break(());
                    }
                    Injection::Cancel => api.cancel().await,
                    Injection::WriteOff => api.write_off().await,
                    // One driver is stalled at a time.
                    Injection::Stall if self.is_any_stalled() => {}
                    Injection::Stall => {
                        self.stalled.send_replace(Some(site.instance.to_owned()));
                        self.gate.notified().await;
                    }
                }
            }
            ControlFlow::Continue(())
        })
    }
}
