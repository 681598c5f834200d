use super::*;

const LIMITS: &[FieldLimit] = &[
    FieldLimit { path: &[1], field: "names", max_items: 3, reason: "INVALID_LENGTH" },
    FieldLimit { path: &[2, 1], field: "mask.paths", max_items: 2, reason: "INVALID_LENGTH" },
    FieldLimit { path: &[4], field: "events", max_items: 2, reason: "TOO_MANY_EVENTS" },
    FieldLimit { path: &[4, 9], field: "events.attributes", max_items: 2, reason: "INVALID_LENGTH" },
];

fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).expect("short")], value].concat()
}

fn counted(message: &[u8]) -> Result<usize, (String, &'static str)> {
    count_elements(message, LIMITS).map_err(|TooManyElements([violation])| (violation.field, violation.reason))
}

#[test]
fn a_repeated_field_is_counted_and_rejected_over_its_limit() {
    assert_eq!(counted(&field(1, b"").repeat(3)), Ok(3));
    assert_eq!(counted(&field(1, b"").repeat(4)), Err(("names".into(), "INVALID_LENGTH")));
    assert_eq!(counted(&field(3, b"x").repeat(99)), Ok(0), "other fields are not counted");
    assert_eq!(counted(&field(4, b"").repeat(3)), Err(("events".into(), "TOO_MANY_EVENTS")));
}

#[test]
fn occurrences_of_one_message_are_merged_and_elements_are_counted_separately() {
    let mask = field(2, &field(1, b"x"));
    assert_eq!(counted(&mask.repeat(2)), Ok(2));
    assert_eq!(counted(&mask.repeat(3)), Err(("mask.paths".into(), "INVALID_LENGTH")));
    let event = |attributes| field(4, &field(9, b"a").repeat(attributes));
    assert_eq!(counted(&event(2).repeat(2)), Ok(6));
    assert_eq!(counted(&[event(1), event(3)].concat()), Err(("events.attributes".into(), "INVALID_LENGTH")));
}

#[test]
fn malformed_input_is_left_to_the_decoder_and_counted_as_far_as_it_reads() {
    for malformed in [&[0xff; 11][..], &[0x0a], &[0x0b], &[0x08], &[0x0d, 1, 2], &[0x07]] {
        assert_eq!(counted(malformed), Ok(usize::from(malformed == [0x0a, 0])), "{malformed:?}");
        let message = [field(1, b"").repeat(4), malformed.to_vec()].concat();
        assert!(counted(&message).is_err(), "{malformed:?}");
    }
    // Truncated in the middle of the mask.
    let mut mask = field(2, &field(1, b"x").repeat(3));
    mask.truncate(mask.len() - 1);
    assert!(counted(&mask).is_err());
    // Varints, fixed numbers and groups are skipped.
    let numbers = [&[0x28, 0x96, 0x01, 0x31][..], &[0; 8], &[0x3d], &[0; 4], &[0x43, 0x08, 0x01, 0x44]].concat();
    assert_eq!(counted(&[numbers, field(1, b"")].concat()), Ok(1));
}

proptest::proptest! {
    #[test]
    fn no_input_makes_it_panic(message in proptest::collection::vec(0u8.., 0..200)) {
        let _ = count_elements(&message, LIMITS);
    }
}
