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
const MOST_IN_FLIGHT: usize = 20_000;

/// How orders are paced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    /// Number of concurrent customers.
    Closed { customers: u32 },
    /// Orders per second.
    Open { rate: u32 },
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { customers } => write!(f, "{customers} customers in a closed loop"),
            Self::Open { rate } => write!(f, "{rate} orders per second in an open loop"),
        }
    }
}

/// The number of orders, and the duration. With neither, orders are placed until `stop`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Amount {
    pub(crate) orders: Option<u64>,
    pub(crate) duration: Option<Duration>,
}

/// Hands out order numbers until the amount is reached.
struct Tickets {
    next: AtomicU64,
    amount: Amount,
    start: Instant,
    stop: CancellationToken,
}

impl Tickets {
    fn next(&self) -> Option<u64> {
        let is_over = self.stop.is_cancelled() || self.amount.duration.is_some_and(|most| self.start.elapsed() >= most);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (!is_over && self.amount.orders.is_none_or(|most| number < most)).then_some(number)
    }
}

pub(crate) async fn place(load: &Load, pace: Pace, amount: Amount, stop: CancellationToken) {
    let tickets = Arc::new(Tickets { next: AtomicU64::new(0), amount, start: Instant::now(), stop: stop.clone() });
    match pace {
        Pace::Closed { customers } => closed(load, customers, &tickets).await,
        Pace::Open { rate } => open(load, rate, &tickets, &stop).await,
    }
}

async fn closed(load: &Load, customers: u32, tickets: &Arc<Tickets>) {
    let mut all = JoinSet::new();
    for _ in 0..customers {
        let (load, tickets) = (load.clone(), tickets.clone());
        all.spawn(async move {
            while let Some(number) = tickets.next() {
                one(&load, number, Instant::now()).await;
            }
        });
    }
    while all.join_next().await.is_some() {}
}

async fn open(load: &Load, rate: u32, tickets: &Arc<Tickets>, stop: &CancellationToken) {
    let slots = Arc::new(Semaphore::new(MOST_IN_FLIGHT));
    let mut all = JoinSet::new();
    let start = Instant::now();
    while let Some(number) = tickets.next() {
        let intended = start + Duration::from_secs_f64(1.0 / f64::from(rate)).mul_f64(number as f64);
        if stop.run_until_cancelled(tokio::time::sleep_until(intended.into())).await.is_none() {
            break;
        }
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let load = load.clone();
        all.spawn(async move {
            one(&load, number, intended).await;
            drop(slot);
        });
        while all.try_join_next().is_some() {}
    }
    while all.join_next().await.is_some() {}
}

/// Places order number `number`: its customer's behaviour depends only on the seed and the number.
async fn one(load: &Load, number: u64, intended: Instant) {
    let mut random = StdRng::seed_from_u64(load.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let index = usize::try_from(number).unwrap_or(0) % load.accounts.len();
    let deed = load.mix.draw(&mut random);
    load.shop.order(&load.accounts[index], deed, random, intended).await;
}
