//! The goodput of an overloaded server: `cargo bench -p mesh --bench overload`.
//!
//! The handler waits 20 ms under five permits, so the server's capacity is about 240 calls a second, whatever its CPU: a
//! closed loop of five callers measures it (timers are late by a millisecond, and by more on a busy machine). Then an
//! open loop offers one to ten times that: calls begin at their scheduled time, answered or not. Accepted calls must
//! complete at close to the capacity, and in close to 20 ms; rejections must be fast.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh::{Access, Authorizer, Idempotency, MethodPolicy, PolicyTable, ServerConfig, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

const PERMITS: usize = 5;
const WORK: Duration = Duration::from_millis(20);
const STEP: Duration = Duration::from_secs(2);
const LOADS: [usize; 5] = [1, 2, 4, 7, 10];
const CONNECTIONS: usize = 4;
const PATH: &str = "/bench.v1.Bench/Wait";
/// "hello" in a google.protobuf.StringValue, in gRPC's frame.
const MESSAGE: &[u8] = b"\0\0\0\0\x07\x0a\x05hello";

const POLICIES: PolicyTable = PolicyTable(&[MethodPolicy {
    path: PATH,
    event: None,
    no_event: "a benchmark",
    allow: &[Access::Public],
    callers: &[],
    timeout: Some(Duration::from_secs(5)),
    idempotency: Idempotency::NoSideEffects,
    streaming: false,
    max_message_bytes: None,
    limits: &[],
    infrastructure: false,
}]);

#[derive(Clone)]
struct Wait;

impl NamedService for Wait {
    const NAME: &'static str = "bench.v1.Bench";
}

impl Service<http::Request<Body>> for Wait {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let wait = service_fn(|message: Request<String>| async {
            tokio::time::sleep(WORK).await;
            Ok(Response::new(message.into_inner()))
        });
        Box::pin(async move { Ok(Grpc::new(ProstCodec::<String, String>::default()).unary(wait, request).await) })
    }
}

/// The outcomes of the calls of one step.
struct Outcome {
    accepted: Histogram<u64>,
    rejected: Histogram<u64>,
    failed: usize,
}

impl Default for Outcome {
    fn default() -> Self {
        let micros = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
        Self { accepted: micros(), rejected: micros(), failed: 0 }
    }
}

async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("connects");
    stream.set_nodelay(true).expect("no delay");
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = shaken.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// Each call is another caller's: a single one would get at most half of the permits.
fn another_address() -> String {
    static CALLERS: AtomicU16 = AtomicU16::new(0);
    let [high, low] = CALLERS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::from([10, 0, high, low]).to_string()
}

async fn call(mut sender: SendRequest<Full<Bytes>>) -> Code {
    let request = http::Request::post(format!("http://bench{PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-forwarded-for", another_address())
        .body(Full::new(Bytes::from_static(MESSAGE)))
        .expect("a request");
    let Ok(response) = sender.send_request(request).await else { return Code::Unknown };
    let in_headers = Status::from_header_map(response.headers());
    let trailers = response.into_body().collect().await.ok().and_then(|body| body.trailers().cloned());
    let status = in_headers.or_else(|| trailers.and_then(|trailers| Status::from_header_map(&trailers)));
    status.map_or(Code::Unknown, |status| status.code())
}

/// Calls a second in a closed loop with one caller for each permit.
async fn capacity(senders: &[SendRequest<Full<Bytes>>]) -> usize {
    let begin = Instant::now();
    let callers = (0..PERMITS).map(|caller| {
        let sender = senders[caller % senders.len()].clone();
        async move {
            let mut done = 0_usize;
            while begin.elapsed() < STEP {
                done += usize::from(call(sender.clone()).await == Code::Ok);
            }
            done
        }
    });
    let done: usize = join_all(callers).await.into_iter().sum();
    done * 1_000 / usize::try_from(begin.elapsed().as_millis()).expect("short")
}

/// Offers `per_second` calls a second, for one step.
async fn offer(senders: &[SendRequest<Full<Bytes>>], per_second: usize) -> Outcome {
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let (begin, mut calls) = (Instant::now(), vec![]);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while begin.elapsed() < STEP {
        tick.tick().await;
        let due = usize::try_from(begin.elapsed().as_micros()).expect("short") * per_second / 1_000_000;
        while calls.len() < due {
            let (sender, outcome) = (senders[calls.len() % senders.len()].clone(), outcome.clone());
            calls.push(tokio::spawn(async move {
                let begun = Instant::now();
                let code = call(sender).await;
                let micros = u64::try_from(begun.elapsed().as_micros()).expect("short");
                let mut outcome = outcome.lock().expect("not poisoned");
                if code == Code::Ok {
                    outcome.accepted.record(micros).expect("in bounds");
                } else if code == Code::Unavailable {
                    outcome.rejected.record(micros).expect("in bounds");
                } else {
                    outcome.failed += 1;
                }
            }));
        }
    }
    join_all(calls).await;
    let mut outcome = outcome.lock().expect("not poisoned");
    std::mem::take(&mut *outcome)
}

#[tokio::main]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let authorizer = Authorizer::new(POLICIES);
    let trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    let config =
        ServerConfig { max_concurrency: PERMITS, trusted_proxies, ..ServerConfig::new("bench", POLICIES, authorizer) };
    let (_ready, is_ready) = watch::channel(true);
    tokio::spawn(server(config, Routes::new(Wait)).serve(listener, is_ready, CancellationToken::new()));
    let senders = join_all((0..CONNECTIONS).map(|_| connect(address))).await;

    let capacity = capacity(&senders).await;
    println!("capacity {capacity}/s: {PERMITS} permits, {} ms each; {} s per line", WORK.as_millis(), STEP.as_secs());
    println!("load  offered/s  goodput/s  of capacity  accepted p50/p99 ms  rejected/s  rejected p50/p99 ms  failed");
    let mut least: f64 = 1.0;
    for load in LOADS {
        let outcome = offer(&senders, load * capacity).await;
        let per_second = |histogram: &Histogram<u64>| histogram.len() as f64 / STEP.as_secs_f64();
        let millis = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        let goodput = per_second(&outcome.accepted);
        let share = goodput / capacity as f64;
        least = least.min(share);
        println!(
            "{load:>3}x  {:>9}  {goodput:>9.0}  {:>10.0}%  {:>9.1} / {:>6.1}  {:>9.0}  {:>8.1} / {:>6.1}  {:>6}",
            load * capacity,
            share * 100.0,
            millis(&outcome.accepted, 0.5),
            millis(&outcome.accepted, 0.99),
            per_second(&outcome.rejected),
            millis(&outcome.rejected, 0.5),
            millis(&outcome.rejected, 0.99),
            outcome.failed,
        );
    }
    println!("the least goodput was {:.0}% of the capacity", least * 100.0);
}
