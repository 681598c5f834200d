//! OpenTelemetry's environment variables, applied by a process: a Data Service, a real environment, the test's own
//! collector.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use contracts::data::v1::ListProductsRequest;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// Longer than any step here.
const TIMEOUT: Duration = Duration::from_secs(60);
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// The default log filter of a whole system.
const DEFAULT_LOG: &str = "warn";

#[derive(Clone, Debug, Default)]
struct Received {
    traces: Vec<ExportTraceServiceRequest>,
    logs: Vec<ExportLogsServiceRequest>,
    metrics: usize,
}

#[derive(Clone)]
struct Collector(Arc<watch::Sender<Received>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send_modify(|received| received.traces.push(request.into_inner()));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.0.send_modify(|received| received.logs.push(request.into_inner()));
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.send_modify(|received| received.metrics += 1);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    fn serve(listener: TcpListener) -> watch::Receiver<Received> {
        let (sender, received) = watch::channel(Received::default());
        let collector = Self(Arc::new(sender));
        let server = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(LogsServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        received
    }
}

async fn until(
    received: &mut watch::Receiver<Received>,
    what: &str,
    is_enough: impl FnMut(&Received) -> bool,
) -> Received {
    let enough = tokio::time::timeout(TIMEOUT, received.wait_for(is_enough))
        .await
        .map(|received| received.map(|received| received.clone()));
    match enough {
        Ok(Ok(received)) => received,
        Ok(Err(_)) | Err(_) => panic!("{what} was not received"),
    }
}

/// The program, with only these variables.
fn program(args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ordermesh"));
    command.env_clear().args(args).envs(variables.iter().copied());
    command
}

/// A Data Service, and the lines of its stdout.
struct Data {
    process: Child,
    lines: mpsc::UnboundedReceiver<String>,
    /// The lines read so far.
    read: Vec<String>,
    _folder: TempDir,
}

impl Data {
    fn start(log: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = folder.path().display().to_string();
        let args = ["data", "--demo-catalog", "--trust-client-trace-context", "--log", log, "--data-dir", &data_dir];
        let mut process = program(&args, variables).stdout(Stdio::piped()).spawn().expect("the program starts");
        let (sender, lines) = mpsc::unbounded_channel();
        let stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { process, lines, read: vec![], _folder: folder }
    }

    /// The next line that contains `part`.
    async fn line(&mut self, part: &str) -> String {
        while let Ok(Some(line)) = tokio::time::timeout(TIMEOUT, self.lines.recv()).await {
            self.read.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
        panic!("no line with {part:?} in {:#?}", self.read);
    }

    /// Kills it, and returns all lines of its output.
    async fn output(mut self) -> Vec<String> {
        let _ = self.process.kill();
        while let Some(line) = self.lines.recv().await {
            self.read.push(line);
        }
        std::mem::take(&mut self.read)
    }

    async fn address(&mut self) -> SocketAddr {
        let line = self.line("listens on ").await;
        let (_, address) = line.split_once("listens on ").expect("an address");
        address.split('"').next().and_then(|address| address.parse().ok()).expect("an address")
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(resource: &Resource, name: &str) -> Option<String> {
    let attribute = resource.attributes.iter().find(|attribute| attribute.key == name)?;
    let Value::StringValue(text) = attribute.value.as_ref()?.value.as_ref()? else { return None };
    Some(text.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_log_records_have_the_resource_of_the_variables() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let mut received = Collector::serve(listener);
    let attributes = "k8s.pod.name=p1,deployment.environment.name=prod%2Ceu";
    let mut data = Data::start(
        "info",
        &[(ENDPOINT, &endpoint), ("OTEL_SERVICE_NAME", "catalog-eu"), ("OTEL_RESOURCE_ATTRIBUTES", attributes)],
    );
    let address = data.address().await;
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("a URL").connect().await.expect("connects");
    let mut client = CatalogServiceClient::new(channel);
    let mut request = Request::new(ListProductsRequest { text: "mug".to_owned(), ..Default::default() });
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("00-{trace_id}-b7ad6b7169203331-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().expect("a value"));
    request.metadata_mut().insert("tracestate", "vendor=abc123".parse().expect("a value"));
    client.list_products(request).await.expect("answered");

    let all = until(&mut received, "the span", |received| !received.traces.is_empty()).await;
    let spans = &all.traces[0].resource_spans[0];
    let span = &spans.scope_spans[0].spans[0];
    assert_eq!(span.name, "data.v1.CatalogService/ListProducts");
    assert_eq!(span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), trace_id);
    assert_eq!(span.trace_state, "vendor=abc123");
    let all = until(&mut received, "a log record", |received| !received.logs.is_empty()).await;
    let logs = &all.logs[0].resource_logs[0];
    let warned = logs.scope_logs.iter().flat_map(|scope| &scope.log_records).any(|record| {
        record.severity_text == "WARN" && format!("{:?}", record.body).contains("neither a certificate nor")
    });
    assert!(warned, "expected a warning without a mesh secret: {logs:?}");
    for resource in [spans.resource.as_ref(), logs.resource.as_ref()] {
        let of = |name| text(resource.expect("a resource"), name);
        assert_eq!(of("service.name").as_deref(), Some("catalog-eu"));
        assert_eq!(of("k8s.pod.name").as_deref(), Some("p1"));
        assert_eq!(of("deployment.environment.name").as_deref(), Some("prod,eu"));
        assert_eq!(of("telemetry.sdk.language").as_deref(), Some("rust"));
    }
}

#[test]
fn a_malformed_variable_is_named_and_exits_with_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data").display().to_string();
    let data = ["data", "--data-dir", &data_dir];
    let system = ["--data-dir", &data_dir, "--port-base", "19000"];
    for (args, name, value, allowed) in [
        (&data[..], "OTEL_TRACES_SAMPLER", "sometimes", "parentbased_always_on"),
        (&data, "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf"),
        (&data, ENDPOINT, "ftp://collector", "https://HOST:PORT"),
        (&data, "OTEL_EXPORTER_OTLP_HEADERS", "s3cret", "name=value"),
        (&data, "OTEL_RESOURCE_ATTRIBUTES", "a=%zz", "key=value"),
        (&data, "OTEL_CONFIG_FILE", "/otel.yaml", "no value"),
        (&["gateway"], ENDPOINT, "collector://", "https://HOST:PORT"),
        (&["gateway"], "OTEL_BSP_MAX_QUEUE_SIZE", "0", "from 1 to"),
        (&system, "OTEL_TRACES_EXPORTER", "console", "otlp, none"),
        (&data, "OTEL_EXPORTER_OTLP_CERTIFICATE", "/missing.pem", "a PEM file"),
        (&system, "OTEL_EXPORTER_OTLP_CERTIFICATE", "/missing.pem", "a PEM file"),
        (&system, ENDPOINT, "https://user:s3cret@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
    ] {
        // A certificate's file is read only for a secure endpoint.
        let variables = [(ENDPOINT, "https://collector"), (name, value)];
        let ended = program(args, &variables).output().expect("the program exits");
        let stderr = String::from_utf8(ended.stderr).expect("text");
        assert_eq!(ended.status.code(), Some(2), "{name}: {stderr}");
        assert!(stderr.contains(name) && stderr.contains(allowed) && !stderr.contains("s3cret"), "{stderr}");
        assert!(!folder.path().join("data").exists(), "nothing was started");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_export_is_logged_once_per_signal_and_once_when_it_recovers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let mut data = Data::start(
        DEFAULT_LOG,
        &[
            (ENDPOINT, endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cret"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "50"),
        ],
    );
    // Metrics are exported repeatedly, to a collector that closes each connection.
    for _ in 0..20 {
        let attempt = tokio::time::timeout(TIMEOUT, listener.accept()).await.expect("an attempt");
        drop(attempt.expect("a connection"));
    }
    for _ in ["metrics", "logs"] {
        data.line("is failing").await;
    }
    let mut received = Collector::serve(listener);
    until(&mut received, "metrics", |received| received.metrics > 1).await;
    data.line("has recovered").await;
    let output = data.output().await;
    let of = |signal: &str, part: &str| {
        let signal = format!(r#""signal":"{signal}""#);
        output.iter().filter(|line| line.contains(part) && line.contains(&signal)).count()
    };
    assert_eq!((of("metrics", "is failing"), of("logs", "is failing")), (1, 1), "{output:#?}");
    assert_eq!(of("metrics", "has recovered"), 1, "{output:#?}");
    for line in output.iter().filter(|line| line.contains("OTLP")) {
        assert!(line.contains(r#""level":"WARN""#) && line.contains(&endpoint), "{line}");
    }
    let all = output.join("\n");
    assert!(!all.contains("s3cret") && !all.contains("opentelemetry"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_without_metrics_and_logs_causes_an_info_line_for_each() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, _seen) = watch::channel(Received::default());
    let server = Server::builder().add_service(TraceServiceServer::new(Collector(Arc::new(sender))));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let short = [("OTEL_METRIC_EXPORT_INTERVAL", "50"), ("OTEL_BLRP_SCHEDULE_DELAY", "50")];
    let mut data = Data::start("info", &[&[(ENDPOINT, endpoint.as_str())], &short[..]].concat());
    for _ in ["metrics", "logs"] {
        let line = data.line("does not accept").await;
        assert!(line.contains(r#""level":"INFO""#) && line.contains("_EXPORTER=none"), "{line}");
    }
    let output = data.output().await;
    assert!(!output.iter().any(|line| line.contains("is failing")), "{output:#?}");
}
