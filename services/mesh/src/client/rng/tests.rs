use super::*;

#[test]
fn a_random_index_is_in_range() {
    assert_eq!(one_of(&Always(0.0), 3), 0);
    assert_eq!(one_of(&Always(0.999_999), 3), 2);
    assert_eq!(one_of(&Always(1.0), 3), 2, "a source that returns its upper bound is tolerated");
    assert_eq!(one_of(&Always(0.5), 0), 0);
    assert!((0..1_000).all(|_| one_of(&SystemChance, 3) < 3));
}
