//! Places where a driver may be made to die on purpose: an argument, so that tests can let it die everywhere, or hold it up.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;

use crate::id::OrderId;

/// Where in its work on one effect a driver is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FaultPoint {
    /// The effect has not been asked for.
    BeforeEffect,
    /// The effect was performed, and nothing is recorded of it.
    AfterEffect,
    /// The result is recorded, and nothing after it has happened.
    AfterRecord,
}

/// All of them, in their order.
pub const FAULT_POINTS: [FaultPoint; 3] = [FaultPoint::BeforeEffect, FaultPoint::AfterEffect, FaultPoint::AfterRecord];

/// A point that a driver has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    /// Whose driver: its instance's name.
    pub instance: &'a str,
    /// Where in its work.
    pub point: FaultPoint,
    /// The state of what it works on, as it knows it.
    pub state: &'static str,
    /// The order.
    pub order: OrderId,
}

/// What happens there. It is awaited, so that it may also hold the driver up.
pub trait Faults: Send + Sync + 'static {
    /// `Break`: the driver stops here, and leaves everything as it is, as if its process had died.
    fn at<'a>(&'a self, place: Place<'a>) -> Pin<Box<dyn Future<Output = ControlFlow<()>> + Send + 'a>>;
}

/// No faults: production.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn at<'a>(&'a self, _place: Place<'a>) -> Pin<Box<dyn Future<Output = ControlFlow<()>> + Send + 'a>> {
        Box::pin(std::future::ready(ControlFlow::Continue(())))
    }
}
