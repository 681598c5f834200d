//! The headers beside `traceparent`: `tracestate` is forwarded wherever `traceparent` is continued, `baggage` where it
//! is configured.

use mesh::{ClientConfig, Credentials, Untraced, client};
use opentelemetry_sdk::trace::SpanData;
use telemetry::Propagation;
use tonic::{Code, Request};

use crate::echo::{POLICIES, READ, SAY, SERVICE};
use crate::observed::observed;
use crate::world::{MESH_SECRET, World, WorldOptions, call, channel, say, with_metadata};

const STATE: &str = "vendor=abc123,tenant@other=x y";

fn trace_id(number: u32) -> String {
    format!("{number:08x}916cd43dd8448eb211c80319")
}

/// A call with a trace context of the test's own, which the client does not change. Flags 01: sampled.
fn within(text: &str, number: u32, flags: &str, states: &[&str]) -> Request<String> {
    let traceparent = format!("00-{}-b7ad6b7169203331-{flags}", trace_id(number));
    let mut request = with_metadata(text, &[("traceparent", traceparent.as_str())]);
    for state in states {
        request.metadata_mut().append("tracestate", state.parse().expect("a value"));
    }
    request.extensions_mut().insert(Untraced);
    request
}

/// Two servers that trust their clients' trace context; the first one forwards calls to the second one.
async fn two_hops() -> (World, World) {
    observed();
    let second = World::with(WorldOptions { trust_client_trace_context: true, ..WorldOptions::default() }).await;
    let options =
        WorldOptions { next: Some(second.anonymous()), trust_client_trace_context: true, ..WorldOptions::default() };
    (World::with(options).await, second)
}

/// The `tracestate` that the second server receives.
async fn forwarded(number: u32, flags: &str, states: &[&str]) -> String {
    let (first, _second) = two_hops().await;
    let request = within("forward tracestate", number, flags, states);
    call(&first.anonymous(), SAY, request).await.expect("answered").into_inner()
}

fn state_of(span: &SpanData) -> String {
    span.span_context.trace_state().header()
}

#[tokio::test]
async fn tracestate_is_forwarded_to_the_next_hop_and_is_in_every_span() {
    assert_eq!(forwarded(1, "01", &[STATE]).await, STATE);
    let spans = observed().spans_of(&trace_id(1));
    assert_eq!(spans.iter().map(state_of).collect::<Vec<_>>(), [STATE; 3], "server, client, server");
    // Control: without one, none is forwarded.
    assert_eq!(forwarded(2, "01", &[]).await, "");
    assert_eq!(observed().spans_of(&trace_id(2)).len(), 3);
}

#[tokio::test]
async fn tracestate_is_forwarded_although_the_trace_is_not_sampled() {
    assert_eq!(forwarded(3, "00", &[STATE]).await, STATE);
    assert!(observed().spans_of(&trace_id(3)).is_empty());
}

#[tokio::test]
async fn several_tracestate_headers_are_one_list() {
    assert_eq!(forwarded(4, "01", &["a=1", "b=2,c=3"]).await, "a=1,b=2,c=3");
}

#[tokio::test]
async fn a_malformed_tracestate_is_dropped_and_the_trace_is_continued() {
    for (number, wrong) in [(5, "no list".to_owned()), (6, format!("a={}", "x".repeat(511)))] {
        assert_eq!(forwarded(number, "01", &[&wrong]).await, "");
        assert_eq!(observed().spans_of(&trace_id(number)).len(), 3, "{wrong}");
    }
}

#[tokio::test]
async fn an_untrusted_clients_tracestate_is_not_forwarded_and_a_services_is() {
    observed();
    let second = World::with(WorldOptions { trust_client_trace_context: true, ..WorldOptions::default() }).await;
    let first = World::with(WorldOptions { next: Some(second.anonymous()), ..WorldOptions::default() }).await;
    let request = within("forward tracestate", 7, "01", &[STATE]);
    assert_eq!(call(&first.anonymous(), SAY, request).await.expect("answered").into_inner(), "");
    assert_eq!(observed().spans_linked_to(&trace_id(7)).len(), 1, "linked");
    let request = within("forward tracestate", 8, "01", &[STATE]);
    let service = first.service("order", MESH_SECRET);
    assert_eq!(call(&service, SERVICE, request).await.expect("answered").into_inner(), STATE);
}

