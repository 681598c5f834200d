//! Cursors of WatchTraceEvents: a client keeps the last one to resume its stream.

use std::time::Duration;

use chassis::{Fields, Fingerprint, Opaque, OpaqueError};
use kernel::Timestamp;

use crate::error::Error;
use crate::feed::Position;

/// A cursor expires at most this long before the end of the retention: events that ended earlier than it was made can
/// follow it.
const MARGIN: Duration = Duration::from_secs(3_600);

/// A position in the order of events, and the time from which it was current.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    pub(crate) made: Timestamp,
    pub(crate) position: Position,
}

impl Cursor {
    /// Checks that no event after it can have been deleted.
    pub(crate) fn check_age(&self, now: Timestamp, retention: Duration) -> Result<(), Error> {
        let max_age = retention - MARGIN.min(retention / 8);
        if now.since(self.made) > max_age { Err(Error::CursorExpired) } else { Ok(()) }
    }

    fn parse(text: &str) -> Option<Self> {
        let (made, position) = text.split_once(' ')?;
        Some(Self { made: Timestamp::from_micros(made.parse().ok()?), position: position.parse().ok()? })
    }
}

/// Makes and reads the cursors of a stream's filters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cursors(Opaque);

impl Cursors {
    pub(crate) fn of(filters: Fingerprint) -> Self {
        Self(Opaque::of(filters))
    }

    /// The text for the client.
    pub(crate) fn encode(&self, cursor: Cursor) -> String {
        self.0.encode(&format!("{} {}", cursor.made.as_micros(), cursor.position))
    }

    /// Decodes the text of [`Cursors::encode`]; any other is a violation of `after_cursor`. `None` if it is empty.
    pub(crate) fn decode(&self, fields: &mut Fields, text: &str) -> Option<Cursor> {
        if text.is_empty() {
            return None;
        }
        match self.0.decode(text).map(|text| Cursor::parse(&text)) {
            Ok(Some(cursor)) => return Some(cursor),
            Err(OpaqueError::FilterMismatch) => {
                fields.reject(
                    "after_cursor",
                    "CURSOR_OF_OTHER_FILTERS",
                    "the cursor belongs to a stream with other filters",
                );
            }
            Ok(None) | Err(OpaqueError::Malformed) => {
                fields.reject("after_cursor", "INVALID_CURSOR", "not a cursor of WatchTraceEvents");
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const CURSOR: Cursor = Cursor {
        made: Timestamp::from_micros(1_795_392_000_000_000),
        position: Position { serial: 7, event_id: Uuid::from_u128(7) },
    };

    fn cursors(status: i32) -> Cursors {
        Cursors::of(Fingerprint::of("WatchTraceEvents/1").part("status", status))
    }

    fn decode(cursors: &Cursors, text: &str) -> (Option<Cursor>, Vec<&'static str>) {
        let mut fields = Fields::default();
        let cursor = cursors.decode(&mut fields, text);
        (cursor, fields.violations().iter().map(|violation| violation.reason).collect())
    }

    #[test]
    fn a_cursor_is_valid_only_with_its_own_filters() {
        let text = cursors(1).encode(CURSOR);
        assert_eq!(decode(&cursors(1), &text), (Some(CURSOR), vec![]));
        assert_eq!(decode(&cursors(2), &text), (None, vec!["CURSOR_OF_OTHER_FILTERS"]));
        assert_eq!(decode(&cursors(1), ""), (None, vec![]));
        let other_content = Opaque::of(Fingerprint::of("WatchTraceEvents/1").part("status", 1)).encode("7 7 7");
        for bad in ["nonsense!", &text[1..], &other_content] {
            assert_eq!(decode(&cursors(1), bad), (None, vec!["INVALID_CURSOR"]), "{bad}");
        }
    }

    #[test]
    fn a_cursor_expires_before_the_events_after_it_are_deleted() {
        let age = |age: Duration, retention: Duration| {
            CURSOR.check_age(CURSOR.made.plus(age), retention).map_err(|error| error.to_string())
        };
        let (hour, second) = (Duration::from_secs(3_600), Duration::from_secs(1));
        assert_eq!(age(hour * 167, hour * 168), Ok(()));
        assert!(age(hour * 167 + second, hour * 168).is_err());
        assert_eq!(age(second * 7, second * 8), Ok(()));
        assert!(age(second * 8, second * 8).is_err());
        // Another instance's clock may be ahead of ours.
        assert_eq!(CURSOR.check_age(CURSOR.made.minus(second), second).map_err(|error| error.to_string()), Ok(()));
    }
}
