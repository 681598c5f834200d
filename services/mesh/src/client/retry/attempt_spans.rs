//! The spans of a call's attempts (names and attributes of gRFC A72), under the call's CLIENT span. A call with a single
//! attempt has none: its CLIENT span suffices. They are made with OpenTelemetry's own API, which can create the first
//! attempt's span afterwards, with its real start time.

use std::time::{Duration, SystemTime};

use http::HeaderValue;
use http::uri::Authority;
use kernel::{Clock, SystemClock, Timestamp};
use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::trace::{Span as _, SpanKind, Status as SpanStatus, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use telemetry::{Operation, TraceParent};
use tonic::Code;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::call::metrics::{ERROR_TYPE, RPC_METHOD, RPC_STATUS, RPC_SYSTEM};
use crate::client::metrics::{SERVER_ADDRESS, SERVER_PORT};
use crate::status::code_name;

const PREVIOUS_ATTEMPTS: &str = "previous-rpc-attempts";
const TRANSPARENT: &str = "transparent-retry";

/// The attempt spans of one call.
pub(crate) struct AttemptSpans {
    operation: Option<Operation>,
    began: Timestamp,
    current: Option<AttemptSpan>,
}

/// The current attempt's span.
struct AttemptSpan {
    span: BoxedSpan,
    is_settled: bool,
}

impl AttemptSpans {
    /// The first attempt begins. Without an operation there are no spans.
    pub(crate) fn begin(operation: Option<Operation>) -> Self {
        let operation = operation.filter(|operation| !operation.span().is_disabled());
        let began = if operation.is_some() { SystemClock.now() } else { Timestamp::default() };
        Self { operation, began, current: None }
    }

    /// The current attempt failed, and another follows.
    pub(crate) fn failed(&mut self, code: Code, server: Option<&Authority>) {
        let first = self.current.take().or_else(|| self.open(self.began, 0, false));
        if let Some(attempt) = first {
            attempt.settle(code, server);
        }
    }

    /// Another attempt begins; returns its `traceparent`, if it has a span. `tracestate` and `baggage` are the call's.
    pub(crate) fn again(&mut self, previous: u32, is_transparent: bool) -> Option<HeaderValue> {
        self.current = self.open(SystemClock.now(), previous, is_transparent);
        let traceparent = TraceParent::of(self.current.as_ref()?.span.span_context());
        HeaderValue::from_bytes(&traceparent.header()).ok()
    }

    /// The last attempt ended: with its response's headers, or with an error.
    pub(crate) fn ended(&mut self, code: Code, server: Option<&Authority>) {
        if let Some(attempt) = self.current.take() {
            attempt.settle(code, server);
        }
    }

    fn open(&self, start: Timestamp, previous: u32, is_transparent: bool) -> Option<AttemptSpan> {
        let operation = self.operation.as_ref()?;
        let parent = operation.span().context().span().span_context().clone();
        if !parent.is_valid() {
            return None;
        }
        let tracer = global::tracer("mesh");
        let method = operation.name().to_owned();
        let builder = tracer
            .span_builder(format!("Attempt.{method}"))
            .with_kind(SpanKind::Client)
            .with_start_time(system_time(start))
            .with_attributes([
                KeyValue::new(RPC_SYSTEM, "grpc"),
                KeyValue::new(RPC_METHOD, method),
                KeyValue::new(PREVIOUS_ATTEMPTS, i64::from(previous)),
                KeyValue::new(TRANSPARENT, is_transparent),
            ]);
        let span = builder.start_with_context(&tracer, &Context::new().with_remote_span_context(parent));
        span.span_context().is_valid().then_some(AttemptSpan { span, is_settled: false })
    }
}

impl AttemptSpan {
    fn settle(mut self, code: Code, server: Option<&Authority>) {
        self.is_settled = true;
        if let Some(server) = server {
            self.span.set_attribute(KeyValue::new(SERVER_ADDRESS, server.host().to_owned()));
            let port = server.port_u16().map(|port| KeyValue::new(SERVER_PORT, i64::from(port)));
            port.into_iter().for_each(|port| self.span.set_attribute(port));
        }
        self.span.set_attribute(KeyValue::new(RPC_STATUS, code_name(code)));
        if code != Code::Ok {
            self.span.set_attribute(KeyValue::new(ERROR_TYPE, code_name(code)));
            self.span.set_status(SpanStatus::error(code_name(code)));
        }
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        if !self.is_settled {
            self.span.set_attribute(KeyValue::new(ERROR_TYPE, code_name(Code::Cancelled)));
            self.span.set_status(SpanStatus::error("the call was cancelled"));
        }
        self.span.end();
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(0))
}
