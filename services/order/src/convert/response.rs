//! Orders, their history and stock to messages.

use chassis::page::Page;
use chassis::to_proto;
use contracts::common::v1 as common;
use contracts::order::v1 as proto;

use super::ListOrders;
use crate::inventory::Stock;
use crate::lifecycle::State;
use crate::order::{Address, HistoryEntry, Line, LineState, Order, PaymentFailure, Scope};
use crate::store::Adjustment;

impl From<State> for proto::OrderState {
    fn from(state: State) -> Self {
        match state {
            State::Created => Self::Created,
            State::Paid => Self::Paid,
            State::Allocated => Self::Allocated,
            State::FulfillmentStarted => Self::FulfillmentStarted,
            State::PaymentFailed => Self::PaymentFailed,
            State::Cancelling => Self::Cancelling,
            State::Cancelled => Self::Cancelled,
            State::NeedsAttention => Self::NeedsAttention,
        }
    }
}

impl From<LineState> for proto::LineState {
    fn from(state: LineState) -> Self {
        match state {
            LineState::Held => Self::Held,
            LineState::Allocated => Self::Allocated,
            LineState::Released => Self::Released,
            LineState::Lost => Self::Lost,
        }
    }
}

impl From<&Line> for proto::OrderLine {
    fn from(line: &Line) -> Self {
        Self {
            sku: line.sku.clone(),
            name: line.name.clone(),
            quantity: i32::try_from(line.quantity).unwrap_or(i32::MAX),
            unit_price: Some(to_proto::money(line.unit_price)),
            state: proto::LineState::from(line.state).into(),
        }
    }
}

impl From<&Address> for common::Address {
    fn from(address: &Address) -> Self {
        let Address { recipient, lines, city, postal_code, country_code } = address.clone();
        Self { recipient, lines, city, postal_code, country_code }
    }
}

/// `YYYY-MM-DD` as the contract's date.
pub(crate) fn date(text: &str) -> Option<common::Date> {
    let mut parts = text.split('-').map(str::parse);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) = (parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    Some(common::Date { year, month, day })
}

impl From<&PaymentFailure> for proto::PaymentFailure {
    fn from(failure: &PaymentFailure) -> Self {
        Self {
            reason: failure.reason.clone(),
            decline_code: failure.decline_code.clone(),
            advice: failure.shown_advice().to_owned(),
            message: failure.message.clone(),
        }
    }
}

/// Shown to a customer instead of the last error: peers' error texts, with their addresses, are for operators only.
const RETRY_PENDING: &str = "the last attempt failed and will be retried";

pub(crate) fn order(seen_by: Scope, order: &Order) -> proto::Order {
    let last_error = order.last_error.as_deref().map(|error| match seen_by {
        Scope::All => error,
        Scope::Of(_) => RETRY_PENDING,
    });
    proto::Order {
        order_id: order.id.to_string(),
        user_id: order.user.to_string(),
        state: proto::OrderState::from(order.state).into(),
        version: order.version,
        lines: order.lines.iter().map(Into::into).collect(),
        total: Some(to_proto::money(order.total)),
        shipping_address: Some((&order.address).into()),
        contact_email: order.contact_email.clone(),
        delivery_date: order.fulfillment.as_ref().and_then(|started| date(&started.delivery_date)),
        fulfillment_id: order.fulfillment.as_ref().map(|started| started.id.to_string()).unwrap_or_default(),
        payment_failure: order.payment_failure.as_ref().map(Into::into),
        next_attempt_time: order.next_attempt_time.map(to_proto::timestamp),
        last_error: last_error.unwrap_or_default().to_owned(),
        create_time: Some(to_proto::timestamp(order.create_time)),
        update_time: Some(to_proto::timestamp(order.update_time)),
        trace_id: order.traceparent.trace_id(),
    }
}

/// A page, cut from one order more than the page's size.
pub(crate) fn orders(seen_by: Scope, orders: &[Order], list: &ListOrders) -> proto::ListOrdersResponse {
    let next = |last: &proto::Order| list.page.next(&last.order_id);
    let Page { entries, next_page_token } = Page::from_rows(orders, list.size, |each| order(seen_by, each), next);
    proto::ListOrdersResponse { orders: entries, next_page_token }
}

impl From<HistoryEntry> for proto::OrderHistoryEntry {
    fn from(entry: HistoryEntry) -> Self {
        Self {
            version: entry.version,
            state: proto::OrderState::from(entry.state).into(),
            time: Some(to_proto::timestamp(entry.time)),
            reason: entry.reason,
            trace_id: entry.trace_id,
            span_id: entry.span_id,
        }
    }
}

impl From<Stock> for proto::Stock {
    fn from(stock: Stock) -> Self {
        let Stock { sku, on_hand, reserved } = stock;
        Self { sku, on_hand, reserved }
    }
}

impl From<Adjustment> for proto::AdjustStockResponse {
    fn from(adjustment: Adjustment) -> Self {
        Self { stock: Some(adjustment.stock.into()), lost_line_count: adjustment.lost_lines }
    }
}
