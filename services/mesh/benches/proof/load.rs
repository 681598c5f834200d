//! Calls in an open loop: each begins at its scheduled time, answered or not, and its latency counts from then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hdrhistogram::Histogram;
use mesh::Channel;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::instance::{LOOK, ONCE};

/// The methods that are called.
#[derive(Clone, Copy)]
pub(crate) enum Mix {
    /// The retryable method and the other one, alternately.
    Both,
    /// The retryable method.
    Repeatable,
}

/// The failures of one method: code and reason, and their count.
pub(crate) type Failures = BTreeMap<String, u64>;

/// The outcomes of the calls.
pub(crate) struct Outcome {
    /// Microseconds of all calls, including failed ones.
    pub(crate) took: Histogram<u64>,
    pub(crate) repeatable_failed: Failures,
    pub(crate) once_failed: Failures,
}

impl Outcome {
    pub(crate) fn new() -> Self {
        let took = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
        Self { took, repeatable_failed: Failures::new(), once_failed: Failures::new() }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.took.len()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.took.add(&other.took).expect("alike");
        for (all, more) in
            [(&mut self.repeatable_failed, &other.repeatable_failed), (&mut self.once_failed, &other.once_failed)]
        {
            more.iter().for_each(|(how, often)| *all.entry(how.clone()).or_default() += often);
        }
    }

    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        self.took.value_at_quantile(quantile) as f64 / 1_000.0
    }

    fn record(&mut self, path: &str, took: Duration, failure: Option<Status>) {
        self.took.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let Some(status) = failure else { return };
        let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
        let how = format!("{:?} {}", status.code(), reason.unwrap_or_default());
        let failed = if path == ONCE { &mut self.once_failed } else { &mut self.repeatable_failed };
        *failed.entry(how).or_default() += 1;
    }
}

/// Calls that are made until they are stopped.
pub(crate) struct Running {
    stop: CancellationToken,
    pacing: JoinHandle<()>,
    outcome: Arc<Mutex<Outcome>>,
}

impl Running {
    pub(crate) fn start(channel: &Channel, calls_per_second: u32, mix: Mix) -> Self {
        let (stop, outcome) = (CancellationToken::new(), Arc::new(Mutex::new(Outcome::new())));
        let pacing = tokio::spawn(pace(channel.clone(), calls_per_second, mix, stop.clone(), outcome.clone()));
        Self { stop, pacing, outcome }
    }

    /// Begins no more calls; returns when the last one is complete.
    pub(crate) async fn stop(self) -> Outcome {
        self.stop.cancel();
        self.pacing.await.expect("no panic");
        let mut outcome = self.outcome.lock().expect("not poisoned");
        std::mem::replace(&mut *outcome, Outcome::new())
    }
}

/// Makes calls for a duration.
pub(crate) async fn run(channel: &Channel, calls_per_second: u32, mix: Mix, time: Duration) -> Outcome {
    let running = Running::start(channel, calls_per_second, mix);
    tokio::time::sleep(time).await;
    running.stop().await
}

async fn pace(
    channel: Channel,
    calls_per_second: u32,
    mix: Mix,
    stop: CancellationToken,
    outcome: Arc<Mutex<Outcome>>,
) {
    let calls = TaskTracker::new();
    let (begin, apart) = (Instant::now(), Duration::from_secs(1) / calls_per_second);
    for number in 0.. {
        let its_time = begin + apart * number;
        if stop.run_until_cancelled(sleep_until(its_time)).await.is_none() {
            break;
        }
        let path = match mix {
            Mix::Both if number % 2 == 1 => ONCE,
            Mix::Both | Mix::Repeatable => LOOK,
        };
        let (channel, outcome) = (channel.clone(), outcome.clone());
        calls.spawn(async move {
            let failure = call(channel, path).await.err();
            let took = its_time.elapsed();
            outcome.lock().expect("not poisoned").record(path, took, failure);
        });
    }
    calls.close();
    calls.wait().await;
}

async fn call(channel: Channel, path: &'static str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static(path);
    let codec = ProstCodec::<String, String>::default();
    let answer = client.unary(Request::new("hello".to_owned()), path, codec).await?;
    assert_eq!(answer.get_ref(), "hello");
    Ok(())
}
