//! `ordermesh routes`: the policies in force at a running system, as its instances report them.

use std::time::Duration;

use clap::Args;
use contracts::mesh::v1::{Access, Route, TrafficRule};
use serde::Serialize;

use crate::error::{Error, describe};
use crate::instances::Instances;
use crate::json::{self, Format};
use crate::out;
use crate::system::Location;
use crate::table;
use crate::topology::graph::duration;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Only of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    location: Location,
}

/// A method's policy at the instances of a service.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Row {
    service: &'static str,
    method: String,
    /// Who may call it: `public`, `customer`, `operator`, or names of services.
    access: Vec<String>,
    /// Null for streams.
    deadline_ms: Option<u128>,
    retryable: bool,
    event: String,
    max_message_bytes: i64,
    /// Calls, and the milliseconds in which they are refilled.
    quota: Option<(i64, u128)>,
    /// What the traffic policy changes; empty if nothing.
    traffic: String,
}

impl Row {
    fn new(service: &'static str, route: Route) -> Self {
        let access = |access| match access {
            Access::Public => Some("public"),
            Access::Customer => Some("customer"),
            Access::Operator => Some("operator"),
            // The services are named.
            Access::Service | Access::Unspecified => None,
        };
        let users = route.allow().filter_map(access).map(str::to_owned);
        Self {
            service,
            access: users.chain(route.callers.iter().cloned()).collect(),
            deadline_ms: route.timeout.as_ref().map(|_| duration(&route.timeout).as_millis()),
            retryable: route.retryable,
            max_message_bytes: route.max_message_bytes,
            quota: route.quota.as_ref().map(|quota| (quota.calls, duration(&quota.interval).as_millis())),
            traffic: route.traffic_rule.as_ref().map(traffic).unwrap_or_default(),
            method: route.method,
            event: route.event,
        }
    }

    fn cells(&self) -> [String; 8] {
        let quota = |(calls, millis): (i64, u128)| {
            let per = Duration::from_millis(millis.try_into().unwrap_or(u64::MAX));
            format!("{calls} per {} s", per.as_secs_f64())
        };
        [
            self.method.clone(),
            self.access.join(", "),
            self.deadline_ms.map_or_else(|| "stream".to_owned(), |millis| format!("{millis} ms")),
            if self.retryable { "yes" } else { "no" }.to_owned(),
            if self.event.is_empty() { "-".to_owned() } else { self.event.clone() },
            self.quota.map_or_else(|| "-".to_owned(), quota),
            self.max_message_bytes.to_string(),
            self.traffic.clone(),
        ]
    }
}

/// What a traffic policy changes, for example `timeout 5s, 50 % delay 300ms`.
fn traffic(rule: &TrafficRule) -> String {
    let text_of = |value: &Option<prost_types::Duration>| {
        let millis = duration(value).as_millis();
        if millis.is_multiple_of(1_000) { format!("{}s", millis / 1_000) } else { format!("{millis}ms") }
    };
    let timeout = rule.timeout.is_some().then(|| format!("timeout {}", text_of(&rule.timeout)));
    let fault = rule.fault.as_ref().map(|fault| {
        let delay = if fault.delay.is_some() { format!(" delay {}", text_of(&fault.delay)) } else { String::new() };
        let code = if fault.code.is_empty() { String::new() } else { format!(" {}", fault.code) };
        format!("{} %{delay}{code}", fault.percent)
    });
    let audit =
        (!rule.audited_callers.is_empty()).then(|| format!("audit all but {}", rule.audited_callers.join(", ")));
    let backends =
        rule.backends.iter().map(|backend| format!("{} {}", backend.name, backend.weight)).collect::<Vec<_>>();
    let split = (!backends.is_empty()).then(|| backends.join(" / "));
    let mirror = rule.mirror.as_ref().map(|mirror| format!("{} % mirrored to {}", mirror.percent, mirror.name));
    split.into_iter().chain(mirror).chain(timeout).chain(fault).chain(audit).collect::<Vec<_>>().join(", ")
}

/// Prints the policies, once for each service.
///
/// # Errors
/// There is no system, or the output cannot be written.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let instances = Instances::find(options.location).await?;
    let mut rows: Vec<Row> = Vec::new();
    for instance in instances.all() {
        let service = instance.service.name();
        let is_wanted = options.service.as_ref().is_none_or(|wanted| wanted == service);
        // The first one that responds: they have the same configuration.
        if !is_wanted || rows.iter().any(|row| row.service == service) {
            continue;
        }
        match instance.routes().await {
            Ok(listed) => rows.extend(listed.routes.into_iter().map(|route| Row::new(service, route))),
            Err(status) => out::complain(format_args!("{service} at {}: {}", instance.address, describe(&status))),
        }
    }
    if let Some(service) = options.service.filter(|_| rows.is_empty()) {
        return Err(Error::Usage(format!(
            "no instance of {service} responds; the services are user, order, payment and data"
        )));
    }
    match options.output {
        Format::Json => json::print(&rows),
        Format::Text => {
            let titles = ["METHOD", "ACCESS", "DEADLINE", "RETRIES", "EVENT", "QUOTA", "MAX BYTES", "TRAFFIC POLICY"]
                .map(str::to_owned);
            // Every service serves the methods of the mesh: they are printed once.
            let mut seen = std::collections::HashSet::new();
            let cells = rows.iter().filter(|row| seen.insert(row.method.clone())).map(Row::cells);
            out::text(table::text(std::iter::once(titles).chain(cells)))
        }
    }
}
