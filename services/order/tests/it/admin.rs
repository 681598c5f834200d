//! The instance's calls, live: mesh.v1.MeshAdminService of a whole service.

use contracts::common::v1::EventType;
use contracts::data::v1::EventStatus;
use contracts::mesh::v1::{
    self as mesh, CallSide, GetSnapshotRequest, GetSnapshotResponse, ListRoutesRequest, ServingState, TapCallsRequest,
    TapCallsResponse,
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::system::{Client, System, SystemOptions, error_of, mugs, rejection};
use crate::world::GUARD;

async fn snapshot(operator: &Client) -> GetSnapshotResponse {
    let response = operator.mesh_admin().get_snapshot(operator.request(GetSnapshotRequest::default())).await;
    response.expect("a snapshot").into_inner()
}

/// Opens a tap; its first message says that it is open.
async fn tap(operator: &Client, filter: TapCallsRequest) -> Result<Streaming<TapCallsResponse>, Status> {
    let mut calls = operator.mesh_admin().tap_calls(operator.request(filter)).await?.into_inner();
    let first = message(&mut calls).await?;
    assert_eq!((first.call, first.dropped_count), (None, 0));
    Ok(calls)
}

async fn message(calls: &mut Streaming<TapCallsResponse>) -> Result<TapCallsResponse, Status> {
    Ok(timeout(GUARD, calls.message()).await.expect("a message, or the end")?.expect("the stream ends with a status"))
}

async fn next(calls: &mut Streaming<TapCallsResponse>) -> mesh::TappedCall {
    message(calls).await.expect("a message").call.expect("a call")
}

#[tokio::test]
async fn a_snapshot_has_the_served_methods_by_caller_and_the_called_services() {
    let system = System::new().await;
    let (ada, operator) = (system.client("customer"), system.client("operator"));
    let order = ada.create(mugs(3)).await.expect("an order");
    let (_, end) = ada.watch_to_the_end(&order.order_id, 0).await;
    end.expect("a clean end");
    ada.get("not an id").await.expect_err("an invalid id");
    system.anonymous_client().get(&order.order_id).await.expect_err("no token");
    operator.get(&order.order_id).await.expect("the order");

    let seen = snapshot(&operator).await;
    assert_eq!((seen.service.as_str(), seen.instance.as_str()), ("order", "order-1"));
    assert_eq!(seen.serving_state(), ServingState::Serving);
    assert!(seen.start_time.is_some() && !seen.version.is_empty() && seen.certificate_remaining.is_none());
    let method = |name: &str| {
        let name = format!("order.v1.OrderService/{name}");
        let found = seen.methods.iter().find(|method| method.method == name).unwrap_or_else(|| panic!("{name}"));
        let counts = found.callers.iter().map(|entry| {
            let codes = entry.calls.clone().expect("calls").codes.into_iter();
            (entry.caller.clone(), codes.collect::<std::collections::BTreeMap<_, _>>())
        });
        (found.in_flight, counts.collect::<std::collections::BTreeMap<_, _>>())
    };
    let codes = |codes: &[(&str, i64)]| codes.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect();
    assert_eq!(method("CreateOrder"), (0, [("customer".to_owned(), codes(&[("OK", 1)]))].into()));
    let gets = [
        ("anonymous".to_owned(), codes(&[("UNAUTHENTICATED", 1)])),
        ("customer".to_owned(), codes(&[("INVALID_ARGUMENT", 1)])),
        ("operator".to_owned(), codes(&[("OK", 1)])),
    ];
    assert_eq!(method("GetOrder"), (0, gets.into()), "a rejected call is counted too");

    let data = seen.targets.iter().find(|target| target.name == "data").expect("a target");
    let lookup = data.methods.iter().find(|method| method.method == "data.v1.CatalogService/BatchGetProducts");
    let calls = lookup.and_then(|method| method.calls.clone()).expect("calls");
    assert_eq!(calls.codes.get("OK"), Some(&1));
    let window = calls.last_10s.expect("a window");
    assert_eq!((window.calls, window.failures), (1, 0));
    assert!(window.p99.is_some_and(|p99| p99.nanos > 0));
    let [endpoint] = &data.endpoints[..] else { panic!("{:?}", data.endpoints) };
    assert!(endpoint.connected && endpoint.attempts > 0 && endpoint.breaker() == mesh::BreakerState::Closed);
    assert_eq!(endpoint.address, data.addresses);
    assert!(seen.targets.iter().any(|target| target.name == "payment"));

    let names: Vec<_> = seen.limits.iter().map(|limit| limit.name.as_str()).collect();
    assert_eq!(names, ["calls", "streams", "connections", "memory_bytes"]);
    let calls = &seen.limits[0];
    assert_eq!((calls.used, calls.limit > 1), (1, true), "this call");
    assert_eq!(seen.rejections.get("identity"), Some(&1));
    let driver = seen.driver.expect("a driver");
    assert!(driver.items == "orders" && driver.max_in_flight > 0);
}

#[tokio::test]
async fn a_service_that_drains_says_so() {
    let delay = std::time::Duration::from_secs(1);
    let system = System::with(SystemOptions { pre_drain_delay: delay, ..SystemOptions::default() }).await;
    let operator = system.client("operator");
    let mut calls = tap(&operator, TapCallsRequest::default()).await.expect("a tap");
    assert_eq!(snapshot(&operator).await.serving_state(), ServingState::Serving);
    system.shutdown.cancel();
    // During the pre-drain delay it serves.
    assert_eq!(snapshot(&operator).await.serving_state(), ServingState::Draining);
    let end = loop {
        match message(&mut calls).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(rejection(&end), error_of(Code::Unavailable, "DRAINING", "mesh"));
}

#[tokio::test]
async fn a_tap_reports_served_and_made_calls_as_they_end_without_any_user() {
    let system = System::new().await;
    let (ada, operator) = (system.client("customer"), system.client("operator"));
    let created = TapCallsRequest { methods: vec!["CreateOrder".into()], ..TapCallsRequest::default() };
    let looked_up = TapCallsRequest {
        targets: vec!["data".into()],
        methods: vec!["BatchGet".into()],
        ..TapCallsRequest::default()
    };
    let (mut created, mut looked_up) =
        (tap(&operator, created).await.expect("a tap"), tap(&operator, looked_up).await.expect("a tap"));
    ada.create(mugs(3)).await.expect("an order");

    let served = next(&mut created).await;
    assert_eq!(
        (served.side(), served.caller.as_str(), served.target.as_str()),
        (CallSide::Server, "customer", "order")
    );
    assert_eq!((served.instance.as_str(), served.code.as_str(), served.attempt), ("order-1", "OK", 1));
    assert!(served.latency.is_some_and(|latency| latency.nanos > 0) && served.end_time.is_some());
    assert!(served.request_bytes.is_some_and(|bytes| bytes > 50) && served.response_bytes > 50, "{served:?}");
    assert!(!format!("{served:?}").contains(&ada.id.to_string()), "no user is named");

    let made = next(&mut looked_up).await;
    assert_eq!((made.side(), made.caller.as_str(), made.target.as_str()), (CallSide::Client, "order", "data"));
    assert_eq!((made.code.as_str(), made.attempt, made.request_bytes), ("OK", 1, Some(10)), "five bytes, and the SKU");
    assert!(made.instance.starts_with("127.0.0.1:") && made.response_bytes > 0);
    assert_eq!(made.trace_id, served.trace_id);

    ada.create(Default::default()).await.expect_err("an invalid order");
    let rejected = next(&mut created).await;
    assert_eq!((rejected.code.as_str(), rejected.reason.as_str()), ("INVALID_ARGUMENT", "INVALID_ARGUMENT"));
}

#[tokio::test]
async fn opening_a_tap_is_an_audit_event_with_the_operator_and_the_filter() {
    let system = System::new().await;
    let operator = system.client("operator");
    let filter = TapCallsRequest {
        targets: vec!["payment".into()],
        codes: vec!["UNAVAILABLE".into()],
        ..TapCallsRequest::default()
    };
    let _calls = tap(&operator, filter).await.expect("a tap");
    let event = system.data.event(|event| event.operation == "mesh.v1.MeshAdminService/TapCalls").await;
    assert_eq!((event.r#type(), event.status()), (EventType::Audit, EventStatus::Success));
    assert_eq!(event.user_id, operator.id.to_string());
    assert_eq!(event.attributes["actor.role"], "operator");
    assert_eq!(event.attributes["tap.filter"], "to payment, code UNAVAILABLE");

    let invalid = TapCallsRequest { codes: vec!["FINE".into()], ..TapCallsRequest::default() };
    let status = tap(&operator, invalid).await.expect_err("an unknown code");
    assert_eq!(rejection(&status), error_of(Code::InvalidArgument, "INVALID_ARGUMENT", "mesh"));
    system.data.failure(EventType::Audit, "ValidationError").await;
}

#[tokio::test]
async fn a_tap_ends_with_its_token() {
    let system = System::new().await;
    let operator = system.client_until("operator", 2);
    let mut calls = tap(
        &operator,
        TapCallsRequest { targets: vec!["user".into()], codes: vec!["DATA_LOSS".into()], ..TapCallsRequest::default() },
    )
    .await
    .expect("a tap");
    let end = message(&mut calls).await.expect_err("no call matches");
    assert_eq!(rejection(&end), error_of(Code::Unauthenticated, "TOKEN_EXPIRED", "mesh"));
}

#[tokio::test]
async fn the_routes_are_the_policies_in_force() {
    let quota = ::mesh::Quota { calls: 3, per: std::time::Duration::from_secs(60) };
    let system = System::with(SystemOptions { create_order_quota: Some(quota), ..SystemOptions::default() }).await;
    let operator = system.client("operator");
    let routes = operator.mesh_admin().list_routes(operator.request(ListRoutesRequest {})).await.expect("routes");
    let routes = routes.into_inner().routes;
    let own = contracts::POLICIES
        .0
        .iter()
        .filter(|policy| policy.path.starts_with("/order.") || policy.path.starts_with("/mesh."));
    assert_eq!(routes.len(), own.count());
    let route = |method: &str| routes.iter().find(|route| route.method == method).expect("a route");
    let create = route("order.v1.OrderService/CreateOrder");
    assert_eq!(create.allow, [i32::from(mesh::Access::Customer)]);
    assert_eq!(
        (create.timeout.map(|timeout| timeout.seconds), create.retryable, create.streaming),
        (Some(5), true, false)
    );
    assert_eq!(create.event, "order_creation");
    let quota = create.quota.expect("a quota");
    assert_eq!((quota.calls, quota.interval.map(|interval| interval.seconds)), (3, Some(60)));
    let watch = route("order.v1.OrderService/WatchOrder");
    assert!(watch.streaming && !watch.retryable && watch.timeout.is_none() && watch.quota.is_none());
    assert_eq!(watch.no_event, "reads the caller's own data");
    assert_eq!(watch.max_message_bytes, 64 * 1_024);
    assert_eq!(route("order.v1.PaymentConfirmationService/ConfirmPayment").callers, ["payment"]);
}

#[tokio::test]
async fn only_operators_see_the_mesh() {
    let system = System::new().await;
    let (customer, anonymous) = (system.client("customer"), system.anonymous_client());
    for (client, expected) in [
        (&customer, error_of(Code::PermissionDenied, "ROLE_NOT_ALLOWED", "mesh")),
        (&anonymous, error_of(Code::Unauthenticated, "TOKEN_MISSING", "mesh")),
    ] {
        let mut admin = client.mesh_admin();
        let rejected = [
            admin.get_snapshot(client.request(GetSnapshotRequest::default())).await.map(drop).expect_err("rejected"),
            admin.tap_calls(client.request(TapCallsRequest::default())).await.map(drop).expect_err("rejected"),
            admin.list_routes(client.request(ListRoutesRequest {})).await.map(drop).expect_err("rejected"),
        ];
        for status in rejected {
            assert_eq!(rejection(&status), expected);
        }
    }
}
