use proptest::prelude::*;

use super::*;

const SECRET: &str = "s3cr3t";

#[test]
fn each_form_of_a_secret_is_masked_and_the_surrounding_text_is_kept() {
    #[rustfmt::skip]
    let table = [
        ("cannot parse 'postgres://shop:s3cr3t#Pw@127.0.0.1:5432/shop'", "cannot parse 'postgres://***@127.0.0.1:5432/shop'"),
        ("postgres://shop:s3/cr?3t@h/shop is wrong",                     "postgres://***@h/shop is wrong"),
        ("postgres://shop:s3cr3t@h1:5432,h2:5432/shop",                  "postgres://***@h1:5432,h2:5432/shop"),
        ("postgres://shop:my s3cr3t@h/shop",                             "postgres://***@h/shop"),
        ("postgres://shop:s3cr3t",                                       "postgres://***"),
        ("postgres:shop:s3cr3t@h/shop",                                  "postgres:***@h/shop"),
        ("http://u:s3cr3t@[::1]:4317/x",                                 "http://***@[::1]:4317/x"),
        ("unexpected argument 'shop:s3cr3t@h:1'",                        "unexpected argument 'shop:***@h:1'"),
        ("host=h user=shop password=s3cr3t sslmode=off",                 "host=h user=shop password=*** sslmode=off"),
        ("https://c/?api_key=s3cr3t&x=1",                                "https://c/?api_key=***&x=1"),
        (r#"{"mesh_secret": "s3\"cr3t", "a": 1}"#,                       r#"{"mesh_secret": "***", "a": 1}"#),
        (r#"Settings { password: "s3cr3t x", port: 1 }"#,                r#"Settings { password: "***", port: 1 }"#),
        ("GATEWAY_API_KEY=s3cr3t",                                       "GATEWAY_API_KEY=***"),
        ("authorization: Digest s3cr3t, x-a: 1",                         "authorization: ***, x-a: 1"),
        ("sent bearer abcdefghijklmnopqr to it",                         "sent bearer *** to it"),
        ("token eyJhbGciOi.eyJzdWIi.c2ln ended",                         "token *** ended"),
        ("-----BEGIN PRIVATE KEY-----\ns3cr3t\n-----END PRIVATE KEY----- is bad", "*** is bad"),
        ("-----BEGIN EC PRIVATE KEY-----\\ns3cr3t",                      "***"),
    ];
    for (text, expected) in table {
        assert_eq!(masked(text), expected, "{text}");
        assert_eq!(masked(expected), expected, "masked text is unchanged");
    }
}

#[test]
fn text_without_secrets_is_unchanged() {
    for text in [
        "",
        "http://localhost:4317",
        "http://[::1]:4317/v1/traces",
        "sqlite:///data/order.db",
        "order.v1.OrderService/CreateOrder failed: UNKNOWN_SKU",
        "the bearer token is missing",
        "password: must have 8 to 72 bytes",
        "TOKEN_EXPIRED: the access token has ended",
        "10.0.0.1:5432: connection refused",
        "spiffe://ordermesh.local/service/order",
        "an e-mail such as ada@example.com",
        "12:34:56 ended at once",
    ] {
        assert!(matches!(masked(text), Cow::Borrowed(same) if same == text), "{text}: {}", masked(text));
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot connect to postgres://u:s3cr3t@h")]
struct Outer(#[source] Inner);

#[derive(Debug, thiserror::Error)]
#[error("password=s3cr3t")]
struct Inner;

#[test]
fn an_error_is_printed_with_its_causes() {
    assert_eq!(Masked(&Outer(Inner)).to_string(), "cannot connect to postgres://***@h: password=***");
    assert!(!format!("{:?}", Masked(&Outer(Inner))).contains(SECRET));
}

proptest! {
    #[test]
    fn any_text_can_be_masked(text in any::<String>()) {
        let once = masked(&text).into_owned();
        let _ = masked(&once);
    }

    #[test]
    fn a_password_in_a_url_is_never_visible(
        before in "[ a-z:'\"(]{0,8}", user in "[a-z]{1,6}", left in "[!-~]{0,8}", right in "[!-~]{0,8}", after in "[ a-z'\"),.]{0,8}",
        scheme in "(postgres|postgresql|http|https|mysql)", host in "(h|10\\.0\\.0\\.1|\\[::1\\])(:[0-9]{1,4})?(/x)?",
    ) {
        let text = format!("{before}{scheme}://{user}:{left}S3CR3T{right}@{host}{after}");
        prop_assert!(!masked(&text).contains("S3CR3T"), "{} -> {}", text, masked(&text));
    }

    #[test]
    fn a_value_named_like_a_secret_is_never_visible(
        prefix in "[a-z_]{0,6}", name in "(password|PASSWORD|passwd|secret|token|api_key|api-key|X-Api-Key|private_key)",
        value in "[A-Za-z0-9+/!@#$%^*]{0,6}S3CR3T[A-Za-z0-9+/=]{0,6}", form in 0..4_usize,
    ) {
        let text = match form {
            0 => format!("{prefix}{name}={value} x"),
            1 => format!("{{\"{prefix}{name}\":\"{value}\"}}"),
            2 => format!("{prefix}{name}: {value:?}, x"),
            _ => format!("https://h/?a=b&{prefix}{name}={value}&c=d"),
        };
        prop_assert!(!masked(&text).contains("S3CR3T"), "{} -> {}", text, masked(&text));
    }

    #[test]
    fn credentials_and_keys_are_never_visible(
        token in "[A-Za-z0-9_-]{4,20}S3CR3T[A-Za-z0-9_-]{4,20}", before in "[ a-z=:]{0,9}", form in 0..5_usize,
    ) {
        let text = match form {
            0 => format!("{before} Bearer {token} x"),
            1 => format!("{before} basic {token}== x"),
            2 => format!("{before} eyJhbGciOiJFZERTQSJ9.{token}.{token} x"),
            3 => format!("{before}-----BEGIN PRIVATE KEY-----\n{token}\n-----END PRIVATE KEY-----\n"),
            _ => format!("{before} authorization: {token}"),
        };
        prop_assert!(!masked(&text).contains("S3CR3T"), "{} -> {}", text, masked(&text));
    }
}
