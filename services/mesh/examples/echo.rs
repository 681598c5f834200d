//! A tonic service in the mesh, and a call to it: `cargo run -p mesh --example echo`.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use mesh::*;
use tonic::{Request, Response, body::Body, server::Grpc, server::NamedService, service::Routes};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

// This table, and the service below, are usually generated from proto files by the contract's build.
#[rustfmt::skip]
const POLICIES: PolicyTable = PolicyTable(&[MethodPolicy {
    path: "/echo.v1.Echo/Say", event: None, no_event: "an example", allow: &[Access::Public], callers: &[],
    timeout: Some(Duration::from_secs(1)), idempotency: Idempotency::NoSideEffects, streaming: false,
    max_message_bytes: None, limits: &[],
    infrastructure: false,
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
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let say = service_fn(|message: Request<String>| async {
            println!("{:?} has {:?} left and says:", caller(message.extensions()), time_left());
            Ok(Response::new(message.into_inner()))
        });
        async move { Ok(Grpc::new(ProstCodec::<String, String>::default()).unary(say, request).await) }.boxed()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = ServerConfig {
        services: vec!["echo.v1.Echo"],
        trust_client_trace_context: true,
        ..ServerConfig::new("echo", POLICIES, Authorizer::new(POLICIES))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let addresses = vec![listener.local_addr()?.to_string()];
    let (_ready, is_ready) = tokio::sync::watch::channel(true);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let served = tokio::spawn(server(config, Routes::new(Echo)).serve(listener, is_ready, shutdown.clone()));

    let mut echo = tonic::client::Grpc::new(client(ClientConfig::new("echo", addresses, POLICIES)));
    echo.ready().await?;
    let codec = ProstCodec::<String, String>::default();
    let answer = echo.unary(Request::new("hello".to_owned()), "/echo.v1.Echo/Say".parse()?, codec).await?;
    println!("{}", answer.into_inner());

    shutdown.cancel();
    Ok(served.await??)
}