#[tokio::test]
async fn every_attempt_of_a_call_has_the_tracestate() {
    observed();
    let options = || WorldOptions { trust_client_trace_context: true, ..WorldOptions::default() };
    let (failing, answering) = (World::with(options()).await, World::with(options()).await);
    failing.answer_with(Code::Unavailable);
    let to = channel(vec![failing.address.to_string(), answering.address.to_string()], Credentials::None);
    let first = World::with(WorldOptions { next: Some(to), ..options() }).await;
    // Until a call begins on the failing instance, which may not be connected yet, and is retried. The numbers are far
    // from the other tests', however many calls that takes.
    for number in 0x1000_0000.. {
        let request = within("forward read tracestate", number, "01", &[STATE]);
        let seen = call(&first.anonymous(), READ, request).await.expect("answered by the other instance").into_inner();
        assert_eq!(seen, STATE);
        if failing.handlers_started() > 0 {
            let spans = observed().spans_of(&trace_id(number));
            let of_attempts = spans.iter().filter(|span| span.name.starts_with("Attempt.")).map(state_of);
            assert_eq!(of_attempts.collect::<Vec<_>>(), [STATE; 2]);
            return;
        }
    }
}

#[tokio::test]
async fn a_call_outside_of_every_trace_has_no_tracestate() {
    let (_first, second) = two_hops().await;
    assert_eq!(say(&second.anonymous(), SAY, "tracestate").await.expect("answered"), "");
}

/// `traceparent`, `tracestate` and `baggage` that the second of two servers receives, of a call with all three.
async fn with_propagation(propagation: Propagation, is_mesh_service: bool, number: u32) -> [String; 3] {
    observed();
    let options = || WorldOptions { trust_client_trace_context: true, propagation, ..WorldOptions::default() };
    let second = World::with(options()).await;
    let config = ClientConfig::new("test", vec![second.address.to_string()], POLICIES);
    let first = World::with(WorldOptions {
        next: Some(client(ClientConfig { propagation, is_mesh_service, ..config })),
        ..options()
    })
    .await;
    let mut seen = [const { String::new() }; 3];
    for (name, seen) in ["traceparent", "tracestate", "baggage"].into_iter().zip(&mut seen) {
        let mut request = within(&format!("forward {name}"), number, "01", &[STATE]);
        request.metadata_mut().insert("baggage", "plan=gold".parse().expect("a value"));
        *seen = call(&first.anonymous(), SAY, request).await.expect("answered").into_inner();
    }
    seen
}

#[tokio::test]
async fn the_configured_headers_are_propagated_and_no_others() {
    let [traceparent, state, baggage] = with_propagation(Propagation::DEFAULT, true, 0x80).await;
    assert!(
        traceparent.contains(&trace_id(0x80)) && state == STATE && baggage.is_empty(),
        "{traceparent} {state} {baggage}"
    );
    let both = Propagation { baggage: true, ..Propagation::DEFAULT };
    let [traceparent, state, baggage] = with_propagation(both, true, 0x81).await;
    assert!(
        traceparent.contains(&trace_id(0x81)) && state == STATE && baggage == "plan=gold",
        "{traceparent} {state} {baggage}"
    );
    assert_eq!(with_propagation(Propagation::NONE, true, 0x82).await, ["", "", ""]);
    assert!(observed().spans_of(&trace_id(0x82)).is_empty(), "none is read either");
    let [traceparent, _, baggage] = with_propagation(both, false, 0x83).await;
    assert!(
        traceparent.contains(&trace_id(0x83)) && baggage.is_empty(),
        "expected no baggage for an external service: {baggage}"
    );
}

#[tokio::test]
async fn without_trace_context_a_call_starts_a_trace_of_its_own() {
    observed();
    let world = World::with(WorldOptions { propagation: Propagation::NONE, ..WorldOptions::default() }).await;
    let traceparent =
        call(&world.anonymous(), SAY, within("span", 0x83, "01", &[])).await.expect("answered").into_inner();
    assert!(!traceparent.contains(&trace_id(0x83)), "{traceparent}");
    assert_eq!(observed().spans_of(&traceparent[3..35]).len(), 1, "it still has a span");
}
