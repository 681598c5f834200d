use super::*;

#[test]
fn a_frequent_reason_hides_no_other() {
    let (limits, now) = (LogLimits::new(), Instant::now());
    assert_eq!(limits.count("STORE_FAILED", now), Some(1));
    assert_eq!(limits.count("STORE_FAILED", now), None);
    assert_eq!(limits.count("PANIC", now), Some(1));
}
