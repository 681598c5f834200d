//! The regular flow, and permissions.

use contracts::common::v1::Address;
use contracts::user::v1 as proto;
use tonic::Code;

use crate::world::{PASSWORD, World, ada, rejection};

#[tokio::test]
async fn a_customer_registers_logs_in_and_keeps_a_profile() {
    let world = World::start().await;
    let request = proto::RegisterRequest { email: "Ada@Example.com".into(), ..ada() };
    let registered = world.register(request).await.expect("registered");
    assert_eq!((registered.email.as_str(), registered.display_name.as_str()), ("ada@example.com", "Ada"));
    assert_eq!(registered.role(), proto::Role::Customer);
    assert!(registered.create_time.is_some() && registered.create_time == registered.update_time);

    let (session, profile) = world.login("ADA@example.com", PASSWORD).await.expect("logged in");
    assert_eq!(profile, registered);
    assert_eq!(world.profile(&session).await.expect("a profile"), registered);

    let address = Address {
        recipient: "Ada Lovelace".into(),
        lines: vec!["1 Engine Street".into()],
        city: "London".into(),
        postal_code: "N1 9GU".into(),
        country_code: "GB".into(),
    };
    let values = proto::Profile {
        display_name: "not in the mask".into(),
        phone: Some("+442012345678".into()),
        address: Some(address.clone()),
        ..proto::Profile::default()
    };
    let changed = world.update_profile(&session, values, &["phone", "address"]).await.expect("changed");
    assert_eq!(changed.display_name, "Ada");
    assert_eq!((changed.phone.as_deref(), changed.address.as_ref()), (Some("+442012345678"), Some(&address)));
    assert_ne!(changed.update_time, registered.update_time);
    assert_eq!(world.profile(&session).await.expect("a profile"), changed);

    let cleared = world.update_profile(&session, proto::Profile::default(), &["phone"]).await.expect("changed");
    assert_eq!((cleared.phone, cleared.address), (None, Some(address)));
    world.stop().await;
}

#[tokio::test]
async fn a_profile_that_was_read_can_be_changed_and_sent_back() {
    let world = World::start().await;
    world.ada_registers().await;
    let session = world.ada_logs_in().await;
    let mut profile = world.profile(&session).await.expect("a profile");
    profile.phone = Some("+442012345678".into());
    let changed = world.update_profile(&session, profile.clone(), &[]).await.expect("updated without a mask");
    assert_eq!((changed.phone, changed.display_name.as_str()), (profile.phone.take(), "Ada"));
    let replaced = world.update_profile(&session, profile.clone(), &["*"]).await.expect("replaced");
    assert_eq!((replaced.phone, replaced.display_name.as_str()), (None, "Ada"));
    profile.email = "eve@example.com".into();
    let rejected = rejection(world.update_profile(&session, profile, &["*"]).await);
    assert_eq!(rejected.violations, [("profile.email".to_owned(), "IMMUTABLE_FIELD".to_owned())]);
    world.stop().await;
}

#[tokio::test]
async fn a_password_is_the_same_on_every_keyboard() {
    let world = World::start().await;
    let typed = proto::RegisterRequest { password: "Zu\u{308}rich caf\u{e9}".into(), ..ada() };
    let registered = world.register(typed.clone()).await.expect("registered");
    world.login("ada@example.com", "Z\u{fc}rich cafe\u{301}").await.expect("the equivalent form");
    let again = proto::RegisterRequest { password: "Z\u{fc}rich caf\u{e9}".into(), ..typed };
    assert_eq!(world.register(again).await.expect("the same command"), registered);
    assert_eq!(rejection(world.login("ada@example.com", "Zurich cafe").await).reason, "INVALID_CREDENTIALS");
    world.stop().await;
}

#[tokio::test]
async fn a_repeated_registration_gets_the_same_response_and_a_different_one_is_rejected() {
    let world = World::start().await;
    let request = ada();
    let first = world.register(request.clone()).await.expect("registered");
    assert_eq!(world.register(request.clone()).await.expect("the same response"), first);
    for other in [
        proto::RegisterRequest { display_name: "Bob".into(), ..request.clone() },
        proto::RegisterRequest { password: "another horse".into(), ..request },
    ] {
        let rejected = rejection(world.register(other).await);
        assert_eq!((rejected.code, rejected.reason.as_str()), (Code::FailedPrecondition, "REQUEST_ID_REUSED"));
        assert_eq!(rejected.domain, "user.ordermesh");
    }
    let rejected = rejection(world.register(ada()).await);
    assert_eq!((rejected.code, rejected.reason.as_str()), (Code::AlreadyExists, "EMAIL_TAKEN"));
    world.stop().await;
}

