//! `ordermesh tap`: calls as they end, of all instances, until Ctrl-C. Each call is printed once: one of a service to
//! another as its caller reports it, one of a client as the server does.
//!
//! # Layout
//! - `sequence`: calls as a sequence diagram

mod sequence;

use std::collections::HashMap;
use std::time::Duration;

use chassis::settings::duration;
use clap::{Args, ValueEnum};
use contracts::mesh::v1::mesh_admin_service_server::SERVICE_NAME;
use contracts::mesh::v1::{CallSide, TapCallsRequest, TapCallsResponse, TappedCall};
use kernel::backoff::backoff;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::error::{Error, describe};
use crate::instances::{Instance, Instances};
use crate::json;
use crate::out;
use crate::service::Service;
use crate::system::Location;
use crate::text::{millis, printable};
use crate::topology::graph;
use crate::topology::render::latency;
use crate::up::Signals;

/// How often new instances are looked for.
const REFRESH: Duration = Duration::from_secs(3);
/// The wait before a tap that has ended is opened again.
const BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Calls that wait to be printed.
const MAX_WAITING: usize = 1_024;
/// The calls of a diagram: more cannot be read.
const MAX_SEQUENCE: u64 = 200;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Only calls from: anonymous, customer, operator, or a service; may be given several times
    #[arg(long, value_name = "CALLER")]
    from: Vec<String>,
    /// Only calls to this service; may be given several times
    #[arg(long, value_name = "SERVICE")]
    to: Vec<String>,
    /// Only methods whose full name contains this, for example ProcessPayment; may be given several times
    #[arg(long, value_name = "TEXT")]
    method: Vec<String>,
    /// Only with this status code, for example UNAVAILABLE; may be given several times
    #[arg(long, value_name = "CODE")]
    code: Vec<String>,
    /// Only calls that took at least this long: ms, s, m
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    min_latency: Option<Duration>,
    /// Only calls of this trace
    #[arg(long, value_parser = trace_id, value_name = "TRACE_ID")]
    trace: Option<String>,
    /// The side that reports calls [default: the client's between services, else the server's]
    #[arg(long, value_enum, value_name = "SIDE")]
    side: Option<Side>,
    /// End after this many calls
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "COUNT")]
    limit: Option<u64>,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    location: Location,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// A line for each call
    Text,
    /// A line of JSON for each call
    Json,
    /// A sequence diagram for Markdown (https://mermaid.js.org), at the end: after --limit or 200 calls, or Ctrl-C
    Mermaid,
}

/// 32 lower-case hex digits (W3C Trace Context).
fn trace_id(text: &str) -> Result<String, String> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() == 32 && is_hex { Ok(text.to_owned()) } else { Err("32 lower-case hex digits".to_owned()) }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// The instances that serve calls
    Server,
    /// The instances that make calls
    Client,
}

impl Options {
    fn filter(&self) -> TapCallsRequest {
        let side = match self.side {
            None => CallSide::Unspecified,
            Some(Side::Server) => CallSide::Server,
            Some(Side::Client) => CallSide::Client,
        };
        TapCallsRequest {
            side: side.into(),
            callers: self.from.clone(),
            targets: self.to.clone(),
            methods: self.method.clone(),
            codes: self.code.clone(),
            min_latency: self.min_latency.map(chassis::to_proto::duration),
        }
    }
}

/// Whether a call is reported by its client too.
fn is_repeated(call: &TappedCall) -> bool {
    call.side() == CallSide::Server && Service::named(&call.caller).is_some()
}

/// A call, as printed.
#[derive(Serialize)]
struct Line<'a> {
    side: &'static str,
    end_time: String,
    from: &'a str,
    to: &'a str,
    /// The instance that served it: its name, or its address.
    instance: &'a str,
    method: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    latency_ms: f64,
    #[serde(skip_serializing_if = "is_zero")]
    attempt: i32,
    request_bytes: Option<i64>,
    response_bytes: i64,
    /// By the traffic policy's audited callers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    would_be_denied: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_id: &'a str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(attempt: &i32) -> bool {
    *attempt == 0
}

impl<'a> Line<'a> {
    fn new(call: &'a TappedCall, names: &'a HashMap<String, String>) -> Self {
        let instance = names.get(&call.instance).unwrap_or(&call.instance);
        Self {
            side: if call.side() == CallSide::Client { "client" } else { "server" },
            end_time: call.end_time.as_ref().map(millis).unwrap_or_default(),
            from: &call.caller,
            to: &call.target,
            instance,
            method: &call.method,
            code: &call.code,
            reason: &call.reason,
            latency_ms: graph::duration(&call.latency).as_secs_f64() * 1_000.0,
            attempt: call.attempt,
            request_bytes: call.request_bytes,
            response_bytes: call.response_bytes,
            would_be_denied: call.would_be_denied,
            trace_id: &call.trace_id,
        }
    }

