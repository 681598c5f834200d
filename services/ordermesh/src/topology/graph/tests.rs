use contracts::mesh::v1::{CalledMethod, CallerCalls, LatencyCount, ServedMethod};

use super::*;
use crate::service::Service;
use crate::topology::render;

fn proto_duration(millis: i64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).expect("less than a second");
    Some(prost_types::Duration { seconds: millis / 1_000, nanos })
}

fn window(calls: i64, failures: i64, p50: i64, p99: i64) -> Option<Window> {
    // All but one of the calls took the median.
    let latencies = [(p50, (calls - 1).max(0)), (p99, calls.min(1))]
        .map(|(millis, calls)| LatencyCount { latency_us: millis * 1_000, calls });
    Some(Window { length: proto_duration(10_000), calls, failures, latencies: latencies.into(), ..Window::default() })
}

fn statistics(window: Option<Window>) -> Option<CallStatistics> {
    Some(CallStatistics { last_10s: window.clone(), last_60s: window, ..CallStatistics::default() })
}

fn endpoint(address: &str, window: Option<Window>, breaker: BreakerState) -> Endpoint {
    Endpoint {
        address: address.into(),
        connected: true,
        breaker: breaker.into(),
        last_10s: window.clone(),
        last_60s: window,
        ..Endpoint::default()
    }
}

fn order(name: &str, endpoints: Vec<Endpoint>) -> GetSnapshotResponse {
    GetSnapshotResponse {
        service: "order".into(),
        instance: name.into(),
        serving_state: ServingState::Serving.into(),
        methods: vec![ServedMethod {
            method: "order.v1.OrderService/CreateOrder".into(),
            in_flight: 1,
            callers: vec![
                CallerCalls { caller: "customer".into(), calls: statistics(window(50, 1, 3, 9)) },
                CallerCalls { caller: "payment".into(), calls: statistics(window(7, 0, 1, 1)) },
            ],
        }],
        targets: vec![Target {
            name: "payment".into(),
            methods: vec![CalledMethod {
                method: "payment.v1.PaymentService/ProcessPayment".into(),
                in_flight: 2,
                calls: statistics(window(40, 0, 5, 230)),
            }],
            endpoints,
            retries: 3,
            ..Target::default()
        }],
        ..GetSnapshotResponse::default()
    }
}

fn payment(name: &str) -> GetSnapshotResponse {
    GetSnapshotResponse { service: "payment".into(), instance: name.into(), ..GetSnapshotResponse::default() }
}

/// Two instances of the Order Service that call two of the Payment Service, the second of which is slow.
pub(crate) fn graph() -> Graph {
    let fast = || endpoint("10.0.0.3:7000", window(39, 0, 4, 9), BreakerState::Closed);
    let slow = |breaker| endpoint("10.0.0.4:7000", window(1, 0, 210, 210), breaker);
    let snapshots = [
        (
            Instance::named(Service::Order, "10.0.0.1:7000"),
            Ok(order("order-1", vec![fast(), slow(BreakerState::Closed)])),
        ),
        (
            Instance::named(Service::Order, "10.0.0.2:7000"),
            Ok(order("order-2", vec![slow(BreakerState::Open), fast()])),
        ),
        (Instance::named(Service::Payment, "10.0.0.3:7000"), Ok(payment("payment-1"))),
        (Instance::named(Service::Payment, "10.0.0.4:7000"), Ok(payment("payment-2"))),
        (Instance::named(Service::Data, "10.0.0.5:7000"), Err(Status::unavailable("no answer"))),
    ];
    Graph::of(&snapshots, WindowLength::Short)
}

