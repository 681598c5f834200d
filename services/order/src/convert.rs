//! Contract ⇄ domain. Every check of a field is here.
//!
//! # Layout
//! - `request`: messages to commands
//! - `response`: orders, their history and stock to messages

mod request;
mod response;

pub(crate) use request::{ListOrders, WatchOrder, caller_id, create_order, list_orders, order_id, skus};
pub(crate) use response::{date, order, orders};

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(crate) mod tests;
