//! The traffic policy over real sockets: timeouts, faults, headers, audited callers; and what taps report of it.

use std::time::Duration;

use mesh::{
    CallerClass, Channel, ClientConfig, Credentials, Monitor, SharedSecret, TapFilter, TapSide, TappedCall,
    TrafficPolicy, client,
};
use opentelemetry::trace::SpanKind;
use tonic::Code;

use crate::echo::{OPERATOR, POLICIES, READ, SAY, SERVICE};
use crate::identity::{claims, signed};
use crate::observed::{attribute, observed};
use crate::world::{KEY_ID, MESH_SECRET, World, WorldOptions, call, reason, say, with_metadata};

/// Longer than anything takes.
const GUARD: Duration = Duration::from_secs(20);

fn policy(rules: &str) -> TrafficPolicy {
    let policy = TrafficPolicy::new(POLICIES, true);
    policy.apply("test.yaml", format!("rules:\n{rules}").as_bytes()).expect("a valid policy");
    policy
}

fn channel(world: &World, traffic: TrafficPolicy, monitor: Monitor) -> Channel {
    client(ClientConfig { traffic, monitor, ..ClientConfig::new("test", vec![world.address.to_string()], POLICIES) })
}

async fn next(tap: &mut mesh::Tap) -> TappedCall {
    tokio::time::timeout(GUARD, tap.next()).await.expect("a call").expect("the tap is read").0
}

#[tokio::test]
async fn a_shorter_timeout_is_sent_and_a_new_policy_applies_to_the_next_call() {
    let world = World::new().await;
    let traffic =
        policy("- matches: [{ method: { service: test.v1.Echo, method: Say } }]\n  timeouts: { request: 1s }\n");
    let channel = channel(&world, traffic.clone(), Monitor::new("order"));
    let left =
        async |path| say(&channel, path, "time left").await.expect("answered").parse::<u64>().expect("microseconds");
    let within_a_second = |micros: u64| micros <= 1_000_000;
    assert!(within_a_second(left(SAY).await));
    assert!(!within_a_second(left(READ).await), "another method has the contract's");
    traffic.apply("test.yaml", b"").expect("no rules");
    assert!(!within_a_second(left(SAY).await));
}

#[tokio::test]
async fn an_injected_fault_fails_the_call_without_a_retry_and_is_marked_on_event_and_tap() {
    let world = World::new().await;
    let traffic = policy(
        "- matches: [{ method: { service: test.v1.Echo, method: Read } }]\n  ordermesh: { fault: { percent: 100, code: UNAVAILABLE } }\n",
    );
    let (monitor, events) = (Monitor::new("order"), std::sync::Arc::new(crate::world::Events::default()));
    let config = ClientConfig::new("test", vec![world.address.to_string()], POLICIES);
    let channel = client(ClientConfig { traffic, monitor: monitor.clone(), events: Some(events.clone()), ..config });
    let mut tap = monitor.tap(TapFilter::default()).expect("a tap");
    let status = say(&channel, READ, "hello").await.expect_err("a fault");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "INJECTED_FAULT"));
    assert_eq!(world.handlers_started(), 0, "it is not sent, and not retried");
    let tapped = next(&mut tap).await;
    assert_eq!((tapped.code, tapped.reason.as_str()), (Code::Unavailable, "INJECTED_FAULT"));
    let ended = events.take().pop().expect("an event");
    assert_eq!(ended.event.attributes.get("ordermesh.fault").map(String::as_str), Some("code UNAVAILABLE"));
    let calls = &monitor.snapshot().targets[0].methods[0].calls;
    assert_eq!(calls.by_code, [(Code::Unavailable, 1)]);
}

