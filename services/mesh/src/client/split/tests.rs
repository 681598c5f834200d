use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tonic::Code;
use tonic::body::Body;
use tower::service_fn;
use tower::util::BoxCloneSyncService;

use super::*;
use crate::client::discovery::Addresses;
use crate::client::rng::{FixedRng, SystemRng};
use crate::policy::{METHOD, MethodPolicy, PolicyTable};
use crate::status::mesh_status;
use crate::traffic::TrafficRule;

const CHARGE: MethodPolicy = MethodPolicy { path: "/payment.v1.Payments/Charge", ..METHOD };

fn backends(own: u32, canary: u32) -> Vec<Backend> {
    let addresses = Addresses::Fixed(vec!["canary:1".into()]);
    vec![
        Backend { name: "payment".into(), weight: own, addresses: None },
        Backend { name: "canary".into(), weight: canary, addresses: Some(addresses) },
    ]
}

#[test]
fn the_shares_are_the_weights_and_an_order_stays_with_its_target() {
    let count = |backends: &[Backend], choose_one: &dyn Fn(u64) -> Option<u64>| {
        let mut counts = BTreeMap::new();
        for number in 0..10_000u64 {
            let chosen = choose(backends, choose_one(number), &SystemRng).expect("one of them");
            *counts.entry(chosen.name.clone()).or_insert(0u32) += 1;
        }
        counts.get("canary").copied().unwrap_or(0)
    };
    // Spread like the last bytes of UUIDs.
    let order = |number: u64| Some(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for (own, canary, expected) in [(90, 10, 1_000.0), (50, 50, 5_000.0), (1, 0, 0.0), (0, 3, 10_000.0)] {
        let share = f64::from(canary) / f64::from(own + canary);
        let three_sigma = 3.0 * (10_000.0 * share * (1.0 - share)).sqrt();
        for found in [count(&backends(own, canary), &order), count(&backends(own, canary), &|_| None)] {
            assert!((f64::from(found) - expected).abs() <= three_sigma, "{found}, not {expected} ± {three_sigma}");
        }
    }
    let of = |own, canary, order| {
        choose(&backends(own, canary), Some(order), &FixedRng(0.5)).map(|backend| backend.name.clone())
    };
    for order in (0..1_000u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        assert_eq!(of(90, 10, order), of(90, 10, order));
        // With a larger share, the canary keeps the orders that it had.
        if of(9, 1, order).as_deref() == Some("canary") {
            assert_eq!(of(80, 20, order).as_deref(), Some("canary"));
            assert_eq!(of(50, 50, order).as_deref(), Some("canary"));
        }
    }
}

type Stack = BoxCloneSyncService<Request, Response, Status>;

/// A policy of 0/100.
fn traffic() -> TrafficPolicy {
    let traffic = TrafficPolicy::new(PolicyTable(&[CHARGE]), false);
    let text = "targets: { canary: 'canary:1' }\nrules:\n- matches: [{ method: { service: payment.v1.Payments } }]\n  \
                backendRefs: [{ name: canary }]\n";
    traffic.apply("traffic.yaml", text.as_bytes()).expect("valid");
    traffic
}

/// A stack that responds with this, and counts its calls.
fn stack(
    calls: &Arc<Mutex<u32>>,
    answer: impl Fn() -> Result<Response, Status> + Clone + Send + Sync + 'static,
) -> Boxed {
    let calls = calls.clone();
    Boxed(BoxCloneSyncService::new(service_fn(move |_: Request| {
        *calls.lock() += 1;
        let answer = answer();
        async move { answer }
    })))
}

/// With the future of the client's stacks.
#[derive(Clone)]
struct Boxed(Stack);

impl Service<Request> for Boxed {
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(cx)
    }
    fn call(&mut self, request: Request) -> Self::Future {
        self.0.call(request)
    }
}

fn canary(stack: Boxed, is_connected: impl Fn() -> bool + Send + Sync + 'static) -> Canary<Boxed> {
    Canary::new(stack, is_connected, Arc::new(FixedRng(0.5)))
}

/// Makes calls with a split of 0/100 and a canary that is connected; returns how many failed, and how many the service and the canary got.
async fn calls(policy: &'static MethodPolicy, count: u32, answer: fn() -> Result<Response, Status>) -> [u32; 3] {
    calls_while(true, policy, count, answer).await
}

