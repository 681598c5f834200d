//! Values of settings: database URLs, sizes, networks, durations, quotas, counts.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use kernel::Secret;
use mesh::Quota;

/// The URL of a database. It may carry a password, so `Debug` does not print it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseUrl(Secret<String>);

impl DatabaseUrl {
    /// The URL, with its password.
    pub fn as_str(&self) -> &str {
        self.0.expose()
    }

    /// Whether it is a database server, which several machines can share.
    pub fn is_server(&self) -> bool {
        !self.as_str().starts_with("sqlite:")
    }
}

impl FromStr for DatabaseUrl {
    type Err = std::convert::Infallible;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Ok(Self(Secret::new(url.to_owned())))
    }
}

/// A number of bytes, at least one: `4096`, `4KiB`, `64MiB`, `1GiB`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteSize(pub usize);

/// The text is not a number of bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not a number of bytes above 0; examples are 4096, 4KiB, 64MiB, 1GiB")]
pub struct ByteSizeError;

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let scale = match &text[digits.len()..] {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(ByteSizeError),
        };
        let number: usize = digits.parse().map_err(|_| ByteSizeError)?;
        number.checked_mul(scale).filter(|bytes| *bytes > 0).map(Self).ok_or(ByteSizeError)
    }
}

/// Networks in CIDR notation, separated by commas: `10.0.0.0/8,fd00::/8`. Empty when the text is empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Networks(pub Vec<IpNet>);

/// An entry of the list is not a network.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0:?} is not a network; examples are 10.0.0.0/8, fd00::/8, 192.0.2.7/32")]
pub struct NetworksError(String);

impl FromStr for Networks {
    type Err = NetworksError;

    fn from_str(text: &str) -> Result<Self, NetworksError> {
        let each = text.split(',').map(str::trim).filter(|each| !each.is_empty());
        each.map(|each| each.parse().map_err(|_| NetworksError(each.to_owned()))).collect::<Result<_, _>>().map(Self)
    }
}

/// A hundred years: longer than any timeout, and small enough that adding a few of them to now does not overflow.
const MAX_DURATION: Duration = Duration::from_secs(36_525 * 86_400);

/// A duration: `250ms`, `10s`, `5m`, `2h`, `7d`.
///
/// # Errors
/// The text is not a duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "not a duration; examples are 250ms, 10s, 5m, 2h, 7d".to_owned())?;
    let duration = match &text[digits.len()..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        "h" => Duration::from_secs(number.saturating_mul(3_600)),
        "d" => Duration::from_secs(number.saturating_mul(86_400)),
        _ => return Err("a duration needs a unit: ms, s, m, h or d, as in 250ms".to_owned()),
    };
    if duration <= MAX_DURATION { Ok(duration) } else { Err("a duration is at most 36525d".to_owned()) }
}

/// A duration above zero, for an interval, a timeout or a lease.
///
/// # Errors
/// The text is not a duration, or is zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("a duration above 0 is needed here".to_owned()),
        duration => Ok(duration),
    }
}

/// The age at which something final is archived: at least a minute, so that no call about it is in flight.
///
/// # Errors
/// The text is not a duration, or is below a minute.
pub fn archive_after(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        duration if duration < Duration::from_secs(60) => Err("at least 1m is needed here".to_owned()),
        duration => Ok(duration),
    }
}

/// A rate limit per caller: `20/s`, `100/m`, `1000/h`.
///
/// # Errors
/// The text is not a quota.
pub fn quota(text: &str) -> Result<Quota, String> {
    let malformed = || "not a quota; examples are 20/s, 100/m, 1000/h".to_owned();
    let (calls, per) = text.split_once('/').ok_or_else(malformed)?;
    let calls = calls.parse().ok().filter(|calls| *calls > 0).ok_or_else(malformed)?;
    let seconds = match per {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(malformed()),
    };
    Ok(Quota { calls, per: Duration::from_secs(seconds) })
}

/// A limit on concurrent things: calls, streams, orders being driven.
///
/// # Errors
/// The number is outside 1 to 1,000,000.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        Ok(_) | Err(_) => Err("1 to 1000000".to_owned()),
    }
}

/// Below 1 MiB nothing is left for requests.
pub(super) fn memory_limit(text: &str) -> Result<ByteSize, String> {
    bytes_within(text, 1024 * 1024..=usize::MAX, "at least 1MiB")
}

/// The generated servers decode at most 4 MiB.
pub(super) fn message_size(text: &str) -> Result<ByteSize, String> {
    bytes_within(text, 1..=4 * 1024 * 1024, "at most 4MiB")
}

fn bytes_within(text: &str, range: RangeInclusive<usize>, wanted: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: ByteSizeError| error.to_string())?;
    if range.contains(&size.0) { Ok(size) } else { Err(wanted.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_need_their_units() {
        assert_eq!("4KiB".parse::<ByteSize>().expect("a size"), ByteSize(4096));
        assert_eq!("4096".parse::<ByteSize>().expect("a size"), ByteSize(4096));
        assert!("4kb".parse::<ByteSize>().is_err());
        assert!("0".parse::<ByteSize>().is_err());
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert!(duration("10").is_err());
        assert!(duration("fast").is_err());
        assert!(duration("18446744073709551615s").is_err());
        assert!(positive_duration("0s").is_err() && positive_duration("1ms").is_ok());
    }

    #[test]
    fn a_quota_is_a_number_of_calls_per_unit_of_time() {
        assert_eq!(quota("100/m"), Ok(Quota { calls: 100, per: Duration::from_secs(60) }));
        for malformed in ["100", "0/s", "/s", "10/d", "ten/s", "-1/s"] {
            assert!(quota(malformed).is_err(), "{malformed}");
        }
    }
}
