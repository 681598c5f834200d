//! What the mesh costs: unary echo of 64 bytes over loopback, client and server in one process, in rotated pairs in one
//! run. `cargo bench -p mesh` (`-- --rounds 10 --seconds 2` for more, `-- --only 1` for one stack under a profiler).
//!
//! (a) tonic's own server and client; (b) the mesh under the same service, without telemetry export.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use hdrhistogram::Histogram;
use mesh::{Access, ClientConfig, Gatekeeper, Idempotency, MethodPolicy, PolicyTable, ServerConfig};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;
use tonic::server::{Grpc, NamedService};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PATH: &str = "/echo.v1.Echo/Say";
const MANY: usize = 64;

const POLICIES: PolicyTable = PolicyTable(&[MethodPolicy {
    path: PATH,
    event: None,
    allow: &[Access::Public],
    callers: &[],
    timeout: Some(Duration::from_secs(5)),
    idempotency: Idempotency::NoSideEffects,
    streaming: false,
}]);

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "echo.v1.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let say = service_fn(|said: Request<String>| async { Ok(Response::new(said.into_inner())) });
        Box::pin(async move { Ok(Grpc::new(ProstCodec::<String, String>::default()).unary(say, request).await) })
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

async fn bare_server() -> SocketAddr {
    let (listener, address) = listener().await;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(tonic::transport::Server::builder().add_service(Echo).serve_with_incoming(incoming));
    address
}

async fn mesh_server() -> SocketAddr {
    let (listener, address) = listener().await;
    let config = ServerConfig {
        memory_budget_bytes: Some(64 << 20),
        trust_client_trace_context: true,
        drain_timeout: Duration::from_secs(1),
        ..ServerConfig::new("echo", POLICIES, Gatekeeper::new(POLICIES))
    };
    let (ready, is_ready) = tokio::sync::watch::channel(true);
    tokio::spawn(async move {
        let _ready = ready;
        mesh::server(config, Routes::new(Echo)).serve(listener, is_ready, Default::default()).await
    });
    address
}

async fn bare_client(address: SocketAddr) -> tonic::transport::Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.tcp_nodelay(true).connect().await.expect("connects")
}

fn mesh_client(address: SocketAddr, connections: usize) -> mesh::Channel {
    mesh::client(ClientConfig { connections, ..ClientConfig::new("echo", vec![address.to_string()], POLICIES) })
}

/// Calls for so long, with so many in flight: each call's microseconds.
async fn run<C>(channel: C, in_flight: usize, time: Duration) -> Histogram<u64>
where
    C: GrpcService<Body> + Clone + Send + 'static,
    C::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<StdError> + Send,
    C::Future: Send,
{
    let end = Instant::now() + time;
    let workers = (0..in_flight).map(|_| {
        let mut echo = tonic::client::Grpc::new(channel.clone());
        tokio::spawn(async move {
            let mut took = Histogram::<u64>::new(3).expect("three digits");
            let text = "x".repeat(64);
            while Instant::now() < end {
                let began = Instant::now();
                echo.ready().await.map_err(Into::into).expect("ready");
                let path = http::uri::PathAndQuery::from_static(PATH);
                let codec = ProstCodec::<String, String>::default();
                let answer = echo.unary(Request::new(text.clone()), path, codec).await.expect("answered");
                assert_eq!(answer.get_ref().len(), text.len());
                let tenths = u64::try_from(began.elapsed().as_nanos() / 100).unwrap_or(u64::MAX);
                took.record(tenths).expect("it grows");
            }
            took
        })
    });
    let mut all = Histogram::<u64>::new(3).expect("three digits");
    for took in join_all(workers).await {
        all.add(took.expect("no panic")).expect("alike");
    }
    all
}

/// What one stack did, over all rounds.
struct Tally {
    name: &'static str,
    calls_per_second: Vec<f64>,
    /// Of client and server together.
    cpu_micros: u64,
    took: Histogram<u64>,
}

impl Tally {
    fn new(name: &'static str) -> Self {
        Self { name, calls_per_second: vec![], cpu_micros: 0, took: Histogram::new(3).expect("three digits") }
    }

    fn add(&mut self, took: &Histogram<u64>, time: Duration, cpu_micros: u64) {
        self.cpu_micros += cpu_micros;
        self.calls_per_second.push(took.len() as f64 / time.as_secs_f64());
        self.took.add(took).expect("alike");
    }

    fn median(&self) -> f64 {
        let mut sorted = self.calls_per_second.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn micros(&self, quantile: f64) -> f64 {
        self.took.value_at_quantile(quantile) as f64 / 10.0
    }
}

/// What the process has used of its processors; zero where Linux does not say.
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks * 10_000
}

/// The value after a flag.
fn flag(name: &str, default: f64) -> f64 {
    let mut args = std::env::args().skip_while(|arg| arg != name).skip(1);
    args.next().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[tokio::main]
async fn main() {
    let (rounds, seconds) = (flag("--rounds", 5.0) as usize, flag("--seconds", 1.0));
    let time = Duration::from_secs_f64(seconds);
    let only = Some(flag("--only", -1.0)).filter(|only| *only >= 0.0).map(|only| only as usize);
    let (bare, meshed) = (bare_server().await, mesh_server().await);
    let bare = bare_client(bare).await;
    let (one, two) = (mesh_client(meshed, 1), mesh_client(meshed, 2));
    let heads = ["flight", "calls/s", "of (a)", "cpu us", "p50 us", "p99 us"].map(|head| format!("{head:>9}"));
    println!("{:<32}{}", "stack", heads.concat());
    for in_flight in [MANY, 1] {
        let names = ["(a) bare tonic", "(b) mesh, no export", "(b2) the same, two connections"];
        let mut tallies = names.map(Tally::new);
        // The first round warms up.
        for round in 0..=rounds {
            for step in 0..names.len() {
                // Rotated, or the one that goes last would always have the warmest caches and the busiest neighbours.
                let which = (round + step) % names.len();
                if only.is_some_and(|only| only != which) {
                    continue;
                }
                let before = cpu_micros();
                let took = match which {
                    0 => run(bare.clone(), in_flight, time).await,
                    1 => run(one.clone(), in_flight, time).await,
                    _ => run(two.clone(), in_flight, time).await,
                };
                if round > 0 {
                    tallies[which].add(&took, time, cpu_micros() - before);
                }
            }
        }
        let of = tallies[0].median();
        for tally in tallies.iter().filter(|tally| !tally.calls_per_second.is_empty()) {
            let (median, p50, p99) = (tally.median(), tally.micros(0.5), tally.micros(0.99));
            let (name, cpu) = (tally.name, tally.cpu_micros as f64 / tally.took.len() as f64);
            println!("{name:<32}{in_flight:>9}{median:>9.0}{:>9.2}{cpu:>9.1}{p50:>9.1}{p99:>9.1}", median / of);
        }
    }
}
