//! W3C Trace Context, version 00 (<https://www.w3.org/TR/trace-context/>): `traceparent`. The headers beside it are in
//! [`propagation`](crate::propagation).

use std::fmt;
use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The text is not a valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context")]
pub struct TraceParentError;

/// The ids of a trace and of a span in it, which the trace continues from.
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

    /// The ids of a span.
    pub fn of(context: &SpanContext) -> Self {
        Self { trace_id: context.trace_id(), span_id: context.span_id(), sampled: context.is_sampled() }
    }

    pub(crate) fn flags(self) -> TraceFlags {
        if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() }
    }

    pub(crate) fn remote(self) -> SpanContext {
        self.remote_with(TraceState::default())
    }

    pub(crate) fn remote_with(self, state: TraceState) -> SpanContext {
        SpanContext::new(self.trace_id, self.span_id, self.flags(), true, state)
    }
}

/// `00-`, the trace id's 32 digits, the span id's 16 and two of flags, separated by dashes.
const BYTES: usize = 55;

// Parsed and formatted by hand: both happen for each call.
impl TraceParent {
    /// The header's value: the same as `Display`.
    pub fn header(&self) -> [u8; BYTES] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], &self.trace_id.to_bytes());
        write_hex(&mut text[36..52], &self.span_id.to_bytes());
        write_hex(&mut text[53..], &[u8::from(self.sampled)]);
        text
    }

    fn read(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(BYTES)?;
        let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
        let [version] = read_hex(&known[..2])?;
        let trace_id = TraceId::from_bytes(read_hex(&known[3..35])?);
        let span_id = SpanId::from_bytes(read_hex(&known[36..52])?);
        let [flags] = read_hex(&known[53..])?;
        // A later version may have more fields; version ff is forbidden.
        let version_ok = version != 0xff && (more.is_empty() || (version != 0 && more[0] == b'-'));
        if !dashes || !version_ok || trace_id == TraceId::INVALID || span_id == SpanId::INVALID {
            return None;
        }
        Some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

fn write_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (digits, byte) in text.chunks_exact_mut(2).zip(bytes) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Lower-case digits only, two for each byte.
fn read_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |character: u8| match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.header()).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        Self::read(text.as_bytes()).ok_or(TraceParentError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_parses_what_it_prints() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(text.parse::<TraceParent>().expect("valid").to_string(), text);
        assert!("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-may-come".parse::<TraceParent>().is_ok());
    }

    #[test]
    fn a_malformed_traceparent_is_rejected() {
        for text in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
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
        fn a_parsed_traceparent_prints_the_same_ids(text in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?") {
            let well_formed = !text.starts_with("ff-") && (text.len() == 55 || !text.starts_with("00-"));
            let read = text.parse::<TraceParent>();
            // The random ids are practically never all zeros.
            proptest::prop_assert_eq!(read.is_ok(), well_formed);
            if let Ok(read) = read {
                proptest::prop_assert_eq!(&read.to_string()[3..52], &text[3..52]);
                proptest::prop_assert_eq!(read.to_string().parse::<TraceParent>(), Ok(read));
            }
        }

        #[test]
        fn one_invalid_character_is_rejected(at in 0usize..55, invalid in "[^0-9a-f-]") {
            let mut text: Vec<char> = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".chars().collect();
            text[at] = invalid.chars().next().expect("one");
            proptest::prop_assert_eq!(text.into_iter().collect::<String>().parse::<TraceParent>(), Err(TraceParentError));
        }
    }
}
