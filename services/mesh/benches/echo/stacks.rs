//! The stacks that are compared: each one's server and client, each in a process of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use certs::{CertificateAuthority, Issued, Names, Validity};
use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use kernel::{Clock, SystemClock};
use mesh::tls::{Files, Identity};
use mesh::{Access, Authorizer, ClientConfig, Idempotency, MethodPolicy, PolicyTable, ServerConfig};
use telemetry::{Environment, Settings, Telemetry};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::flag;
use crate::load::run;
use crate::pair::Setting;

pub(crate) const PATH: &str = "/echo.v1.Echo/Say";
const TRUST_DOMAIN: &str = "bench.local";

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

/// The stacks that are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    Bare,
    BarePinging,
    Mesh,
    Subscribed,
    TwoConnections,
    Exporting,
    MutualTls,
}

impl Stack {
    pub(crate) fn of(key: &str) -> Option<Self> {
        Some(match key {
            "a" => Self::Bare,
            "a1" => Self::BarePinging,
            "b" => Self::Mesh,
            "b1" => Self::Subscribed,
            "b2" => Self::TwoConnections,
            "c" => Self::Exporting,
            "d" => Self::MutualTls,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare tonic",
            Self::BarePinging => "bare tonic, pings as the mesh",
            Self::Mesh => "mesh, no telemetry",
            Self::Subscribed => "mesh, spans without export",
            Self::TwoConnections => "mesh, two connections",
            Self::Exporting => "mesh, all exported",
            Self::MutualTls => "mesh, mutual TLS",
        }
    }

    fn is_bare(self) -> bool {
        matches!(self, Self::Bare | Self::BarePinging)
    }

    /// The program's own set-up.
    fn install_telemetry(self, service: &str, setting: &Setting) -> Option<Telemetry> {
        let endpoint = match self {
            Self::Exporting => Some(("the collector", setting.collector.as_str())),
            Self::Subscribed => None,
            Self::Bare | Self::BarePinging | Self::Mesh | Self::TwoConnections | Self::MutualTls => return None,
        };
        let (service, instance) = (service.to_owned(), format!("{service}-1"));
        let log = "warn".to_owned();
        // Without the process's variables, so that runs are comparable.
        let environment = Environment::read(endpoint, |_| None).expect("no variables");
        let settings = Settings { service, instance, version: "0".to_owned(), environment, log, log_format: None };
        Some(Telemetry::install(&settings).expect("telemetry"))
    }

    fn identity(self, service: &str, setting: &Setting) -> Option<Identity> {
        if self != Self::MutualTls {
            return None;
        }
        let path = |what: &str| setting.certificates.join(what);
        let (certificate, key) = (path(&format!("{service}.pem")), path(&format!("{service}.key")));
        let files = Files { certificate, key, roots: path("roots.pem") };
        Some(Identity::load(files, TRUST_DOMAIN, Arc::new(SystemClock)).expect("an identity"))
    }
}

/// A CA, a server's certificate and a client's.
pub(crate) fn certificates() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let validity = Validity::from(SystemClock.now(), Duration::from_secs(86_400));
    let ca = CertificateAuthority::new(TRUST_DOMAIN, validity).expect("a CA");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("writable");
    write("roots.pem", ca.certificate_pem());
    for service in ["echo", "caller"] {
        let names = Names::of_service(TRUST_DOMAIN, service);
        let Issued { certificate_pem, key_pem } = ca.issue(&names, validity).expect("a certificate");
        write(&format!("{service}.pem"), &certificate_pem);
        write(&format!("{service}.key"), &key_pem);
    }
    folder
}

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
        let say = service_fn(|message: Request<String>| async { Ok(Response::new(message.into_inner())) });
        Box::pin(async move { Ok(Grpc::new(ProstCodec::<String, String>::default()).unary(say, request).await) })
    }
}

fn commands() -> Lines<BufReader<Stdin>> {
    BufReader::new(tokio::io::stdin()).lines()
}

/// A server process: prints its address, and serves until its stdin is closed.
pub(crate) async fn serve(stack: Stack, setting: &Setting) {
    let telemetry = stack.install_telemetry("echo", setting);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    if stack.is_bare() {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let mut server = tonic::transport::Server::builder();
        if stack == Stack::BarePinging {
            let (interval, timeout) = (Some(Duration::from_secs(30)), Some(Duration::from_secs(10)));
            server = server.http2_keepalive_interval(interval).http2_keepalive_timeout(timeout);
        }
        tokio::spawn(server.add_service(Echo).serve_with_incoming(incoming));
    } else {
        let config = ServerConfig {
            memory_budget_bytes: Some(64 << 20),
            trust_client_trace_context: true,
            tls: stack.identity("echo", setting).map(|identity| identity.server()),
            ..ServerConfig::new("echo", POLICIES, Authorizer::new(POLICIES))
        };
        let (ready, is_ready) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            let _ready = ready;
            mesh::server(config, Routes::new(Echo)).serve(listener, is_ready, Default::default()).await
        });
    }
    let mut commands = commands();
    while commands.next_line().await.expect("readable").is_some() {}
    shut_down(telemetry).await;
}

/// A client process: for each line on stdin it makes calls, and prints a result line.
pub(crate) async fn call(stack: Stack, setting: &Setting) {
    let telemetry = stack.install_telemetry("caller", setting);
    let address = flag("--server").expect("an address");
    let mut commands = commands();
    if stack.is_bare() {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let mut endpoint = endpoint.tcp_nodelay(true);
        if stack == Stack::BarePinging {
            let (interval, timeout) = (Duration::from_secs(10), Duration::from_secs(5));
            endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(timeout);
            endpoint = endpoint.keep_alive_while_idle(true);
        }
        let channel = endpoint.connect().await.expect("connects");
        while let Some((in_flight, time)) = next(&mut commands).await {
            print_quantiles(&run(&channel, in_flight, time).await);
        }
    } else {
        let channel = mesh::client(ClientConfig {
            connections: if stack == Stack::TwoConnections { 2 } else { 1 },
            tls: stack.identity("caller", setting).map(|identity| identity.client("echo")),
            ..ClientConfig::new("echo", vec![address], POLICIES)
        });
        while let Some((in_flight, time)) = next(&mut commands).await {
            print_quantiles(&run(&channel, in_flight, time).await);
        }
    }
    shut_down(telemetry).await;
}

async fn next(commands: &mut Lines<BufReader<Stdin>>) -> Option<(usize, Duration)> {
    let command = commands.next_line().await.expect("readable")?;
    let (in_flight, seconds) = command.split_once(' ').expect("two numbers");
    let seconds = seconds.parse().expect("seconds");
    Some((in_flight.parse().expect("a number"), Duration::from_secs_f64(seconds)))
}

fn print_quantiles(took: &Histogram<u64>) {
    let micros = |quantile| took.value_at_quantile(quantile) as f64 / 10.0;
    println!("{} {} {}", took.len(), micros(0.5), micros(0.99));
}

async fn shut_down(telemetry: Option<Telemetry>) {
    if let Some(telemetry) = telemetry {
        telemetry.shutdown().await;
    }
}
