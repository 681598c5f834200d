//! Authentication and authorization. A denied call starts no handler.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use mesh::Channel;
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use crate::echo::{CUSTOMER, OPERATOR, SAY, SERVICE, UNLISTED};
use crate::world::{
    AUDIENCE, ISSUER, KEY_ID, Keys, MESH_SECRET, PUBLIC_KEY, World, WorldOptions, call, reason, say, with_metadata,
};

const USER: &str = "018f3b0e-0000-7000-8000-000000000001";

fn signing_key() -> EncodingKey {
    // PKCS #8 around the seed of RFC 8037, appendix A.
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend(URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").expect("base64url"));
    EncodingKey::from_ed_der(&der)
}

pub(crate) fn claims(role: &str) -> Value {
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).expect("now");
    json!({ "iss": ISSUER, "sub": USER, "aud": AUDIENCE, "exp": now + 900, "nbf": now, "role": role })
}

pub(crate) fn signed(claims: &Value, kid: &str) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(kid.to_owned());
    encode(&header, claims, &signing_key()).expect("signed")
}

fn token(role: &str) -> String {
    signed(&claims(role), KEY_ID)
}

fn with_token(text: &str, token: &str) -> Request<String> {
    with_metadata(text, &[("authorization", &format!("Bearer {token}"))])
}

async fn rejected(channel: &Channel, path: &'static str, request: Request<String>) -> (Code, String) {
    let status: Status = call(channel, path, request).await.expect_err("rejected");
    (status.code(), reason(&status))
}

#[tokio::test]
async fn a_user_with_the_right_role_is_admitted_and_the_handler_sees_the_user() {
    let world = World::new().await;
    let response = call(&world.anonymous(), CUSTOMER, with_token("caller", &token("customer"))).await.expect("passes");
    let known = response.into_inner();
    assert!(known.contains(USER) && known.contains("Customer"), "{known}");
    call(&world.anonymous(), OPERATOR, with_token("caller", &token("operator"))).await.expect("passes");
}

#[tokio::test]
async fn a_denied_call_has_a_reason_and_starts_no_handler() {
    let world = World::new().await;
    let channel = world.anonymous();
    let without = |claim: &str| {
        let mut claims = claims("customer");
        claims.as_object_mut().expect("an object").remove(claim);
        signed(&claims, KEY_ID)
    };
    let with = |claim: &str, value: Value| {
        let mut claims = claims("customer");
        claims[claim] = value;
        signed(&claims, KEY_ID)
    };
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).expect("now");
    let mut forged = token("customer");
    forged.replace_range(forged.len() - 6.., "AAAAAA");
    let mut unsigned = Header::new(Algorithm::HS256);
    unsigned.kid = Some(KEY_ID.into());
    let confused = encode(&unsigned, &claims("customer"), &EncodingKey::from_secret(b"guess")).expect("signed");
    #[rustfmt::skip]
    let table = [
        ("expired",         with("exp", json!(now - 3600)),       "TOKEN_EXPIRED"),
        ("not yet",         with("nbf", json!(now + 3600)),       "TOKEN_INVALID"),
        ("other issuer",    with("iss", json!("other-issuer")),       "TOKEN_INVALID"),
        ("other audience",  with("aud", json!("elsewhere")),      "TOKEN_INVALID"),
        ("unknown role",    with("role", json!("admin")),         "TOKEN_INVALID"),
        ("subject no UUID", with("sub", json!("alice")),          "TOKEN_INVALID"),
        ("no iss",          without("iss"),                       "TOKEN_INVALID"),
        ("no sub",          without("sub"),                       "TOKEN_INVALID"),
        ("no aud",          without("aud"),                       "TOKEN_INVALID"),
        ("no exp",          without("exp"),                       "TOKEN_INVALID"),
        ("no nbf",          without("nbf"),                       "TOKEN_INVALID"),
        ("no role",         without("role"),                      "TOKEN_INVALID"),
        ("forged",          forged,                               "TOKEN_INVALID"),
        ("other algorithm", confused,                             "TOKEN_INVALID"),
        ("unknown key",     signed(&claims("customer"), "other"), "TOKEN_INVALID"),
        ("no JWT",          "abc".to_owned(),                     "TOKEN_MALFORMED"),
        ("endless",         "a".repeat(5_000),                    "TOKEN_MALFORMED"),
    ];
    for (what, token, expected) in table {
        let response = rejected(&channel, CUSTOMER, with_token("hello", &token)).await;
        assert_eq!(response, (Code::Unauthenticated, expected.to_owned()), "{what}");
    }
    for times in [("exp", now - 3600), ("nbf", now + 3600)] {
        let request = with_token("hello", &with(times.0, json!(times.1)));
        let status: Status = call(&channel, CUSTOMER, request).await.expect_err("rejected");
        assert!(status.message().contains("clock"), "it may be the clock: {status:?}");
    }
    let absent = rejected(&channel, CUSTOMER, Request::new("hello".to_owned())).await;
    assert_eq!(absent, (Code::Unauthenticated, "TOKEN_MISSING".to_owned()));
    let basic = rejected(&channel, CUSTOMER, with_metadata("hello", &[("authorization", "Basic abc")])).await;
    assert_eq!(basic, (Code::Unauthenticated, "TOKEN_MALFORMED".to_owned()));
    let customer = rejected(&channel, OPERATOR, with_token("hello", &token("customer"))).await;
    assert_eq!(customer, (Code::PermissionDenied, "ROLE_NOT_ALLOWED".to_owned()));
    assert_eq!(world.handlers_started(), 0);
    assert!(world.events.take().is_empty(), "anonymous clients do not fill the event store");
}

