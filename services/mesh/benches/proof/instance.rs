//! One instance, a process: a service of two methods under `mesh::server`, whose behaviour is controlled on its stdin.
//! It exits when its stdin is closed, so that no process is left behind, and drains on SIGTERM.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mesh::{Access, Authorizer, Idempotency, MethodPolicy, PolicyTable, ServerConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// With a port after it: run as an instance.
pub(crate) const FLAG: &str = "--instance";
/// Printed when it accepts calls, and before the number of calls that its handler has begun.
pub(crate) const READY: &str = "ready";
pub(crate) const COUNT: &str = "count ";
/// A method that may be retried.
pub(crate) const LOOK: &str = "/proof.v1.Proof/Look";
/// A method that may have its effect twice.
pub(crate) const ONCE: &str = "/proof.v1.Proof/Once";

/// The duration of a call: a wait, as for a database.
const WORK: Duration = Duration::from_millis(2);
const PRE_DRAIN_DELAY: Duration = Duration::from_millis(200);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

const fn policy(path: &'static str, idempotency: Idempotency) -> MethodPolicy {
    MethodPolicy {
        path,
        event: None,
        no_event: "a benchmark",
        allow: &[Access::Public],
        callers: &[],
        timeout: Some(Duration::from_secs(1)),
        idempotency,
        streaming: false,
        max_message_bytes: None,
        limits: &[],
        infrastructure: false,
    }
}

pub(crate) const POLICIES: PolicyTable =
    PolicyTable(&[policy(LOOK, Idempotency::NoSideEffects), policy(ONCE, Idempotency::Unknown)]);

/// Its behaviour, and the number of its calls.
#[derive(Default)]
struct Behaviour {
    slower_ms: AtomicU64,
    /// The code that each call fails with; zero (OK) for none.
    fails_with: AtomicI32,
    calls: AtomicU64,
}

impl Behaviour {
    async fn work(&self) -> Result<(), Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let code = Code::from_i32(self.fails_with.load(Ordering::Relaxed));
        if code != Code::Ok {
            // Immediately: failures that are faster than successes are the hard case.
            return Err(Status::new(code, "configured to fail"));
        }
        tokio::time::sleep(WORK + Duration::from_millis(self.slower_ms.load(Ordering::Relaxed))).await;
        Ok(())
    }

    fn apply(&self, command: &str) {
        let (slower_ms, code) = match command.split_once(' ') {
            Some(("slow", millis)) => (millis.parse().expect("milliseconds"), Code::Ok),
            Some(("fail", "UNAVAILABLE")) => (0, Code::Unavailable),
            Some(("fail", "INTERNAL")) => (0, Code::Internal),
            None if command == "healthy" => (0, Code::Ok),
            None if command == "count" => return,
            Some(_) | None => panic!("no such command: {command}"),
        };
        self.slower_ms.store(slower_ms, Ordering::Relaxed);
        self.fails_with.store(code.into(), Ordering::Relaxed);
    }

    fn print_count(&self) {
        println!("{COUNT}{}", self.calls.load(Ordering::Relaxed));
    }
}

#[derive(Clone)]
struct Proof(Arc<Behaviour>);

impl NamedService for Proof {
    const NAME: &'static str = "proof.v1.Proof";
}

impl Service<http::Request<Body>> for Proof {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let behaviour = self.0.clone();
        Box::pin(async move {
            let answer = service_fn(|message: Request<String>| {
                let behaviour = behaviour.clone();
                async move { behaviour.work().await.map(|()| Response::new(message.into_inner())) }
            });
            Ok(Grpc::new(ProstCodec::<String, String>::default()).unary(answer, request).await)
        })
    }
}

/// Serves until SIGTERM and the drain after it.
pub(crate) fn serve(port: u16) {
    // A process stopped by SIGSTOP does not see its stdin closed.
    let dies_with_parent = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    dies_with_parent.expect("Linux");
    let behaviour = Arc::new(Behaviour::default());
    let (controlled, shutdown) = (behaviour.clone(), CancellationToken::new());
    let terminated = shutdown.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal");
        tokio::spawn(async move {
            terminate.recv().await;
            terminated.cancel();
        });
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port");
        let config = ServerConfig {
            memory_budget_bytes: Some(64 << 20),
            pre_drain_delay: PRE_DRAIN_DELAY,
            drain_timeout: DRAIN_TIMEOUT,
            ..ServerConfig::new("proof", POLICIES, Authorizer::new(POLICIES))
        };
        let server = mesh::server(config, Routes::new(Proof(behaviour.clone())));
        let (_ready, is_ready) = tokio::sync::watch::channel(true);
        println!("{READY}");
        std::thread::spawn(move || {
            for command in std::io::stdin().lines() {
                controlled.apply(&command.expect("a line"));
                controlled.print_count();
            }
            std::process::exit(1);
        });
        server.serve(listener, is_ready, shutdown).await.expect("a loopback address");
    });
    // The total: it can no longer be queried.
    behaviour.print_count();
}
