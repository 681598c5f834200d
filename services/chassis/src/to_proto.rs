//! Instants, durations and amounts as the contract's messages.

use std::time::Duration;

use contracts::common::v1 as common;
use kernel::{Money, Timestamp};

pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let micros = at.as_micros();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0),
    }
}

pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

pub fn money(money: Money) -> common::Money {
    common::Money { currency_code: money.currency().code().to_owned(), minor_units: money.minor_units() }
}
