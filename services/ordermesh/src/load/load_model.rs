//! Closed loop: a number of customers, each with one order at a time. Open loop: orders at a fixed rate, independent of
//! earlier ones; an order's latency counts from its scheduled start, so that a stalled system does not receive less
//! load (no coordinated omission).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::load::Load;

/// Maximum number of orders in flight in an open loop: beyond it orders start late, which their latency includes.
const MAX_IN_FLIGHT: usize = 20_000;

/// How orders are paced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LoadModel {
    /// Number of concurrent customers.
    Closed { customers: u32 },
    /// Orders per second.
    Open { rate: u32 },
}

impl fmt::Display for LoadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { customers } => write!(f, "{customers} customers in a closed loop"),
            Self::Open { rate } => write!(f, "{rate} orders per second in an open loop"),
        }
    }
}

/// The number of orders, and the duration. With neither, orders are placed until `stop`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StopCondition {
    pub(crate) orders: Option<u64>,
    pub(crate) duration: Option<Duration>,
}

/// Hands out order numbers until the stop condition is met.
struct OrderSequence {
    next: AtomicU64,
    until: StopCondition,
    start: Instant,
    stop: CancellationToken,
}

impl OrderSequence {
    fn next(&self) -> Option<u64> {
        let is_over = self.stop.is_cancelled() || self.until.duration.is_some_and(|max| self.start.elapsed() >= max);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (!is_over && self.until.orders.is_none_or(|max| number < max)).then_some(number)
    }
}

pub(crate) async fn place(load: &Load, model: LoadModel, until: StopCondition, stop: CancellationToken) {
    let sequence =
        Arc::new(OrderSequence { next: AtomicU64::new(0), until, start: Instant::now(), stop: stop.clone() });
    match model {
        LoadModel::Closed { customers } => closed(load, customers, &sequence).await,
        LoadModel::Open { rate } => open(load, rate, &sequence, &stop).await,
    }
}

async fn closed(load: &Load, customers: u32, sequence: &Arc<OrderSequence>) {
    let mut all = JoinSet::new();
    for _ in 0..customers {
        let (load, sequence) = (load.clone(), sequence.clone());
        all.spawn(async move {
            while let Some(number) = sequence.next() {
                one(&load, number, Instant::now()).await;
            }
        });
    }
    while all.join_next().await.is_some() {}
}

async fn open(load: &Load, rate: u32, sequence: &Arc<OrderSequence>, stop: &CancellationToken) {
    let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let mut all = JoinSet::new();
    let start = Instant::now();
    while let Some(number) = sequence.next() {
        let intended = start + Duration::from_secs_f64(1.0 / f64::from(rate)).mul_f64(number as f64);
        if stop.run_until_cancelled(tokio::time::sleep_until(intended.into())).await.is_none() {
            break;
        }
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        let load = load.clone();
        all.spawn(async move {
            one(&load, number, intended).await;
            drop(permit);
        });
        while all.try_join_next().is_some() {}
    }
    while all.join_next().await.is_some() {}
}

/// Places order number `number`: its customer's behaviour depends only on the seed and the number.
async fn one(load: &Load, number: u64, intended: Instant) {
    let mut random = StdRng::seed_from_u64(load.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let index = usize::try_from(number).unwrap_or(0) % load.accounts.len();
    let behaviour = load.mix.draw(&mut random);
    load.placer.order(&load.accounts[index], behaviour, random, intended).await;
}
