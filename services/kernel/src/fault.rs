//! Fault points at which a driver can be crashed or delayed: an argument, so that tests can inject a crash at each of
//! them.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;

use crate::id::OrderId;

/// A point in a driver's work on one effect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FaultPoint {
    /// The effect has not been requested.
    BeforeEffect,
    /// The effect was performed, but is not recorded.
    AfterEffect,
    /// The result is recorded, and nothing else was done since.
    AfterRecord,
}

/// All fault points, in order.
pub const FAULT_POINTS: [FaultPoint; 3] = [FaultPoint::BeforeEffect, FaultPoint::AfterEffect, FaultPoint::AfterRecord];

/// A fault point that a driver has reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultSite<'a> {
    /// The name of the driver's instance.
    pub instance: &'a str,
    /// The point in its work.
    pub point: FaultPoint,
    /// The state of the order or payment, as the driver knows it.
    pub state: &'static str,
    /// The order.
    pub order: OrderId,
}

/// Fault injection at a point. It is awaited, so it can also delay the driver.
pub trait Faults: Send + Sync + 'static {
    /// `Break`: the driver stops here and leaves everything as it is, as if its process had crashed.
    fn at<'a>(&'a self, site: FaultSite<'a>) -> Pin<Box<dyn Future<Output = ControlFlow<()>> + Send + 'a>>;
}

/// No faults: production.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn at<'a>(&'a self, _site: FaultSite<'a>) -> Pin<Box<dyn Future<Output = ControlFlow<()>> + Send + 'a>> {
        Box::pin(std::future::ready(ControlFlow::Continue(())))
    }
}
