//! Limits on repeated fields, counted in the encoded request: a field over its limit is rejected before the message is
//! decoded, because an element of two bytes on the wire can take a hundred times as much in memory. One pass over the
//! bytes, which descends only into messages on the path of a limited field. It stops at malformed input without an
//! error: the decoder stops there too, and reports it.

use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::policy::FieldLimit;
use crate::status::{ErrorStatus, ServiceError, Violation};

/// A field has too many elements.
#[derive(Debug, thiserror::Error)]
#[error("{}: {} ({})", .0[0].field, .0[0].description, .0[0].reason)]
pub(crate) struct TooManyElements([Violation; 1]);

impl TooManyElements {
    fn new(limit: &FieldLimit) -> Self {
        let description = format!("must have at most {} elements", limit.max_items);
        Self([Violation { field: limit.field.to_owned(), reason: limit.reason, description }])
    }
}

impl ServiceError for TooManyElements {
    fn error_status(&self) -> ErrorStatus<'_> {
        ErrorStatus::invalid("INVALID_ARGUMENT", &self.0)
    }
}

/// Counts the elements of all limited fields of a message.
pub(crate) fn count_elements(message: &[u8], limits: &'static [FieldLimit]) -> Result<usize, TooManyElements> {
    let mut counts = vec![0; limits.len()];
    let mut scan = Scan { limits, counts: &mut counts, elements: 0 };
    scan.message(message, &mut Vec::new())?;
    Ok(scan.elements)
}

struct Scan<'a> {
    limits: &'static [FieldLimit],
    /// The count of each limited field, within the current element of its parent.
    counts: &'a mut [usize],
    elements: usize,
}

impl Scan<'_> {
    fn message(&mut self, mut bytes: &[u8], path: &mut Vec<u32>) -> Result<(), TooManyElements> {
        while bytes.has_remaining() {
            let Ok((number, wire_type)) = decode_key(&mut bytes) else { return Ok(()) };
            if wire_type != WireType::LengthDelimited {
                if skip_field(wire_type, number, &mut bytes, DecodeContext::default()).is_err() {
                    return Ok(());
                }
                continue;
            }
            let Some(length) = decode_varint(&mut bytes).ok().and_then(|length| usize::try_from(length).ok()) else {
                return Ok(());
            };
            // A truncated field: the decoder reads the bytes that are there, and so does this scan.
            let (value, rest) = bytes.split_at(length.min(bytes.len()));
            path.push(number);
            self.field(value, path)?;
            path.pop();
            bytes = rest;
        }
        Ok(())
    }

    fn field(&mut self, value: &[u8], path: &mut Vec<u32>) -> Result<(), TooManyElements> {
        let mut has_limits_below = false;
        for (index, limit) in self.limits.iter().enumerate() {
            if limit.path == path.as_slice() {
                self.counts[index] += 1;
                self.elements += 1;
                if self.counts[index] > limit.max_items {
                    return Err(TooManyElements::new(limit));
                }
                self.begin_element(path);
            } else {
                has_limits_below |= limit.path.starts_with(path);
            }
        }
        if has_limits_below { self.message(value, path) } else { Ok(()) }
    }

    /// Each element of a repeated message has its own counts. Several occurrences of a non-repeated message share
    /// theirs, because the decoder merges them into one message.
    fn begin_element(&mut self, path: &[u32]) {
        for (limit, count) in self.limits.iter().zip(self.counts.iter_mut()) {
            if limit.path.len() > path.len() && limit.path.starts_with(path) {
                *count = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests;
