//! Traces and metrics by OTLP/gRPC when an endpoint is set, and no cost to speak of when it is not; logs on stdout.

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing_subscriber::filter::{EnvFilter, FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::log::{Form, Lines};

/// What could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The OTLP exporter could not be made.
    #[error("the OTLP exporter for {endpoint} could not be made; is it a URL such as http://localhost:4317?")]
    Exporter {
        /// As it was set.
        endpoint: String,
        /// Why.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The log filter could not be read.
    #[error("the log filter {filter:?} cannot be read; an example is `info,mesh=debug`")]
    Filter {
        /// As it was set.
        filter: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else has installed a subscriber.
    #[error("telemetry is already set up in this process")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// What to set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `service.name`: for example `order`.
    pub service: String,
    /// `service.instance.id`: for example `order-1`.
    pub instance: String,
    /// `service.version`.
    pub version: String,
    /// Where traces and metrics go; `None`: nowhere.
    pub otlp_endpoint: Option<String>,
    /// What is logged, as `tracing`'s filter directives.
    pub log: String,
    /// How lines look; `None`: pretty on a terminal, JSON elsewhere.
    pub log_form: Option<Form>,
}

/// What was set up: flush it before the process ends.
#[derive(Debug)]
pub struct Telemetry {
    tracer: SdkTracerProvider,
    meter: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Installs traces, metrics and logs for the whole process. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// An endpoint or a filter that cannot be read; or when it was done before.
    pub fn install(settings: &Settings) -> Result<Self, SetupError> {
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", settings.service.clone()),
                KeyValue::new("service.namespace", "ordermesh"),
                KeyValue::new("service.instance.id", settings.instance.clone()),
                KeyValue::new("service.version", settings.version.clone()),
            ])
            .build();
        let tracer = tracer_provider(settings, resource.clone())?;
        let meter = meter_provider(settings, resource)?;
        if let Some(meter) = &meter {
            global::set_meter_provider(meter.clone());
        }
        crate::announce::install(None, settings.otlp_endpoint.is_some());
        // For spans that must begin in the past, which `tracing` cannot do: the attempts of a call.
        global::set_tracer_provider(tracer.clone());
        // Filters belong to the log layer alone: a span that a filter disabled would have no ids. The OpenTelemetry
        // layer takes our own spans only: the exporter's own HTTP/2 tasks would make spans about sending spans.
        let ours = FilterFn::new(|meta| meta.is_span() && meta.target().starts_with("ordermesh"));
        let otel = tracing_opentelemetry::layer()
            .with_tracer(tracer.tracer("ordermesh"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(ours);
        let filter = EnvFilter::builder()
            .with_default_directive(LevelFilter::INFO.into())
            .parse(&settings.log)
            .map_err(|source| SetupError::Filter { filter: settings.log.clone(), source })?;
        let form = settings
            .log_form
            .unwrap_or_else(|| if std::io::stdout().is_terminal() { Form::Pretty } else { Form::Json });
        let lines = Lines { form, service: settings.service.clone(), instance: settings.instance.clone() };
        let log = fmt::layer().event_format(lines).with_filter(filter);
        tracing_subscriber::registry().with(otel).with(log).try_init().map_err(SetupError::Twice)?;
        Ok(Self { tracer, meter })
    }

    /// Sends what is not yet sent, within a few seconds. Runs off the async threads.
    pub async fn shutdown(self) {
        let (flushed, done) = tokio::sync::oneshot::channel();
        // A collector that is gone must not keep the process from ending; what it missed is in the event store. A thread
        // of its own, because the runtime would wait for one of its.
        std::thread::spawn(move || {
            let _ = self.tracer.shutdown_with_timeout(Duration::from_secs(3));
            if let Some(meter) = self.meter {
                let _ = meter.shutdown_with_timeout(Duration::from_secs(2));
            }
            let _ = flushed.send(());
        });
        let _ = tokio::time::timeout(SHUTDOWN_LIMIT, done).await;
    }
}

/// What the exporters say of their own limits is not all: an export that is under way is waited for besides.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(4);

fn tracer_provider(settings: &Settings, resource: Resource) -> Result<SdkTracerProvider, SetupError> {
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = &settings.otlp_endpoint else {
        // Spans still get ids (events carry them), and nothing else of them is kept.
        return Ok(builder.with_sampler(Sampler::AlwaysOff).build());
    };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| SetupError::Exporter { endpoint: endpoint.clone(), source })?;
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(16_384)
        .with_max_export_batch_size(1_024)
        .with_scheduled_delay(Duration::from_millis(500))
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
    Ok(builder.with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn))).with_span_processor(processor).build())
}

fn meter_provider(settings: &Settings, resource: Resource) -> Result<Option<SdkMeterProvider>, SetupError> {
    // OpenTelemetry's own variable: a collector that takes traces only (Jaeger) would refuse every export.
    let unwanted = std::env::var("OTEL_METRICS_EXPORTER").is_ok_and(|exporter| exporter == "none");
    let Some(endpoint) = settings.otlp_endpoint.as_ref().filter(|_| !unwanted) else { return Ok(None) };
    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| SetupError::Exporter { endpoint: endpoint.clone(), source })?;
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(10)).build();
    // Calls between neighbours take tens of microseconds: the default buckets (from 5 ms) would show nothing.
    let durations = |instrument: &Instrument| {
        if instrument.unit() != "s" || instrument.kind() != InstrumentKind::Histogram {
            return None;
        }
        let boundaries = vec![
            0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
            0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        ];
        let aggregation = Aggregation::ExplicitBucketHistogram { boundaries, record_min_max: true };
        Stream::builder().with_aggregation(aggregation).build().ok()
    };
    Ok(Some(SdkMeterProvider::builder().with_resource(resource).with_reader(reader).with_view(durations).build()))
}
