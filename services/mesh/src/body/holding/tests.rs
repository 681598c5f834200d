use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use std::sync::Arc;

#[tokio::test]
async fn a_resource_is_released_at_the_end_without_a_body_and_on_drop() {
    let held = Arc::new(());
    let full = || Body::new(Full::new(Bytes::from_static(b"x")).map_err(|never| match never {}));
    let empty = Body::new(Empty::new().map_err(|never| match never {}));
    drop(hold(Response::new(empty), held.clone()).into_body());
    assert_eq!(Arc::strong_count(&held), 1, "no body");
    let dropped = hold(Response::new(full()), held.clone());
    let mut body = hold(Response::new(full()), held.clone()).into_body();
    assert_eq!(Arc::strong_count(&held), 3);
    drop(dropped);
    assert_eq!(Arc::strong_count(&held), 2, "dropped");
    body.frame().await.expect("data").expect("well-formed");
    assert_eq!(Arc::strong_count(&held), 2, "data is not the end");
    assert!(body.frame().await.is_none());
    assert_eq!(Arc::strong_count(&held), 1, "the end");
    let mut body = hold_until_encoded(Response::new(full()), held.clone()).into_body();
    assert_eq!(Arc::strong_count(&held), 2);
    let _message = body.frame().await.expect("data");
    assert_eq!(Arc::strong_count(&held), 1, "the message is encoded");
}
