//! From and to the messages of mesh.v1.MeshAdminService.

use std::time::Duration;

use contracts::mesh::v1 as proto;
use mesh::{
    Access, BreakerState, CallSummary, CalledMethod, EndpointState, Idempotency, MethodPolicy, ServedMethod, Snapshot,
    TapFilter, TapSide, TappedCall, Target, TrafficRule, Window,
};
use tonic::Code;

use crate::admin::Admin;
use crate::decode::{Fields, Invalid};
use crate::to_proto::{duration, timestamp};

/// A filter that names so much of a method is long enough.
const MAX_TEXT: usize = 200;

/// A request to open a tap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TapCalls {
    pub(crate) filter: TapFilter,
    /// For the audit event.
    pub(crate) description: String,
}

impl TryFrom<proto::TapCallsRequest> for TapCalls {
    type Error = Invalid;

    fn try_from(request: proto::TapCallsRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let side = match proto::CallSide::try_from(request.side) {
            Ok(proto::CallSide::Unspecified) => None,
            Ok(proto::CallSide::Server) => Some(TapSide::Server),
            Ok(proto::CallSide::Client) => Some(TapSide::Client),
            Err(_) => {
                fields.reject("side", "UNKNOWN_VALUE", "is not a side of a call");
                None
            }
        };
        let lists = [("callers", &request.callers), ("targets", &request.targets), ("methods", &request.methods)];
        for (field, texts) in lists {
            for (index, text) in texts.iter().enumerate() {
                if text.is_empty() || text.len() > MAX_TEXT || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let rule = format!("must be 1 to {MAX_TEXT} visible ASCII characters");
                    fields.reject(format!("{field}[{index}]"), "INVALID_LENGTH", rule);
                }
            }
        }
        let mut codes = Vec::new();
        for (index, name) in request.codes.iter().enumerate() {
            match code_of(name) {
                Some(code) => codes.push(code),
                None => fields.reject(
                    format!("codes[{index}]"),
                    "UNKNOWN_VALUE",
                    "must be a gRPC status code such as UNAVAILABLE",
                ),
            }
        }
        let min_latency = match request.min_latency.map(Duration::try_from) {
            None => Duration::ZERO,
            Some(Ok(latency)) => latency,
            Some(Err(_)) => {
                fields.reject("min_latency", "OUT_OF_RANGE", "must not be negative");
                Duration::ZERO
            }
        };
        let description = description(&request, side, min_latency);
        let proto::TapCallsRequest { callers, targets, methods, .. } = request;
        let filter = TapFilter { side, callers, targets, methods, codes, min_latency };
        fields.finish(Some(Self { filter, description }))
    }
}

/// The criteria in words, for example `to payment, at least 100 ms`; `all` without any.
fn description(request: &proto::TapCallsRequest, side: Option<TapSide>, min_latency: Duration) -> String {
    let side = match side {
        Some(TapSide::Server) => "served",
        Some(TapSide::Client) => "made",
        None => "",
    };
    let list = |word: &str, texts: &[String]| {
        if texts.is_empty() { String::new() } else { format!("{word} {}", texts.join(" or ")) }
    };
    let latency =
        if min_latency.is_zero() { String::new() } else { format!("at least {} ms", min_latency.as_millis()) };
    let criteria = [
        side.to_owned(),
        list("from", &request.callers),
        list("to", &request.targets),
        list("method", &request.methods),
        list("code", &request.codes),
        latency,
    ];
    let criteria: Vec<_> = criteria.into_iter().filter(|criterion| !criterion.is_empty()).collect();
    if criteria.is_empty() { "all".to_owned() } else { criteria.join(", ") }
}

fn code_of(name: &str) -> Option<Code> {
    (0..=Code::Unauthenticated as i32).map(Code::from).find(|code| mesh::code_name(*code) == name)
}

/// A message of a tap.
pub(crate) fn tapped(call: TappedCall, instance: &str, dropped: u64) -> proto::TapCallsResponse {
    let (side, instance) = match call.side {
        TapSide::Server => (proto::CallSide::Server, instance.to_owned()),
        TapSide::Client => (proto::CallSide::Client, call.address),
    };
    let call = proto::TappedCall {
        side: side.into(),
        end_time: Some(timestamp(call.end)),
        caller: call.caller.to_string(),
        target: call.target.to_owned(),
        instance,
        method: call.method.to_owned(),
        code: mesh::code_name(call.code).to_owned(),
        reason: call.reason,
        latency: Some(duration(call.latency)),
        attempt: i32::try_from(call.attempt.unwrap_or_default()).unwrap_or(i32::MAX),
        request_bytes: call.request_bytes.map(count),
        would_be_denied: call.would_be_denied,
        response_bytes: count(call.response_bytes),
        trace_id: call.trace_id,
    };
    proto::TapCallsResponse { call: Some(call), dropped_count: count(dropped) }
}