    fn text(&self, took: Duration) -> String {
        let method = self.method.rsplit('/').next().unwrap_or(self.method);
        let reason = if self.reason.is_empty() { String::new() } else { format!(" {}", printable(self.reason)) };
        let attempt = if self.attempt > 1 { format!("  attempt {}", self.attempt) } else { String::new() };
        let audit = if self.would_be_denied { "  WOULD BE DENIED" } else { "" };
        let bytes = |bytes: i64| bytes.to_string();
        format!(
            "{}  {:<9} → {:<7}  {:<15}  {:<22} {:>7}  {}{reason}{attempt}{audit}  {}/{} bytes  trace {}",
            self.end_time,
            self.from,
            self.to,
            if self.instance.is_empty() { "-" } else { self.instance },
            method,
            latency(took),
            self.code,
            self.request_bytes.map_or_else(|| "?".to_owned(), bytes),
            self.response_bytes,
            if self.trace_id.is_empty() { "-" } else { self.trace_id },
        )
    }
}

/// What the taps of the instances report.
enum Report {
    Call(Box<TappedCall>),
    Dropped {
        at: String,
        calls: i64,
    },
    /// A tap ended, and why.
    Ended {
        at: String,
        status: Box<Status>,
    },
}

/// Prints calls until a signal.
///
/// # Errors
/// There is no system, the filter is rejected, or the output cannot be written.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let is_diagram = options.output == Format::Mermaid;
    let mut calls = Vec::new();
    tokio::select! {
        result = print_all(options, &mut calls) => result?,
        () = signals.next() => {}
    }
    if is_diagram { out::text(sequence::mermaid(&calls)) } else { Ok(()) }
}

/// Prints the calls, or adds them to those of a diagram.
async fn print_all(options: Options, calls: &mut Vec<TappedCall>) -> Result<(), Error> {
    let filter = options.filter();
    // The calls of these commands are printed only on request.
    let filter_has_no_method = options.method.is_empty();
    let mut instances = Instances::find(options.location).await?;
    let mut names = names_of(&instances).await;
    let mut left = options.limit.or((options.output == Format::Mermaid).then_some(MAX_SEQUENCE));
    let (to, mut reports) = mpsc::channel(MAX_WAITING);
    let mut taps = Taps { filter, to, tasks: HashMap::new() };
    taps.open(&instances);
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.reset();
    while left != Some(0) {
        tokio::select! {
            report = reports.recv() => match report {
                Some(Report::Call(call)) => {
                    let is_own = call.method.starts_with(SERVICE_NAME) && filter_has_no_method;
                    let is_other = options.trace.as_ref().is_some_and(|trace| *trace != call.trace_id);
                    if is_own || is_other || options.side.is_none() && is_repeated(&call) && !call.would_be_denied {
                        continue;
                    }
                    match options.output {
                        Format::Json => json::print_line(&Line::new(&call, &names))?,
                        Format::Text => out::line(Line::new(&call, &names).text(graph::duration(&call.latency)))?,
                        Format::Mermaid => calls.push(*call),
                    }
                    left = left.map(|left| left - 1);
                }
                Some(Report::Dropped { at, calls }) => {
                    out::complain(format_args!("{calls} calls were dropped at {at}: narrow the filter"));
                }
                Some(Report::Ended { at, status }) => {
                    if is_final(status.code()) {
                        return Err(Error::rejected("TapCalls")(*status));
                    }
                    out::complain(format_args!("the tap at {at} ended ({}); opening it again", describe(&status)));
                }
                None => return Ok(()),
            },
            _ = refresh.tick() => {
                instances.refresh().await?;
                if taps.open(&instances) {
                    names = names_of(&instances).await;
                }
            }
        }
    }
    Ok(())
}

/// The instances' names, by address.
async fn names_of(instances: &Instances) -> HashMap<String, String> {
    let snapshots = instances.snapshots().await.into_iter();
    snapshots.filter_map(|(instance, snapshot)| Some((instance.address, snapshot.ok()?.instance))).collect()
}

/// Whether the same request would be rejected again.
fn is_final(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated)
}