#[test]
fn the_calls_of_all_instances_are_one_edge_with_its_slow_instance_marked() {
    let graph = graph();
    let ends: Vec<_> = graph.edges.iter().map(|edge| (edge.from.as_str(), edge.to.as_str())).collect();
    assert_eq!(
        ends,
        [("customer", "order"), ("order", "payment")],
        "calls between services are reported by the caller only"
    );
    let edge = &graph.edges[1];
    assert_eq!((edge.calls.calls, edge.calls.failures, edge.in_flight, edge.retries), (80, 0, Some(4), 6));
    assert_eq!((edge.calls.per_second, edge.calls.p99()), (8.0, Duration::from_millis(230)));
    let instances: Vec<_> = edge
        .instances
        .iter()
        .map(|called| (called.instance.as_str(), called.calls.calls, called.breaker, called.slow))
        .collect();
    assert_eq!(instances, [("payment-1", 78, "closed", false), ("payment-2", 2, "open", true)]);
    let clients = &graph.edges[0];
    assert_eq!((clients.calls.calls, clients.calls.success(), clients.instances.len()), (100, Some(0.98), 2));
}

#[test]
fn an_instance_that_does_not_respond_is_unreachable_with_the_reason() {
    let graph = graph();
    let states: Vec<_> = graph.instances.iter().map(|node| (node.instance.as_str(), node.state)).collect();
    assert_eq!(
        states,
        [
            ("order-1", "serving"),
            ("order-2", "serving"),
            ("payment-1", "not_serving"),
            ("payment-2", "not_serving"),
            ("", "unreachable")
        ]
    );
    assert!(graph.instances[4].error.contains("no answer"));
}

#[test]
fn every_format_names_the_slow_edge_and_instance() {
    let graph = graph();
    let text = render::text(&graph);
    let line = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).expect(start).to_owned();
    assert!(line("order → payment").ends_with("see payment-2"), "{text}");
    let slow = text.lines().rfind(|line| line.contains("payment-2")).expect("the instance");
    assert!(slow.ends_with("SLOW, breaker open") && slow.contains("210 ms"), "{slow}");
    let mermaid = render::mermaid(&graph);
    assert!(
        mermaid.contains(
            "order -->|\"8.0/s 100 % p99 230 ms; payment-2 SLOW, breaker open\"| payment\n  linkStyle 1 stroke:red"
        ),
        "{mermaid}"
    );
    let dot = render::dot(&graph);
    assert!(
        dot.contains(
            "\"order\" -> \"payment\" [label=\"8.0/s 100 % p99 230 ms; payment-2 SLOW, breaker open\", color=red];"
        ),
        "{dot}"
    );
    let json = serde_json::to_value(&graph).expect("JSON");
    let instance = &json["edges"][1]["instances"][1];
    assert_eq!((&instance["slow"], &instance["calls"]["p50_ms"]), (&true.into(), &210.0.into()));
}

#[test]
fn an_instance_without_others_or_without_calls_is_not_slow() {
    let instance = |address: &str, calls, p50| endpoint(address, window(calls, 0, p50, p50), BreakerState::Closed);
    let slow = |endpoints: &[Endpoint]| {
        let mut instances = Vec::new();
        endpoints.iter().for_each(|endpoint| merge(&mut instances, endpoint, String::new(), WindowLength::Long));
        mark_slow(&mut instances);
        instances.iter().map(|instance| instance.slow).collect::<Vec<_>>()
    };
    assert_eq!(slow(&[instance("a:1", 5, 300)]), [false]);
    assert_eq!(slow(&[instance("a:1", 5, 300), instance("b:1", 0, 0)]), [false, false]);
    assert_eq!(slow(&[instance("a:1", 50, 9), instance("b:1", 5, 1)]), [false, false], "less than 10 ms longer");
    assert_eq!(slow(&[instance("a:1", 50, 30), instance("b:1", 5, 11)]), [false, false], "less than three times");
    assert_eq!(slow(&[instance("a:1", 10, 33), instance("b:1", 5, 11)]), [true, false]);
    assert_eq!(
        slow(&[instance("a:1", 9, 110), instance("b:1", 5, 11)]),
        [false, false],
        "few calls, less than 100 ms longer"
    );
    assert_eq!(slow(&[instance("a:1", 1, 111), instance("b:1", 5, 11)]), [true, false]);
}