/// A token of these parts, signed by our key whatever they contain.
fn of_parts(header: &str, claims: &str) -> String {
    let message = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &signing_key(), Algorithm::EdDSA).expect("signed");
    format!("{message}.{signature}")
}

/// Signed by HMAC with a public value.
fn hmac(secret: &[u8]) -> String {
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(KEY_ID.to_owned());
    encode(&header, &claims("operator"), &EncodingKey::from_secret(secret)).expect("signed")
}

/// The same signature with the group's order added to its second half (RFC 8032 requires that it is less than that).
fn malleated(token: &str) -> String {
    let (message, signature) = token.rsplit_once('.').expect("a signature");
    let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let order = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0_u16;
    for (byte, of_order) in signature[32..].iter_mut().zip(order) {
        carry += u16::from(*byte) + of_order;
        *byte = u8::try_from(carry & 0xff).expect("a byte");
        carry >>= 8;
    }
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn header(more: &str) -> String {
    format!(r#"{{"alg":"EdDSA","typ":"JWT"{more}}}"#)
}

/// An operator's token with this claim, its value in JSON.
fn claiming(claim: &str, value: &str) -> String {
    let mut claims = claims("operator");
    claims.as_object_mut().expect("an object").remove(claim);
    let others = claims.to_string();
    let kid = format!(r#","kid":"{KEY_ID}""#);
    of_parts(&header(&kid), &format!(r#"{},"{claim}":{value}}}"#, others.trim_end_matches('}')))
}

/// Tokens that resemble this one, and are invalid.
fn forgeries(sound: &str) -> Vec<(&'static str, String)> {
    let claims = claims("operator").to_string();
    let ours = format!(r#","kid":"{KEY_ID}""#);
    let (message, signature) = sound.rsplit_once('.').expect("a signature");
    let x = URL_SAFE_NO_PAD.decode(PUBLIC_KEY).expect("base64url");
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", {
        let der = [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..], &x].concat();
        base64::engine::general_purpose::STANDARD.encode(der)
    });
    let jwk = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{PUBLIC_KEY}"}}"#);
    let named = |kid: &str| of_parts(&header(&format!(r#","kid":{}"#, json!(kid))), &claims);
    let unsigned = |alg: &str| {
        let header = format!(r#"{{"alg":"{alg}"{ours}}}"#);
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(&claims))
    };
    let other = of_parts(&header(&ours), &self::claims("customer").to_string());
    #[rustfmt::skip]
    let tokens = vec![
        ("no algorithm",          unsigned("none")),
        ("no algorithm, spelt",   unsigned("nOnE")),
        ("no signature",          format!("{message}.")),
        ("two parts",             message.to_owned()),
        ("another's signature",   format!("{message}.{}", other.rsplit_once('.').expect("a signature").1)),
        ("a padded signature",    format!("{message}.{signature}==")),
        ("a signature plus L",    malleated(sound)),
        ("HMAC with x",           hmac(&x)),
        ("HMAC with x in base64", hmac(PUBLIC_KEY.as_bytes())),
        ("HMAC with the PEM",     hmac(pem.as_bytes())),
        ("no kid",                of_parts(&header(""), &claims)),
        ("its own jwk",           of_parts(&header(&format!(r#","jwk":{jwk}"#)), &claims)),
        ("its own jku",           of_parts(&header(r#","jku":"https://example.com/keys","kid":"other""#), &claims)),
        ("a kid of another case", named(&KEY_ID.to_uppercase())),
        ("a kid with a path",     named("../../dev/null")),
        ("a kid with SQL",        named("x' OR '1'='1")),
        ("a kid with NUL",        named(&format!("{KEY_ID}\0"))),
        ("a long kid",            named(&"k".repeat(2_000))),
        ("crit",                  of_parts(&header(&format!(r#"{ours},"crit":["exp"],"exp":1"#)), &claims)),
        ("an empty crit",         of_parts(&header(&format!(r#"{ours},"crit":[]"#)), &claims)),
        ("a claim twice",         of_parts(&header(&ours), &claims.replacen('{', r#"{"role":"customer","#, 1))),
        ("exp as a text",         claiming("exp", r#""9999999999""#)),
        ("exp beyond numbers",    claiming("exp", "1e300")),
        ("exp as null",           claiming("exp", "null")),
        ("nbf as a text",         claiming("nbf", r#""0""#)),
        ("aud of others",         claiming("aud", r#"["elsewhere"]"#)),
        ("iss of others",         claiming("iss", r#"["elsewhere"]"#)),
        ("sub as a number",       claiming("sub", "7")),
        ("role as a list",        claiming("role", r#"["operator"]"#)),
        ("role in upper case",    claiming("role", r#""OPERATOR""#)),
    ];
    tokens
}

#[tokio::test]
async fn only_tokens_signed_by_our_key_and_unaltered_are_accepted() {
    let world = World::new().await;
    let channel = world.anonymous();
    let sound = claiming("role", r#""operator""#);
    for (what, token) in forgeries(&sound) {
        let (code, reason) = rejected(&channel, OPERATOR, with_token("hello", &token)).await;
        assert_eq!(code, Code::Unauthenticated, "{what}");
        assert!(["TOKEN_INVALID", "TOKEN_MALFORMED"].contains(&reason.as_str()), "{what}: {reason}");
    }
    assert_eq!(world.handlers_started(), 0);
    call(&channel, OPERATOR, with_token("hello", &sound)).await.expect("control: made in the same way");
}

#[tokio::test]
async fn two_authorization_headers_are_rejected() {
    let world = World::new().await;
    let [good, bad] = [format!("Bearer {}", token("customer")), "Bearer abc".to_owned()];
    for both in [[&good, &bad], [&bad, &good], [&good, &good]] {
        let mut request = Request::new("hello".to_owned());
        for value in both {
            request.metadata_mut().append("authorization", value.parse().expect("a header"));
        }
        let response = rejected(&world.anonymous(), CUSTOMER, request).await;
        assert_eq!(response, (Code::Unauthenticated, "TOKEN_MALFORMED".to_owned()));
    }
    assert_eq!(world.handlers_started(), 0);
}

#[tokio::test]
async fn a_method_without_a_policy_is_denied_although_it_is_in_the_routes() {
    let world = World::new().await;
    let response = rejected(&world.service("order", MESH_SECRET), UNLISTED, Request::new("hello".to_owned())).await;
    assert_eq!(response, (Code::Unimplemented, "METHOD_NOT_FOUND".to_owned()));
    assert_eq!(world.handlers_started(), 0);
}

#[tokio::test]
async fn a_public_method_requires_no_credentials_and_uses_valid_ones() {
    let world = World::new().await;
    let channel = world.anonymous();
    assert_eq!(say(&channel, SAY, "caller").await.expect("open"), "Anonymous");
    let bad = call(&channel, SAY, with_token("caller", "abc")).await.expect("open").into_inner();
    assert_eq!(bad, "Anonymous");
    let good = call(&channel, SAY, with_token("caller", &token("customer"))).await.expect("open").into_inner();
    assert!(good.contains(USER), "{good}");
}

#[tokio::test]
async fn a_service_is_admitted_by_the_mesh_secret_and_its_name() {
    let world = World::new().await;
    let known = say(&world.service("order", MESH_SECRET), SERVICE, "caller").await.expect("passes");
    assert_eq!(known, r#"Service { name: "order" }"#);
    let hello = || Request::new("hello".to_owned());
    let before = world.handlers_started();
    let other = rejected(&world.service("payment", MESH_SECRET), SERVICE, hello()).await;
    assert_eq!(other, (Code::PermissionDenied, "CALLER_NOT_ALLOWED".to_owned()));
    let wrong = rejected(&world.service("order", "a guess"), SERVICE, hello()).await;
    assert_eq!(wrong, (Code::Unauthenticated, "INVALID_MESH_SECRET".to_owned()));
    let claimed =
        rejected(&world.anonymous(), SERVICE, with_metadata("hello", &[("x-ordermesh-service", "order")])).await;
    assert_eq!(claimed, (Code::Unauthenticated, "TOKEN_MISSING".to_owned()));
    assert_eq!(world.handlers_started(), before);
}

#[tokio::test]
async fn metadata_that_only_the_mesh_may_set_does_not_reach_the_handler() {
    let world = World::new().await;
    let forged = [("x-ordermesh-service", "order"), ("x-ordermesh-role", "operator"), ("x-mine", "1")];
    let seen = call(&world.anonymous(), SAY, with_metadata("metadata", &forged)).await.expect("open").into_inner();
    assert!(!seen.contains("x-ordermesh"), "{seen}");
    assert!(seen.contains("x-mine"), "control: expected other metadata to be visible: {seen}");
    let seen = say(&world.service("order", MESH_SECRET), SERVICE, "metadata").await.expect("passes");
    assert!(!seen.contains("x-ordermesh"), "{seen}");
}

#[tokio::test]
async fn the_handler_sees_the_peers_address() {
    let world = World::new().await;
    assert_eq!(say(&world.anonymous(), SAY, "peer").await.expect("open"), "127.0.0.1");
}

#[tokio::test]
async fn without_keys_tokens_get_unavailable_and_public_methods_stay_open() {
    let keys = Keys::with(None);
    let world = World::with(WorldOptions { keys: keys.clone(), ..WorldOptions::default() }).await;
    let response = rejected(&world.anonymous(), CUSTOMER, with_token("hello", &token("customer"))).await;
    assert_eq!(response, (Code::Unavailable, "KEYS_NOT_AVAILABLE".to_owned()));
    assert_eq!(say(&world.anonymous(), SAY, "hello").await.expect("open"), "hello");
}

#[tokio::test]
async fn a_call_right_after_a_failed_fetch_waits_for_the_next_fetch() {
    let keys = Keys::with(None);
    let world = World::with(WorldOptions { keys: keys.clone(), ..WorldOptions::default() }).await;
    let channel = world.anonymous();
    rejected(&channel, CUSTOMER, with_token("hello", &token("customer"))).await;
    *keys.response.lock().expect("not poisoned") = Keys::ours().response.lock().expect("not poisoned").clone();
    call(&channel, CUSTOMER, with_token("hello", &token("customer"))).await.expect("the keys are available");
}

#[tokio::test]
async fn keys_are_kept_when_a_refetch_fails_and_unknown_key_ids_do_not_flood_the_source() {
    let keys = Keys::ours();
    let world = World::with(WorldOptions { keys: keys.clone(), ..WorldOptions::default() }).await;
    let channel = world.anonymous();
    call(&channel, CUSTOMER, with_token("hello", &token("customer"))).await.expect("passes");
    let fetches = keys.fetches.load(Ordering::SeqCst);
    assert_eq!(fetches, 1);
    *keys.response.lock().expect("not poisoned") = None;
    for number in 0..5 {
        let anonymous = signed(&claims("customer"), &format!("key {number}"));
        let response = rejected(&channel, CUSTOMER, with_token("hello", &anonymous)).await;
        assert_eq!(response, (Code::Unauthenticated, "TOKEN_INVALID".to_owned()));
    }
    assert_eq!(keys.fetches.load(Ordering::SeqCst), fetches, "fetched again within ten seconds");
    let mut newer = claims("customer");
    newer["nbf"] = json!(1);
    call(&channel, CUSTOMER, with_token("hello", &signed(&newer, KEY_ID))).await.expect("the old keys still verify");
}
