use super::*;

#[test]
fn a_timeout_is_at_most_eight_digits_and_a_unit() {
    #[rustfmt::skip]
    let table: [(&str, Result<Duration, Malformed>); 19] = [
        ("1H",         Ok(Duration::from_secs(3600))),
        ("2M",         Ok(Duration::from_secs(120))),
        ("3S",         Ok(Duration::from_secs(3))),
        ("50m",        Ok(Duration::from_millis(50))),
        ("7u",         Ok(Duration::from_micros(7))),
        ("9n",         Ok(Duration::from_nanos(9))),
        ("0m",         Ok(Duration::ZERO)),
        ("99999999H",  Ok(Duration::from_secs(99_999_999 * 3600))),
        ("00000001S",  Ok(Duration::from_secs(1))),
        ("123456789u", Err(Malformed)),
        ("",           Err(Malformed)),
        ("S",          Err(Malformed)),
        ("5",          Err(Malformed)),
        ("5s",         Err(Malformed)),
        ("-5S",        Err(Malformed)),
        ("+5S",        Err(Malformed)),
        ("5 S",        Err(Malformed)),
        ("1.5S",       Err(Malformed)),
        ("٣S",         Err(Malformed)),
    ];
    for (text, expected) in table {
        assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
    }
}

#[test]
fn a_written_timeout_is_read_back_and_never_longer() {
    for timeout in [
        Duration::from_nanos(1),
        Duration::from_micros(99_999_999),
        Duration::from_micros(100_000_000),
        Duration::from_secs(86_400 * 2),
        Duration::MAX,
    ] {
        let read = parse(format(timeout).as_bytes()).expect("well-formed");
        assert!(read <= timeout, "{timeout:?} became {read:?}");
    }
    assert_eq!(format(Duration::from_millis(50)), "50000u");
}

#[test]
fn the_lesser_limit_wins() {
    assert_eq!(earlier(Some(1), Some(2)), Some(1));
    assert_eq!(earlier(None, Some(2)), Some(2));
    assert_eq!(earlier(Some(1), None), Some(1));
    assert_eq!(earlier::<u8>(None, None), None);
}

#[tokio::test]
async fn outside_of_a_call_there_is_no_deadline() {
    assert_eq!(time_left(), None);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_and_it_accepts_exactly_the_format(text in proptest::collection::vec(0u8.., 0..12)) {
        let form = |text: &[u8]| {
            (2..=9).contains(&text.len())
                && text[..text.len() - 1].iter().all(u8::is_ascii_digit)
                && b"HMSmun".contains(&text[text.len() - 1])
        };
        proptest::prop_assert_eq!(parse(&text).is_ok(), form(&text));
    }

    #[test]
    fn a_written_timeout_is_read_back_and_loses_less_than_its_unit(micros in 0u64..) {
        let timeout = Duration::from_micros(micros);
        let read = parse(format(timeout).as_bytes()).expect("well-formed");
        let greatest = Duration::from_secs(99_999_999);
        proptest::prop_assert!(read <= timeout);
        proptest::prop_assert!(timeout.min(greatest) - read < Duration::from_secs(1));
    }

    #[test]
    fn every_well_formed_timeout_is_read(number in 0u64..100_000_000, unit in "[HMSmun]", width in 1usize..=8) {
        let text = format!("{number:0width$}{unit}");
        let nanos: u128 = match unit.as_str() {
            "H" => 3_600_000_000_000,
            "M" => 60_000_000_000,
            "S" => 1_000_000_000,
            "m" => 1_000_000,
            "u" => 1_000,
            _ => 1,
        };
        proptest::prop_assert_eq!(parse(text.as_bytes()).expect("well-formed").as_nanos(), u128::from(number) * nanos);
    }
}
