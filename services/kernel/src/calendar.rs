//! Business days and delivery dates. Days are UTC; Saturdays and Sundays are skipped, public holidays are not.

use time::{Date, OffsetDateTime, Weekday};

use crate::Timestamp;

/// The calendar day of an instant, and its hour, both UTC. `None` outside the years 0 to 9999.
fn day_and_hour(at: Timestamp) -> Option<(Date, u8)> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.as_micros()) * 1000).ok()?;
    Some((at.date(), at.hour()))
}

fn is_business_day(day: Date) -> bool {
    !matches!(day.weekday(), Weekday::Saturday | Weekday::Sunday)
}

fn next_business_day(day: Date) -> Option<Date> {
    let mut day = day.next_day()?;
    while !is_business_day(day) {
        day = day.next_day()?;
    }
    Some(day)
}

/// The delivery date of a parcel: it leaves on the first business day on which `dispatch` is before `cutoff_hour_utc`
/// (0 to 24), and is in transit for `transit_business_days` business days. `None` beyond the end of the calendar.
pub fn delivery_date(dispatch: Timestamp, transit_business_days: u16, cutoff_hour_utc: u8) -> Option<Date> {
    let (mut day, hour) = day_and_hour(dispatch)?;
    if !is_business_day(day) || hour >= cutoff_hour_utc {
        day = next_business_day(day)?;
    }
    for _ in 0..transit_business_days {
        day = next_business_day(day)?;
    }
    Some(day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::{date, datetime};

    fn at(time: OffsetDateTime) -> Timestamp {
        Timestamp::from_micros(i64::try_from(time.unix_timestamp_nanos() / 1000).expect("in range"))
    }

    #[test]
    fn weekends_are_skipped_and_the_cutoff_hour_applies() {
        // 2026-11-20 is a Friday.
        let cases = [
            (datetime!(2026-11-18 09:00 UTC), 2, date!(2026 - 11 - 20)),
            (datetime!(2026-11-20 09:00 UTC), 1, date!(2026 - 11 - 23)),
            (datetime!(2026-11-20 13:59 UTC), 0, date!(2026 - 11 - 20)),
            (datetime!(2026-11-20 14:00 UTC), 1, date!(2026 - 11 - 24)),
            (datetime!(2026-11-21 09:00 UTC), 1, date!(2026 - 11 - 24)),
            (datetime!(2026-12-31 20:00 UTC), 5, date!(2027 - 01 - 08)),
        ];
        for (dispatch, transit, expected) in cases {
            assert_eq!(delivery_date(at(dispatch), transit, 14), Some(expected), "{dispatch} + {transit}");
        }
    }
}
