//! Telemetry that would be exported: kept in memory, for the whole test binary.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use opentelemetry_sdk::trace::{SdkTracerProvider, SimpleSpanProcessor, SpanData, SpanExporter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spans")
    }
}

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().expect("not poisoned").extend(batch);
        Ok(())
    }
}

/// (instrument, attributes, value) of every histogram (its count), counter and gauge.
type Values = Vec<(String, String, u64)>;

#[derive(Clone, Default)]
struct Metrics(Arc<Mutex<Values>>);

impl PushMetricExporter for Metrics {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut values = Values::new();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let mut push = |facts: String, value: u64| values.push((metric.name().to_owned(), facts, value));
            match metric.data() {
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                    histogram.data_points().for_each(|point| push(facts(point.attributes()), point.count()));
                }
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    sum.data_points().for_each(|point| push(facts(point.attributes()), point.value()));
                }
                AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                    let value = |value: i64| u64::try_from(value).expect("no negative value here");
                    sum.data_points().for_each(|point| push(facts(point.attributes()), value(point.value())));
                }
                AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                    gauge.data_points().for_each(|point| push(facts(point.attributes()), point.value()));
                }
                AggregatedMetrics::F64(_) | AggregatedMetrics::U64(_) | AggregatedMetrics::I64(_) => {}
            }
        }
        *self.0.lock().expect("not poisoned") = values;
        Ok(())
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn facts<'a>(attributes: impl Iterator<Item = &'a opentelemetry::KeyValue>) -> String {
    let mut facts: Vec<_> = attributes.map(|fact| format!("{}={}", fact.key, fact.value)).collect();
    facts.sort();
    facts.join(" ")
}

pub(crate) struct Observed {
    spans: Spans,
    metrics: Metrics,
    meter: SdkMeterProvider,
}

/// Installed once, before the first stack is built: otherwise its instruments would record nothing.
pub(crate) fn observed() -> &'static Observed {
    static OBSERVED: OnceLock<Observed> = OnceLock::new();
    OBSERVED.get_or_init(|| {
        let (spans, metrics) = (Spans::default(), Metrics::default());
        let tracer = SdkTracerProvider::builder().with_span_processor(SimpleSpanProcessor::new(spans.clone())).build();
        global::set_tracer_provider(tracer.clone());
        let meter = SdkMeterProvider::builder()
            .with_reader(PeriodicReader::builder(metrics.clone()).with_interval(Duration::from_secs(3600)).build())
            .build();
        global::set_meter_provider(meter.clone());
        let ours = tracing_subscriber::filter::FilterFn::new(|meta| meta.target().starts_with("ordermesh"));
        let layer = tracing_opentelemetry::layer().with_tracer(tracer.tracer("test"));
        let layer = tracing_subscriber::Layer::with_filter(layer, ours);
        tracing_subscriber::registry().with(layer).try_init().expect("the first subscriber");
        Observed { spans, metrics, meter }
    })
}

impl Observed {
    /// The ended spans of a trace.
    pub(crate) fn spans_of(&self, trace_id: &str) -> Vec<SpanData> {
        let spans = self.spans.0.lock().expect("not poisoned");
        spans.iter().filter(|span| span.span_context.trace_id().to_string() == trace_id).cloned().collect()
    }

    /// The spans of any trace that are linked to a trace.
    pub(crate) fn spans_linked_to(&self, trace_id: &str) -> Vec<SpanData> {
        let spans = self.spans.0.lock().expect("not poisoned");
        let linked =
            |span: &SpanData| span.links.iter().any(|link| link.span_context.trace_id().to_string() == trace_id);
        spans.iter().filter(|span| linked(span)).cloned().collect()
    }

    /// The value of an instrument whose attributes contain all of these: a histogram's count, or a sum.
    pub(crate) fn value(&self, instrument: &str, facts: &[&str]) -> u64 {
        self.meter.force_flush().expect("collected");
        let values = self.metrics.0.lock().expect("not poisoned");
        let fits = |name: &str, attributes: &str| {
            name == instrument && facts.iter().all(|fact| attributes.split(' ').any(|seen| seen == *fact))
        };
        values.iter().filter(|(name, attributes, _)| fits(name, attributes)).map(|(_, _, value)| value).sum()
    }
}

/// The value of a span's attribute.
pub(crate) fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|fact| fact.key.as_str() == key).map(|fact| fact.value.to_string())
}