#[tokio::test]
async fn a_rule_with_a_header_applies_to_the_calls_of_an_operators_call_that_has_it() {
    let behind = World::new().await;
    let traffic = policy(
        "- matches: [{ method: { service: test.v1.Echo, method: Say }, headers: [{ name: x-test, value: slow }] }]\n  ordermesh: { fault: { percent: 100, code: DATA_LOSS } }\n",
    );
    let forward = channel(&behind, traffic.clone(), Monitor::new("test"));
    let options = WorldOptions { next: Some(forward), ..WorldOptions::default() };
    let world = World::altered(options, |config| config.traffic = traffic).await;
    let bearer = |role: &str| format!("Bearer {}", signed(&claims(role), KEY_ID));
    let (operator, customer) = (bearer("operator"), bearer("customer"));
    let send = async |path, token: &str, value: &str| {
        let request = with_metadata("forward hello", &[("authorization", token), ("x-test", value)]);
        call(&world.anonymous(), path, request).await.map(|_| ()).map_err(|status| status.code())
    };
    assert_eq!(send(OPERATOR, &operator, "slow").await, Err(Code::DataLoss));
    assert_eq!(send(OPERATOR, &operator, "fast").await, Ok(()));
    assert_eq!(send(SAY, &operator, "slow").await, Err(Code::DataLoss), "an operator of a public method too");
    assert_eq!(send(SAY, &customer, "slow").await, Ok(()), "a customer's headers do not count");
}

#[tokio::test]
async fn audited_callers_are_counted_and_tapped_and_none_is_denied() {
    let traffic = policy(
        "- matches: [{ method: { service: test.v1.Echo, method: Say } }]\n  ordermesh: { audit: { callers: [order, customer] } }\n",
    );
    let monitor = Monitor::new("test");
    let observed = monitor.clone();
    let world =
        World::altered(WorldOptions::default(), |config| (config.traffic, config.monitor) = (traffic, observed)).await;
    let mut tap = monitor.tap(TapFilter { side: Some(TapSide::Server), ..TapFilter::default() }).expect("a tap");
    let customer = format!("Bearer {}", signed(&claims("customer"), KEY_ID));
    let mut seen = Vec::new();
    for (channel, token) in [
        (world.anonymous(), None),
        (world.anonymous(), Some(customer.as_str())),
        (world.service("order", MESH_SECRET), None),
        (world.service("data", MESH_SECRET), None),
    ] {
        let metadata: Vec<_> = token.into_iter().map(|token| ("authorization", token)).collect();
        call(&channel, SAY, with_metadata("hello", &metadata)).await.expect("it is served");
        let tapped = next(&mut tap).await;
        seen.push((tapped.caller.to_string(), tapped.would_be_denied));
    }
    let expected = [("anonymous", true), ("customer", false), ("order", false), ("data", true)];
    assert_eq!(seen, expected.map(|(caller, denied)| (caller.to_owned(), denied)));
    // Another method has no stricter list.
    let order = world.service("order", MESH_SECRET);
    say(&order, SERVICE, "hello").await.expect("it is served");
    assert!(!next(&mut tap).await.would_be_denied);
}

#[tokio::test]
async fn a_cancelled_call_and_a_denied_one_are_counted_under_their_callers() {
    let monitor = Monitor::new("test");
    let observed = monitor.clone();
    let world = World::altered(WorldOptions::default(), |config| config.monitor = observed).await;
    let mut tap = monitor.tap(TapFilter::default()).expect("a tap");
    let customer = format!("Bearer {}", signed(&claims("customer"), KEY_ID));
    let denied = with_metadata("hello", &[("authorization", &customer)]);
    call(&world.anonymous(), OPERATOR, denied).await.expect_err("not an operator");
    let tapped = next(&mut tap).await;
    assert_eq!(
        (tapped.caller, tapped.code, tapped.reason.as_str()),
        (CallerClass::Customer, Code::PermissionDenied, "ROLE_NOT_ALLOWED")
    );

    let held = with_metadata("hold", &[("authorization", &customer)]);
    let channel = world.anonymous();
    let holding = tokio::spawn(async move { call(&channel, SAY, held).await.map(|_| ()) });
    world.echo.holding.notified().await;
    let in_flight = monitor.snapshot().servers[0]
        .methods
        .iter()
        .map(|method| (method.method, method.in_flight))
        .collect::<Vec<_>>();
    assert!(in_flight.contains(&("test.v1.Echo/Say", 1)), "{in_flight:?}");
    holding.abort();
    let tapped = next(&mut tap).await;
    assert_eq!((tapped.caller, tapped.code), (CallerClass::Customer, Code::Cancelled), "although it got no response");
    assert!(monitor.snapshot().servers[0].methods.iter().all(|method| method.in_flight == 0));
}

