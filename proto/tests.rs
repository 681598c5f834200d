//! Tests of the contract: broken rules fail the build, the table is complete, secrets stay out of Debug output.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::DescriptorPool;
use prost_reflect::prost_types::FileDescriptorProto;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};

use crate::policy_table::{self, LimitRow, Row, Rule, TableError};
use crate::{DESCRIPTORS, POLICIES};

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).expect("descriptors that fit together")
}

/// One file in memory.
struct InMemory(String);

impl FileResolver for InMemory {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == "shop.proto" { File::from_source(name, &self.0) } else { Err(protox::Error::file_not_found(name)) }
    }
}

/// The policies of a contract with one rpc, `shop.Shop/Buy`.
fn rows_of(rpc: &str) -> Result<Vec<Row>, TableError> {
    let source = format!(
        "syntax = \"proto3\"; package shop; import \"mesh/v1/policy.proto\"; import \"common/v1/limit.proto\"; import \"google/protobuf/field_mask.proto\"; \
         message Ask {{ string what = 1; }} message AskOnce {{ string request_id = 1; }} message Answer {{}} \
         service Shop {{ {rpc} }}"
    );
    let mut resolver = ChainFileResolver::new();
    resolver.add(InMemory(source));
    resolver.add(IncludeFileResolver::new("proto".into()));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).open_file("shop.proto").expect("a contract that compiles");
    policy_table::rows(&DescriptorPool::decode(&*compiler.encode_file_descriptor_set()).expect("descriptors"))
}

fn with_policy(policy: &str) -> String {
    let no_event = if policy.contains("event: ") { "" } else { "no_event: \"sells nothing\"" };
    format!("rpc Buy(Ask) returns (Answer) {{ option (mesh.v1.policy) = {{ {policy} {no_event} }}; }}")
}

/// The build would fail, with an error that names the rpc and the rule.
fn assert_broken(rpc: &str, rule: Rule, words: &str) {
    let error = rows_of(rpc).expect_err(rpc);
    assert_eq!(error, TableError::Broken { rpc: "shop.Shop/Buy".to_owned(), rule });
    let line = error.to_string();
    assert!(line.starts_with("shop.Shop/Buy ") && line.contains(words), "{line}");
}

#[test]
fn a_policy_that_satisfies_every_rule_is_rendered() {
    let rows = rows_of(&with_policy(
        "event: EVENT_TYPE_ORDER_CREATION allow: [ACCESS_OPERATOR, ACCESS_SERVICE] callers: [\"order\"] timeout: {nanos: 5}",
    ))
    .expect("nothing is broken");
    let rendered = policy_table::render(&rows);
    for part in [
        "path: \"/shop.Shop/Buy\"",
        "event: Some(\"order_creation\")",
        "allow: &[::mesh::Access::Operator, ::mesh::Access::Service]",
        "callers: &[\"order\"]",
        "Duration::new(0, 5)",
        "Idempotency::Unknown",
        "streaming: false",
    ] {
        assert!(rendered.contains(part), "expected {part} in {rendered}");
    }
}

#[test]
fn an_rpc_without_a_policy_fails_the_build() {
    assert_broken("rpc Buy(Ask) returns (Answer);", Rule::NoPolicy, "no option (mesh.v1.policy)");
}

#[test]
fn an_rpc_with_neither_an_event_nor_a_reason_for_none_fails_the_build() {
    let with = |event: &str| {
        format!(
            "rpc Buy(Ask) returns (Answer) {{ \
             option (mesh.v1.policy) = {{ allow: [ACCESS_PUBLIC] timeout: {{seconds: 1}} {event} }}; }}"
        )
    };
    for neither in ["", "no_event: \"\"", "no_event: \"  \""] {
        assert_broken(&with(neither), Rule::NoEventAndNoReason, "neither `event` nor `no_event");
    }
    assert_broken(&with("event: EVENT_TYPE_AUDIT no_event: \"reads\""), Rule::EventAndReason, "both");
    assert_broken(&with("event: EVENT_TYPE_UNSPECIFIED"), Rule::EventUnspecified, "EVENT_TYPE_UNSPECIFIED");
    let rows = rows_of(&with("no_event: \"reads\"")).expect("nothing is broken");
    assert_eq!((rows[0].event.as_deref(), rows[0].no_event.as_str()), (None, "reads"));
    let rows = rows_of(&with("event: EVENT_TYPE_AUDIT")).expect("nothing is broken");
    assert_eq!((rows[0].event.as_deref(), rows[0].no_event.as_str()), (Some("audit"), ""));
}

