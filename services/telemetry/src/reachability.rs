//! Export failures: logged once when an exporter begins to fail, and once when it recovers, with signal and endpoint
//! but never with headers, which may contain secrets. The SDK's own log lines, one for each failed batch, are filtered
//! out (see [`crate::log::filter`]).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;

use crate::environment::{Signal, Target};

/// A flapping exporter logs two lines in this time, not two for each batch.
const QUIET: Duration = Duration::from_secs(60);

/// The cause of the last failure where the exporter's error lacks it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cause(Arc<Mutex<String>>);

impl Cause {
    pub(crate) fn set(&self, cause: String) {
        *self.0.lock() = cause;
    }

    fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock())
    }
}

/// The change that an export's result is; failures with their error.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ExportTransition {
    None,
    Failing(String),
    /// The collector reports that it does not accept the signal.
    Unsupported(String),
    Recovered,
}

#[derive(Debug, Default)]
struct State {
    is_failing: bool,
    /// When it was last logged that exports fail.
    logged: Option<Instant>,
}

/// The state of one exporter.
pub(crate) struct Reachability {
    signal: Signal,
    endpoint: String,
    cause: Cause,
    state: Mutex<State>,
}

impl Reachability {
    pub(crate) fn new(target: &Target, cause: Cause) -> Self {
        Self { signal: target.signal, endpoint: target.masked(), cause, state: Mutex::default() }
    }

    fn observe(&self, result: &OTelSdkResult) {
        let (signal, endpoint) = (self.signal.name(), self.endpoint.as_str());
        match self.transition(result, Instant::now()) {
            ExportTransition::None => {}
            ExportTransition::Failing(error) => {
                tracing::warn!(target: "ordermesh", signal, endpoint, error, "OTLP export is failing: {signal} are dropped until it recovers");
            }
            // INFO: a collector that accepts only traces, such as Jaeger, is a usual set-up.
            ExportTransition::Unsupported(error) => {
                let variable = format!("OTEL_{}_EXPORTER", signal.to_uppercase());
                tracing::info!(target: "ordermesh", signal, endpoint, error, "the collector does not accept {signal}: set {variable}=none");
            }
            // As visible as the failure, also with a filter of `warn`.
            ExportTransition::Recovered => {
                tracing::warn!(target: "ordermesh", signal, endpoint, "OTLP export has recovered: {signal} are exported again");
            }
        }
    }

    fn transition(&self, result: &OTelSdkResult, now: Instant) -> ExportTransition {
        let mut state = self.state.lock();
        match result {
            Ok(()) if state.is_failing => {
                state.is_failing = false;
                ExportTransition::Recovered
            }
            Ok(()) | Err(OTelSdkError::AlreadyShutdown) => ExportTransition::None,
            Err(_) if state.is_failing => ExportTransition::None,
            Err(_) if state.logged.is_some_and(|logged| now.duration_since(logged) < QUIET) => ExportTransition::None,
            Err(error) => {
                *state = State { is_failing: true, logged: Some(now) };
                let cause = self.cause.take();
                let error = if cause.is_empty() { error.to_string() } else { format!("{error}: {cause}") };
                if self.signal != Signal::Traces && is_unsupported(&error) {
                    return ExportTransition::Unsupported(error);
                }
                ExportTransition::Failing(error)
            }
        }
    }
}

/// The exporters' errors have the collector's response as text only.
fn is_unsupported(error: &str) -> bool {
    error.contains("gRPC code: Unimplemented") || error.contains("status code: 404")
}

/// An exporter whose results are observed.
pub(crate) struct Observed<E> {
    exporter: E,
    reachability: Reachability,
}

impl<E> Observed<E> {
    pub(crate) fn new(exporter: E, reachability: Reachability) -> Self {
        Self { exporter, reachability }
    }
}

impl<E> fmt::Debug for Observed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("endpoint", &self.reachability.endpoint).finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Observed<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        self.reachability.observe(&result);
        result
    }
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }
    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Observed<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        self.reachability.observe(&result);
        result
    }
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Observed<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.exporter.export(metrics).await;
        self.reachability.observe(&result);
        result
    }
    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;

    fn reachability(signal: Signal) -> Reachability {
        let endpoint = "http://collector:4317";
        let environment = Environment::read(Some(("the endpoint", endpoint)), |_| None).expect("an environment");
        let target = match signal {
            Signal::Traces => environment.traces,
            Signal::Metrics => environment.metrics,
            Signal::Logs => environment.logs,
        };
        Reachability::new(&target.expect("a target"), Cause::default())
    }

    fn failure(text: &str) -> OTelSdkResult {
        Err(OTelSdkError::InternalFailure(text.to_owned()))
    }

    #[test]
    fn a_failure_is_logged_once_and_its_end_once() {
        let traces = reachability(Signal::Traces);
        let now = Instant::now();
        assert_eq!(traces.transition(&Ok(()), now), ExportTransition::None);
        assert!(
            matches!(traces.transition(&failure("refused"), now), ExportTransition::Failing(error) if error.contains("refused"))
        );
        for _ in 0..3 {
            assert_eq!(traces.transition(&failure("refused"), now + QUIET * 2), ExportTransition::None);
        }
        assert_eq!(traces.transition(&Ok(()), now), ExportTransition::Recovered);
        assert_eq!(traces.transition(&Ok(()), now), ExportTransition::None);
        assert_eq!(traces.transition(&Err(OTelSdkError::AlreadyShutdown), now + QUIET * 2), ExportTransition::None);
    }

    #[test]
    fn a_flapping_exporter_logs_two_lines_a_minute() {
        let traces = reachability(Signal::Traces);
        let now = Instant::now();
        let transition =
            |second: u64, result: OTelSdkResult| traces.transition(&result, now + Duration::from_secs(second));
        let of_a_minute =
            (0..60).map(|second| transition(second, if second % 2 == 0 { failure("refused") } else { Ok(()) }));
        assert_eq!(of_a_minute.filter(|transition| *transition != ExportTransition::None).count(), 2);
        assert!(
            matches!(transition(60, failure("refused")), ExportTransition::Failing(_)),
            "a failure that lasts is logged again"
        );
    }

    #[test]
    fn the_cause_is_logged_although_the_exporters_error_lacks_it() {
        let traces = reachability(Signal::Traces);
        traces.cause.set("unknown issuer".to_owned());
        let transition = traces.transition(&failure("network error"), Instant::now());
        assert!(
            matches!(&transition, ExportTransition::Failing(error) if error.ends_with("network error: unknown issuer")),
            "{transition:?}"
        );
    }

    #[test]
    fn a_collector_without_metrics_and_logs_is_no_failure() {
        for text in
            ["TonicLogsClient export failed with gRPC code: Unimplemented", "HTTP export failed with status code: 404"]
        {
            for (signal, is_failure) in [(Signal::Traces, true), (Signal::Metrics, false), (Signal::Logs, false)] {
                let transition = reachability(signal).transition(&failure(text), Instant::now());
                assert_eq!(
                    matches!(transition, ExportTransition::Failing(_)),
                    is_failure,
                    "{signal:?}: {transition:?}"
                );
                assert_eq!(
                    matches!(transition, ExportTransition::Unsupported(_)),
                    !is_failure,
                    "{signal:?}: {transition:?}"
                );
            }
        }
    }
}
