//! Metrics at a collector: every documented metric arrives by OTLP, from every service of a dedicated system.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Longer than two exports.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The metrics of the README, and whether each is a gauge.
const PROMISED: [(&str, bool); 19] = [
    ("ordermesh.ready", true),
    ("rpc.server.call.duration", false),
    ("rpc.client.call.duration", false),
    ("ordermesh.orders", true),
    ("ordermesh.orders.oldest_unfinished", true),
    ("ordermesh.driver.in_flight", true),
    ("ordermesh.payments.in_doubt", true),
    ("ordermesh.payments.in_doubt.oldest", true),
    ("ordermesh.outbox.events", true),
    ("ordermesh.outbox.oldest", true),
    ("ordermesh.outbox.refused", true),
    ("ordermesh.events", false),
    ("ordermesh.events.lost", false),
    ("db.client.connection.wait_time", false),
    ("db.client.connection.count", true),
    ("mesh.client.attempts", false),
    ("mesh.client.retry.budget", true),
    ("mesh.client.breakers.open", false),
    ("mesh.server.permits.used", false),
];

#[derive(Debug, Default)]
struct Received {
    /// Name, and whether it is a gauge.
    metrics: BTreeSet<(String, bool)>,
    /// `service.name` of the senders.
    services: BTreeSet<String>,
}

struct Collector(Arc<watch::Sender<Received>>);

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let all = request.into_inner().resource_metrics;
        let services: Vec<_> = all.iter().filter_map(|metrics| service(metrics.resource.as_ref()?)).collect();
        let metrics = all.into_iter().flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics);
        let received: Vec<_> =
            metrics.map(|metric| (metric.name, matches!(metric.data, Some(Data::Gauge(_))))).collect();
        self.0.send_modify(|all| {
            all.metrics.extend(received);
            all.services.extend(services);
        });
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn service(resource: &Resource) -> Option<String> {
    let name = resource.attributes.iter().find(|attribute| attribute.key == "service.name")?;
    let Value::StringValue(name) = name.value.as_ref()?.value.as_ref()? else { return None };
    Some(name.clone())
}

async fn collector() -> (SocketAddr, watch::Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (received, watched) = watch::channel(Received::default());
    let service = MetricsServiceServer::new(Collector(Arc::new(received)));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    (address, watched)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_every_documented_metric() {
    let (address, mut received) = collector().await;
    let folder = tempfile::tempdir().expect("a folder");
    let base = ordermesh::ports::free_port_base(1).expect("free ports").to_string();
    let mut system = Command::new(env!("CARGO_BIN_EXE_ordermesh"))
        .args(["--instances", "1", "--user.bcrypt-cost", "4", "--port-base", &base, "--data-dir"])
        .arg(folder.path().join("data"))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
        // For a whole system this is a prefix.
        .env("OTEL_SERVICE_NAME", "shop")
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    // The services fetch each other's keys and send their events: there are calls without any client.
    let promised: Vec<(String, bool)> = PROMISED.iter().map(|(name, gauge)| ((*name).to_owned(), *gauge)).collect();
    let services = ["shop-data", "shop-gateway", "shop-order", "shop-payment", "shop-user"];
    let all = received.wait_for(|received| {
        promised.iter().all(|metric| received.metrics.contains(metric))
            && services.iter().all(|service| received.services.contains(*service))
    });
    let came = tokio::time::timeout(TIMEOUT, all).await.is_ok();
    let _ = system.kill();
    let _ = system.wait();
    let received = received.borrow();
    let missing: Vec<_> = promised.iter().filter(|metric| !received.metrics.contains(*metric)).collect();
    assert!(came && missing.is_empty(), "{missing:?} not received; received {received:?}");
    assert_eq!(received.services.iter().map(String::as_str).collect::<Vec<_>>(), services);
}
