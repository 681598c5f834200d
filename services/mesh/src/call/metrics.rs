//! The RPC metrics of OpenTelemetry's semantic conventions. The instruments are created once per stack; without a meter
//! provider, recording is a no-op.

use std::time::Duration;

use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use tonic::Code;

use crate::status::code_name;

pub(crate) const RPC_SYSTEM: &str = "rpc.system.name";
pub(crate) const RPC_METHOD: &str = "rpc.method";
pub(crate) const RPC_STATUS: &str = "rpc.response.status_code";
pub(crate) const ERROR_TYPE: &str = "error.type";

/// The duration of calls, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct CallDuration(Histogram<f64>);

impl CallDuration {
    pub(crate) fn server() -> Self {
        Self::named("rpc.server.call.duration", "Duration of calls served")
    }

    pub(crate) fn client() -> Self {
        Self::named("rpc.client.call.duration", "Duration of calls made")
    }

    fn named(name: &'static str, description: &'static str) -> Self {
        Self(global::meter("mesh").f64_histogram(name).with_unit("s").with_description(description).build())
    }

    pub(crate) fn record(&self, duration: Duration, method: &'static str, code: Code, is_error: bool) {
        let code = code_name(code);
        let attributes = [
            KeyValue::new(RPC_SYSTEM, "grpc"),
            KeyValue::new(RPC_METHOD, method),
            KeyValue::new(RPC_STATUS, code),
            KeyValue::new(ERROR_TYPE, code),
        ];
        // `error.type` is set only on errors.
        self.0.record(duration.as_secs_f64(), if is_error { &attributes } else { &attributes[..3] });
    }
}
