//! Trace ids that the program generates as a client.

use std::fmt;

/// The root of a trace that a client begins (W3C Trace Context, sampled).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trace {
    trace_id: u128,
    span_id: u64,
}

impl Trace {
    /// A new trace. Zero is not a valid id.
    pub(crate) fn random() -> Self {
        Self { trace_id: rand::random::<u128>() | 1, span_id: rand::random::<u64>() | 1 }
    }

    /// 32 lower-case hex digits.
    pub(crate) fn id(self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// The `traceparent` header.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace_id, self.span_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_a_traceparent_that_telemetry_parses() {
        let trace = Trace::random();
        let read: telemetry::TraceParent = trace.to_string().parse().expect("a traceparent");
        assert_eq!(read.trace_id(), trace.id());
    }
}