fn count(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// The state of an instance.
pub(crate) fn snapshot(admin: &Admin, latencies: Latencies) -> proto::GetSnapshotResponse {
    let Snapshot { servers, targets } = admin.monitor.snapshot();
    // A process of a service has one.
    let server = servers.into_iter().next();
    let serving_state = match &server {
        _ if admin.shutdown_requested.is_cancelled() => proto::ServingState::Draining,
        Some(server) if server.is_serving => proto::ServingState::Serving,
        Some(_) | None => proto::ServingState::NotServing,
    };
    let (methods, limits, rejections) =
        server.map_or_else(Default::default, |server| (server.methods, server.limits, server.rejections));
    proto::GetSnapshotResponse {
        service: admin.service.to_owned(),
        instance: admin.instance.clone(),
        version: crate::version().to_owned(),
        start_time: Some(timestamp(admin.started)),
        snapshot_time: Some(timestamp(admin.clock.now())),
        serving_state: serving_state.into(),
        certificate_remaining: admin.identity.as_ref().map(|identity| duration(identity.expires_in())),
        methods: methods.into_iter().map(|method| latencies.served(method)).collect(),
        targets: targets.into_iter().map(|target| latencies.target(target)).collect(),
        limits: limits
            .into_iter()
            .map(|limit| proto::LimitUse {
                name: limit.name.to_owned(),
                used: count(limit.used),
                limit: count(limit.limit),
            })
            .collect(),
        rejections: rejections.into_iter().map(|(cause, number)| (cause.to_owned(), count(number))).collect(),
        traffic_policy: traffic_state(admin),
        driver: admin.driver.as_ref().map(|read| {
            let state = read();
            proto::DriverState {
                items: state.items.to_owned(),
                in_flight: i32::try_from(state.in_flight).unwrap_or(i32::MAX),
                max_in_flight: i32::try_from(state.max_in_flight).unwrap_or(i32::MAX),
            }
        }),
    }
}

/// Absent without a file.
fn traffic_state(admin: &Admin) -> Option<proto::TrafficPolicyState> {
    let state = admin.traffic.state();
    let is_set = !state.file.is_empty();
    is_set.then(|| proto::TrafficPolicyState {
        file: state.file,
        digest: state.digest,
        load_time: state.loaded.map(timestamp),
        rule_count: i32::try_from(state.rules).unwrap_or(i32::MAX),
        refusal: state.rejection,
    })
}

fn rule(rule: &TrafficRule) -> proto::TrafficRule {
    proto::TrafficRule {
        timeout: rule.timeout.map(duration),
        fault: rule.fault.map(|fault| proto::Fault {
            percent: fault.percent.into(),
            delay: fault.delay.map(duration),
            code: fault.code.map(mesh::code_name).unwrap_or_default().to_owned(),
        }),
        audited_callers: rule.audited_callers.clone().unwrap_or_default(),
        backends: rule
            .backends
            .iter()
            .map(|backend| proto::Backend {
                name: backend.name.clone(),
                weight: i32::try_from(backend.weight).unwrap_or(i32::MAX),
                addresses: backend.addresses.as_ref().map(ToString::to_string).unwrap_or_default(),
            })
            .collect(),
        mirror: rule.mirror.as_ref().map(|mirror| proto::Mirror {
            name: mirror.name.clone(),
            addresses: mirror.addresses.to_string(),
            percent: mirror.percent.into(),
        }),
    }
}

/// Whether windows have their latencies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Latencies {
    LeftOut,
    Included,
}

impl Latencies {
    fn served(self, method: ServedMethod) -> proto::ServedMethod {
        let callers = method.callers.into_iter().map(|entry| proto::CallerCalls {
            caller: entry.caller.to_string(),
            calls: Some(self.statistics(entry.calls)),
        });
        proto::ServedMethod {
            method: method.method.to_owned(),
            in_flight: count(method.in_flight),
            callers: callers.collect(),
        }
    }

    fn target(self, target: Target) -> proto::Target {
        let method = |method: CalledMethod| proto::CalledMethod {
            method: method.method.to_owned(),
            in_flight: count(method.in_flight),
            calls: Some(self.statistics(method.calls)),
        };
        proto::Target {
            name: target.name.to_owned(),
            addresses: target.addresses,
            methods: target.methods.into_iter().map(method).collect(),
            endpoints: target.endpoints.into_iter().map(|endpoint| self.endpoint(endpoint)).collect(),
            retries: count(target.retries),
            retry_budget: target.retry_budget,
        }
    }

