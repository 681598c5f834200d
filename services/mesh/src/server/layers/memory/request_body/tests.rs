use super::*;

/// The verdict on a stream of bytes that arrives in frames of `cut` bytes.
fn found(stream: &[u8], cut: usize, mut prefixes: Prefixes) -> Result<(), MessageError> {
    stream.chunks(cut).try_for_each(|frame| prefixes.check(frame))
}

#[test]
fn a_message_that_is_too_long_is_detected_however_its_frames_are_cut() {
    let mut stream = vec![0, 0, 0, 0, 3, 1, 2, 3];
    stream.extend([0, 0, 0, 0, 9]);
    for cut in 1..=stream.len() {
        assert_eq!(found(&stream, cut, Prefixes::new(8, true)), Err(MessageError::TooLong(9)), "frames of {cut} bytes");
        assert_eq!(found(&stream, cut, Prefixes::new(9, true)), Ok(()), "at the limit it is admitted");
    }
}

#[test]
fn data_after_the_only_message_is_detected_however_its_frames_are_cut() {
    for one in [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0]] {
        for more in [&[][..], &[0], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 3, 1, 2, 3]] {
            let stream = [one, more].concat();
            let expected = if more.is_empty() { Ok(()) } else { Err(MessageError::More) };
            for cut in 1..=stream.len() {
                assert_eq!(found(&stream, cut, Prefixes::new(9, false)), expected, "{stream:?} by {cut}");
                assert_eq!(found(&stream, cut, Prefixes::new(9, true)), Ok(()), "in a stream it is the next message");
            }
        }
    }
}
