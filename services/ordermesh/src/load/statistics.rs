//! What the customers observed: latencies, final states, rejected calls, retries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel::OrderId;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value, json};

use crate::load::mix::{Behaviour, Mix};
use crate::plot::{Plot, Sample};
use crate::promises::Report;

/// The reported quantiles.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

struct Inner {
    /// In microseconds, from an order's start to its acknowledgement, retries included. In an open loop the start is the
    /// scheduled one.
    acknowledged: Histogram<u64>,
    /// The same, to its final state.
    finished: Histogram<u64>,
    logins: Histogram<u64>,
    ends: BTreeMap<(Behaviour, String), u64>,
    rejections: BTreeMap<String, u64>,
    retries: u64,
    rewatches: u64,
    unexpected: u64,
    orders: Vec<OrderId>,
    samples: Option<Samples>,
}

/// Each observation, for a plot.
struct Samples {
    start: Instant,
    acknowledged: Vec<Sample>,
    finished: Vec<Sample>,
}

/// What all customers observed. Clones share it.
#[derive(Clone)]
pub(crate) struct Statistics(Arc<Mutex<Inner>>);

impl Default for Statistics {
    fn default() -> Self {
        let histogram = || Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits are allowed"));
        Self(Arc::new(Mutex::new(Inner {
            acknowledged: histogram(),
            finished: histogram(),
            logins: histogram(),
            ends: BTreeMap::new(),
            rejections: BTreeMap::new(),
            retries: 0,
            rewatches: 0,
            unexpected: 0,
            orders: Vec::new(),
            samples: None,
        })))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Statistics {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// From now on keeps each observation, for [`Self::plot`].
    pub(crate) fn keep_samples(&self) {
        self.lock().samples = Some(Samples { start: Instant::now(), acknowledged: vec![], finished: vec![] });
    }

    /// The observations over time, from [`Self::keep_samples`] to `end`.
    pub(crate) fn plot(&self, title: String, end: Instant, marks: &[(Instant, &'static str)]) -> Plot {
        let mut inner = self.lock();
        let Some(samples) = inner.samples.take() else { return Plot::default() };
        Plot {
            title,
            took: end.saturating_duration_since(samples.start),
            marks: marks.iter().map(|(at, kind)| (at.saturating_duration_since(samples.start), *kind)).collect(),
            acknowledged: samples.acknowledged,
            finished: samples.finished,
        }
    }

    /// An order was acknowledged.
    pub(crate) fn acknowledged_after(&self, order: OrderId, latency: Duration) {
        let mut inner = self.lock();
        // An auto-resizing histogram accepts any value.
        let _ = inner.acknowledged.record(micros(latency));
        if let Some(samples) = &mut inner.samples {
            samples.acknowledged.push(Sample { at: samples.start.elapsed(), latency });
        }
        inner.orders.push(order);
    }

    /// Records an order's outcome: its final state, or that it was not created or not observed to its end.
    pub(crate) fn ended(&self, behaviour: Behaviour, end: &str, latency: Option<Duration>, is_unexpected: bool) {
        let mut inner = self.lock();
        if let Some(latency) = latency {
            let _ = inner.finished.record(micros(latency));
            if let Some(samples) = &mut inner.samples {
                samples.finished.push(Sample { at: samples.start.elapsed(), latency });
            }
        }
        *inner.ends.entry((behaviour, end.to_owned())).or_default() += 1;
        inner.unexpected += u64::from(is_unexpected);
    }

    /// A call was rejected.
    pub(crate) fn rejected(&self, why: String) {
        *self.lock().rejections.entry(why).or_default() += 1;
    }

    /// A call was retried.
    pub(crate) fn retried(&self) {
        self.lock().retries += 1;
    }

    /// A watch broke and was resumed.
    pub(crate) fn rewatched(&self) {
        self.lock().rewatches += 1;
    }

    pub(crate) fn logged_in(&self, latency: Duration) {
        let _ = self.lock().logins.record(micros(latency));
    }

    /// The number of orders with an unexpected outcome. With `--scarce` INSUFFICIENT_STOCK is expected; under chaos any
    /// order may be rejected, and any final state is.
    pub(crate) fn unexpected(&self) -> u64 {
        self.lock().unexpected
    }

    /// Every acknowledged order.
    pub(crate) fn acknowledged(&self) -> Vec<OrderId> {
        self.lock().orders.clone()
    }

    /// The numbers of acknowledged and finished orders so far.
    pub(crate) fn so_far(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.acknowledged.len(), inner.finished.len())
    }

    pub(crate) fn summary(&self, took: Duration) -> Summary {
        let inner = self.lock();
        Summary {
            took,
            latencies: vec![
                ("acknowledged", inner.acknowledged.clone()),
                ("finished", inner.finished.clone()),
                ("log-ins", inner.logins.clone()),
            ],
            ends: inner.ends.clone(),
            rejections: inner.rejections.clone(),
            retries: inner.retries,
            rewatches: inner.rewatches,
        }
    }
}

/// The results of a run.
pub(crate) struct Summary {
    took: Duration,
    latencies: Vec<(&'static str, Histogram<u64>)>,
    ends: BTreeMap<(Behaviour, String), u64>,
    rejections: BTreeMap<String, u64>,
    retries: u64,
    rewatches: u64,
}

fn per_second(count: u64, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    Duration::from_micros(histogram.value_at_quantile(quantile)).as_secs_f64() * 1_000.0
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "took {:.1} s", self.took.as_secs_f64())?;
        for (what, histogram) in self.latencies.iter().filter(|(_, histogram)| !histogram.is_empty()) {
            write!(f, "{what:<13} {:>8} {:>7.0}/s  ", histogram.len(), per_second(histogram.len(), self.took))?;
            for (name, quantile) in QUANTILES {
                write!(f, " {name} {:.1}", ms(histogram, quantile))?;
            }
            writeln!(f, " ms")?;
        }
        for ((behaviour, end), count) in &self.ends {
            writeln!(f, "{count:>8} {:<9} {end}", behaviour.name())?;
        }
        for (why, count) in &self.rejections {
            writeln!(f, "{count:>8} refused   {why}")?;
        }
        write!(f, "{:>8} retries, {} watches resumed", self.retries, self.rewatches)
    }
}

impl Summary {
    /// The results as JSON.
    pub(crate) fn json(&self, seed: u64, mix: &Mix, report: Option<&Report>) -> Value {
        let latencies: Map<String, Value> = self
            .latencies
            .iter()
            .map(|(what, histogram)| {
                let mut figures = Map::new();
                figures.insert("count".to_owned(), histogram.len().into());
                figures.insert("per_second".to_owned(), per_second(histogram.len(), self.took).into());
                for (name, quantile) in QUANTILES {
                    figures.insert(format!("{name}_ms"), ms(histogram, quantile).into());
                }
                ((*what).to_owned(), Value::Object(figures))
            })
            .collect();
        let ends: Vec<Value> = self
            .ends
            .iter()
            .map(|((behaviour, end), count)| json!({ "deed": behaviour.name(), "end": end, "count": count }))
            .collect();
        let violations: Option<Vec<String>> =
            report.map(|report| report.violations.iter().map(ToString::to_string).collect());
        json!({
            "seed": seed,
            "mix": mix.to_string(),
            "seconds": self.took.as_secs_f64(),
            "latencies": latencies,
            "ends": ends,
            "refusals": self.rejections,
            "tries_again": self.retries,
            "violations": violations,
        })
    }
}
