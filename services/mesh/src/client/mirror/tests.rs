use std::time::Duration;

use parking_lot::Mutex;
use tonic::body::Body;
use tower::service_fn;
use tower::util::BoxCloneSyncService;

use super::*;
use crate::call::deadline::GRPC_TIMEOUT;
use crate::call::mirrored::with_mirrored;
use crate::client::retry::replay::KEPT_BYTES;
use crate::monitor::Monitor;
use crate::monitor::statistics::CallTable;
use crate::policy::{Idempotency, METHOD};

const GET: MethodPolicy = MethodPolicy {
    path: "/data.v1.Catalog/Get",
    idempotency: Idempotency::NoSideEffects,
    timeout: Some(Duration::from_secs(2)),
    ..METHOD
};
const POLICIES: PolicyTable = PolicyTable(&[GET]);

/// Returns these numbers in turn.
struct Numbers(Mutex<Vec<f64>>);

impl Rng for Numbers {
    fn fraction(&self) -> f64 {
        self.0.lock().pop().expect("a number")
    }
}

/// With the future of the client's stacks.
#[derive(Clone)]
struct Stack(BoxCloneSyncService<Request, Response, Status>);

impl Service<Request> for Stack {
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

/// A received request: the length of its body, `grpc-timeout`, and whether it is marked as mirrored.
type Received = (usize, String, bool);

type AllReceived = Arc<Mutex<Vec<Received>>>;

/// A stack that keeps what it gets, and responds after the body as `answer` does.
fn stack<F>(received: &AllReceived, answer: impl Fn() -> F + Clone + Send + Sync + 'static) -> Stack
where
    F: Future<Output = Result<Response, Status>> + Send,
{
    let received = received.clone();
    Stack(BoxCloneSyncService::new(service_fn(move |request: Request| {
        let (received, answer) = (received.clone(), answer.clone());
        async move {
            let timeout = request.headers().get(GRPC_TIMEOUT).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let (timeout, is_marked) = (timeout.to_owned(), request.headers().contains_key(MIRRORED_HEADER));
            let body = request.into_body().collect().await?.to_bytes();
            received.lock().push((body.len(), timeout, is_marked));
            answer().await
        }
    })))
}

async fn ok() -> Result<Response, Status> {
    Ok(crate::call::wire::respond(Status::new(Code::Ok, "")))
}

/// A service whose calls are mirrored to a shadow: what both have received.
struct Case {
    mirror: Mirror<Stack, Stack>,
    traffic: TrafficPolicy,
    own: AllReceived,
    shadow: AllReceived,
}

impl Case {
    /// Mirrors so many percent of the calls; the random numbers are used from the last one on.
    fn new<F>(percent: u8, numbers: Vec<f64>, answer: impl Fn() -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Response, Status>> + Send,
    {
        Self::of(true, percent, numbers, answer)
    }

    fn of<F>(
        is_mesh_service: bool,
        percent: u8,
        numbers: Vec<f64>,
        answer: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Response, Status>> + Send,
    {
        let traffic = TrafficPolicy::new(POLICIES, false);
        let text = format!(
            "targets: {{ shadow: 'shadow:1' }}\nrules:\n- matches: [{{ method: {{ service: data.v1.Catalog }} }}]\n  \
             filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: shadow }}, percent: {percent} }} }}]\n"
        );
        traffic.apply("traffic.yaml", text.as_bytes()).expect("valid");
        let (own, shadow) = (AllReceived::default(), AllReceived::default());
        let by_shadow = shadow.clone();
        let make: MakeTarget<Shadow<Stack>> = Box::new(move |_, _| {
            let calls = CallTable::new(POLICIES);
            let observer = Observer::new(Monitor::new("order"), crate::call::wire::Side::Client, "shadow", calls);
            Shadow::new(stack(&by_shadow, answer.clone()), observer, by_shadow.clone())
        });
        let rng = Arc::new(Numbers(Mutex::new(numbers)));
        let mirror = mirror("data", is_mesh_service, POLICIES, traffic.clone(), rng, make).layer(stack(&own, ok));
        Self { mirror, traffic, own, shadow }
    }

    async fn call(&self, body: Vec<u8>) {
        let mut request = Request::new(Body::new(http_body_util::Full::from(body).map_err(|never| match never {})));
        // What is left of the caller's time.
        request.headers_mut().insert(GRPC_TIMEOUT, HeaderValue::from_static("7m"));
        let call = ClientCall { policy: Some(&GET), rule: self.traffic.rule(&GET), ..ClientCall::default() };
        request.extensions_mut().insert(call);
        self.mirror.clone().call(request).await.expect("the service responds");
        // The copies' tasks run as far as they can.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    /// How many calls both got.
    fn counts(&self) -> (usize, usize) {
        (self.own.lock().len(), self.shadow.lock().len())
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_of_the_calls_is_mirrored_with_a_mark_and_the_methods_timeout() {
    let case = Case::new(5, vec![0.051, 0.049], ok);
    case.call(vec![1, 2, 3]).await;
    assert_eq!(case.own.lock().as_slice(), [(3, "7m".to_owned(), false)]);
    assert_eq!(case.shadow.lock().as_slice(), [(3, "2000000u".to_owned(), true)]);
    case.call(vec![]).await;
    assert_eq!(case.counts(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shadow_that_does_not_respond_delays_no_call_and_gets_sixteen_at_a_time() {
    let case = Case::new(100, vec![0.5; 50], std::future::pending);
    let began = Instant::now();
    for _ in 0..40 {
        case.call(vec![1]).await;
    }
    assert_eq!((case.counts(), began.elapsed()), ((40, MAX_IN_FLIGHT), Duration::ZERO));
    // They end with the method's timeout.
    tokio::time::sleep(Duration::from_secs(3)).await;
    case.call(vec![1]).await;
    assert_eq!(case.counts(), (41, MAX_IN_FLIGHT + 1));
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_shadow_changes_no_response() {
    let case = Case::new(100, vec![0.5; 50], async || Err(Status::internal("broken")));
    for _ in 0..50 {
        case.call(vec![1]).await;
    }
    assert_eq!(case.counts(), (50, 50), "each call is sent once");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_long_to_be_kept_is_sent_and_not_mirrored() {
    let case = Case::new(100, vec![0.5], ok);
    case.call(vec![0; KEPT_BYTES + 1]).await;
    assert_eq!(case.own.lock().as_slice(), [(KEPT_BYTES + 1, "7m".to_owned(), false)]);
    assert_eq!(case.counts(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_of_an_external_service_which_carries_its_credentials_is_not_mirrored() {
    let case = Case::of(false, 100, vec![0.5], ok);
    case.call(vec![1]).await;
    assert_eq!(case.counts(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_made_for_a_mirrored_call_is_not_mirrored() {
    let case = Case::new(100, vec![0.5], ok);
    with_mirrored(case.call(vec![1])).await;
    assert_eq!(case.counts(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_shadow_that_the_policy_does_not_name_any_more_is_dropped() {
    let case = Case::new(100, vec![0.5], ok);
    let before = Arc::strong_count(&case.shadow);
    case.call(vec![1]).await;
    assert!(Arc::strong_count(&case.shadow) > before);
    case.traffic.apply("traffic.yaml", b"rules: []").expect("valid");
    case.call(vec![1]).await;
    assert_eq!((Arc::strong_count(&case.shadow), case.counts()), (before, (2, 1)));
}
