//! Invalid input is rejected with all violations, and changes nothing.

use contracts::user::v1 as proto;
use tonic::Code;

use crate::world::{PASSWORD, Rejection, World, ada, as_user, rejection};

fn assert_invalid(rejected: &Rejection, violations: &[(&str, &str)]) {
    assert_eq!((rejected.code, rejected.reason.as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    assert_eq!(rejected.domain, "user.ordermesh");
    let found: Vec<_> = rejected.violations.iter().map(|(field, reason)| (field.as_str(), reason.as_str())).collect();
    assert_eq!(found, violations);
}

#[tokio::test]
async fn an_empty_registration_is_rejected_with_a_violation_of_every_field() {
    let world = World::start().await;
    assert_invalid(
        &rejection(world.register(proto::RegisterRequest::default()).await),
        &[
            ("request_id", "REQUEST_ID_REQUIRED"),
            ("email", "INVALID_EMAIL"),
            ("password", "PASSWORD_TOO_SHORT"),
            ("display_name", "REQUIRED"),
        ],
    );
    let bad = proto::RegisterRequest {
        request_id: "42".into(),
        email: "ada@".into(),
        password: "x".repeat(72),
        display_name: "A".repeat(101),
    };
    assert_invalid(
        &rejection(world.register(bad).await),
        &[
            ("request_id", "INVALID_ID"),
            ("email", "INVALID_EMAIL"),
            ("password", "PASSWORD_TOO_LONG"),
            ("display_name", "INVALID_LENGTH"),
        ],
    );
    world.stop().await;
}

#[tokio::test]
async fn a_rejected_registration_stores_nothing_and_its_id_can_be_retried() {
    let world = World::start().await;
    let request = ada();
    let bad = proto::RegisterRequest { password: "short".into(), ..request.clone() };
    assert_invalid(&rejection(world.register(bad).await), &[("password", "PASSWORD_TOO_SHORT")]);
    assert_eq!(rejection(world.login("ada@example.com", PASSWORD).await).reason, "INVALID_CREDENTIALS");
    world.register(request).await.expect("registered");
    world.stop().await;
}

#[tokio::test]
async fn log_ins_and_tokens_are_validated_before_any_query() {
    let world = World::start().await;
    let nothing = rejection(world.login("", "").await);
    assert_invalid(&nothing, &[("email", "INVALID_EMAIL"), ("password", "REQUIRED")]);
    let token = |text: &str| proto::Session { refresh_token: text.into(), ..proto::Session::default() };
    assert_invalid(&rejection(world.refresh(&token("")).await), &[("refresh_token", "REQUIRED")]);
    assert_invalid(&rejection(world.refresh(&token("x")).await), &[("refresh_token", "INVALID_REFRESH_TOKEN")]);
    assert_invalid(&rejection(world.logout(&token("")).await), &[("refresh_token", "REQUIRED")]);
    assert_invalid(&rejection(world.logout(&token("x")).await), &[("refresh_token", "INVALID_REFRESH_TOKEN")]);
    world.stop().await;
}

#[tokio::test]
async fn an_invalid_profile_update_lists_all_violations_and_changes_nothing() {
    let world = World::start().await;
    let registered = world.ada_registers().await;
    let session = world.ada_logs_in().await;
    let request = proto::UpdateProfileRequest::default();
    let rejected = rejection(world.client().update_profile(as_user(&session, request)).await);
    assert_invalid(&rejected, &[("profile", "REQUIRED")]);
    let values = proto::Profile {
        email: "eve@example.com".into(),
        display_name: "\u{200b} ".into(),
        role: proto::Role::Operator.into(),
        phone: Some("12".into()),
        ..proto::Profile::default()
    };
    let rejected =
        rejection(world.update_profile(&session, values, &["email", "role", "phone", "display_name", "hat"]).await);
    assert_invalid(
        &rejected,
        &[
            ("update_mask.paths[4]", "UNKNOWN_FIELD"),
            ("profile.display_name", "REQUIRED"),
            ("profile.phone", "INVALID_PHONE"),
        ],
    );
    let values = proto::Profile { email: "eve@example.com".into(), ..proto::Profile::default() };
    assert_invalid(
        &rejection(world.update_profile(&session, values, &["email"]).await),
        &[("profile.email", "IMMUTABLE_FIELD")],
    );
    assert_eq!(world.profile(&session).await.expect("a profile"), registered);
    world.stop().await;
}

#[tokio::test]
async fn an_invalid_new_password_changes_nothing() {
    let world = World::start().await;
    world.ada_registers().await;
    let session = world.ada_logs_in().await;
    let rejected = rejection(world.change_password(&session, "", "short").await);
    assert_invalid(&rejected, &[("current_password", "REQUIRED"), ("new_password", "PASSWORD_TOO_SHORT")]);
    let rejected = rejection(world.change_password(&session, PASSWORD, &"x".repeat(72)).await);
    assert_invalid(&rejected, &[("new_password", "PASSWORD_TOO_LONG")]);
    world.ada_logs_in().await;
    world.stop().await;
}
