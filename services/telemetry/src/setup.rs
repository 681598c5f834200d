//! Traces, metrics and logs by OTLP if an endpoint is set, at almost no cost if not; log lines on stdout.

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use tracing_subscriber::filter::{FilterExt, FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::announce;
use crate::environment::{Environment, VariableError};
use crate::log::{Lines, LogFormat, filter, full_queues};
use crate::log_records::{LogRecords, is_exported};
use crate::providers::{Providers, SCOPE};

/// The set-up failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// An OpenTelemetry variable that is malformed or not supported.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// The OTLP exporter could not be made.
    #[error("the OTLP exporter for {endpoint} could not be made; is it a URL such as http://localhost:4317?")]
    Exporter {
        /// As configured.
        endpoint: String,
        /// The cause.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The log filter could not be read.
    #[error("the log filter {filter:?} cannot be read; an example is `info,mesh=debug`")]
    Filter {
        /// As configured.
        filter: String,
        /// The cause.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber is installed already.
    #[error("telemetry is already set up in this process")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

impl SetupError {
    /// Whether a setting is wrong.
    pub fn is_setting(&self) -> bool {
        match self {
            Self::Variable(_) | Self::Exporter { .. } | Self::Filter { .. } => true,
            Self::Twice(_) => false,
        }
    }
}

/// What to set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `service.name` unless the environment has another: for example `order`.
    pub service: String,
    /// `service.instance.id`: for example `order-1`.
    pub instance: String,
    /// `service.version`.
    pub version: String,
    /// OpenTelemetry's variables: endpoints, exporters, sampler, resource.
    pub environment: Environment,
    /// The log filter, as `tracing` directives.
    pub log: String,
    /// The format of log lines; `None`: pretty on a terminal, JSON elsewhere.
    pub log_format: Option<LogFormat>,
}

/// The installed telemetry: flush it before the process ends.
#[derive(Debug)]
pub struct Telemetry(Providers);

impl Telemetry {
    /// Installs traces, metrics and logs for the whole process. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// A certificate or a filter that cannot be used; or telemetry is already installed.
    pub fn install(settings: &Settings) -> Result<Self, SetupError> {
        let environment = &settings.environment;
        let providers = Providers::new(settings)?;
        if let Some(meter) = providers.meter() {
            global::set_meter_provider(meter.clone());
        }
        // For spans that must begin in the past, which `tracing` cannot do: the attempts of a call.
        global::set_tracer_provider(providers.tracer().clone());
        environment.propagation.install();
        announce::install(providers.logger(), providers.exports_spans());
        // Filters apply only to the log layer: a span disabled by a filter would have no ids. The OpenTelemetry layer
        // accepts only our own spans: the exporter's HTTP/2 tasks would create spans about sending spans.
        let ours = FilterFn::new(|meta| meta.is_span() && meta.target().starts_with("ordermesh"))
            .with_max_level_hint(LevelFilter::INFO);
        let spans = tracing_opentelemetry::layer()
            .with_tracer(providers.tracer().tracer(SCOPE))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(ours);
        let filter = filter(&settings.log, environment.log_level)
            .map_err(|source| SetupError::Filter { filter: settings.log.clone(), source })?;
        let format = settings
            .log_format
            .unwrap_or_else(|| if std::io::stdout().is_terminal() { LogFormat::Pretty } else { LogFormat::Json });
        let lines = Lines { format, service: settings.service.clone(), instance: settings.instance.clone() };
        let log = fmt::layer().event_format(lines).with_filter(filter.or(full_queues()));
        let subscriber = tracing_subscriber::registry().with(spans).with(log);
        // `None` as a layer would make `tracing` evaluate the filters at each call of `trace!` in every library: it has
        // no filter, so it is interested in all of them.
        let installed = match providers.logger() {
            Some(logger) => {
                let exported = FilterFn::new(is_exported).with_max_level_hint(LevelFilter::WARN);
                subscriber.with(LogRecords(logger).with_filter(exported)).try_init()
            }
            None => subscriber.try_init(),
        };
        installed.map_err(SetupError::Twice)?;
        Ok(Self(providers))
    }

    /// Exports what is queued, within a few seconds. Runs off the async threads.
    pub async fn shutdown(self) {
        let (flushed, done) = tokio::sync::oneshot::channel();
        // An unreachable collector must not keep the process from ending. A thread of its own, because the runtime
        // would wait for one of its own threads.
        std::thread::spawn(move || {
            self.0.shutdown(FLUSH_TIMEOUT);
            let _ = flushed.send(());
        });
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, done).await;
    }
}

/// For each signal.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// For all signals: the SDK may wait longer than its limit for an export in flight.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(4);
