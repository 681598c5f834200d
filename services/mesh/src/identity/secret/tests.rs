use super::*;

#[test]
fn a_secret_matches_only_itself_and_is_never_printed() {
    let secret = Secret::new("hunter2\n");
    assert!(secret.matches(b"hunter2"));
    assert!(!secret.matches(b"hunter3") && !secret.matches(b""));
    assert_eq!(format!("{secret:?}"), "Secret(..)");
}

#[test]
fn an_empty_secret_matches_nothing() {
    assert!(!Secret::new("").matches(b""));
}
