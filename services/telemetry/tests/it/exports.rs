//! The three signals over both protocols, to the endpoints of the variables.

use crate::collector::{Collector, attribute, emit_telemetry, flush, providers};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

fn endpoint(collector: &Collector) -> (&'static str, String) {
    (ENDPOINT, format!("http://{}", collector.address))
}

fn set(name: &'static str, value: &str) -> (&'static str, String) {
    (name, value.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_signals_are_exported_over_grpc_with_the_resource_and_the_headers() {
    let collector = Collector::plain().await;
    let providers = providers(&[
        endpoint(&collector),
        set("OTEL_SERVICE_NAME", "shop"),
        set("OTEL_RESOURCE_ATTRIBUTES", "service.name=ignored,k8s.pod.name=p1,service.version=9"),
        set("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20token"),
    ])
    .expect("providers");
    assert!(providers.exports_spans());
    emit_telemetry(&providers);
    flush(&providers).await.expect("exported");
    let received = collector.until("all signals", |received| received.has_all()).await;
    for resource in received.resources() {
        let of = |name| attribute(&resource, name);
        assert_eq!(of("service.name").as_deref(), Some("shop"));
        assert_eq!(of("k8s.pod.name").as_deref(), Some("p1"));
        assert_eq!(of("service.version").as_deref(), Some("9"), "the environment takes precedence over the program");
        assert_eq!(of("service.instance.id").as_deref(), Some("order-1"));
        assert_eq!(of("service.namespace").as_deref(), Some("ordermesh"));
        assert_eq!(of("telemetry.sdk.language").as_deref(), Some("rust"));
    }
    for (path, headers) in &received.requests {
        assert!(path.starts_with("/opentelemetry.proto.collector."), "{path}");
        assert_eq!(headers["authorization"], "Bearer token");
    }
    let record = &received.logs[0].resource_logs[0].scope_logs[0];
    assert_eq!(record.scope.as_ref().map(|scope| scope.name.as_str()), Some("ordermesh"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_signals_are_exported_over_http_on_their_paths_with_the_headers() {
    let collector = Collector::plain().await;
    let providers = providers(&[
        (ENDPOINT, format!("http://{}/otlp/", collector.address)),
        set("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        set("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue"),
        set("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-tenant=green"),
    ])
    .expect("providers");
    emit_telemetry(&providers);
    flush(&providers).await.expect("exported");
    let received = collector.until("all signals", |received| received.has_all()).await;
    assert_eq!(attribute(&received.resources()[0], "service.name").as_deref(), Some("order"), "the program's own");
    let tenant = |headers: &http::HeaderMap| headers["x-tenant"].to_str().expect("text").to_owned();
    let mut requests: Vec<_> =
        received.requests.iter().map(|(path, headers)| (path.as_str(), tenant(headers))).collect();
    requests.sort();
    let requests: Vec<_> = requests.iter().map(|(path, tenant)| (*path, tenant.as_str())).collect();
    assert_eq!(requests, [("/otlp/v1/logs", "green"), ("/otlp/v1/metrics", "blue"), ("/otlp/v1/traces", "blue")]);
    assert!(received.requests.iter().all(|(_, headers)| headers["content-type"] == "application/x-protobuf"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signals_own_endpoint_and_protocol_take_precedence() {
    let (general, traces) = (Collector::plain().await, Collector::plain().await);
    let providers = providers(&[
        endpoint(&general),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://{}/traces", traces.address)),
        set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
    ])
    .expect("providers");
    emit_telemetry(&providers);
    flush(&providers).await.expect("exported");
    let received = traces.until("traces", |received| !received.traces.is_empty()).await;
    assert_eq!(received.requests.len(), 1, "nothing but the traces");
    assert_eq!(received.requests[0].0, "/traces");
    let received =
        general.until("the rest", |received| !received.metrics.is_empty() && !received.logs.is_empty()).await;
    assert!(received.traces.is_empty());
}

/// The signals that are received: traces, metrics, logs.
async fn signals(variables: &[(&'static str, String)]) -> (bool, bool, bool) {
    let collector = Collector::plain().await;
    let providers = providers(&[&[endpoint(&collector)], variables].concat()).expect("providers");
    emit_telemetry(&providers);
    flush(&providers).await.expect("exported");
    let received = collector.received();
    (!received.traces.is_empty(), !received.metrics.is_empty(), !received.logs.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_is_switched_off_is_not_exported() {
    assert_eq!(signals(&[]).await, (true, true, true));
    assert_eq!(signals(&[set("OTEL_TRACES_EXPORTER", "none")]).await, (false, true, true));
    assert_eq!(signals(&[set("OTEL_METRICS_EXPORTER", "none")]).await, (true, false, true));
    assert_eq!(signals(&[set("OTEL_LOGS_EXPORTER", "none")]).await, (true, true, false));
    assert_eq!(signals(&[set("OTEL_SDK_DISABLED", "true")]).await, (false, false, false));
    assert_eq!(signals(&[set("OTEL_TRACES_SAMPLER", "always_off")]).await, (false, true, true));
    let never = [set("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), set("OTEL_TRACES_SAMPLER_ARG", "0")];
    assert_eq!(signals(&never).await, (false, true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_without_an_endpoint_is_not_exported() {
    let collector = Collector::plain().await;
    let name = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT";
    let providers = providers(&[(name, format!("http://{}", collector.address))]).expect("providers");
    assert!(providers.meter().is_none() && !providers.exports_spans());
    emit_telemetry(&providers);
    flush(&providers).await.expect("exported");
    let received = collector.received();
    assert_eq!((received.traces.len(), received.metrics.len(), received.logs.len()), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampler_that_is_always_off_exports_no_spans() {
    let collector = Collector::plain().await;
    let with = |sampler: &str| providers(&[endpoint(&collector), set("OTEL_TRACES_SAMPLER", sampler)]).expect("good");
    assert!(!with("always_off").exports_spans());
    assert!(with("parentbased_always_off").exports_spans(), "a remote parent may be sampled");
}
