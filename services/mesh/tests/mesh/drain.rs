//! Health, reflection, and shutdown.

use std::time::Duration;

use futures_util::StreamExt;
use tonic::Request;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::echo::{SAY, STREAM};
use crate::world::{World, WorldOptions, reason, say};

async fn health_changes(world: &World, service: &str) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(world.anonymous()).watch(request).await.expect("watched").into_inner()
}

async fn next(changes: &mut tonic::Streaming<tonic_health::pb::HealthCheckResponse>) -> ServingStatus {
    changes.next().await.expect("a change").expect("well-formed").status()
}

#[tokio::test]
async fn health_follows_readiness_for_every_service_name() {
    let world = World::new().await;
    for service in ["", "test.v1.Echo"] {
        let mut changes = health_changes(&world, service).await;
        assert_eq!(next(&mut changes).await, ServingStatus::Serving);
        world.ready.send_replace(false);
        assert_eq!(next(&mut changes).await, ServingStatus::NotServing);
        world.ready.send_replace(true);
        assert_eq!(next(&mut changes).await, ServingStatus::Serving);
    }
}

/// A connection without the mesh: it sees the GOAWAY.
async fn connection(world: &World) -> (h2::client::SendRequest<bytes::Bytes>, tokio::task::JoinHandle<()>) {
    let stream = tokio::net::TcpStream::connect(world.address).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    (sender, tokio::spawn(async move { connection.await.expect("closed without an error") }))
}

#[tokio::test]
async fn during_the_pre_drain_delay_everything_is_served_and_new_connections_are_accepted() {
    let long = Duration::from_secs(3_600);
    let world = World::altered(WorldOptions::default(), |config| config.pre_drain_delay = long).await;
    let mut changes = health_changes(&world, "").await;
    assert_eq!(next(&mut changes).await, ServingStatus::Serving);
    world.shutdown.cancel();
    assert_eq!(next(&mut changes).await, ServingStatus::NotServing);
    assert_eq!(say(&world.anonymous(), SAY, "hello").await.expect("served during the pre-drain delay"), "hello");
    assert!(!world.served.is_finished());
    world.served.abort();
}

#[tokio::test]
async fn a_drain_sends_goaway_completes_open_calls_and_ends() {
    let world = World::new().await;
    let (sender, connection) = connection(&world).await;
    drop(sender.ready().await.expect("ready"));
    let channel = world.anonymous();
    let held = tokio::spawn(async move { say(&channel, SAY, "hold").await });
    world.echo.holding.notified().await;
    world.shutdown.cancel();
    connection.await.expect("the idle connection is closed after the GOAWAY");
    assert!(!world.served.is_finished(), "a call is open");
    world.echo.release.add_permits(1);
    assert_eq!(held.await.expect("no panic").expect("the open call completes"), "released");
    world.served.await.expect("no panic").expect("ends");
    tokio::net::TcpStream::connect(world.address).await.expect_err("no longer listening");
}

#[tokio::test]
async fn health_watches_end_with_the_goaway() {
    let world =
        World::with(WorldOptions { drain_timeout: Duration::from_secs(3_600), ..WorldOptions::default() }).await;
    let mut changes = health_changes(&world, "").await;
    assert_eq!(next(&mut changes).await, ServingStatus::Serving);
    world.shutdown.cancel();
    while let Some(change) = changes.next().await {
        let Ok(change) = change else { break };
        assert_eq!(change.status(), ServingStatus::NotServing);
    }
    world.served.await.expect("no panic").expect("ends without waiting for the watch");
}

#[tokio::test]
async fn an_endless_stream_is_ended_with_a_status() {
    // The grace period is a quarter of it.
    let world =
        World::with(WorldOptions { drain_timeout: Duration::from_millis(400), ..WorldOptions::default() }).await;
    let mut texts = forever(&world).await;
    assert_eq!(texts.next().await.expect("one").expect("well-formed"), "one");
    world.shutdown.cancel();
    assert_eq!(texts.next().await.expect("two").expect("well-formed"), "two");
    let status = texts.next().await.expect("an end").expect_err("ended by the server");
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::Unavailable, "DRAINING"));
    world.served.await.expect("no panic").expect("ends");
}

#[tokio::test]
async fn a_call_that_never_ends_is_cut_off_after_the_drain_timeout() {
    let world = World::with(WorldOptions { drain_timeout: Duration::from_millis(50), ..WorldOptions::default() }).await;
    let channel = world.anonymous();
    let held = tokio::spawn(async move { say(&channel, SAY, "hold").await });
    world.echo.holding.notified().await;
    world.shutdown.cancel();
    world.served.await.expect("no panic").expect("ends nevertheless");
    held.await.expect("no panic").expect_err("cut off");
    world.echo.dropped.notified().await;
}

async fn forever(world: &World) -> tonic::Streaming<String> {
    let mut grpc = tonic::client::Grpc::new(world.anonymous());
    grpc.ready().await.expect("ready");
    let codec = ProstCodec::<String, String>::default();
    let request = Request::new("forever".to_owned());
    grpc.server_streaming(request, STREAM.parse().expect("a path"), codec).await.expect("begins").into_inner()
}

#[tokio::test]
async fn reflection_includes_google_rpc() {
    let world = World::new().await;
    let ask = |request: MessageRequest| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = tokio_stream_of(vec![
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into())),
    ]);
    let mut answers = ServerReflectionClient::new(world.anonymous())
        .server_reflection_info(requests)
        .await
        .expect("answers")
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(services)) =
        answers.next().await.expect("one").expect("ok").message_response
    else {
        panic!("not a list of services")
    };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let file = answers.next().await.expect("two").expect("ok").message_response;
    assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
}

fn tokio_stream_of<T: Send + 'static>(items: Vec<T>) -> impl futures_util::Stream<Item = T> + Send + 'static {
    futures_util::stream::iter(items)
}