/// The taps of all instances, each with its task.
struct Taps {
    filter: TapCallsRequest,
    to: mpsc::Sender<Report>,
    /// By address.
    tasks: HashMap<String, JoinHandle<()>>,
}

impl Taps {
    /// Opens those of new instances, and closes those of instances that have ended; returns whether there were any.
    fn open(&mut self, instances: &Instances) -> bool {
        let is_running = |address: &String| instances.all().iter().any(|instance| instance.address == *address);
        let mut changed = false;
        self.tasks.retain(|address, task| {
            let keep = is_running(address);
            if !keep {
                task.abort();
                changed = true;
            }
            keep
        });
        for instance in instances.all() {
            if !self.tasks.contains_key(&instance.address) {
                let follow = follow(instance.clone(), self.filter.clone(), self.to.clone());
                self.tasks.insert(instance.address.clone(), tokio::spawn(follow));
                changed = true;
            }
        }
        changed
    }
}

/// Reports an instance's calls; opens its tap again when that ends.
async fn follow(instance: Instance, filter: TapCallsRequest, to: mpsc::Sender<Report>) {
    let mut failures = 0;
    loop {
        let mut is_open = false;
        let status = match instance.tap(filter.clone()).await {
            Ok(mut stream) => {
                let mut dropped = 0;
                is_open = true;
                loop {
                    match stream.message().await {
                        Ok(Some(TapCallsResponse { call, dropped_count })) => {
                            failures = 0;
                            if dropped_count > dropped {
                                let (at, calls) = (instance.address.clone(), dropped_count - dropped);
                                dropped = dropped_count;
                                let _ = to.send(Report::Dropped { at, calls }).await;
                            }
                            if let Some(call) = call {
                                let _ = to.send(Report::Call(Box::new(call))).await;
                            }
                        }
                        Ok(None) => break Status::unavailable("the stream ended"),
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        // The token of an open stream expires: another one is fetched when it is opened again.
        if is_open && status.code() == Code::Unauthenticated {
            continue;
        }
        failures += 1;
        let is_over = is_final(status.code());
        // Once: an instance that is down would be reported again and again.
        if failures == 1 || is_over {
            let ended = Report::Ended { at: instance.address.clone(), status: Box::new(status) };
            if to.send(ended).await.is_err() || is_over {
                return;
            }
        }
        tokio::time::sleep(backoff(failures, BACKOFF, MAX_BACKOFF, rand::random())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(side: CallSide, from: &str) -> TappedCall {
        TappedCall {
            side: side.into(),
            end_time: Some(prost_types::Timestamp { seconds: 0, nanos: 5_000_000 }),
            caller: from.into(),
            target: "payment".into(),
            instance: "127.0.0.1:7301".into(),
            method: "payment.v1.PaymentService/ProcessPayment".into(),
            code: "UNAVAILABLE".into(),
            reason: "OVERLOADED".into(),
            latency: Some(prost_types::Duration { seconds: 0, nanos: 212_000_000 }),
            attempt: 2,
            request_bytes: Some(100),
            response_bytes: 0,
            trace_id: "0af7".into(),
            would_be_denied: false,
        }
    }

    #[test]
    fn a_call_between_services_is_printed_as_its_client_reports_it_and_all_others_as_the_server_does() {
        assert!(is_repeated(&call(CallSide::Server, "order")));
        assert!(!is_repeated(&call(CallSide::Client, "order")));
        assert!(!is_repeated(&call(CallSide::Server, "customer")));
    }

    #[test]
    fn a_trace_id_has_32_lower_case_hex_digits() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(trace_id(id), Ok(id.to_owned()));
        for wrong in ["", &id[1..], "0AF7651916CD43DD8448EB211C80319C", "00-0af7651916cd43dd8448eb211c8031"] {
            assert!(trace_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_has_the_instances_name_and_a_failed_calls_reason() {
        let names = HashMap::from([("127.0.0.1:7301".to_owned(), "payment-1".to_owned())]);
        let call = call(CallSide::Client, "order");
        let line = Line::new(&call, &names);
        assert_eq!(
            line.text(Duration::from_millis(212)),
            "1970-01-01T00:00:00.005Z  order     → payment  payment-1        ProcessPayment          212 ms  \
             UNAVAILABLE OVERLOADED  attempt 2  100/0 bytes  trace 0af7"
        );
        let json = serde_json::to_value(&line).expect("JSON");
        assert_eq!((&json["from"], &json["latency_ms"], &json["attempt"]), (&"order".into(), &212.0.into(), &2.into()));
    }
}
