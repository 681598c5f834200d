use super::*;
use crate::policy::{Idempotency, METHOD};

const SECOND: Duration = Duration::from_secs(1);

const POLICIES: PolicyTable = PolicyTable(&[
    MethodPolicy {
        path: "/data.v1.Catalog/Get",
        idempotency: Idempotency::NoSideEffects,
        timeout: Some(Duration::from_secs(2)),
        ..METHOD
    },
    MethodPolicy { path: "/data.v1.Catalog/List", timeout: Some(Duration::from_secs(5)), ..METHOD },
    MethodPolicy { path: "/data.v1.Catalog/Watch", streaming: true, idempotency: Idempotency::NoSideEffects, ..METHOD },
    MethodPolicy { path: "/data.v1.Catalog/Zap", timeout: Some(SECOND), allow: &[Access::Operator], ..METHOD },
    MethodPolicy { path: "/data.v1.Events/Append", timeout: Some(SECOND), infrastructure: true, ..METHOD },
    MethodPolicy { path: "/order.v1.Orders/Get", timeout: Some(SECOND), ..METHOD },
    MethodPolicy { path: "/order.v1.Stock/Get", timeout: Some(SECOND), ..METHOD },
    MethodPolicy {
        path: "/payment.v1.Payments/Process",
        allow: &[Access::Service, Access::Operator],
        callers: &["order", "user"],
        timeout: Some(Duration::from_secs(10)),
        idempotency: Idempotency::Idempotent,
        ..METHOD
    },
]);

fn read(text: &str) -> Result<Rules, String> {
    rules(text, POLICIES, true)
}

fn rule<'a>(rules: &'a Rules, path: &str) -> &'a TrafficRule {
    &rules.by_path[path][0].rule
}

#[test]
fn a_policy_with_every_field_is_read() {
    let text = "
rules:
- matches: [{ method: { service: payment.v1.Payments, method: Process } }]
  timeouts: { request: 1s500ms }
  ordermesh:
    fault: { percent: 2, delay: 200ms, code: UNAVAILABLE }
    audit: { callers: [order, operator] }
- matches:
  - method: { service: data.v1.Catalog }
    headers: [{ name: X-Test, value: slow }]
  ordermesh: { fault: { percent: 100, delay: 1s } }
- matches: [{ method: { service: data.v1.Catalog } }]
  timeouts: { request: 3s }
";
    let rules = read(text).expect("valid");
    assert_eq!(rules.count, 3);
    let expected = TrafficRule {
        timeout: Some(Duration::from_millis(1_500)),
        fault: Some(Fault { percent: 2, delay: Some(Duration::from_millis(200)), code: Some(Code::Unavailable) }),
        backends: vec![],
        mirror: None,
        audited_callers: Some(vec!["order".into(), "operator".into()]),
    };
    assert_eq!(*rule(&rules, "/payment.v1.Payments/Process"), expected);
    let get = &rules.by_path["/data.v1.Catalog/Get"];
    assert_eq!(get[0].headers, [(HeaderName::from_static("x-test"), "slow".to_owned())]);
    assert_eq!((get[0].rule.fault.map(|fault| fault.delay), get[0].rule.timeout), (Some(Some(SECOND)), None));
    assert_eq!(get[1].rule.timeout, None, "the contract's is shorter");
    assert_eq!(rules.by_path["/data.v1.Catalog/List"][1].rule.timeout, Some(Duration::from_secs(3)));
    assert_eq!(rules.by_path["/data.v1.Catalog/Watch"][1].rule.timeout, None, "a stream");
    assert!(!rules.by_path.contains_key("/data.v1.Events/Append"));
}

#[test]
fn a_file_without_rules_changes_nothing() {
    for text in ["", "rules: []", "# nothing\n", "{}"] {
        assert_eq!(read(text), Ok(Rules::default()), "{text:?}");
    }
}

#[test]
fn the_first_rule_that_matches_applies() {
    let text = "
rules:
- matches: [{ method: { service: data.v1.Catalog, method: Get } }]
  timeouts: { request: 1s }
- matches: [{ method: { service: data.v1.Catalog } }]
  timeouts: { request: 500ms }
";
    let rules = read(text).expect("valid");
    assert_eq!(rule(&rules, "/data.v1.Catalog/Get").timeout, Some(SECOND));
    assert_eq!(rules.by_path["/data.v1.Catalog/Get"].len(), 1);
    assert_eq!(rule(&rules, "/data.v1.Catalog/List").timeout, Some(Duration::from_millis(500)));
}