#[test]
fn an_unspecified_access_fails_the_build() {
    let policy = with_policy("allow: [ACCESS_PUBLIC, ACCESS_UNSPECIFIED] timeout: {seconds: 1}");
    assert_broken(&policy, Rule::AccessUnspecified, "ACCESS_UNSPECIFIED");
}

#[test]
fn an_rpc_without_permitted_callers_fails_the_build() {
    assert_broken(&with_policy("timeout: {seconds: 1}"), Rule::EmptyAllow, "empty `allow`");
}

#[test]
fn service_access_without_callers_fails_the_build() {
    let policy = with_policy("allow: [ACCESS_SERVICE] timeout: {seconds: 1}");
    assert_broken(&policy, Rule::ServiceWithoutCallers, "without naming `callers`");
}

#[test]
fn callers_without_service_access_fail_the_build() {
    let policy = with_policy("allow: [ACCESS_PUBLIC] callers: [\"order\"] timeout: {seconds: 1}");
    assert_broken(&policy, Rule::CallersWithoutService, "without allowing ACCESS_SERVICE");
}

#[test]
fn a_unary_call_without_a_timeout_fails_the_build() {
    for timeout in ["", "timeout: {}", "timeout: {seconds: 0}", "timeout: {seconds: -1}"] {
        assert_broken(&with_policy(&format!("allow: [ACCESS_PUBLIC] {timeout}")), Rule::NoTimeout, "`timeout`");
    }
}

#[test]
fn a_stream_with_a_timeout_fails_the_build_and_one_with_zero_has_none() {
    let stream = |seconds: u32| {
        format!(
            "rpc Buy(Ask) returns (stream Answer) {{ \
             option (mesh.v1.policy) = {{ allow: [ACCESS_PUBLIC] timeout: {{seconds: {seconds}}} no_event: \"sells\" }}; }}"
        )
    };
    assert_broken(&stream(1), Rule::TimeoutOnStream, "it streams");
    let rows = rows_of(&stream(0)).expect("nothing is broken");
    assert_eq!((rows[0].timeout, rows[0].streaming), (None, true));
}

#[test]
fn a_streaming_request_fails_the_build() {
    let streams = "rpc Buy(stream Ask) returns (Answer) { \
         option (mesh.v1.policy) = { allow: [ACCESS_PUBLIC] timeout: {seconds: 1} no_event: \"sells\" }; }";
    assert_broken(streams, Rule::StreamingRequest, "streams its requests");
}

/// The limits of a request with these fields.
fn limits_of(fields: &str) -> Result<Vec<LimitRow>, String> {
    let rows = rows_of(&format!(
        "{rpc} }} message Many {{ {fields} }} message Line {{ repeated string words = 1 [(common.v1.limit) = {{max_items: 2}}]; }} message Self {{ Self it = 1; }} service None {{",
        rpc = with_policy("allow: [ACCESS_PUBLIC] timeout: {seconds: 1}").replace("Ask", "Many"),
    ));
    rows.map(|mut rows| rows.remove(0).limits).map_err(|error| error.to_string())
}

