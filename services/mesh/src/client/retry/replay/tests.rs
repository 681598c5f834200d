use super::*;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};

fn streamed(parts: Vec<&'static [u8]>) -> Body {
    let frames = parts.into_iter().map(|part| Ok::<_, Status>(Frame::data(Bytes::from_static(part))));
    Body::new(StreamBody::new(stream::iter(frames)))
}

async fn bytes_of(body: Body) -> Bytes {
    body.collect().await.expect("a body").to_bytes()
}

#[tokio::test]
async fn a_complete_body_is_kept() {
    for parts in [vec![], vec![&b"one"[..]], vec![b"one", b"two", b"three"]] {
        let expected = parts.concat();
        let Replay::Kept(kept) = Replay::of(streamed(parts)) else { panic!("not kept") };
        assert_eq!(bytes_of(body_of(kept.clone())).await, expected);
        assert_eq!(bytes_of(body_of(kept)).await, expected, "and again");
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_sent_once_and_complete() {
    static LONG: [u8; KEPT_BYTES] = [7; KEPT_BYTES];
    assert!(matches!(Replay::of(streamed(vec![&LONG])), Replay::Kept(_)), "at the limit it is kept");
    let Replay::Once(body) = Replay::of(streamed(vec![&LONG, b"!", b"?"])) else { panic!("kept") };
    assert_eq!(bytes_of(body).await.len(), KEPT_BYTES + 2);
}

#[tokio::test]
async fn an_incomplete_body_is_not_awaited() {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(Bytes::from_static(b"begun")).await.expect("room");
    let frames = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|bytes| (Ok::<_, Status>(Frame::data(bytes)), receiver))
    });
    let Replay::Once(body) = Replay::of(Body::new(StreamBody::new(frames))) else { panic!("kept") };
    sender.send(Bytes::from_static(b" and done")).await.expect("room");
    drop(sender);
    assert_eq!(bytes_of(body).await, "begun and done");
}
