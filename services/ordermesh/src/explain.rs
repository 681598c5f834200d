//! `ordermesh explain ORDER_ID`: an order's timeline from all sources, formatted for a terminal.

use clap::Args;
use contracts::order::v1 as order_v1;
use contracts::order::v1::order_service_client::OrderServiceClient;

use crate::error::Error;
use crate::json::{self, Format};
use crate::out;
use crate::system::{Location, Retries, System, request};
use crate::text;

/// The order to explain.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The order's id
    pub(crate) order_id: String,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) location: Location,
}

/// Calls ExplainOrder as the operator, and prints the response.
///
/// # Errors
/// There is no such system or order.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let system = System::find(&options.location, Retries::Off).await?;
    let token = system.operator_token().await?;
    let message = order_v1::ExplainOrderRequest { order_id: options.order_id };
    let response = OrderServiceClient::new(system.order.clone())
        .explain_order(request(message, &token, None))
        .await
        .map_err(Error::rejected("ExplainOrder"))?;
    let response = response.into_inner();
    match options.output {
        Format::Text => out::text(page(&response)),
        Format::Json => out::line(json::message("order.v1.ExplainOrderResponse", &response)),
    }
}

fn page(response: &order_v1::ExplainOrderResponse) -> String {
    let order = response.order.clone().unwrap_or_default();
    let mut lines = vec![format!("order    {}  {}", order.order_id, text::state(order.state))];
    for line in &order.lines {
        let price = text::money(line.unit_price.as_ref());
        lines.push(format!(
            "         {} × {} ({}) at {price}, {}",
            line.quantity,
            line.sku,
            line.name,
            text::line_state(line.state)
        ));
    }
    lines.push(format!("total    {}", text::money(order.total.as_ref())));
    lines.push(format!("customer {}  {}", order.user_id, order.contact_email));
    if let Some(failure) = &order.payment_failure {
        lines.push(format!("payment  {}: {} ({})", failure.reason, failure.message, failure.advice));
    }
    if let Some(date) = &order.delivery_date {
        lines.push(format!("delivery {:04}-{:02}-{:02}", date.year, date.month, date.day));
    }
    if !order.last_error.is_empty() {
        lines.push(format!("trouble  {}", order.last_error));
    }
    lines.push(format!("gateway  {}", response.gateway_ledger));
    lines.push(format!("trace    {}", order.trace_id));
    lines.push(String::new());
    let start = response.timeline.first().and_then(|entry| entry.time);
    for entry in &response.timeline {
        let offset = text::offset(start.as_ref(), entry.time.as_ref());
        // The order's own trace is printed above; only other traces are printed here.
        let elsewhere = if entry.trace_id == order.trace_id || entry.trace_id.is_empty() {
            String::new()
        } else {
            format!(", trace {}", entry.trace_id)
        };
        lines.push(format!("{offset:>10}  {:<8} {}  (span {}{elsewhere})", entry.source, entry.summary, entry.span_id));
    }
    for gap in &response.gaps {
        lines.push(format!("   missing  {gap}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(micros: i32, summary: &str, trace_id: &str) -> order_v1::TimelineEntry {
        order_v1::TimelineEntry {
            time: Some(prost_types::Timestamp { seconds: 1_000, nanos: micros * 1_000 }),
            source: "history".into(),
            summary: summary.into(),
            trace_id: trace_id.into(),
            span_id: "00f067aa0ba902b7".into(),
        }
    }

    #[test]
    fn the_page_has_the_transitions_with_their_times_and_the_gaps() {
        let order =
            order_v1::Order { trace_id: "aa".into(), state: order_v1::OrderState::Paid.into(), ..Default::default() };
        let text = page(&order_v1::ExplainOrderResponse {
            order: Some(order),
            timeline: vec![entry(0, "CREATED", "aa"), entry(12_500, "PAID", "bb")],
            gateway_ledger: "SUCCEEDED".into(),
            gaps: vec!["events: no response".into()],
        });
        for part in
            ["PAID", "+0.0 ms  history  CREATED  (span", "+12.5 ms", ", trace bb)", "missing  events: no response"]
        {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