#[tokio::test]
async fn a_call_is_tapped_with_its_attempts_and_the_instance_that_responded() {
    let world = World::new().await;
    let monitor = Monitor::new("order");
    let secret = Credentials::MeshSecret { service: "order".into(), secret: SharedSecret::new(MESH_SECRET) };
    let config = ClientConfig::new("test", vec![world.address.to_string()], POLICIES);
    let channel = client(ClientConfig { monitor: monitor.clone(), credentials: secret, ..config });
    let mut tap = monitor.tap(TapFilter::default()).expect("a tap");
    world.answer_with(Code::Unavailable);
    say(&channel, READ, "hello").await.expect_err("it fails");
    let tapped = next(&mut tap).await;
    assert_eq!((tapped.attempt, tapped.address), (Some(3), world.address.to_string()));
    assert_eq!(tapped.request_bytes, Some(12), "five of gRPC's, two of the field's, and the text");
    let snapshot = monitor.snapshot();
    let target = &snapshot.targets[0];
    assert_eq!(
        (target.name, target.retries, target.methods[0].calls.by_code.as_slice()),
        ("test", 2, [(Code::Unavailable, 1)].as_slice())
    );
    let endpoint = &target.endpoints[0];
    assert_eq!((endpoint.attempts, endpoint.failures, endpoint.last_60s.calls, endpoint.is_connected), (3, 3, 3, true));
}

/// A server whose instances have this store, and its policy's target `canary` with another server.
async fn split(own_store: Option<&str>, canary_store: Option<&str>) -> (World, World, Channel) {
    let with = |store: Option<&str>| {
        let store = store.map(str::to_owned);
        World::altered(WorldOptions::default(), move |config| config.store_id = store)
    };
    let (own, canary) = (with(own_store).await, with(canary_store).await);
    let traffic = TrafficPolicy::new(POLICIES, false);
    let text = format!(
        "targets: {{ canary: '{}' }}\nrules:\n- matches: [{{ method: {{ service: test.v1.Echo }} }}]\n  backendRefs: [{{ name: test, weight: 0 }}, {{ name: canary }}]\n",
        canary.address
    );
    traffic.apply("test.yaml", text.as_bytes()).expect("a valid policy");
    let credentials = Credentials::MeshSecret { service: "order".into(), secret: SharedSecret::new(MESH_SECRET) };
    let config = ClientConfig::new("test", vec![own.address.to_string()], POLICIES);
    (own, canary, client(ClientConfig { traffic, credentials, ..config }))
}