/// A rule with this content, for one method.
fn with(method: &str, content: &str) -> String {
    format!("rules:\n- matches: [{{ method: {{ {method} }} }}]\n  {content}\n")
}

/// A rule that splits the calls of these services.
fn split(services: &str, backends: &str) -> String {
    let matches = services.split(", ").map(|service| format!("{{ method: {{ service: {service} }} }}"));
    let matches = matches.collect::<Vec<_>>().join(", ");
    format!("rules:\n- matches: [{matches}]\n  backendRefs: [{backends}]\n")
}

#[test]
fn calls_of_a_whole_service_are_split_by_weight() {
    let text = "targets: { canary: 'dns:///canary:7000' }\n".to_owned()
        + &split("payment.v1.Payments", "{ name: payment, weight: 90 }, { name: canary, weight: 10 }");
    let rules = read(&text).expect("valid");
    let addresses = Some(Addresses::Dns { host: "canary".into(), port: 7000 });
    let expected = [
        Backend { name: "payment".into(), weight: 90, addresses: None },
        Backend { name: "canary".into(), weight: 10, addresses },
    ];
    assert_eq!(rule(&rules, "/payment.v1.Payments/Process").backends, expected);
    // All services of the package; methods that the platform depends on are never split.
    let rules = read(&split("data.v1.Catalog", "{ name: data }")).expect("valid");
    assert_eq!(rules.by_path.len(), 3, "and not Zap, which no service calls");
    let rules = read(&split("order.v1.Orders, order.v1.Stock", "{ name: order }")).expect("valid");
    assert_eq!(rules.by_path.len(), 2);
}

/// A filter that mirrors calls.
const MIRROR: &str = "{ type: RequestMirror, requestMirror: { backendRef: { name: shadow } } }";

/// A target to which calls are mirrored.
const SHADOW: &str = "targets: { shadow: '127.0.0.1:1' }\n";

/// A rule that mirrors calls of one method, or of a service's.
fn mirrored(method: &str, target: &str, share: &str) -> String {
    with(
        method,
        &format!("filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: {target} }}{share} }} }}]"),
    )
}

#[test]
fn calls_without_side_effects_are_mirrored() {
    let of = |method: &str, share: &str| {
        let rules = read(&(SHADOW.to_owned() + &mirrored(method, "shadow", share))).expect("valid");
        let mirrors = rules.by_path.iter().filter_map(|(path, rules)| Some((*path, rules[0].rule.mirror.clone()?)));
        mirrors.map(|(path, mirror)| (path, mirror.name, mirror.percent)).collect::<Vec<_>>()
    };
    let get = |percent| vec![("/data.v1.Catalog/Get", "shadow".to_owned(), percent)];
    assert_eq!(of("service: data.v1.Catalog, method: Get", ", percent: 5"), get(5));
    assert_eq!(of("service: data.v1.Catalog, method: Get", ""), get(100), "as in GRPCRoute");
    assert_eq!(of("service: data.v1.Catalog, method: Get", ", percent: 0"), get(0));
    assert_eq!(
        of("service: data.v1.Catalog", ""),
        get(100),
        "and none of its methods with side effects, and no stream"
    );
}

/// A rule with a timeout for calls with these headers.
fn with_header(headers: &str, timeout: &str) -> String {
    let headers: Vec<_> = headers.split(", ").filter_map(|header| header.split_once(": ")).collect();
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{{ name: {name}, value: {value} }}")).collect();
    let headers = headers.join(", ");
    format!(
        "rules:\n- matches: [{{ method: {{ service: data.v1.Catalog, method: Get }}, headers: [{headers}] }}]\n  timeouts: {{ request: {timeout} }}\n"
    )
}