#[test]
fn every_repeated_field_of_a_request_has_a_limit_that_the_mesh_can_count() {
    let limit = "[(common.v1.limit) = {max_items: 7}]";
    let row = |path: &[u32], field: &str, max_items| {
        let (path, field, reason) = (path.to_vec(), field.to_owned(), "INVALID_LENGTH".to_owned());
        LimitRow { path, field, max_items, reason }
    };
    assert_eq!(limits_of(&format!("repeated string a = 3 {limit};")), Ok(vec![row(&[3], "a", 7)]));
    assert_eq!(limits_of(&format!("map<string, string> a = 3 {limit};")), Ok(vec![row(&[3], "a", 7)]));
    assert_eq!(limits_of(&format!("google.protobuf.FieldMask m = 2 {limit};")), Ok(vec![row(&[2, 1], "m.paths", 7)]));
    let inner = limits_of(&format!("Line one = 1; repeated Line all = 2 {limit};"));
    assert_eq!(inner, Ok(vec![row(&[1, 1], "one.words", 2), row(&[2], "all", 7), row(&[2, 1], "all.words", 2)]));
    let reason = limits_of("repeated string a = 1 [(common.v1.limit) = {max_items: 1 reason: \"TOO_MANY\"}];");
    assert_eq!(reason.expect("limited")[0].reason, "TOO_MANY");
    for (fields, name) in [
        ("repeated string a = 1;", "shop.Many.a"),
        ("map<string, string> a = 1;", "shop.Many.a"),
        ("google.protobuf.FieldMask m = 2;", "google.protobuf.FieldMask.paths"),
        (&format!("repeated int32 a = 1 {limit};"), "shop.Many.a"),
        ("repeated string a = 1 [(common.v1.limit) = {max_items: -1}];", "shop.Many.a"),
        ("Self it = 1;", "shop.Self.it"),
    ] {
        let error = limits_of(fields).expect_err(fields);
        assert!(error.contains("shop.Shop/Buy") && error.contains(name), "{fields}: {error}");
    }
}

#[test]
fn an_idempotent_call_without_a_reason_fails_the_build() {
    let idempotent = |request: &str, more: &str| {
        format!(
            "rpc Buy({request}) returns (Answer) {{ option idempotency_level = IDEMPOTENT; \
             option (mesh.v1.policy) = {{ allow: [ACCESS_PUBLIC] timeout: {{seconds: 1}} no_event: \"sells\" {more} }}; }}"
        )
    };
    assert_broken(&idempotent("Ask", ""), Rule::NotIdempotent, "`request_id`");
    for kept in [idempotent("AskOnce", ""), idempotent("Ask", "naturally_idempotent: true")] {
        assert_eq!(rows_of(&kept).expect("nothing is broken")[0].idempotency, "Idempotent");
    }
}

#[test]
fn every_rpc_is_in_the_table_and_nothing_else_is() {
    let described: BTreeSet<String> = pool()
        .services()
        .flat_map(|service| {
            service
                .methods()
                .map(move |method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
                .collect::<Vec<_>>()
        })
        .collect();
    let listed: BTreeSet<String> = POLICIES.0.iter().map(|method| method.path.to_owned()).collect();
    assert_eq!(described, listed);
    assert_eq!(listed.len(), POLICIES.0.len(), "no path twice");
}

#[test]
fn the_table_is_sorted_so_that_every_path_is_found() {
    assert!(POLICIES.0.is_sorted_by_key(|method| method.path));
    for method in POLICIES.0 {
        assert_eq!(POLICIES.find(method.path), Some(method));
    }
    assert_eq!(POLICIES.find("/order.v1.OrderService/Nothing"), None);
}

#[test]
fn the_table_matches_the_contract() {
    let create = POLICIES.find("/order.v1.OrderService/CreateOrder").expect("a policy");
    assert_eq!(create.event, Some("order_creation"));
    assert_eq!(create.allow, [::mesh::Access::Customer]);
    assert_eq!(create.timeout, Some(std::time::Duration::from_secs(5)));
    assert_eq!(create.idempotency, ::mesh::Idempotency::Idempotent);
    let watch = POLICIES.find("/order.v1.OrderService/WatchOrder").expect("a policy");
    assert_eq!((watch.timeout, watch.streaming, watch.event), (None, true, None));
    assert_eq!(watch.no_event, "reads the caller's own data");
}

/// The leading comments of a file's elements, by path in the descriptor.
fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    locations.map(|location| (location.path.clone(), location.leading_comments().to_owned())).collect()
}

