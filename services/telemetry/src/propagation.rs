//! The headers beside `traceparent`: `tracestate` (W3C Trace Context), and `baggage` (W3C Baggage) where
//! `OTEL_PROPAGATORS` enables it. Both are rare, so they are not part of [`TraceParent`]: they are kept in
//! OpenTelemetry's context, and calls without them pay only for a look-up. The mesh decides which callers are trusted.

use std::sync::OnceLock;

use opentelemetry::baggage::BaggageExt;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TraceState};
use opentelemetry::{Context, ContextGuard};
use opentelemetry_sdk::propagation::BaggagePropagator;

use crate::context::TraceParent;

/// A longer `tracestate` is dropped (512 is the minimum that W3C Trace Context requires).
pub const MAX_TRACESTATE_BYTES: usize = 512;
/// A longer `baggage` is dropped (W3C Baggage's limit).
pub const MAX_BAGGAGE_BYTES: usize = 8_192;

/// The headers that are propagated: `OTEL_PROPAGATORS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Propagation {
    /// `traceparent` and `tracestate`.
    pub trace_context: bool,
    /// `baggage`.
    pub baggage: bool,
}

static INSTALLED: OnceLock<Propagation> = OnceLock::new();

impl Propagation {
    /// Trace context only.
    pub const DEFAULT: Self = Self { trace_context: true, baggage: false };
    /// No headers.
    pub const NONE: Self = Self { trace_context: false, baggage: false };

    /// The process's setting; trace context only when there is none.
    pub fn installed() -> Self {
        INSTALLED.get().copied().unwrap_or(Self::DEFAULT)
    }

    /// Makes it the process's setting. Later calls have no effect.
    pub(crate) fn install(self) {
        let _ = INSTALLED.set(self);
    }
}

/// The trace context of an incoming call, with its lists unparsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteContext<'a> {
    /// The caller's span.
    pub parent: TraceParent,
    /// `tracestate`; several headers are joined with commas.
    pub tracestate: Option<&'a str>,
    /// `baggage`; several headers are joined with commas.
    pub baggage: Option<&'a str>,
}

impl RemoteContext<'_> {
    /// Makes it the current context, for an operation that is opened under
    /// [`Parent::Current`](crate::Parent::Current). A list that is malformed or too long is dropped; the parent stays.
    pub fn attach(self) -> ContextGuard {
        let state = self.tracestate.filter(|text| text.len() <= MAX_TRACESTATE_BYTES);
        let state = state.and_then(|text| text.parse::<TraceState>().ok()).filter(can_be_sent).unwrap_or_default();
        let context = Context::new().with_remote_span_context(self.parent.remote_with(state));
        let baggage = self.baggage.filter(|text| text.len() <= MAX_BAGGAGE_BYTES);
        let context = match baggage {
            Some(text) => BaggagePropagator::new().extract_with_context(&context, &Header(text)),
            None => context,
        };
        context.attach()
    }
}

/// OpenTelemetry's parser accepts empty keys and values, and any character in a value; headers are visible ASCII.
fn can_be_sent(state: &TraceState) -> bool {
    let is_header = |value: &str| !value.is_empty() && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    state.into_iter().all(|(key, value)| !key.is_empty() && is_header(value))
}

/// `tracestate` for an outgoing call: that of the current context, if any.
pub fn outgoing_tracestate() -> Option<String> {
    Context::map_current(|context| {
        let span = context.span();
        let state = span.span_context().trace_state();
        (*state != TraceState::NONE).then(|| state.header())
    })
}

/// `baggage` for an outgoing call: that of the current context, if any.
pub fn outgoing_baggage() -> Option<String> {
    Context::map_current(|context| {
        if context.baggage().is_empty() {
            return None;
        }
        let mut headers = std::collections::HashMap::new();
        BaggagePropagator::new().inject_context(context, &mut headers);
        headers.remove("baggage")
    })
}

/// A carrier of one header.
struct Header<'a>(&'a str);

impl Extractor for Header<'_> {
    fn get(&self, _name: &str) -> Option<&str> {
        Some(self.0)
    }
    fn keys(&self) -> Vec<&str> {
        vec!["baggage"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// The outgoing `tracestate` of a call that arrives with this one.
    fn through(tracestate: &str) -> Option<String> {
        let parent = PARENT.parse().expect("valid");
        let _current = RemoteContext { parent, tracestate: Some(tracestate), baggage: None }.attach();
        let is_there = Context::map_current(|context| TraceParent::of(context.span().span_context()) == parent);
        assert!(is_there, "the parent is kept, whatever the tracestate");
        outgoing_tracestate()
    }

    #[test]
    fn a_tracestate_is_forwarded_unchanged() {
        assert_eq!(outgoing_tracestate(), None, "there is none");
        for text in ["vendor=abc123", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "tenant@vendor=a b!"] {
            assert_eq!(through(text).as_deref(), Some(text));
        }
        assert_eq!(through("a=1 ,\t b=2,,").as_deref(), Some("a=1,b=2"), "blanks and empty members are allowed");
    }

    #[test]
    fn a_tracestate_that_is_malformed_or_too_long_is_dropped() {
        for text in ["", ",", "vendor", "Vendor=1", "vendor=a=b", "=1", "vendor=", "vendor=\u{7f}", "vendor=ü"] {
            assert_eq!(through(text), None, "{text:?}");
        }
        // A value is 256 characters at most.
        let fits = format!("a={},b={},c=1", "x".repeat(250), "y".repeat(MAX_TRACESTATE_BYTES - 259));
        assert_eq!((fits.len(), through(&fits)), (MAX_TRACESTATE_BYTES, Some(fits.clone())));
        let too_long = fits.replace("c=1", "c=12");
        assert_eq!(through(&too_long), None);
    }

    #[test]
    fn baggage_is_forwarded_unchanged() {
        let parent = PARENT.parse().expect("valid");
        let with = |baggage| RemoteContext { parent, tracestate: None, baggage: Some(baggage) };
        {
            let _current = with("tenant=blue").attach();
            assert_eq!(outgoing_baggage().as_deref(), Some("tenant=blue"));
        }
        assert_eq!(outgoing_baggage(), None);
        let long = format!("tenant={}", "x".repeat(MAX_BAGGAGE_BYTES));
        let _current = with(&long).attach();
        assert_eq!(outgoing_baggage(), None, "too long");
    }

    proptest::proptest! {
        #[test]
        fn no_tracestate_results_in_a_header_that_cannot_be_sent(text in "\\PC{0,80}|[a-z]{1,3}=.{0,20}(,[a-z]{1,3}=.{0,20}){0,3}") {
            if let Some(header) = through(&text) {
                proptest::prop_assert!(header.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{:?}", header);
            }
        }
    }
}