    fn endpoint(self, endpoint: EndpointState) -> proto::Endpoint {
        let breaker = match endpoint.breaker {
            BreakerState::Closed => proto::BreakerState::Closed,
            BreakerState::HalfOpen => proto::BreakerState::HalfOpen,
            BreakerState::Open => proto::BreakerState::Open,
        };
        proto::Endpoint {
            address: endpoint.address,
            connected: endpoint.is_connected,
            breaker: breaker.into(),
            load: Some(duration(endpoint.load)),
            in_flight: count(endpoint.in_flight),
            attempts: count(endpoint.attempts),
            failures: count(endpoint.failures),
            last_10s: Some(self.window(&endpoint.last_10s)),
            last_60s: Some(self.window(&endpoint.last_60s)),
        }
    }

    fn statistics(self, calls: CallSummary) -> proto::CallStatistics {
        let codes = calls.by_code.into_iter().map(|(code, number)| (mesh::code_name(code).to_owned(), count(number)));
        proto::CallStatistics {
            codes: codes.collect(),
            last_10s: Some(self.window(&calls.last_10s)),
            last_60s: Some(self.window(&calls.last_60s)),
        }
    }

    fn window(self, window: &Window) -> proto::Window {
        let latencies = match self {
            Self::LeftOut => Vec::new(),
            Self::Included => {
                let counts = window.latencies.iter().map(|(latency, calls)| proto::LatencyCount {
                    latency_us: count(latency.as_micros()),
                    calls: count(*calls),
                });
                counts.collect()
            }
        };
        proto::Window {
            length: Some(duration(window.length)),
            calls: count(window.calls),
            failures: count(window.failures),
            p50: Some(duration(window.p50)),
            p90: Some(duration(window.p90)),
            p99: Some(duration(window.p99)),
            latencies,
        }
    }
}

/// A method's policy, as it is in force at this instance.
pub(crate) fn route(policy: &MethodPolicy, admin: &Admin) -> proto::Route {
    let access = |access: &Access| match access {
        Access::Public => proto::Access::Public,
        Access::Customer => proto::Access::Customer,
        Access::Operator => proto::Access::Operator,
        Access::Service => proto::Access::Service,
    };
    // The last one is in force.
    let quota = admin.quotas.iter().rev().find(|(path, _)| *path == policy.path);
    proto::Route {
        method: policy.name().to_owned(),
        allow: policy.allow.iter().map(|each| access(each).into()).collect(),
        callers: policy.callers.iter().map(|caller| (*caller).to_owned()).collect(),
        timeout: policy.timeout.map(duration),
        streaming: policy.streaming,
        retryable: !policy.streaming && policy.idempotency != Idempotency::Unknown,
        event: policy.event.unwrap_or_default().to_owned(),
        no_event: policy.no_event.to_owned(),
        max_message_bytes: count(policy.max_message_bytes.unwrap_or(admin.max_message_bytes)),
        quota: quota.map(|(_, quota)| proto::Quota { calls: count(quota.calls), interval: Some(duration(quota.per)) }),
        traffic_rule: admin.traffic.rule(policy).map(|found| rule(&found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_decoded_and_described() {
        let request = proto::TapCallsRequest {
            side: proto::CallSide::Client.into(),
            callers: vec!["order".into(), "customer".into()],
            targets: vec!["payment".into()],
            methods: vec!["ProcessPayment".into()],
            codes: vec!["OK".into(), "UNAUTHENTICATED".into()],
            min_latency: Some(duration(Duration::from_millis(100))),
        };
        let TapCalls { filter, description } = request.try_into().expect("valid");
        assert_eq!((filter.side, filter.min_latency), (Some(TapSide::Client), Duration::from_millis(100)));
        assert_eq!(filter.codes, [Code::Ok, Code::Unauthenticated]);
        assert_eq!(
            description,
            "made, from order or customer, to payment, method ProcessPayment, code OK or UNAUTHENTICATED, at least 100 ms"
        );
        let all = TapCalls::try_from(proto::TapCallsRequest::default()).expect("valid");
        assert_eq!((all.filter, all.description.as_str()), (TapFilter::default(), "all"));
    }

    #[test]
    fn every_violation_of_a_filter_is_reported() {
        let request = proto::TapCallsRequest {
            side: 9,
            callers: vec![String::new()],
            targets: vec!["payment".into(), "\u{1b}[2J".into()],
            methods: vec!["m".repeat(MAX_TEXT + 1)],
            codes: vec!["unavailable".into()],
            min_latency: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        };
        let Invalid(violations) = TapCalls::try_from(request).expect_err("invalid");
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["side", "callers[0]", "targets[1]", "methods[0]", "codes[0]", "min_latency"]);
    }
}
