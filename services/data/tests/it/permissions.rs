//! Permissions: the policy table decides, before any query.

use contracts::data::v1::{
    AppendTraceEventsRequest, ListTraceEventsRequest, SummarizeTraceEventsRequest, UpsertProductRequest,
    WatchTraceEventsRequest,
};
use tonic::Code;

use crate::world::{World, as_operator, as_user, event, product, rejection};

#[tokio::test]
async fn only_an_operator_can_change_products() {
    let world = World::new().await;
    let request = || UpsertProductRequest { product: Some(product("POT-RED")) };
    let rejected = rejection(world.catalog().upsert_product(as_user(request(), "customer")).await);
    assert_eq!(rejected.0, Code::PermissionDenied);
    let anonymous = rejection(world.catalog().upsert_product(request()).await);
    assert_eq!(anonymous.0, Code::Unauthenticated);
    assert_eq!(world.lookup(&["POT-RED"]).await.expect("a response").missing_skus, ["POT-RED"]);
    assert!(world.catalog().upsert_product(as_operator(request())).await.is_ok());
}

#[tokio::test]
async fn only_services_can_append_events_and_only_their_own() {
    let world = World::new().await;
    let request = || AppendTraceEventsRequest { events: vec![event(1)] };
    let operator = rejection(world.events().append_trace_events(as_operator(request())).await);
    assert_eq!(operator.0, Code::PermissionDenied);
    let other_client = rejection(world.events_as("gateway").append_trace_events(request()).await);
    assert_eq!(other_client.0, Code::PermissionDenied);
    let response = world.events_as("payment").append_trace_events(request()).await.expect("a response").into_inner();
    assert_eq!(response.results[0].refusal, "service is not the caller");
    assert_eq!(world.ids(ListTraceEventsRequest::default()).await, [""; 0]);
}

#[tokio::test]
async fn operators_read_events_and_the_order_service_lists_them() {
    let world = World::new().await;
    let list = ListTraceEventsRequest::default;
    let customer = rejection(world.events().list_trace_events(as_user(list(), "customer")).await);
    assert_eq!(customer.0, Code::PermissionDenied);
    let payment = rejection(world.events_as("payment").list_trace_events(list()).await);
    assert_eq!(payment.0, Code::PermissionDenied);
    assert!(world.events_as("order").list_trace_events(list()).await.is_ok());
    let summary = SummarizeTraceEventsRequest::default();
    let order = rejection(world.events_as("order").summarize_trace_events(summary).await);
    assert_eq!(order.0, Code::PermissionDenied);
}

#[tokio::test]
async fn only_operators_can_follow_events() {
    let world = World::new().await;
    let request = WatchTraceEventsRequest::default;
    for role in ["customer", "operator"] {
        let followed = world.watch_as(role, request()).await;
        assert_eq!(followed.err().map(|status| status.code()), (role == "customer").then_some(Code::PermissionDenied));
    }
    let order = rejection(world.events_as("order").watch_trace_events(request()).await);
    assert_eq!(order.0, Code::PermissionDenied);
    let policy = contracts::POLICIES.0.iter().find(|policy| policy.path.ends_with("/WatchTraceEvents"));
    let policy = policy.expect("a policy");
    assert_eq!((policy.streaming, policy.timeout), (true, None), "a stream has no timeout");
}
