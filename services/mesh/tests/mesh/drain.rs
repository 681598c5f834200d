//! Health, reflection, and the end of a server.

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
use crate::world::{Plan, World, say};

async fn health_changes(world: &World, service: &str) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(world.stranger()).watch(request).await.expect("watched").into_inner()
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

#[tokio::test]
async fn a_drain_says_not_serving_finishes_what_is_open_and_ends() {
    let world = World::new().await;
    let mut changes = health_changes(&world, "").await;
    assert_eq!(next(&mut changes).await, ServingStatus::Serving);
    let channel = world.stranger();
    let held = tokio::spawn(async move { say(&channel, SAY, "hold").await });
    world.echo.holding.notified().await;
    world.shutdown.cancel();
    assert_eq!(next(&mut changes).await, ServingStatus::NotServing);
    let still = say(&world.stranger(), SAY, "hello").await;
    assert_eq!(still.expect("served on while others notice"), "hello");
    world.echo.release.add_permits(1);
    assert_eq!(held.await.expect("no panic").expect("what was open is finished"), "released");
    drop(changes);
    world.served.await.expect("no panic").expect("ends");
}

#[tokio::test]
async fn a_stream_that_never_ends_does_not_hold_up_the_end() {
    let world = World::with(Plan { drain_timeout: Duration::from_millis(100), ..Plan::default() }).await;
    let mut grpc = tonic::client::Grpc::new(world.stranger());
    grpc.ready().await.expect("ready");
    let codec = ProstCodec::<String, String>::default();
    let request = Request::new("forever".to_owned());
    let stream = grpc.server_streaming(request, STREAM.parse().expect("a path"), codec).await.expect("begins");
    let mut texts = stream.into_inner();
    assert_eq!(texts.next().await.expect("one").expect("well-formed"), "one");
    world.shutdown.cancel();
    world.served.await.expect("no panic").expect("ends all the same");
    assert_eq!(texts.next().await.expect("two").expect("well-formed"), "two");
    texts.next().await.expect("an end").expect_err("cut off");
}

#[tokio::test]
async fn reflection_knows_google_rpc() {
    let world = World::new().await;
    let ask = |request: MessageRequest| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = tokio_stream_of(vec![
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into())),
    ]);
    let mut answers = ServerReflectionClient::new(world.stranger())
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
