//! Exactly when connections are made, in paused time.

use super::*;
use crate::client::connect::{SETTINGS, handshake};
use crate::client::endpoint::EndpointConfig;
use crate::client::metrics::ClientMetrics;
use crate::client::rng::FixedRng;
use crate::client::subset::Subset;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

const MS: Duration = Duration::from_millis(1);

/// Reports each attempt; connects to a pipe while there are any, else fails.
struct Pipes {
    attempts: UnboundedSender<Instant>,
    pipes: Mutex<Vec<DuplexStream>>,
}

impl Connect for Pipes {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected, String>> {
        let _ = self.attempts.send(Instant::now());
        let pipe = self.pipes.lock().pop();
        Box::pin(async move {
            match pipe {
                Some(pipe) => handshake(pipe, address).await,
                None => Err("rejected".to_owned()),
            }
        })
    }
}

struct World {
    endpoint: Arc<Endpoint>,
    pipes: Arc<Pipes>,
    attempts: UnboundedReceiver<Instant>,
    changed: Arc<Notify>,
    maintained: tokio::task::JoinHandle<()>,
}

impl World {
    /// The first `connections` attempts succeed. Returns the pipes' other ends.
    fn new(connections: usize) -> (Self, Vec<DuplexStream>) {
        let rng: Arc<dyn Rng> = Arc::new(FixedRng(1.0));
        let metrics = Arc::new(ClientMetrics::new("test"));
        let config = EndpointConfig {
            connections: 1,
            subset: Subset::new(None, &FixedRng(0.0)),
            has_tls: false,
            created: Instant::now(),
            has_address_attributes: true,
            rng: rng.clone(),
            metrics,
        };
        let endpoint = Arc::new(Endpoint::new("a:1".into(), &config, CancellationToken::new()));
        let (attempts_in, attempts) = unbounded_channel();
        let (ours, theirs) = (0..connections).map(|_| tokio::io::duplex(1 << 16)).unzip();
        let pipes = Arc::new(Pipes { attempts: attempts_in, pipes: Mutex::new(ours) });
        let changed = Arc::new(Notify::new());
        let reconnect = Reconnect { connect: pipes.clone(), rng, changed: changed.clone(), failures: Arc::default() };
        let maintained = tokio::spawn(maintain(endpoint.clone(), 0, reconnect));
        (Self { endpoint, pipes, attempts, changed, maintained }, theirs)
    }

    /// The same, after the other ends have sent their SETTINGS.
    async fn with_settings(connections: usize) -> (Self, Vec<DuplexStream>) {
        let (world, mut others) = Self::new(connections);
        for other in &mut others {
            other.write_all(&SETTINGS).await.expect("room");
        }
        (world, others)
    }

    async fn next_attempt(&mut self) -> Instant {
        self.attempts.recv().await.expect("an attempt")
    }

    async fn until_ready(&self, is_ready: bool) {
        while self.endpoint.is_ready() != is_ready {
            // A lost connection does not notify: poll again.
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::task::yield_now() => {}
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_instance_is_tried_with_increasing_backoff() {
    let (mut world, _) = World::new(0);
    let mut last = world.next_attempt().await;
    for millis in [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        let next = world.next_attempt().await;
        assert_eq!(next - last, millis * MS);
        last = next;
    }
    assert_eq!(
        world.endpoint.failure_since(8).as_deref(),
        Some("rejected"),
        "nine have failed, the tenth is in progress"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_calls_shorten_the_backoff_to_a_minimum() {
    let (mut world, _) = World::new(0);
    let mut last = world.next_attempt().await;
    for _ in 0..5 {
        last = world.next_attempt().await;
    }
    // 1.6 s would be next.
    (0..100).for_each(|_| world.endpoint.request_connection());
    assert_eq!(world.next_attempt().await - last, MIN_INTERVAL);
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_again_immediately() {
    let (mut world, mut others) = World::with_settings(2).await;
    world.next_attempt().await;
    world.until_ready(true).await;
    tokio::time::sleep(2 * STABLE_AFTER).await;
    let lost = Instant::now();
    others.pop();
    assert_eq!(world.next_attempt().await, lost);
    world.until_ready(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_early_counts_as_a_failure() {
    let (mut world, others) = World::with_settings(2).await;
    let first = world.next_attempt().await;
    drop(others);
    assert_eq!(world.next_attempt().await - first, BACKOFF);
    world.until_ready(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_outlives_its_instances_removal() {
    let (mut world, mut others) = World::new(1);
    let (late, frames) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames = Mutex::new(Some(frames));
    let service = service_fn(move |_request: http::Request<hyper::body::Incoming>| {
        let frames = frames.lock().take();
        let frames = futures_util::stream::unfold(frames, |frames| async {
            let mut frames = frames?;
            let bytes = frames.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes)), Some(frames)))
        });
        std::future::ready(Ok::<_, std::convert::Infallible>(http::Response::new(StreamBody::new(frames))))
    });
    let pipe = TokioIo::new(others.pop().expect("one"));
    tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(pipe, service));
    world.next_attempt().await;
    world.until_ready(true).await;
    let request = http::Request::post("/test.v1.Test/Stream").body(tonic::body::Body::empty()).expect("a request");
    let Ok((index, sending)) = world.endpoint.send(request) else { panic!("not connected") };
    let Ok(response) = world.endpoint.outcome(index, sending.await) else { panic!("not answered") };
    world.endpoint.removed.cancel();
    world.maintained.await.expect("no panic");
    assert!(!world.endpoint.is_ready());
    late.send(Bytes::from_static(b"late")).await.expect("it is read");
    drop(late);
    assert_eq!(response.into_body().collect().await.expect("whole").to_bytes(), "late");
}

#[tokio::test(start_paused = true)]
async fn a_removed_instance_takes_no_more_calls_and_its_connection_is_no_longer_maintained() {
    let (mut world, _others) = World::with_settings(1).await;
    world.next_attempt().await;
    world.until_ready(true).await;
    world.endpoint.removed.cancel();
    world.maintained.await.expect("no panic");
    assert!(!world.endpoint.is_ready());
    assert!(world.pipes.pipes.lock().is_empty());
}
