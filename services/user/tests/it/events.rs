//! Each checked log-in is one event: a success with its session, a failure with its reason; malformed and throttled
//! ones are none. Changes of an account are audited. Events contain no secrets.

use std::collections::BTreeMap;

use contracts::user::v1 as proto;
use telemetry::{EventStatus, TraceEvent};

use crate::world::{PASSWORD, World, ada, rejection};

fn summary(event: &TraceEvent) -> (&str, EventStatus, Option<(&str, &str)>) {
    let error = event.error.as_ref().map(|error| (error.error_type.as_str(), error.reason.as_str()));
    (event.event_type.as_str(), event.status, error)
}

#[tokio::test]
async fn each_log_in_is_one_event_whether_it_succeeds_or_fails() {
    let world = World::start().await;
    let profile = world.ada_registers().await;
    world.ada_logs_in().await;
    world.login("ada@example.com", "wrong horse").await.expect_err("rejected");
    world.login("nobody@example.com", "wrong horse").await.expect_err("rejected");
    let events = world.events().await;
    let mut counts = BTreeMap::new();
    for event in &events {
        *counts.entry(format!("{:?}", summary(event))).or_insert(0) += 1;
    }
    let expected = [
        // The registration.
        (("audit", EventStatus::Success, None), 1),
        (("user_login", EventStatus::Success, None), 1),
        (("user_login", EventStatus::Failed, Some(("UNAUTHENTICATED", "INVALID_CREDENTIALS"))), 2),
    ];
    assert_eq!(counts, expected.map(|(event, count)| (format!("{event:?}"), count)).into());
    let is_login = |event: &&TraceEvent| event.event_type == "user_login" && event.status == EventStatus::Success;
    let success = events.iter().find(is_login).expect("a success");
    assert_eq!(success.user_id.map(|id| id.to_string()), Some(profile.user_id));
    assert_eq!((success.service.as_str(), success.operation.as_str()), ("user", "user.v1.UserService/Login"));
}

#[tokio::test]
async fn a_malformed_log_in_is_no_event() {
    let world = World::start().await;
    for (email, password) in [("nobody", ""), ("nobody", "wrong horse"), ("ada@example.com", "")] {
        assert_eq!(rejection(world.login(email, password).await).reason, "INVALID_ARGUMENT");
    }
    assert_eq!(rejection(world.garbled_login().await).reason, "MALFORMED_MESSAGE");
    world.login("nobody@example.com", "wrong horse").await.expect_err("rejected");
    let events = world.events().await;
    let summaries: Vec<_> = events.iter().map(summary).collect();
    let mismatch = Some(("UNAUTHENTICATED", "INVALID_CREDENTIALS"));
    assert_eq!(summaries, [("user_login", EventStatus::Failed, mismatch)], "control: a wrong password is an event");
}

#[tokio::test]
async fn a_throttled_log_in_and_calls_that_change_no_account_are_no_events() {
    let world = World::start_with(tempfile::tempdir().expect("a folder"), &["--login-failures", "1"]).await;
    world.ada_registers().await;
    let session = world.ada_logs_in().await;
    world.refresh(&session).await.expect("refreshed");
    world.profile(&session).await.expect("a profile");
    world.login("ada@example.com", "wrong horse").await.expect_err("rejected");
    for _ in 0..3 {
        assert_eq!(rejection(world.login("ada@example.com", "wrong horse").await).reason, "TOO_MANY_LOGINS");
    }
    let events = world.events().await;
    let types: Vec<_> = events.iter().map(|event| event.event_type.as_str()).collect();
    assert_eq!(types, ["audit", "user_login", "user_login"], "the registration, and two log-ins: {events:?}");
}

#[tokio::test]
async fn a_rejected_change_of_an_account_is_audited_with_its_actor() {
    let world = World::start().await;
    let profile = world.ada_registers().await;
    let session = world.ada_logs_in().await;
    world.register(ada()).await.expect_err("the e-mail is taken");
    world.change_password(&session, "wrong horse", "battery staple").await.expect_err("rejected");
    let mut audits = world.events().await;
    audits.retain(|event| event.event_type == "audit" && event.status == EventStatus::Failed);
    let of = |event: &TraceEvent, name: &str| event.attributes.get(name).cloned().unwrap_or_default();
    let listed: std::collections::BTreeSet<_> = audits
        .iter()
        .map(|event| (summary(event).2.map(|(_, reason)| reason), of(event, "actor.role"), of(event, "actor.id")))
        .collect();
    let expected = [
        (Some("EMAIL_TAKEN"), "anonymous".to_owned(), String::new()),
        (Some("INVALID_CREDENTIALS"), "customer".to_owned(), profile.user_id),
    ];
    assert_eq!(listed, expected.into());
}

#[tokio::test]
async fn no_secret_is_stored_or_returned_in_clear_text() {
    let world = World::start().await;
    let registered = world.register(ada()).await.expect("registered");
    let session = world.ada_logs_in().await;
    let rejected = world.login("ada@example.com", "wrong horse").await.expect_err("rejected");
    let long = format!("{PASSWORD}{}", "x".repeat(80));
    let invalid = world.login("ada@example.com", &long).await.expect_err("rejected");
    let folder = world.stop().await;
    let mut stored = Vec::new();
    for entry in std::fs::read_dir(folder.path()).expect("the data folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            stored.extend(std::fs::read(path).expect("a file"));
        }
    }
    let holds = |text: &str| stored.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(&registered.display_name) && holds("INVALID_CREDENTIALS"), "control: stored texts are found");
    for secret in [PASSWORD, "wrong horse", &session.access_token, &session.refresh_token] {
        assert!(!holds(secret), "{secret}");
        let responses = format!("{rejected:?} {invalid:?} {session:?}");
        assert!(!responses.contains(secret), "{secret}");
    }
    assert!(format!("{:?}", proto::Session { session_id: "visible".into(), ..session }).contains("visible"));
}