#[tokio::test]
async fn a_profile_needs_a_valid_access_token() {
    let world = World::start().await;
    world.ada_registers().await;
    let session = world.ada_logs_in().await;
    let rejected = rejection(world.client().get_profile(proto::GetProfileRequest {}).await);
    assert_eq!(rejected.code, Code::Unauthenticated);
    let forged = proto::Session { access_token: format!("{}x", session.access_token), ..session.clone() };
    assert_eq!(rejection(world.profile(&forged).await).code, Code::Unauthenticated);
    world.profile(&session).await.expect("control: the original token works");
    world.stop().await;
}

#[tokio::test]
async fn the_public_keys_are_public_and_survive_a_restart() {
    let world = World::start().await;
    world.ada_registers().await;
    let session = world.ada_logs_in().await;
    let keys =
        world.client().list_signing_keys(proto::ListSigningKeysRequest {}).await.expect("keys").into_inner().keys;
    assert_eq!(keys.len(), 1);
    let key = &keys[0];
    assert_eq!((key.kty.as_str(), key.crv.as_str(), key.alg.as_str()), ("OKP", "Ed25519", "EdDSA"));
    assert!(!key.kid.is_empty() && !key.x.is_empty());
    let folder = world.stop().await;

    let world = World::start_with(folder, &[]).await;
    let again =
        world.client().list_signing_keys(proto::ListSigningKeysRequest {}).await.expect("keys").into_inner().keys;
    assert_eq!(again, keys);
    world.profile(&session).await.expect("an earlier token still works");
    world.refresh(&session).await.expect("the session is still open");
    world.stop().await;
}

#[tokio::test]
async fn the_bootstrap_operator_can_log_in_immediately_and_no_call_creates_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("operator.txt");
    testkit::write_secret(&file, &format!("operator@ordermesh.local {PASSWORD}\n"));
    let flags = ["--bootstrap-operator-file", file.to_str().expect("UTF-8")];
    let world = World::start_with(folder, &flags).await;
    let taken = proto::RegisterRequest { email: "operator@ordermesh.local".into(), ..ada() };
    assert_eq!(rejection(world.register(taken).await).reason, "EMAIL_TAKEN");
    let (session, profile) = world.login("operator@ordermesh.local", PASSWORD).await.expect("logged in");
    assert_eq!(profile.role(), proto::Role::Operator);
    assert_eq!(world.profile(&session).await.expect("a profile"), profile);
    world.stop().await;
}

#[tokio::test]
async fn two_concurrent_starts_agree_on_keys_sessions_and_the_operator() {
    let folder = tempfile::tempdir().expect("a folder");
    let shared = folder.path().display().to_string();
    let file = folder.path().join("operator.txt");
    testkit::write_secret(&file, &format!("operator@ordermesh.local {PASSWORD}\n"));
    // The later --data-dir wins: the second folder stays empty.
    let flags = ["--bootstrap-operator-file", file.to_str().expect("UTF-8"), "--data-dir", &shared];
    let second = tempfile::tempdir().expect("a folder");
    let (one, other) = tokio::join!(World::start_with(folder, &flags), World::start_with(second, &flags));
    let (at_one, at_other) = tokio::join!(
        one.login("operator@ordermesh.local", PASSWORD),
        other.login("operator@ordermesh.local", PASSWORD)
    );
    let ((session, profile), (_, same)) = (at_one.expect("logged in"), at_other.expect("logged in"));
    assert_eq!(profile, same);
    assert_eq!(other.profile(&session).await.expect("verified by the other instance's keys"), profile);
    other.refresh(&session).await.expect("refreshed by the other instance");
    other.stop().await;
    one.stop().await;
}

#[tokio::test]
async fn an_operator_created_by_the_command_can_log_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = crate::world::config(folder.path(), &[]);
    let user_id = user::create_operator(&config, "op@example.com", PASSWORD).await.expect("made");
    let again = user::create_operator(&config, "op@example.com", PASSWORD).await;
    assert!(matches!(again, Err(user::Error::EmailTaken)));
    let short = user::create_operator(&config, "op2@example.com", "short").await;
    assert!(matches!(short, Err(user::Error::Invalid(_))));
    let world = World::start_with(folder, &[]).await;
    let (_, profile) = world.login("op@example.com", PASSWORD).await.expect("logged in");
    assert_eq!((profile.role(), profile.user_id), (proto::Role::Operator, user_id.to_string()));
    world.stop().await;
}
