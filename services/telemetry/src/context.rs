//! W3C Trace Context, version 00 (<https://www.w3.org/TR/trace-context/>): only `traceparent`; no baggage.

use std::fmt;
use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// What is wrong with a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context")]
pub struct TraceParentError;

/// Where a trace goes on: the ids of a trace and of a span in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceParent {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) sampled: bool,
}

impl TraceParent {
    /// 32 lower-case hex digits.
    pub fn trace_id(&self) -> String {
        self.trace_id.to_string()
    }

    /// 16 lower-case hex digits.
    pub fn span_id(&self) -> String {
        self.span_id.to_string()
    }

    pub(crate) fn of(context: &SpanContext) -> Self {
        Self { trace_id: context.trace_id(), span_id: context.span_id(), sampled: context.is_sampled() }
    }

    pub(crate) fn remote(self) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        SpanContext::new(self.trace_id, self.span_id, flags, true, TraceState::default())
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let lower_hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let mut parts = text.split('-');
        let (Some(version), Some(trace), Some(span), Some(flags)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TraceParentError);
        };
        // A later version may have more parts behind; version ff is forbidden.
        let version_ok = lower_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !version_ok || !lower_hex(trace, 32) || !lower_hex(span, 16) || !lower_hex(flags, 2) {
            return Err(TraceParentError);
        }
        let trace_id = TraceId::from_hex(trace).map_err(|_| TraceParentError)?;
        let span_id = SpanId::from_hex(span).map_err(|_| TraceParentError)?;
        if trace_id == TraceId::INVALID || span_id == SpanId::INVALID {
            return Err(TraceParentError);
        }
        let flags = u8::from_str_radix(flags, 16).map_err(|_| TraceParentError)?;
        Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_what_it_prints() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(text.parse::<TraceParent>().expect("valid").to_string(), text);
        assert!("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-may-come".parse::<TraceParent>().is_ok());
    }

    #[test]
    fn a_malformed_traceparent_is_refused() {
        for text in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(text.parse::<TraceParent>(), Err(TraceParentError), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}") {
            let _ = text.parse::<TraceParent>();
        }

        #[test]
        fn what_is_read_prints_the_same_ids(text in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?") {
            let well_formed = !text.starts_with("ff-") && (text.len() == 55 || !text.starts_with("00-"));
            let read = text.parse::<TraceParent>();
            // All zeros are as good as never made up here.
            proptest::prop_assert_eq!(read.is_ok(), well_formed);
            if let Ok(read) = read {
                proptest::prop_assert_eq!(&read.to_string()[3..52], &text[3..52]);
                proptest::prop_assert_eq!(read.to_string().parse::<TraceParent>(), Ok(read));
            }
        }

        #[test]
        fn one_wrong_character_is_refused(at in 0usize..55, wrong in "[^0-9a-f-]") {
            let mut text: Vec<char> = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".chars().collect();
            text[at] = wrong.chars().next().expect("one");
            proptest::prop_assert_eq!(text.into_iter().collect::<String>().parse::<TraceParent>(), Err(TraceParentError));
        }
    }
}