#[tokio::test]
async fn calls_go_to_a_canary_with_the_same_store_and_back_when_it_ends() {
    let (own, canary, channel) = split(Some("one"), Some("one")).await;
    let until_canary = async {
        while canary.handlers_started() == 0 {
            say(&channel, READ, "hello").await.expect("one of them responds");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(GUARD, until_canary).await.expect("once its store is known");
    let (before, of_canary) = (own.handlers_started(), canary.handlers_started());
    for _ in 0..20 {
        say(&channel, SAY, "hello").await.expect("the canary responds");
    }
    assert_eq!((own.handlers_started() - before, canary.handlers_started() - of_canary), (0, 20));
    canary.shutdown.cancel();
    canary.served.await.expect("it ends").expect("served");
    for _ in 0..20 {
        say(&channel, READ, "hello").await.expect("the service's own instance responds");
    }
    assert_eq!(own.handlers_started() - before, 20);
}

#[tokio::test]
async fn a_canary_with_another_store_or_none_gets_no_calls() {
    for stores in [(Some("one"), Some("two")), (Some("one"), None), (None, Some("one")), (None, None)] {
        let (own, canary, channel) = split(stores.0, stores.1).await;
        // Longer than the first check takes.
        let end = tokio::time::Instant::now() + Duration::from_millis(500);
        while tokio::time::Instant::now() < end {
            say(&channel, READ, "hello").await.expect("the service's own instance responds");
        }
        assert_eq!(canary.handlers_started(), 0, "{stores:?}");
        assert!(own.handlers_started() > 10);
    }
}

#[tokio::test]
async fn a_mirrored_call_has_a_marked_span_and_no_event_and_what_it_calls_is_marked_too() {
    observed();
    let (own, behind) = (World::new().await, World::new().await);
    let secret = || Credentials::MeshSecret { service: "order".into(), secret: SharedSecret::new(MESH_SECRET) };
    let further = ClientConfig::new("test", vec![behind.address.to_string()], POLICIES);
    let further = client(ClientConfig { credentials: secret(), is_mesh_service: true, ..further });
    let shadow = World::with(WorldOptions { next: Some(further), ..WorldOptions::default() }).await;
    let traffic = TrafficPolicy::new(POLICIES, false);
    let text = format!(
        "targets: {{ shadow: '{}' }}\nrules:\n- matches: [{{ method: {{ service: test.v1.Echo, method: Read }} }}]\n  \
         filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: shadow }} }} }}]\n",
        shadow.address
    );
    traffic.apply("test.yaml", text.as_bytes()).expect("a valid policy");
    let monitor = Monitor::new("order");
    let config = ClientConfig::new("test", vec![own.address.to_string()], POLICIES);
    let config = ClientConfig { is_mesh_service: true, monitor: monitor.clone(), ..config };
    let channel = client(ClientConfig { traffic, credentials: secret(), ..config });
    let mut tap = monitor.tap(TapFilter::default()).expect("a tap");
    say(&channel, READ, "forward read hello").await.expect("its own instance responds");
    let mut tapped = [next(&mut tap).await, next(&mut tap).await];
    tapped.sort_by_key(|call| call.target);
    let [of_shadow, of_own] = &tapped;
    assert_eq!((of_shadow.target, of_shadow.code, of_own.target, of_own.code), ("shadow", Code::Ok, "test", Code::Ok));
    assert_eq!((own.handlers_started(), shadow.handlers_started(), behind.handlers_started()), (1, 1, 1));
    assert_eq!(own.events.take().len(), 1);
    assert_eq!((shadow.events.take().len(), behind.events.take().len()), (0, 0));
    let spans = observed().spans_of(&of_own.trace_id);
    let served: Vec<_> = spans.iter().filter(|span| span.span_kind == SpanKind::Server).collect();
    let marked = served.iter().filter(|span| attribute(span, "ordermesh.mirrored").is_some()).count();
    assert_eq!((served.len(), marked), (3, 2));
}

#[tokio::test]
async fn a_callers_own_mark_of_a_mirrored_call_does_not_count() {
    let world = World::new().await;
    for channel in [world.anonymous(), world.service("order", "a guess")] {
        let request = with_metadata("metadata", &[("x-ordermesh-mirrored", "1")]);
        let response = call(&channel, READ, request).await;
        assert!(response.is_err() || response.is_ok_and(|text| !text.get_ref().contains("mirrored")));
        assert_eq!(world.events.take().len(), 1, "the call has its event");
    }
}

#[tokio::test]
async fn a_store_is_shown_to_mesh_services_only() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let world = World::altered(WorldOptions::default(), |config| config.store_id = Some("one".into())).await;
    let shown = async |channel: Channel| {
        let response = HealthClient::new(channel).check(HealthCheckRequest::default()).await.expect("healthy");
        response.metadata().get("x-ordermesh-store").map(|store| store.to_str().expect("ASCII").to_owned())
    };
    assert_eq!(shown(world.service("order", MESH_SECRET)).await.as_deref(), Some("one"));
    assert_eq!(shown(world.anonymous()).await, None);
    assert_eq!(shown(world.service("order", "a guess")).await, None);
}
