use super::*;

#[test]
fn a_secret_matches_only_itself_and_is_never_printed() {
    let secret = SharedSecret::new("hunter2\n");
    assert!(secret.matches(b"hunter2"));
    assert!(!secret.matches(b"hunter3") && !secret.matches(b""));
    assert!(!format!("{secret:?}").contains("hunter2"));
}

#[test]
fn an_empty_secret_matches_nothing() {
    assert!(!SharedSecret::new("").matches(b""));
}
