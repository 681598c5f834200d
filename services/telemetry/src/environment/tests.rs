//! Every variable: its effect, and the values that are rejected.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;

use super::*;

/// Stands for bytes that are not UTF-8.
const NO_TEXT: &str = "\u{fffd}";

fn read(variables: &[(&str, &str)]) -> Result<Environment, VariableError> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Environment::read(None, |name| match *variables.get(name)? {
        NO_TEXT => Some(OsString::from_vec(vec![0xff])),
        text => Some(text.into()),
    })
}

/// With a collector for all signals.
fn with(variables: &[(&str, &str)]) -> Result<Environment, VariableError> {
    read(&[&[(ENDPOINT, "http://collector:4317")], variables].concat())
}

/// A supported variable: a value with an effect, and one that is rejected.
struct Case {
    name: &'static str,
    good: &'static str,
    bad: &'static str,
    /// Variables without which it has no effect.
    needs: &'static [(&'static str, &'static str)],
}

const fn case(name: &'static str, good: &'static str, bad: &'static str) -> Case {
    Case { name, good, bad, needs: &[] }
}

const SCHEMELESS: &[(&str, &str)] = &[(ENDPOINT, "collector:4317")];
const RATIO: &[(&str, &str)] = &[("OTEL_TRACES_SAMPLER", "traceidratio")];
const CLIENT: &[(&str, &str)] =
    &[("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/own.pem"), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/own.key")];

/// By their general names; exporter options also have one name for each signal.
const CASES: [Case; 37] = [
    case("OTEL_SDK_DISABLED", "true", "yes"),
    case("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p1", "novalue"),
    case("OTEL_SERVICE_NAME", "shop", NO_TEXT),
    case("OTEL_LOG_LEVEL", "debug", "loud"),
    case("OTEL_PROPAGATORS", "none", "b3"),
    case("OTEL_TRACES_SAMPLER", "always_off", "jaeger_remote"),
    Case { needs: RATIO, ..case("OTEL_TRACES_SAMPLER_ARG", "0.25", "1.5") },
    case("OTEL_BSP_SCHEDULE_DELAY", "7", "0"),
    case("OTEL_BSP_EXPORT_TIMEOUT", "7", "-1"),
    case("OTEL_BSP_MAX_QUEUE_SIZE", "7", "0"),
    case("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "7", "16385"),
    case("OTEL_BLRP_SCHEDULE_DELAY", "7", "1s"),
    case("OTEL_BLRP_EXPORT_TIMEOUT", "7", "soon"),
    case("OTEL_BLRP_MAX_QUEUE_SIZE", "7", "1000001"),
    case("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "7", "2049"),
    case("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "7", "many"),
    case("OTEL_SPAN_EVENT_COUNT_LIMIT", "7", "-7"),
    case("OTEL_SPAN_LINK_COUNT_LIMIT", "7", "7.5"),
    case("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "7", "2147483648"),
    case("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "7", "0x7"),
    case("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:4317", "ftp://collector"),
    Case { needs: SCHEMELESS, ..case("OTEL_EXPORTER_OTLP_INSECURE", "true", "1") },
    case("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem", NO_TEXT),
    Case { needs: CLIENT, ..case("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/other.key", NO_TEXT) },
    Case { needs: CLIENT, ..case("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/other.pem", NO_TEXT) },
    case("OTEL_EXPORTER_OTLP_HEADERS", "x-key=1", "x-key"),
    case("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "zstd"),
    case("OTEL_EXPORTER_OTLP_TIMEOUT", "7", "10s"),
    case("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "http/json"),
    case(TEMPORALITY, "delta", "increasing"),
    case(HISTOGRAM, "base2_exponential_bucket_histogram", "exponential"),
    case("OTEL_TRACES_EXPORTER", "none", "console"),
    case("OTEL_METRICS_EXPORTER", "none", "prometheus"),
    case("OTEL_LOGS_EXPORTER", "none", "otlp,console"),
    // Only the default is supported: it has no effect.
    case("OTEL_METRICS_EXEMPLAR_FILTER", "always_off", "trace_based"),
    case("OTEL_METRIC_EXPORT_INTERVAL", "7", "0"),
    case("OTEL_METRIC_EXPORT_TIMEOUT", "7", "x"),
];

/// Every name of a case.
fn names(case: &Case) -> Vec<String> {
    Variable { name: case.name, handling: Handling::Supported("") }.names()
}

#[test]
fn every_supported_variable_has_a_case() {
    let supported = VARIABLES.iter().filter(|variable| matches!(variable.handling, Handling::Supported(_)));
    let supported: Vec<_> = supported.map(|variable| variable.name).collect();
    assert_eq!(supported, CASES.iter().map(|case| case.name).collect::<Vec<_>>());
    assert!(CASES.iter().any(|case| names(case).iter().any(|name| name == "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY")));
}

#[test]
fn every_supported_variable_has_an_effect_and_an_empty_value_has_none() {
    for case in &CASES {
        for name in names(case) {
            let printed = |environment: Environment| format!("{environment:?}");
            let of = |variables: &[(&str, &str)]| printed(with(variables).unwrap_or_else(|error| panic!("{error}")));
            let without = of(case.needs);
            let is_changed = of(&[case.needs, &[(name.as_str(), case.good)]].concat()) != without;
            assert_eq!(is_changed, name != "OTEL_METRICS_EXEMPLAR_FILTER", "{name}");
            if !case.needs.iter().any(|(needed, _)| *needed == name) && name != ENDPOINT {
                assert_eq!(of(&[case.needs, &[(name.as_str(), "  ")]].concat()), without, "{name}");
            }
        }
    }
    assert!(read(&[(ENDPOINT, "")]).expect("as unset").traces.is_none());
}

#[test]
fn every_malformed_variable_is_named_with_the_allowed_values() {
    for case in &CASES {
        for name in names(case) {
            let error = with(&[case.needs, &[(name.as_str(), case.bad)]].concat()).expect_err(&name);
            assert_eq!(error.name, name, "{error}");
            let text = error.to_string();
            assert!(text.starts_with(&name) && text.contains("; allowed: ") && !error.allowed.is_empty(), "{text}");
        }
    }
}

#[test]
fn unsupported_variables_are_rejected_by_name_whatever_their_value() {
    let mut rejected = 0;
    for variable in VARIABLES {
        let set = with(&[(variable.name, "7")]);
        match variable.handling {
            Handling::Rejected(why) => {
                let error = set.expect_err(variable.name);
                assert!(error.name == variable.name && error.problem.contains(why), "{error}");
                with(&[(variable.name, "")]).expect("an empty value is no value");
                rejected += 1;
            }
            Handling::WithoutEffect(_) => {
                let (set, unset) = (set.expect("no effect"), with(&[]).expect("nothing set"));
                assert_eq!(format!("{set:?}"), format!("{unset:?}"));
            }
            Handling::Supported(_) => {}
        }
    }
    assert!(rejected > 5, "there are several");
}

#[test]
fn without_variables_nothing_is_exported_and_the_defaults_are_the_platforms() {
    let environment = read(&[]).expect("nothing set");
    assert!(environment.traces.is_none() && environment.metrics.is_none() && environment.logs.is_none());
    assert_eq!(environment.service_name(), None);
    assert_eq!(environment.propagation, Propagation::DEFAULT);
    assert_eq!((environment.spans, environment.log_records), (Batches::SPANS, Batches::LOG_RECORDS));
    assert_eq!(environment.metric_interval, Duration::from_secs(10));
    assert!(format!("{:?}", environment.sampler).starts_with("ParentBased(AlwaysOn"), "{:?}", environment.sampler);
}

#[test]
fn otel_service_name_takes_precedence_over_the_attribute() {
    let attribute = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,x=1%2C2%3D3,y=M%C3%BCnchen, z = b ,service.name=b");
    let environment = with(&[attribute]).expect("attributes");
    assert_eq!(environment.service_name(), Some("b"), "the last one wins");
    let pairs: Vec<_> = environment.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(&pairs[1..4], [("x", "1,2=3"), ("y", "M\u{fc}nchen"), ("z", "b")]);
    let both = with(&[attribute, ("OTEL_SERVICE_NAME", "shop")]).expect("both");
    assert_eq!(both.service_name(), Some("shop"));
}

#[test]
fn malformed_attributes_and_headers_are_rejected_and_never_printed() {
    for invalid in ["a", "=secret", "a=secret%", "a=secret%4", "a=secret%zz", "a=secret%ff", "a=secret,b"] {
        for name in ["OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_HEADERS"] {
            let error = with(&[(name, invalid)]).expect_err(invalid).to_string();
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
    }
    for invalid in ["a b=secret", "a=secret%0d%0a"] {
        let error = with(&[("OTEL_EXPORTER_OTLP_TRACES_HEADERS", invalid)]).expect_err(invalid).to_string();
        assert!(!error.contains("secret"), "{error}");
    }
    let headers = "Authorization=Basic%20c2VjcmV0OnNlY3JldA==,,x-tenant = blue ";
    let environment = with(&[("OTEL_EXPORTER_OTLP_HEADERS", headers)]).expect("headers");
    let traces = environment.traces.as_ref().expect("a target");
    assert_eq!(traces.headers["authorization"], "Basic c2VjcmV0OnNlY3JldA==");
    assert_eq!(traces.headers["x-tenant"], "blue");
    assert!(!format!("{environment:?}").contains("c2VjcmV0"), "{environment:?}");
}

fn uri(signal: Signal, variables: &[(&str, &str)]) -> Option<String> {
    let environment = read(variables).unwrap_or_else(|error| panic!("{error}"));
    let target = match signal {
        Signal::Traces => environment.traces,
        Signal::Metrics => environment.metrics,
        Signal::Logs => environment.logs,
    };
    target.map(|target| target.uri.to_string())
}

#[test]
fn the_signals_path_is_appended_to_the_general_http_endpoint_and_not_to_a_signals_own() {
    let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let general = |url| uri(Signal::Traces, &[http, (ENDPOINT, url)]);
    assert_eq!(general("http://c:4318").as_deref(), Some("http://c:4318/v1/traces"));
    assert_eq!(general("http://c:4318/").as_deref(), Some("http://c:4318/v1/traces"));
    assert_eq!(general("https://c/otlp/").as_deref(), Some("https://c/otlp/v1/traces"));
    assert_eq!(general("https://c/otlp?key=1").as_deref(), Some("https://c/otlp/v1/traces?key=1"));
    let both = [http, (ENDPOINT, "http://c:4318"), ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:1/in")];
    assert_eq!(uri(Signal::Logs, &both).as_deref(), Some("http://logs:1/in"));
    assert_eq!(uri(Signal::Metrics, &both).as_deref(), Some("http://c:4318/v1/metrics"));
    let root = [http, ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:1")];
    assert_eq!(uri(Signal::Logs, &root).as_deref(), Some("http://logs:1/"));
    assert_eq!(uri(Signal::Traces, &root), None, "no endpoint");
    let grpc = [(ENDPOINT, "http://c:4317/base")];
    assert_eq!(uri(Signal::Traces, &grpc).as_deref(), Some("http://c:4317/base"), "gRPC has its own paths");
}

#[test]
fn each_signal_may_have_its_own_protocol() {
    let variables = [(ENDPOINT, "http://c:4317"), ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "HTTP/Protobuf")];
    assert_eq!(uri(Signal::Metrics, &variables).as_deref(), Some("http://c:4317/v1/metrics"));
    assert_eq!(uri(Signal::Traces, &variables).as_deref(), Some("http://c:4317/"));
}

#[test]
fn an_endpoint_without_a_scheme_is_tls_unless_insecure_is_set() {
    let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "TRUE");
    let endpoint = (ENDPOINT, "localhost:4317");
    assert_eq!(uri(Signal::Traces, &[endpoint]).as_deref(), Some("https://localhost:4317/"));
    assert_eq!(uri(Signal::Traces, &[endpoint, insecure]).as_deref(), Some("http://localhost:4317/"));
    let secure = (ENDPOINT, "https://localhost:4317");
    assert_eq!(uri(Signal::Traces, &[secure, insecure]).as_deref(), Some("https://localhost:4317/"));
    let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    assert_eq!(read(&[endpoint, http]).expect_err("no scheme").name, ENDPOINT);
}

#[test]
fn a_malformed_endpoint_is_never_printed() {
    for invalid in
        ["http://us er:s3cret@c", "http://user:s3cret@c:1", "s3cret://c", "http://s3cret:x", "http://c:0", "http://:1"]
    {
        for name in [ENDPOINT, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"] {
            let error = read(&[(name, invalid)]).expect_err(invalid).to_string();
            assert!(error.starts_with(name) && !error.contains("s3cret"), "{invalid}: {error}");
        }
    }
    for good in ["http://[::1]:4317", "http://c", "HTTPS://c:65535", "https://c/?key=s3cret"] {
        let target = read(&[(ENDPOINT, good)]).expect(good).traces.expect(good);
        assert!(!target.masked().contains("s3cret"), "{}", target.masked());
    }
}

#[test]
fn a_programs_own_endpoint_takes_precedence_and_is_named_in_errors() {
    let variable = |name: &str| (name == ENDPOINT).then(|| OsString::from("http://general:4317"));
    let environment = Environment::read(Some(("GATEWAY_OTLP_ENDPOINT", "http://own:4317")), variable).expect("good");
    assert_eq!(environment.traces.expect("a target").uri, "http://own:4317/");
    let environment = Environment::read(Some(("GATEWAY_OTLP_ENDPOINT", "")), variable).expect("as unset");
    assert_eq!(environment.traces.expect("a target").uri, "http://general:4317/");
    let error = Environment::read(Some(("GATEWAY_OTLP_ENDPOINT", "://")), variable).expect_err("no URL");
    assert_eq!(error.name, "GATEWAY_OTLP_ENDPOINT");
}

#[test]
fn the_shortest_timeout_applies_and_zero_means_no_limit() {
    let timeout = |variables: &[(&str, &str)]| with(variables).expect("good").traces.expect("a target").timeout;
    assert_eq!(timeout(&[]), Duration::from_secs(10));
    assert_eq!(timeout(&[("OTEL_BSP_EXPORT_TIMEOUT", "30000")]), Duration::from_secs(10));
    assert_eq!(timeout(&[("OTEL_BSP_EXPORT_TIMEOUT", "300")]), Duration::from_millis(300));
    let general = ("OTEL_EXPORTER_OTLP_TIMEOUT", "300");
    assert_eq!(timeout(&[general, ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "500")]), Duration::from_millis(500));
    assert_eq!(timeout(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "0")]), Duration::from_millis(MAX_MILLIS));
}

#[test]
fn a_batch_fits_into_its_queue() {
    let spans = |variables: &[(&str, &str)]| with(variables).map(|environment| environment.spans);
    let queue = ("OTEL_BSP_MAX_QUEUE_SIZE", "100");
    assert_eq!(spans(&[queue]).expect("good").batch, 100, "the default is reduced");
    let batch = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "101");
    let error = spans(&[queue, batch]).expect_err("it does not fit").to_string();
    assert!(error.contains("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") && error.contains("at most 100"), "{error}");
}

#[test]
fn every_sampler_of_the_specification_is_supported_except_remote_ones() {
    let sampler = |name, arg| {
        let environment = with(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]).expect(name);
        format!("{:?}", environment.sampler)
    };
    assert_eq!(sampler("always_on", ""), "AlwaysOn");
    assert_eq!(sampler("ALWAYS_OFF", "0.5"), "AlwaysOff");
    assert_eq!(sampler("traceidratio", "0.5"), "TraceIdRatioBased(0.5)");
    assert_eq!(sampler("traceidratio", ""), "TraceIdRatioBased(1.0)");
    assert_eq!(sampler("parentbased_always_on", ""), "ParentBased(AlwaysOn)");
    assert_eq!(sampler("parentbased_always_off", ""), "ParentBased(AlwaysOff)");
    assert_eq!(sampler("parentbased_traceidratio", "0.1"), "ParentBased(TraceIdRatioBased(0.1))");
    for invalid in ["-0.1", "1.01", "NaN", "inf", "half"] {
        assert_eq!(with(&[("OTEL_TRACES_SAMPLER_ARG", invalid)]).expect_err(invalid).name, "OTEL_TRACES_SAMPLER_ARG");
    }
}

#[test]
fn propagators_are_a_list_and_none_excludes_others() {
    let of = |text| with(&[("OTEL_PROPAGATORS", text)]).map(|environment| environment.propagation);
    assert_eq!(of("tracecontext"), Ok(Propagation::DEFAULT));
    assert_eq!(of("TraceContext, baggage,tracecontext"), Ok(Propagation { trace_context: true, baggage: true }));
    assert_eq!(of("none"), Ok(Propagation::NONE));
    for invalid in ["none,baggage", "baggage", "tracecontext,b3", "b3multi", "jaeger", "xray", ","] {
        assert_eq!(of(invalid).expect_err(invalid).name, "OTEL_PROPAGATORS");
    }
}

#[test]
fn a_disabled_sdk_exports_nothing_and_still_propagates() {
    let environment = with(&[("OTEL_SDK_DISABLED", "True")]).expect("good");
    assert!(environment.traces.is_none() && environment.metrics.is_none() && environment.logs.is_none());
    assert_eq!(environment.propagation, Propagation::DEFAULT);
}

#[test]
fn a_certificate_and_its_key_are_set_together() {
    let certificate = ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/own.pem");
    assert_eq!(with(&[certificate]).expect_err("alone").name, certificate.0);
    let key = ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/own.key");
    assert_eq!(with(&[key]).expect_err("alone").name, key.0);
}
