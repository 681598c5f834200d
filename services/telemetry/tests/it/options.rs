//! The other options of an export: compression, batches, limits, timeouts, temporality and aggregation.

use std::time::{Duration, Instant};

use opentelemetry::logs::{LogRecord, Logger};
use opentelemetry::trace::{Span, Tracer, TracerProvider};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use tokio::net::TcpListener;

use crate::collector::{Collector, Received, emit_telemetry, flush, providers};

fn set(name: &'static str, value: &str) -> (&'static str, String) {
    (name, value.to_owned())
}

fn endpoint(collector: &Collector) -> (&'static str, String) {
    ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address))
}

/// What a collector receives of some work with these variables.
async fn received(variables: &[(&'static str, String)]) -> Received {
    let collector = Collector::plain().await;
    let providers = providers(&[&[endpoint(&collector)], variables].concat()).expect("providers");
    emit_telemetry(&providers);
    flush(&providers).await.expect("exported");
    collector.until("all signals", Received::has_all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_compressed_when_a_variable_requests_it() {
    let gzip = set("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    let encodings = |received: &Received, header: &str| {
        let values =
            received.requests.iter().map(|(_, headers)| headers.get(header).map(|value| value.as_bytes().to_vec()));
        values.collect::<Vec<_>>()
    };
    let by_grpc = received(std::slice::from_ref(&gzip)).await;
    assert_eq!(encodings(&by_grpc, "grpc-encoding"), vec![Some(b"gzip".to_vec()); 3]);
    assert_eq!(by_grpc.traces[0].resource_spans.len(), 1, "it can be decoded");
    let http = set("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let by_http = received(&[gzip, http.clone()]).await;
    assert_eq!(encodings(&by_http, "content-encoding"), vec![Some(b"gzip".to_vec()); 3]);
    // Control.
    assert_eq!(encodings(&received(&[http]).await, "content-encoding"), vec![None; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_the_size_of_its_variable_and_is_exported_when_it_is_full() {
    let collector = Collector::plain().await;
    let never = "3600000";
    let providers = providers(&[
        endpoint(&collector),
        set("OTEL_METRICS_EXPORTER", "none"),
        set("OTEL_BSP_SCHEDULE_DELAY", never),
        set("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"),
        set("OTEL_BLRP_SCHEDULE_DELAY", never),
        set("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "2"),
    ])
    .expect("providers");
    let (tracer, logger) = (providers.tracer().tracer("test"), providers.logger().expect("logs"));
    for _ in 0..3 {
        tracer.start("a call").end();
    }
    for _ in 0..2 {
        let mut record = logger.create_log_record();
        record.set_body("it is late".into());
        logger.emit(record);
    }
    // Nothing is flushed: only a full batch is exported.
    let received =
        collector.until("a batch of each", |received| !received.traces.is_empty() && !received.logs.is_empty()).await;
    assert_eq!(received.traces[0].resource_spans[0].scope_spans[0].spans.len(), 3);
    assert_eq!(received.logs[0].resource_logs[0].scope_logs[0].log_records.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_exported_after_the_delay_of_its_variable() {
    let collector = Collector::plain().await;
    let began = Instant::now();
    let providers = providers(&[
        endpoint(&collector),
        set("OTEL_BSP_SCHEDULE_DELAY", "20"),
        set("OTEL_BLRP_SCHEDULE_DELAY", "20"),
        set("OTEL_METRIC_EXPORT_INTERVAL", "20"),
    ])
    .expect("providers");
    emit_telemetry(&providers);
    collector.until("all signals", Received::has_all).await;
    assert!(began.elapsed() < Duration::from_secs(10), "the default of metrics");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_exported_although_the_default_batch_is_larger() {
    let collector = Collector::plain().await;
    let providers = providers(&[
        endpoint(&collector),
        set("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        set("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
    ])
    .expect("providers");
    let tracer = providers.tracer().tracer("test");
    tracer.start("first").end();
    tracer.start("second").end();
    let received = collector.until("a batch", |received| !received.traces.is_empty()).await;
    assert_eq!(received.traces[0].resource_spans[0].scope_spans[0].spans.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn span_limits_are_those_of_the_variables() {
    let received_with = received(&[set("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")]).await;
    let dropped =
        |received: &Received| received.traces[0].resource_spans[0].scope_spans[0].spans[0].dropped_attributes_count;
    assert_eq!(dropped(&received_with), 1);
    assert_eq!(dropped(&received(&[]).await), 0, "control");
}

/// (is a sum cumulative, is a histogram exponential, its bounds).
fn forms(received: &Received) -> (bool, bool, Vec<f64>) {
    let (mut cumulative, mut exponential, mut bounds) = (false, false, vec![]);
    for metric in &received.metrics[0].resource_metrics[0].scope_metrics[0].metrics {
        match metric.data.as_ref().expect("data") {
            Data::Sum(sum) => cumulative = sum.aggregation_temporality == 2,
            Data::ExponentialHistogram(_) => exponential = true,
            Data::Histogram(histogram) => bounds.clone_from(&histogram.data_points[0].explicit_bounds),
            Data::Gauge(_) | Data::Summary(_) => {}
        }
    }
    (cumulative, exponential, bounds)
}

#[tokio::test(flavor = "multi_thread")]
async fn temporality_and_aggregation_are_those_of_the_variables() {
    let (cumulative, exponential, bounds) = forms(&received(&[]).await);
    assert!(cumulative && !exponential && bounds.contains(&0.000_025), "expected our own buckets: {bounds:?}");
    let delta = set("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
    assert!(!forms(&received(&[delta]).await).0);
    let name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";
    assert!(forms(&received(&[set(name, "base2_exponential_bucket_histogram")]).await).1);
}

/// The time that an export to a collector takes that never responds.
async fn given_up_after(variables: &[(&'static str, String)]) -> Duration {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address");
    let held = tokio::spawn(async move {
        let mut connections = vec![];
        while let Ok((connection, _)) = silent.accept().await {
            connections.push(connection);
        }
    });
    let endpoint = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://{address}"));
    let providers = providers(&[&[endpoint], variables].concat()).expect("providers");
    emit_telemetry(&providers);
    let began = Instant::now();
    flush(&providers).await.expect_err("it never responds");
    held.abort();
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_times_out_after_the_shortest_of_its_timeouts() {
    // The default is ten seconds; the SDK itself gives up a flush after five.
    let short = Duration::from_secs(4);
    assert!(given_up_after(&[set("OTEL_EXPORTER_OTLP_TIMEOUT", "200")]).await < short);
    assert!(given_up_after(&[set("OTEL_BSP_EXPORT_TIMEOUT", "200")]).await < short);
    let http = set("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    assert!(given_up_after(&[set("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "200"), http]).await < short);
    assert!(given_up_after(&[]).await > short, "control");
}
