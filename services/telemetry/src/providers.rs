//! OpenTelemetry's three providers, made from the environment. Installs nothing globally, so tests can have several.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::logs::LoggerProvider as _;
use opentelemetry_otlp::{
    Compression, ExporterBuildError, LogExporter, MetricExporter, Protocol as OtlpProtocol, SpanExporter,
    WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{BatchConfigBuilder as LogBatchConfigBuilder, BatchLogProcessor};
use opentelemetry_sdk::logs::{SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream};
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tonic::metadata::MetadataMap;

use crate::environment::{Environment, Protocol, Target};
use crate::reachability::{Cause, Observed, Reachability};
use crate::setup::{Settings, SetupError};
use crate::transport::{Http, channel};

/// The instrumentation scope of spans and log records.
pub(crate) const SCOPE: &str = "ordermesh";

/// In seconds. Calls on one machine take tens of microseconds: the default buckets (from 5 ms) would show nothing.
const DURATIONS: [f64; 22] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// The providers of one process.
#[derive(Debug)]
pub struct Providers {
    tracer: SdkTracerProvider,
    meter: Option<SdkMeterProvider>,
    logger: Option<SdkLoggerProvider>,
    exports_spans: bool,
}

impl Providers {
    /// Makes the providers. Call it inside a tokio runtime: exports use it.
    ///
    /// # Errors
    /// Roots or a certificate that cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        let environment = &settings.environment;
        let resource = resource(settings);
        let exports_spans = environment.traces.is_some() && !matches!(environment.sampler, Sampler::AlwaysOff);
        Ok(Self {
            tracer: tracer_provider(environment, resource.clone())?,
            meter: meter_provider(environment, resource.clone())?,
            logger: logger_provider(environment, resource)?,
            exports_spans,
        })
    }

    /// The provider of spans. Without an exporter spans still have ids: events carry them.
    pub fn tracer(&self) -> &SdkTracerProvider {
        &self.tracer
    }

    /// The provider of instruments; `None` when metrics are not exported.
    pub fn meter(&self) -> Option<&SdkMeterProvider> {
        self.meter.as_ref()
    }

    /// A logger; `None` when logs are not exported.
    pub fn logger(&self) -> Option<SdkLogger> {
        self.logger.as_ref().map(|logger| logger.logger(SCOPE))
    }

    /// Whether spans are exported, as far as the sampler permits.
    pub fn exports_spans(&self) -> bool {
        self.exports_spans
    }

    /// Exports what is queued, one signal after the other. Blocks.
    ///
    /// # Errors
    /// An export that failed.
    pub fn flush(&self) -> OTelSdkResult {
        let meter = self.meter.as_ref().map_or(Ok(()), SdkMeterProvider::force_flush);
        let logger = self.logger.as_ref().map_or(Ok(()), SdkLoggerProvider::force_flush);
        self.tracer.force_flush().and(meter).and(logger)
    }

    /// Exports what is queued, each signal on a thread of its own, so that a hung collector does not use up the time of
    /// the other signals. Blocks.
    pub(crate) fn shutdown(self, limit: Duration) {
        let Self { tracer, meter, logger, .. } = self;
        let spans = std::thread::spawn(move || tracer.shutdown_with_timeout(limit));
        let metrics = meter.map(|meter| std::thread::spawn(move || meter.shutdown_with_timeout(limit)));
        let logs = logger.map(|logger| std::thread::spawn(move || logger.shutdown_with_timeout(limit)));
        // Failures have been logged by then.
        for thread in [Some(spans), metrics, logs].into_iter().flatten() {
            let _: Result<OTelSdkResult, _> = thread.join();
        }
    }
}

/// The environment's attributes take precedence over the program's.
fn resource(settings: &Settings) -> Resource {
    let environment = &settings.environment;
    let attributes = environment.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let service = environment.service_name().unwrap_or(&settings.service).to_owned();
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes([
            KeyValue::new("service.namespace", "ordermesh"),
            KeyValue::new("service.instance.id", settings.instance.clone()),
            KeyValue::new("service.version", settings.version.clone()),
        ])
        .with_attributes(attributes)
        .with_attribute(KeyValue::new("service.name", service))
        .build()
}