async fn calls_while(
    is_connected: bool,
    policy: &'static MethodPolicy,
    count: u32,
    answer: fn() -> Result<Response, Status>,
) -> [u32; 3] {
    let (own, other) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
    let by_canary = other.clone();
    let make: MakeTarget<Canary<Boxed>> = Box::new(move |_, _| canary(stack(&by_canary, answer), move || is_connected));
    let healthy = stack(&own, || Ok(Response::new(Body::empty())));
    let mut split = Split::new("payment", healthy, traffic(), Arc::new(FixedRng(0.5)), make);
    let rule = Arc::new(TrafficRule { backends: backends(0, 100), ..TrafficRule::default() });
    let mut failed = 0;
    for _ in 0..count {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(ClientCall {
            policy: Some(policy),
            rule: Some(rule.clone()),
            ..ClientCall::default()
        });
        let result = split.call(request).await;
        failed += u32::from(result.is_err() || result.is_ok_and(|response| code_of(&response) != Code::Ok));
    }
    let counts = (*own.lock(), *other.lock());
    [failed, counts.0, counts.1]
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_works_gets_its_share() {
    assert_eq!(calls(&CHARGE, 20, || Ok(Response::new(Body::empty()))).await, [0, 0, 20]);
}

#[tokio::test(start_paused = true)]
async fn a_canary_without_a_connection_gets_no_calls() {
    assert_eq!(calls_while(false, &CHARGE, 20, || Ok(Response::new(Body::empty()))).await, [0, 20, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_the_policy_does_not_name_any_more_is_dropped_with_its_connections() {
    let connections = Arc::new(());
    let made = Arc::downgrade(&connections);
    let connections = Mutex::new(Some(connections));
    let make: MakeTarget<Canary<Boxed>> = Box::new(move |_, _| {
        let connections = connections.lock().take().expect("made once");
        let is_connected = move || Arc::strong_count(&connections) > 0;
        canary(stack(&Arc::default(), || Ok(Response::new(Body::empty()))), is_connected)
    });
    let traffic = traffic();
    let own = stack(&Arc::default(), || Ok(Response::new(Body::empty())));
    let split = Split::new("payment", own, traffic.clone(), Arc::new(FixedRng(0.5)), make);
    let call = || {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(ClientCall { rule: traffic.rule(&CHARGE), ..ClientCall::default() });
        split.clone().call(request)
    };
    call().await.expect("it succeeds");
    assert_eq!(made.strong_count(), 1);
    traffic.apply("traffic.yaml", b"rules: []").expect("valid");
    call().await.expect("it succeeds");
    assert_eq!(made.strong_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cancelled_is_no_evidence_and_the_next_one_probes() {
    let cancelled = Arc::new(AtomicBool::new(false));
    let hangs = cancelled.clone();
    let make: MakeTarget<Canary<Boxed>> = Box::new(move |_, _| {
        let hangs = hangs.clone();
        let stack = Boxed(BoxCloneSyncService::new(service_fn(move |_: Request| {
            let hangs = hangs.load(Ordering::Relaxed);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Err(Status::internal("broken"))
            }
        })));
        canary(stack, || true)
    });
    let own = Arc::new(Mutex::new(0));
    let healthy = stack(&own, || Ok(Response::new(Body::empty())));
    let split = Split::new("payment", healthy, traffic(), Arc::new(FixedRng(0.5)), make);
    let call = || {
        let rule = Arc::new(TrafficRule { backends: backends(0, 100), ..TrafficRule::default() });
        let mut request = Request::new(Body::empty());
        let call = ClientCall { policy: Some(&CHARGE), rule: Some(rule), ..ClientCall::default() };
        request.extensions_mut().insert(call);
        split.clone().call(request)
    };
    for _ in 0..5 {
        call().await.expect_err("it fails");
    }
    call().await.expect("the breaker is open");
    // Its open time passes; the probe is cancelled by its caller.
    tokio::time::sleep(Duration::from_mins(1)).await;
    cancelled.store(true, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_millis(10), call()).await.expect_err("it hangs");
    cancelled.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_mins(1)).await;
    call().await.expect_err("a probe again");
    assert_eq!(*own.lock(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_lets_calls_wait_for_their_full_timeout_gets_five() {
    let late = || Ok(crate::call::wire::respond(Status::deadline_exceeded("late")));
    assert_eq!(calls(&CHARGE, 20, late).await, [20, 0, 20], "the callers had little time");
    let (other, own) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
    let counted = other.clone();
    let make: MakeTarget<Canary<Boxed>> = Box::new(move |_, _| {
        let counted = counted.clone();
        let stack = Boxed(BoxCloneSyncService::new(service_fn(move |_: Request| {
            *counted.lock() += 1;
            std::future::pending::<Result<Response, Status>>()
        })));
        canary(stack, || true)
    });
    let healthy = stack(&own, || Ok(Response::new(Body::empty())));
    let traffic = traffic();
    let mut split = Split::new("payment", healthy, traffic.clone(), Arc::new(FixedRng(0.5)), make);
    for _ in 0..6 {
        let mut request = Request::new(Body::empty());
        let at = Instant::now() + Duration::from_millis(10);
        let deadline = Some(CallDeadline { at, is_method_timeout: true });
        request.extensions_mut().insert(ClientCall { rule: traffic.rule(&CHARGE), deadline, ..ClientCall::default() });
        // As the deadline's layer does it.
        let _over = tokio::time::timeout_at(at, split.call(request)).await;
    }
    assert_eq!((*other.lock(), *own.lock()), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_fails_gets_five_calls_and_then_the_service_gets_them() {
    let internal = || Ok(crate::call::wire::respond(Status::internal("broken")));
    assert_eq!(calls(&CHARGE, 20, internal).await, [5, 15, 5], "an internal error is not repeated");
    let unavailable = || Ok(crate::call::wire::respond(Status::unavailable("overloaded")));
    assert_eq!(calls(&CHARGE, 20, unavailable).await, [5, 15, 5], "it may have had its effect");
    let unimplemented = || Ok(crate::call::wire::respond(Status::unimplemented("no such method")));
    assert_eq!(calls(&CHARGE, 20, unimplemented).await, [5, 15, 5], "an older version lacks the method");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_to_the_canary_goes_to_the_service() {
    let unreachable = || Err(mesh_status(Code::Unavailable, UNREACHABLE, "no instance of canary can be reached"));
    assert_eq!(calls(&CHARGE, 20, unreachable).await, [0, 20, 20]);
    let lost = || Err(mesh_status(Code::Unavailable, "CONNECTION_LOST", "the connection was lost"));
    assert_eq!(calls(&CHARGE, 20, lost).await, [5, 15, 5], "it may have had its effect");
}
