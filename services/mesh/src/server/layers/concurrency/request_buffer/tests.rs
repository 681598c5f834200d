use super::*;
use futures_util::FutureExt;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;

fn request() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>, Request) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, Request::new(Body::new(StreamBody::new(frames))))
}

fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, Status> {
    Ok(Frame::data(Bytes::from_static(bytes)))
}

#[tokio::test(start_paused = true)]
async fn a_message_is_complete_however_its_frames_are_cut_and_whichever_task_polled_first() {
    let (sender, request) = request();
    let mut reading = buffer(request);
    for bytes in [&b"a"[..], b"", b"bc"] {
        sender.send(data(bytes)).expect("read");
        assert!((&mut reading).now_or_never().is_none(), "more may come");
    }
    let reading = tokio::spawn(reading.in_time());
    sender.send(data(b"d")).expect("read");
    drop(sender);
    let Ok(request) = reading.await.expect("no panic") else { panic!("not complete") };
    let mut body = request.into_body();
    let only = body.frame().await.expect("a frame").expect("well-formed").into_data().expect("data");
    assert_eq!((&only[..], body.is_end_stream()), (&b"abcd"[..], true));
}

#[tokio::test(start_paused = true)]
async fn reading_a_message_is_bounded_by_a_timeout() {
    let (sender, request) = request();
    sender.send(data(b"a")).expect("read");
    let began = tokio::time::Instant::now();
    let Err(BufferError::TooSlow(status)) = buffer(request).in_time().await else { panic!("complete") };
    assert_eq!((status.code(), began.elapsed()), (Code::DeadlineExceeded, MESSAGE_TIMEOUT));
}

#[tokio::test]
async fn an_error_ends_it_and_an_empty_request_is_complete() {
    let (sender, broken) = request();
    sender.send(Err(Status::cancelled("gone"))).expect("read");
    assert!(
        matches!(buffer(broken).in_time().await, Err(BufferError::Broken(status)) if status.code() == Code::Cancelled)
    );
    let Ok(empty) = buffer(Request::new(Body::empty())).in_time().await else { panic!("not complete") };
    assert!(empty.into_body().is_end_stream());
}
