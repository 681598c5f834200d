//! Durations as in the Gateway API (GEP-2257): one to four numbers of one to five digits, each with a unit of h, m, s or
//! ms, for example `1s500ms`.

use std::time::Duration;

/// Reads a duration.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        if rest.is_empty() {
            break;
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let (number, unit) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let length = unit.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = unit.split_at(length);
        total += match unit {
            "h" => Duration::from_secs(number * 3_600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = after;
    }
    (rest.is_empty() && !text.is_empty()).then_some(total)
}

/// Writes a duration that can be read.
pub(crate) fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1_000) { format!("{}s", millis / 1_000) } else { format!("{millis}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_the_gateway_api_are_read() {
        let millis = |text| parse(text).map(|duration| duration.as_millis());
        assert_eq!(millis("200ms"), Some(200));
        assert_eq!(millis("1s500ms"), Some(1_500));
        assert_eq!(millis("1h2m3s4ms"), Some(3_723_004));
        assert_eq!(millis("0s"), Some(0));
        for wrong in ["", "1", "s", "1.5s", "-1s", "1d", "123456s", "1s 2s", "1h1h1h1h1h", "1S", "１s"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!([format(Duration::from_secs(2)), format(Duration::from_millis(1_500))], ["2s", "1500ms"]);
    }
}