fn tracer_provider(environment: &Environment, resource: Resource) -> Result<SdkTracerProvider, SetupError> {
    let builder = SdkTracerProvider::builder().with_resource(resource).with_span_limits(environment.span_limits);
    let Some(target) = &environment.traces else {
        // Spans have ids nevertheless: events contain them.
        return Ok(builder.with_sampler(Sampler::AlwaysOff).build());
    };
    let cause = Cause::default();
    let exporter = match target.protocol {
        Protocol::Grpc => grpc(SpanExporter::builder().with_tonic(), target)?.build(),
        Protocol::HttpProtobuf => http(SpanExporter::builder().with_http(), target, &cause)?.build(),
    };
    let batches = environment.spans;
    // Every option is set: the SDK would itself read missing ones from the environment.
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(batches.queue)
        .with_max_export_batch_size(batches.batch)
        .with_scheduled_delay(batches.delay);
    let exporter = observed(exporter, target, cause)?;
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
    Ok(builder.with_sampler(environment.sampler.clone()).with_span_processor(processor).build())
}

fn meter_provider(environment: &Environment, resource: Resource) -> Result<Option<SdkMeterProvider>, SetupError> {
    let Some(target) = &environment.metrics else { return Ok(None) };
    let cause = Cause::default();
    let builder = MetricExporter::builder().with_temporality(environment.temporality);
    let exporter = match target.protocol {
        Protocol::Grpc => grpc(builder.with_tonic(), target)?.build(),
        Protocol::HttpProtobuf => http(builder.with_http(), target, &cause)?.build(),
    };
    let reader = PeriodicReader::builder(observed(exporter, target, cause)?).with_interval(environment.metric_interval);
    let exponential = environment.exponential_histograms;
    let histograms = move |instrument: &Instrument| histogram(instrument, exponential);
    let builder = SdkMeterProvider::builder().with_resource(resource).with_reader(reader.build());
    Ok(Some(builder.with_view(histograms).build()))
}

fn histogram(instrument: &Instrument, exponential: bool) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let aggregation = if exponential {
        // The specification's defaults.
        Aggregation::Base2ExponentialHistogram { max_size: 160, max_scale: 20, record_min_max: true }
    } else if instrument.unit() == "s" {
        Aggregation::ExplicitBucketHistogram { boundaries: DURATIONS.to_vec(), record_min_max: true }
    } else {
        return None;
    };
    Stream::builder().with_aggregation(aggregation).build().ok()
}

fn logger_provider(environment: &Environment, resource: Resource) -> Result<Option<SdkLoggerProvider>, SetupError> {
    let Some(target) = &environment.logs else { return Ok(None) };
    let cause = Cause::default();
    let exporter = match target.protocol {
        Protocol::Grpc => grpc(LogExporter::builder().with_tonic(), target)?.build(),
        Protocol::HttpProtobuf => http(LogExporter::builder().with_http(), target, &cause)?.build(),
    };
    let batches = environment.log_records;
    let config = LogBatchConfigBuilder::default()
        .with_max_queue_size(batches.queue)
        .with_max_export_batch_size(batches.batch)
        .with_scheduled_delay(batches.delay);
    let exporter = observed(exporter, target, cause)?;
    let processor = BatchLogProcessor::builder(exporter).with_batch_config(config.build()).build();
    Ok(Some(SdkLoggerProvider::builder().with_resource(resource).with_log_processor(processor).build()))
}

fn grpc<B: WithExportConfig + WithTonicConfig>(builder: B, target: &Target) -> Result<B, SetupError> {
    let builder = builder
        .with_channel(channel(target)?)
        .with_metadata(MetadataMap::from_headers(target.headers.clone()))
        .with_timeout(target.timeout);
    Ok(if target.gzip { builder.with_compression(Compression::Gzip) } else { builder })
}

fn http<B: WithExportConfig + WithHttpConfig>(builder: B, target: &Target, cause: &Cause) -> Result<B, SetupError> {
    // Values are UTF-8: they were decoded from text.
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        Some((name.to_string(), String::from_utf8(value.as_bytes().to_vec()).ok()?))
    };
    let headers: HashMap<String, String> = target.headers.iter().filter_map(header).collect();
    let builder = builder
        .with_http_client(Http::new(target, cause.clone())?)
        .with_endpoint(target.uri.to_string())
        .with_protocol(OtlpProtocol::HttpBinary)
        .with_headers(headers)
        .with_timeout(target.timeout);
    Ok(if target.gzip { builder.with_compression(Compression::Gzip) } else { builder })
}

fn observed<E>(
    exporter: Result<E, ExporterBuildError>,
    target: &Target,
    cause: Cause,
) -> Result<Observed<E>, SetupError> {
    let exporter = exporter.map_err(|source| SetupError::Exporter { endpoint: target.masked(), source })?;
    Ok(Observed::new(exporter, Reachability::new(target, cause)))
}
