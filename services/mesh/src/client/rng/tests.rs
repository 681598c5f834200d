use super::*;

#[test]
fn a_random_index_is_in_range() {
    assert_eq!(random_index(&FixedRng(0.0), 3), 0);
    assert_eq!(random_index(&FixedRng(0.999_999), 3), 2);
    assert_eq!(random_index(&FixedRng(1.0), 3), 2, "a source that returns its upper bound is tolerated");
    assert_eq!(random_index(&FixedRng(0.5), 0), 0);
    assert!((0..1_000).all(|_| random_index(&SystemRng, 3) < 3));
}
