//! Trace ids that the program makes up as a client: what its calls belong to.

use std::fmt;

/// A place in a trace that a client begins (W3C Trace Context, sampled).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trace {
    trace_id: u128,
    span_id: u64,
}

impl Trace {
    /// A new one. Zero is no id.
    pub(crate) fn random() -> Self {
        Self { trace_id: rand::random::<u128>() | 1, span_id: rand::random::<u64>() | 1 }
    }

    /// 32 lower-case hex digits.
    pub(crate) fn id(self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// As a `traceparent` header.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace_id, self.span_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_prints_as_a_traceparent_that_telemetry_reads() {
        let trace = Trace::random();
        let read: telemetry::TraceParent = trace.to_string().parse().expect("a traceparent");
        assert_eq!(read.trace_id(), trace.id());
    }
}
