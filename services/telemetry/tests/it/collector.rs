//! A fake collector, which records the OTLP requests (gRPC and HTTP, on one port), and the providers of a process.

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use opentelemetry::KeyValue;
use opentelemetry::logs::{LogRecord, Logger, Severity};
use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::{Span, Tracer, TracerProvider};
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
use prost::Message;
use telemetry::{Environment, Providers, Settings};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::{Status, body::Body};
use tower::ServiceExt;

/// Longer than any export here.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// What was received.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received {
    /// Paths and headers, of gRPC too.
    pub(crate) requests: Vec<(String, HeaderMap)>,
    pub(crate) traces: Vec<ExportTraceServiceRequest>,
    pub(crate) metrics: Vec<ExportMetricsServiceRequest>,
    pub(crate) logs: Vec<ExportLogsServiceRequest>,
}

impl Received {
    pub(crate) fn has_all(&self) -> bool {
        !self.traces.is_empty() && !self.metrics.is_empty() && !self.logs.is_empty()
    }

    /// Each signal's resource.
    pub(crate) fn resources(&self) -> [Resource; 3] {
        let traces = self.traces[0].resource_spans[0].resource.clone();
        let metrics = self.metrics[0].resource_metrics[0].resource.clone();
        let logs = self.logs[0].resource_logs[0].resource.clone();
        [traces, metrics, logs].map(|resource| resource.expect("a resource"))
    }
}

/// An attribute that is text.
pub(crate) fn attribute(resource: &Resource, name: &str) -> Option<String> {
    let found = resource.attributes.iter().find(|attribute| attribute.key == name)?;
    let Value::StringValue(text) = found.value.as_ref()?.value.as_ref()? else { return None };
    Some(text.clone())
}

#[derive(Clone)]
struct OtlpReceiver(Arc<watch::Sender<Received>>);

#[tonic::async_trait]
impl TraceService for OtlpReceiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        self.0.send_modify(|received| received.traces.push(request.into_inner()));
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for OtlpReceiver {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, Status> {
        self.0.send_modify(|received| received.metrics.push(request.into_inner()));
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for OtlpReceiver {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, Status> {
        self.0.send_modify(|received| received.logs.push(request.into_inner()));
        Ok(tonic::Response::new(Default::default()))
    }
}

impl OtlpReceiver {
    fn grpc(&self) -> Routes {
        let gzip = CompressionEncoding::Gzip;
        Routes::new(TraceServiceServer::new(self.clone()).accept_compressed(gzip))
            .add_service(MetricsServiceServer::new(self.clone()).accept_compressed(gzip))
            .add_service(LogsServiceServer::new(self.clone()).accept_compressed(gzip))
    }

    async fn http(self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        // Compressed bodies are not decoded.
        let is_gzip = body.starts_with(&[0x1f, 0x8b]);
        let body = if is_gzip { Default::default() } else { body };
        self.0.send_modify(|received| match path.rsplit('/').next() {
            Some("traces") => received.traces.push(Message::decode(body).expect("traces")),
            Some("metrics") => received.metrics.push(Message::decode(body).expect("metrics")),
            Some("logs") => received.logs.push(Message::decode(body).expect("logs")),
            Some(_) | None => {}
        });
        Response::new(Body::new(Full::default()))
    }

    async fn serve(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let received = (request.uri().path().to_owned(), request.headers().clone());
        self.0.send_modify(|all| all.requests.push(received));
        let is_grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
        if is_grpc { self.grpc().oneshot(request).await } else { Ok(self.http(request).await) }
    }

    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| self.clone().serve(request));
        // A client may close the connection at any time.
        let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    }
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    received: watch::Receiver<Received>,
}

impl Collector {
    pub(crate) async fn plain() -> Self {
        Self::start(None).await
    }

    pub(crate) async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, received) = watch::channel(Received::default());
        let receiver = OtlpReceiver(Arc::new(sender));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (receiver, tls) = (receiver.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => receiver.connection(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                receiver.connection(stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, received }
    }

    pub(crate) fn received(&self) -> Received {
        self.received.borrow().clone()
    }

    /// What was received, once it is sufficient.
    pub(crate) async fn until(&self, what: &str, is_enough: impl Fn(&Received) -> bool) -> Received {
        let mut received = self.received.clone();
        let enough = tokio::time::timeout(TIMEOUT, received.wait_for(is_enough)).await;
        let Ok(Ok(received)) = enough else { panic!("{what} was not received: {:?}", self.received()) };
        received.clone()
    }
}

/// The providers of a process with these variables.
pub(crate) fn providers(variables: &[(&str, String)]) -> Result<Arc<Providers>, telemetry::SetupError> {
    let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
    let settings = Settings {
        service: "order".to_owned(),
        instance: "order-1".to_owned(),
        version: "1.2.3".to_owned(),
        environment: Environment::read(None, find)?,
        log: "off".to_owned(),
        log_format: None,
    };
    Providers::new(&settings).map(Arc::new)
}

/// One span, one counter, one histogram, one log record.
pub(crate) fn emit_telemetry(providers: &Providers) {
    let mut span = providers.tracer().tracer("test").start("a call");
    span.set_attribute(KeyValue::new("first", 1));
    span.set_attribute(KeyValue::new("second", 2));
    span.end();
    if let Some(meter) = providers.meter() {
        meter.meter("test").u64_counter("calls").build().add(1, &[]);
        meter.meter("test").f64_histogram("duration").with_unit("s").build().record(0.000_02, &[]);
    }
    if let Some(logger) = providers.logger() {
        let mut record = logger.create_log_record();
        record.set_severity_number(Severity::Warn);
        record.set_body("it is late".into());
        logger.emit(record);
    }
}

/// Flushes the providers, on a blocking thread because the exporters need the runtime's threads; returns the error's
/// text if an export failed.
pub(crate) async fn flush(providers: &Arc<Providers>) -> Result<(), String> {
    let providers = providers.clone();
    let flushed = tokio::task::spawn_blocking(move || providers.flush()).await.expect("it ends");
    flushed.map_err(|error| error.to_string())
}
