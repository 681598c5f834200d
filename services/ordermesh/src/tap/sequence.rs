//! Calls as a sequence diagram in Mermaid (<https://mermaid.js.org/syntax/sequenceDiagram.html>).

use std::fmt::Write as _;
use std::time::Duration;

use contracts::mesh::v1::TappedCall;

use crate::text::printable;
use crate::topology::graph;
use crate::topology::render::latency;

/// The diagram: participants in the order of their first call; a call's arrow where it began, its response's where it
/// ended. The times are those of the instances' clocks.
pub(super) fn mermaid(calls: &[TappedCall]) -> String {
    let mut arrows: Vec<(Duration, bool, String)> = Vec::new();
    let mut by_start: Vec<_> = calls.iter().map(|call| (start(call), call)).collect();
    by_start.sort_by_key(|(start, _)| *start);
    let mut text = String::from("sequenceDiagram\n");
    let mut participants: Vec<&str> = Vec::new();
    for (start, call) in by_start {
        let TappedCall { caller, target, attempt, .. } = call;
        for name in [caller.as_str(), target.as_str()] {
            if !participants.contains(&name) {
                participants.push(name);
                // Writing to a String cannot fail.
                let _ = writeln!(text, "    participant {name}");
            }
        }
        let method = call.method.rsplit('/').next().unwrap_or_default();
        let attempt = if *attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
        let took = graph::duration(&call.latency);
        let result = [call.code.clone(), printable(&call.reason), latency(took)].into_iter();
        let result = result.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        arrows.push((start, false, format!("{caller}->>+{target}: {method}{attempt}")));
        arrows.push((start + took, true, format!("{target}-->>-{caller}: {result}")));
    }
    // Stable: of calls that began at the same time, the order stays. A call begins before it ends.
    arrows.sort_by_key(|(time, is_end, _)| (*time, *is_end));
    for (_, _, arrow) in arrows {
        let _ = writeln!(text, "    {arrow}");
    }
    text
}

/// When a call began, since the epoch.
fn start(call: &TappedCall) -> Duration {
    let end = call
        .end_time
        .and_then(|time| Some(Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?)));
    end.unwrap_or_default().saturating_sub(graph::duration(&call.latency))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(caller: &str, target: &str, method: &str, end_ms: i32, took_ms: i32) -> TappedCall {
        TappedCall {
            end_time: Some(prost_types::Timestamp { seconds: 7, nanos: end_ms * 1_000_000 }),
            caller: caller.into(),
            target: target.into(),
            method: method.into(),
            code: "OK".into(),
            latency: Some(prost_types::Duration { seconds: 0, nanos: took_ms * 1_000_000 }),
            ..TappedCall::default()
        }
    }

    #[test]
    fn an_arrow_stands_where_its_call_began_and_the_responses_where_it_ended() {
        let mut refused = call("payment", "gateway", "gateway.v1.PaymentGatewayService/CreateCharge", 30, 5);
        (refused.code, refused.reason, refused.attempt) = ("UNAVAILABLE".into(), "OVERLOADED".into(), 2);
        // As they end: the innermost first.
        let calls = [
            call("order", "data", "data.v1.CatalogService/BatchGetProducts", 15, 5),
            refused,
            call("order", "payment", "payment.v1.PaymentService/ProcessPayment", 35, 15),
            call("customer", "order", "order.v1.OrderService/CreateOrder", 18, 10),
        ];
        assert_eq!(
            mermaid(&calls),
            "sequenceDiagram\n    participant customer\n    participant order\n    participant data\n    participant payment\n    \
             participant gateway\n    \
             customer->>+order: CreateOrder\n    order->>+data: BatchGetProducts\n    data-->>-order: OK 5.0 ms\n    \
             order-->>-customer: OK 10 ms\n    order->>+payment: ProcessPayment\n    \
             payment->>+gateway: CreateCharge (attempt 2)\n    gateway-->>-payment: UNAVAILABLE OVERLOADED 5.0 ms\n    \
             payment-->>-order: OK 15 ms\n"
        );
    }

    #[test]
    fn a_call_that_took_no_time_begins_before_it_ends() {
        let text = mermaid(&[call("customer", "order", "order.v1.OrderService/GetOrder", 5, 0)]);
        assert!(text.find("->>+order").expect("a call") < text.find("order-->>-").expect("a response"), "{text}");
    }
}