#[test]
fn what_is_wrong_is_rejected_in_one_line_with_its_position() {
    const GET: &str = "service: data.v1.Catalog, method: Get";
    const PROCESS: &str = "service: payment.v1.Payments, method: Process";
    let cases = [
        ("rules: [".to_owned(), "line 1"),
        ("rule: []".to_owned(), "line 1"),
        ("rules:\n- matches: []\n  timeouts: { request: 1s }".to_owned(), "line 2, column 3: the rule has no `matches`"),
        (with("service: data.v1.Shop", "timeouts: { request: 1s }"), "line 2, column 34: no service is named \"data.v1.Shop\""),
        (with("service: data.v1.Catalog, method: Buy", "timeouts: { request: 1s }"), "line 2, column 59: data.v1.Catalog has no method \"Buy\""),
        (with("service: data.v1.Catalog, methd: Get", "timeouts: { request: 1s }"), "methd"),
        (with("service: data.v1.Catalog", "timeouts: { request: 5s }"), "no method that this rule matches has a longer one"),
        (with("service: data.v1.Events, method: Append", "timeouts: { request: 1ms }"), "data.v1.Events/Append cannot be changed"),
        (with("service: data.v1.Events", "timeouts: { request: 1ms }"), "data.v1.Events cannot be changed"),
        (with(GET, "backendRefs: []"), "changes nothing"),
        (with(GET, "filters: []"), "changes nothing"),
        (with(GET, "filters: [{ type: RequestHeaderModifier }]"), "RequestHeaderModifier"),
        (with(GET, "filters: [{ type: RequestMirror }]"), "requestMirror"),
        (mirrored(GET, "canary", ""), "line 3, column 73: no target is named \"canary\""),
        (SHADOW.to_owned() + &mirrored(GET, "data", ""), "data would get each of these calls twice"),
        (SHADOW.to_owned() + &mirrored(GET, "shadow", ", percent: 101"), "percent is 0 to 100"),
        (SHADOW.to_owned() + &mirrored(GET, "shadow", ", percent: -1"), "line "),
        (SHADOW.to_owned() + &mirrored(GET, "shadow", ", fraction: 1"), "fraction"),
        (SHADOW.to_owned() + &mirrored(PROCESS, "shadow", ""), "line 4, column 13: payment.v1.Payments/Process has side effects, and cannot be mirrored"),
        (SHADOW.to_owned() + &mirrored("service: payment.v1.Payments", "shadow", ""), "no method that this rule matches can be mirrored"),
        (SHADOW.to_owned() + &mirrored("service: data.v1.Catalog, method: Watch", "shadow", ""), "data.v1.Catalog/Watch is a stream, and cannot be mirrored"),
        (
            SHADOW.to_owned() + &split("data.v1.Catalog", "{ name: data }, { name: shadow }") + &format!("  filters: [{MIRROR}]\n"),
            "shadow would get some of these calls twice",
        ),
        (
            SHADOW.to_owned() + &with(GET, &format!("filters: [{MIRROR}, {MIRROR}]")),
            "a rule mirrors calls to one target",
        ),
        (with(GET, "backendRefs: [{ name: data }]"), "split whole services: their rule has neither"),
        (with("service: order.v1.Orders", "backendRefs: [{ name: order }]"), "order.v1.Stock is of order too"),
        (split("order.v1.Orders, order.v1.Stock, payment.v1.Payments", "{ name: order }"), "a rule with `backendRefs` is of one service"),
        (
            with(PROCESS, "timeouts: { request: 50ms }") + &split("payment.v1.Payments", "{ name: payment }").replace("rules:\n", ""),
            "splits only a part of a service: the rule in line 2 matches payment.v1.Payments/Process first",
        ),
        (split("payment.v1.Payments", "{ name: canary }"), "no target is named \"canary\""),
        (split("payment.v1.Payments", "{ name: payment, weight: 101 }"), "a weight is 0 to 100"),
        (split("payment.v1.Payments", "{ name: payment, weight: 1.5 }"), "line "),
        (split("payment.v1.Payments", "{ name: payment, weight: -1 }"), "line "),
        (split("payment.v1.Payments", "{ name: payment }, { name: payment }"), "is named twice"),
        (split("payment.v1.Payments", "{ name: payment, weight: 0 }"), "all weights are 0"),
        ("targets: { order: 127.0.0.1:1 }".to_owned(), "line 1"),
        ("targets: { payment: '127.0.0.1:1' }".to_owned(), "payment is a service"),
        ("targets: { Canary: '127.0.0.1:1' }".to_owned(), "a target's name is"),
        ("targets: { canary: nowhere }".to_owned(), "not addresses"),
        (with(GET, "timeouts: {}"), "request"),
        (with(GET, "ordermesh: {}"), "changes nothing"),
        (with(GET, "timeouts: { request: soon }"), "line 3, column 24: \"soon\" is not a duration"),
        (with(GET, "timeouts: { request: 0s }"), "is not a duration"),
        (with(GET, "timeouts: { request: 2s }"), "line 3, column 24: a timeout may only be shortened: that of data.v1.Catalog/Get is 2s"),
        (with(GET, "timeouts: { request: 2001ms }"), "only be shortened"),
        (with("service: data.v1.Catalog, method: Watch", "timeouts: { request: 1s }"), "is a stream"),
        (with(GET, "ordermesh: { fault: { percent: 0, delay: 1s } }"), "percent is 1 to 100"),
        (with(GET, "ordermesh: { fault: { percent: 101, delay: 1s } }"), "percent is 1 to 100"),
        (with(GET, "ordermesh: { fault: { percent: 2.5, delay: 1s } }"), "line 3"),
        (with(GET, "ordermesh: { fault: { percent: 1 } }"), "neither `delay` nor `code`"),
        (with(GET, "ordermesh: { fault: { percent: 1, delay: 61s } }"), "is not a delay"),
        (with(GET, "ordermesh: { fault: { percent: 1, code: OK } }"), "\"OK\" is not a status code of failed calls"),
        (with(GET, "ordermesh: { fault: { percent: 1, code: DOWN } }"), "\"DOWN\" is not"),
        (with(PROCESS, "ordermesh: { audit: { callers: [data] } }"), "the contract does not admit \"data\" to payment.v1.Payments/Process"),
        (with(PROCESS, "ordermesh: { audit: { callers: [customer] } }"), "does not admit \"customer\""),
        ("rules:\n- matches:\n  - method: { service: data.v1.Catalog }\n    headers: [{ name: \"a b\", value: x }]\n  timeouts: { request: 1s }".to_owned(), "line 4, column 23: \"a b\" is not the name of a header"),
        ("rules:\n- matches:\n  - method: { service: data.v1.Catalog }\n    headers: [{ name: Authorization, value: x }]\n  timeouts: { request: 1s }".to_owned(), "a credential cannot be matched"),
        (with(GET, "timeouts: { request: 1s }") + &with(GET, "timeouts: { request: 1s }")["rules:\n".len()..], "line 4, column 3: never applies to data.v1.Catalog/Get: the rule in line 2 matches first"),
        (with("service: data.v1.Catalog, method: Zap", "timeouts: { request: 1ms }"), "never applies to data.v1.Catalog/Zap: no service calls it"),
        (with(GET, "ordermesh: { audit: { callers: [] } }"), "names no callers"),
        (with(GET, "ordermesh: { audit: { callers: [ordr] } }"), "does not admit \"ordr\""),
        ("rules:\n- matches:\n  - method: { service: data.v1.Catalog }\n    headers: [{ name: a, value: x }, { name: A, value: y }]\n  timeouts: { request: 1s }".to_owned(), "a header cannot have two values"),
        ("rules:\n- matches:\n  - method: { service: data.v1.Catalog }\n    headers: [{ name: x-ordermesh-order, value: x }]\n  timeouts: { request: 1s }".to_owned(), "are the mesh's own"),
        ("rules:\n- matches:\n  - method: { service: data.v1.Catalog }\n    headers: [{ name: a, value: x }]\n  ordermesh: { audit: { callers: [order] } }".to_owned(), "`audit` cannot have `headers`"),
        (with_header("a: x", "1s") + &with_header("a: x, b: y", "1s")["rules:\n".len()..], "the rule in line 2 matches first"),
        ("\"\\e[2J\": 1".to_owned(), "line 1"),
        (with("service: \"a\\e[2Jb\"", "timeouts: { request: 1s }"), "\"a\\u{1b}[2Jb\""),
        ("rules: &a\n- *a".to_owned(), ""),
        ("a: 1\na: 2".to_owned(), ""),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let why = read(&text).expect_err(&text);
        let is_one_line = !why.contains('\n') && !why.contains('\u{1b}');
        if !why.contains(expected) || !is_one_line || !why.contains("line ") {
            wrong.push(format!("{text}\n→ {why}\nexpected: {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn faults_are_rejected_unless_they_are_allowed() {
    let text = with("service: data.v1.Catalog", "ordermesh: { fault: { percent: 1, delay: 1ms } }");
    assert!(read(&text).is_ok());
    let why = rules(&text, POLICIES, false).expect_err("not allowed");
    assert!(why.contains("line 3") && why.contains("--allow-faults"), "{why}");
}
