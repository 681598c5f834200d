//! `ordermesh policies`: the policy of every rpc, from the table that the contract's build generates and the mesh
//! enforces.

use clap::{Args, ValueEnum};
use mesh::{Access, FieldLimit, Idempotency, MethodPolicy};
use serde::Serialize;

use crate::error::Error;
use crate::out;
use crate::table;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// One method per line
    Table,
    /// An array of objects
    Json,
}

/// An rpc's policy, as printed.
#[derive(Serialize)]
struct Policy {
    /// The first component of the proto package: the service, or `mesh` for the admin API that every service serves.
    service: &'static str,
    /// The full name, for example `order.v1.OrderService/CreateOrder`.
    method: &'static str,
    access: Vec<&'static str>,
    /// The services that may call it, if `access` contains `service`.
    callers: &'static [&'static str],
    /// Default and maximum deadline; null for streams.
    deadline_ms: Option<u128>,
    idempotency: &'static str,
    streaming: bool,
    event: Option<&'static str>,
    /// Why there is no event; empty if there is one.
    no_event: &'static str,
    /// The longest request; null: the server's general limit.
    max_message_bytes: Option<usize>,
    limits: Vec<Limit>,
}

#[derive(Serialize)]
struct Limit {
    field: &'static str,
    max_items: usize,
    reason: &'static str,
}

fn access(access: Access) -> &'static str {
    match access {
        Access::Public => "public",
        Access::Customer => "customer",
        Access::Operator => "operator",
        Access::Service => "service",
    }
}

fn idempotency(level: Idempotency) -> &'static str {
    match level {
        Idempotency::Unknown => "unknown",
        Idempotency::Idempotent => "idempotent",
        Idempotency::NoSideEffects => "no_side_effects",
    }
}

impl From<&FieldLimit> for Limit {
    fn from(limit: &FieldLimit) -> Self {
        Self { field: limit.field, max_items: limit.max_items, reason: limit.reason }
    }
}

impl From<&MethodPolicy> for Policy {
    fn from(policy: &MethodPolicy) -> Self {
        Self {
            service: policy.name().split('.').next().unwrap_or_default(),
            method: policy.name(),
            access: policy.allow.iter().copied().map(access).collect(),
            callers: policy.callers,
            deadline_ms: policy.timeout.map(|timeout| timeout.as_millis()),
            idempotency: idempotency(policy.idempotency),
            streaming: policy.streaming,
            event: policy.event,
            no_event: policy.no_event,
            max_message_bytes: policy.max_message_bytes,
            limits: policy.limits.iter().map(Limit::from).collect(),
        }
    }
}

impl Policy {
    /// Who may call it, for example `operator, service (order)`.
    fn allowed(&self) -> String {
        let callers = if self.callers.is_empty() { String::new() } else { format!(" ({})", self.callers.join(" ")) };
        self.access.join(", ") + &callers
    }

    fn limits(&self) -> String {
        let bytes = self.max_message_bytes.map(|bytes| format!("{bytes} bytes"));
        let fields = self.limits.iter().map(|limit| format!("{} ≤ {}", limit.field, limit.max_items));
        bytes.into_iter().chain(fields).collect::<Vec<_>>().join(", ")
    }

    fn row(&self) -> [String; 6] {
        [
            self.method.to_owned(),
            self.allowed(),
            self.deadline_ms.map_or_else(|| "stream".to_owned(), |ms| format!("{ms} ms")),
            self.idempotency.to_owned(),
            self.event.unwrap_or("-").to_owned(),
            self.limits(),
        ]
    }
}

/// Prints the policies.
///
/// # Errors
/// The output cannot be written.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let policies: Vec<_> = contracts::POLICIES.0.iter().map(Policy::from).collect();
    match options.output {
        // Texts and numbers always have a JSON encoding.
        Format::Json => out::line(serde_json::to_string_pretty(&policies).unwrap_or_default()),
        Format::Table => out::text(table(&policies)),
    }
}

fn table(policies: &[Policy]) -> String {
    let titles = ["METHOD", "ACCESS", "DEADLINE", "IDEMPOTENCY", "EVENT", "LIMITS"].map(str::to_owned);
    table::text(std::iter::once(titles).chain(policies.iter().map(Policy::row)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_is_printed_with_its_policy() {
        let policies: Vec<_> = contracts::POLICIES.0.iter().map(Policy::from).collect();
        let text = table(&policies);
        assert_eq!(text.lines().count(), policies.len() + 1);
        let line = |method: &str| text.lines().find(|line| line.starts_with(method)).expect("an rpc");
        let append = line("data.v1.TraceEventService/AppendTraceEvents");
        assert!(append.contains("service (user order payment data)") && append.contains("events ≤ 500"), "{append}");
        let json = serde_json::to_value(&policies).expect("JSON");
        let create =
            json.as_array().expect("an array").iter().find(|one| one["method"] == "order.v1.OrderService/CreateOrder");
        let create = create.expect("an rpc");
        assert_eq!((&create["service"], &create["access"]), (&"order".into(), &serde_json::json!(["customer"])));
        assert_eq!(create["event"], "order_creation");
    }
}