fn index(position: usize) -> i32 {
    i32::try_from(position).expect("few")
}

#[test]
fn every_rpcs_comment_lists_its_reasons() {
    for file in pool().file_descriptor_protos() {
        let comments = comments(file);
        for (s, service) in file.service.iter().enumerate() {
            for (m, method) in service.method.iter().enumerate() {
                // Field 6 of a file is its services, field 2 of a service its methods.
                let comment = comments.get(&vec![6, index(s), 2, index(m)]).map_or("", String::as_str);
                let reasons = comment.split_once("Reasons:").map_or("", |(_, reasons)| reasons.trim());
                assert!(!reasons.is_empty(), "{}/{} names no reasons", service.name(), method.name());
            }
        }
    }
}

/// Messages with a field whose comment contains "secret".
fn messages_with_secrets() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in pool().file_descriptor_protos() {
        // This contract marks its secrets; google.protobuf has none.
        if file.package().starts_with("google.") {
            continue;
        }
        let comments = comments(file);
        for (m, message) in file.message_type.iter().enumerate() {
            for f in 0..message.field.len() {
                let comment = comments.get(&vec![4, index(m), 2, index(f)]).map_or("", String::as_str);
                if comment.to_ascii_lowercase().contains("secret") {
                    found.insert(message.name().to_owned());
                }
            }
        }
    }
    found
}

#[test]
fn debug_output_contains_every_field_but_secrets() {
    use crate::{gateway::v1 as gateway, order::v1 as order, payment::v1 as payment, user::v1 as user};
    const SECRET: &str = "hunter2";
    const SHOWN: &str = "shown";
    let (secret, shown) = (|| SECRET.to_owned(), || SHOWN.to_owned());
    let register =
        user::RegisterRequest { request_id: shown(), email: shown(), password: secret(), display_name: shown() };
    let session = user::Session {
        session_id: shown(),
        access_token: secret(),
        access_token_expire_time: None,
        refresh_token: secret(),
        refresh_token_expire_time: None,
    };
    let order = order::CreateOrderRequest {
        request_id: shown(),
        items: vec![order::OrderItem { sku: shown(), quantity: 1 }],
        payment_method: secret(),
        shipping_address: None,
        contact_email: shown(),
        expected_total: None,
    };
    let payment = payment::ProcessPaymentRequest {
        order_id: shown(),
        user_id: shown(),
        amount: None,
        payment_method: secret(),
        contact_email: shown(),
    };
    let charge = gateway::CreateChargeRequest {
        charge_key: shown(),
        amount: None,
        payment_method: secret(),
        receipt_email: shown(),
    };
    let change = user::ChangePasswordRequest { current_password: secret(), new_password: secret() };
    // The text, and the number of fields shown in it.
    let printed = [
        (format!("{register:?}"), 3),
        (format!("{:?}", user::LoginRequest { email: shown(), password: secret() }), 1),
        (format!("{:?}", user::RefreshSessionRequest { refresh_token: secret() }), 0),
        (format!("{:?}", user::LogoutRequest { refresh_token: secret() }), 0),
        (format!("{change:?}"), 0),
        (format!("{session:?}"), 1),
        (format!("{:?}", user::LoginResponse { session: Some(session), profile: None }), 1),
        (format!("{order:?}"), 3),
        (format!("{payment:?}"), 3),
        (format!("{charge:?}"), 2),
    ];
    for (text, fields) in &printed {
        assert!(!text.contains(SECRET), "{text}");
        assert_eq!(text.matches(SHOWN).count(), *fields, "{text}");
    }
    // Every message with a secret according to the contract is covered above.
    let named: BTreeSet<String> =
        printed.iter().filter_map(|(text, _)| text.split(' ').next().map(str::to_owned)).collect();
    let expected = messages_with_secrets();
    assert_eq!(expected.len(), 9, "{expected:?}");
    assert!(expected.is_subset(&named), "expected {expected:?} in {named:?}");
}
