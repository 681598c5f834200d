use std::net::Ipv4Addr;

use kernel::{ManualClock, RequestId, SystemClock, SystemIds, Timestamp};
use storage::Database;
use telemetry::{Disposition, Ended, EventSink, Kind, Operation, Parent, TraceEvent};

use super::*;
use crate::account::Address;
use crate::migration::MIGRATIONS;
use crate::operator::Credentials;
use crate::throttle::Limits;

mod ended;
mod rotation;
mod uncounted;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PASSWORD: &str = "correct horse";

struct NoSink;
impl EventSink for NoSink {
    fn unclaimed(&self, _ended: Ended) -> Disposition {
        Disposition::NoEvent
    }
    fn put(&self, _event: TraceEvent) {}
    fn origin(&self) -> (&str, &str) {
        ("user", "user-1")
    }
}

fn operation_of(event_type: &'static str) -> Operation {
    Operation::open(Kind::Server, "test", Parent::Root, Some(event_type), Some(Arc::new(NoSink)))
}

fn operation() -> Operation {
    operation_of("user_login")
}

fn audit() -> Operation {
    operation_of("audit")
}

struct World {
    users: Users,
    clock: Arc<ManualClock>,
    db: Database,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::on(&testkit::TestDatabase { url: "sqlite::memory:".to_owned(), schema: None }).await
    }

    async fn on(test_database: &testkit::TestDatabase) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = storage::Options { schema: test_database.schema.clone(), ..storage::Options::default() };
        let db = Database::connect(&test_database.url, &options).await.expect("it opens");
        db.migrate(MIGRATIONS).await.expect("it migrates");
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let keys = KeyStore::open(folder.path().join("keys"), true, clock.clone()).expect("keys");
        let limits = Limits { failures: 3, interval: Duration::from_secs(10), max_remembered: 100 };
        let users = Users {
            store: Store::new(db.clone()),
            passwords: Passwords::new(4, 64),
            throttle: Throttle::new(limits, clock.clone()),
            keys: Arc::new(keys),
            bootstrap: None,
            clock: clock.clone(),
            ids: Arc::new(SystemIds),
            lifetimes: Lifetimes {
                access_token: Duration::from_secs(900),
                session: Duration::from_secs(30 * 86_400),
                refresh_grace: Duration::from_secs(30),
            },
        };
        Self { users, clock, db, _folder: folder }
    }

    async fn events(&self, event_type: &str) -> Vec<TraceEvent> {
        let mut events = self.db.outbox().waiting("user-1", 100).await.expect("events");
        events.retain(|event| event.event_type == event_type);
        events
    }

    async fn register(&self, registration: Registration) -> Result<Profile, Error> {
        self.users.register(registration, HERE, &audit()).await
    }

    async fn login(&self, email: &str, password: &str) -> Result<(Tokens, Profile), Error> {
        self.users.login(email, Password::new(password), HERE, &operation()).await
    }

    async fn ada(&self) -> Profile {
        self.register(ada()).await.expect("registered")
    }

    async fn ada_logs_in(&self) -> Tokens {
        self.login("ada@example.com", PASSWORD).await.expect("logged in").0
    }

    async fn refresh(&self, tokens: &Tokens) -> Result<Tokens, Error> {
        self.users.refresh(tokens.refresh.clone()).await
    }

    async fn change_password(&self, tokens: &Tokens, current: &str, new: &str) -> Result<u64, Error> {
        let person = person(tokens);
        self.users.change_password(person, Password::new(current), Password::new(new), HERE, &audit()).await
    }
}

fn person(tokens: &Tokens) -> Person {
    Person { user_id: tokens.session.user_id, role: Role::Customer, session_id: Some(tokens.session.id) }
}

fn ada() -> Registration {
    Registration {
        request_id: RequestId::from_uuid(SystemIds.uuid()),
        email: "ada@example.com".into(),
        password: Password::new(PASSWORD),
        display_name: "Ada".into(),
    }
}

#[tokio::test]
async fn a_repeated_registration_gets_the_same_response_even_after_the_profile_has_changed() {
    let world = World::new().await;
    let registration = ada();
    let first = world.register(registration.clone()).await.expect("registered");
    let address = Address {
        recipient: "Ada".into(),
        lines: vec!["1 Engine Street".into()],
        city: "London".into(),
        postal_code: String::new(),
        country_code: "GB".into(),
    };
    let change = ProfileChange {
        display_name: Some("Countess".into()),
        address: Some(Some(address)),
        ..ProfileChange::default()
    };
    world.clock.advance(Duration::from_secs(1));
    world.users.change_profile(first.user_id, change, &audit()).await.expect("changed");
    assert_eq!(world.register(registration).await.expect("the same response"), first);
    assert_eq!(world.users.profile(first.user_id).await.expect("an account").display_name, "Countess");
}

#[tokio::test]
async fn a_request_id_belongs_to_one_command_and_password() {
    let world = World::new().await;
    let registration = ada();
    world.register(registration.clone()).await.expect("registered");
    let others = [
        Registration { email: "bob@example.com".into(), ..registration.clone() },
        Registration { display_name: "Bob".into(), ..registration.clone() },
        Registration { password: Password::new("another horse"), ..registration },
    ];
    for other in others {
        assert!(matches!(world.register(other).await, Err(Error::RequestIdReused)));
    }
    assert!(matches!(world.login("bob@example.com", PASSWORD).await, Err(Error::InvalidCredentials)));
}

#[tokio::test]
async fn guesses_of_a_password_under_a_request_id_are_throttled() {
    let world = World::new().await;
    let registration = ada();
    world.register(registration.clone()).await.expect("registered");
    for _ in 0..3 {
        let guess = Registration { password: Password::new("another horse"), ..registration.clone() };
        assert!(matches!(world.register(guess).await, Err(Error::RequestIdReused)));
    }
    assert!(matches!(world.register(registration).await, Err(Error::TooManyRequests { .. })));
}

#[tokio::test]
async fn an_email_belongs_to_one_account() {
    let world = World::new().await;
    world.ada().await;
    assert!(matches!(world.register(ada()).await, Err(Error::EmailTaken)));
}

#[tokio::test]
async fn concurrent_identical_registrations_create_one_account() {
    let world = World::new().await;
    let registration = ada();
    // One call creates it; each of the others uses one of the three permits while its password is checked.
    let all = futures_util::future::join_all((0..4).map(|_| world.register(registration.clone()))).await;
    let first = all[0].as_ref().expect("registered");
    for response in &all {
        assert_eq!(response.as_ref().expect("the same response"), first);
    }
}

#[tokio::test]
async fn a_log_in_writes_its_event_with_the_session_and_a_rejected_one_writes_nothing() {
    let world = World::new().await;
    let profile = world.ada().await;
    world.login("ada@example.com", "wrong horse").await.expect_err("rejected");
    assert_eq!(world.events("user_login").await, []);
    world.ada_logs_in().await;
    let events = world.events("user_login").await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].event_type.as_str(), events[0].status), ("user_login", telemetry::EventStatus::Success));
    assert_eq!(events[0].user_id, Some(profile.user_id.as_uuid()));
    let body = serde_json::to_string(&events).expect("JSON");
    assert!(!body.contains(PASSWORD) && !body.contains("example.com"), "{body}");
}

#[tokio::test]
async fn changes_of_an_account_are_audited_without_secrets() {
    let world = World::new().await;
    let registration = ada();
    let profile = world.register(registration.clone()).await.expect("registered");
    world.register(registration).await.expect("replayed");
    let change = ProfileChange { phone: Some(Some("+491234567".into())), ..ProfileChange::default() };
    world.users.change_profile(profile.user_id, change, &audit()).await.expect("changed");
    let (own, other) = (world.ada_logs_in().await, world.ada_logs_in().await);
    world.change_password(&own, PASSWORD, "battery staple").await.expect("changed");
    world.users.logout(own.refresh.clone(), &audit()).await.expect("ended");
    // The password change has ended it already.
    world.users.logout(other.refresh.clone(), &audit()).await.expect("already ended");
    let events = world.events("audit").await;
    let mut stored: Vec<_> = events.iter().map(|event| event.attributes.clone()).collect();
    assert!(events.iter().all(|event| event.user_id == Some(profile.user_id.as_uuid())), "{events:?}");
    let of = |pairs: &[(&str, String)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let mut expected = vec![
        of(&[]),
        of(&[("fields", "phone".into())]),
        of(&[("ended_sessions", "1".into())]),
        of(&[("session.id", own.session.id.to_string())]),
    ];
    stored.sort();
    expected.sort();
    assert_eq!(
        stored, expected,
        "a registration, a profile, a password, a log-out; no idempotent replay, and no log-out of an ended session"
    );
    let body = serde_json::to_string(&events).expect("JSON");
    for secret in [PASSWORD, "battery staple", "+491234567", "example.com"] {
        assert!(!body.contains(secret), "{body}");
    }
}

#[tokio::test]
async fn failures_throttle_existing_and_unknown_accounts_and_even_the_right_password() {
    let world = World::new().await;
    world.ada().await;
    for email in ["ada@example.com", "nobody@example.com"] {
        for _ in 0..3 {
            assert!(matches!(world.login(email, "wrong horse").await, Err(Error::InvalidCredentials)));
        }
        let Err(Error::TooManyLogins { retry_after }) = world.login(email, PASSWORD).await else {
            panic!("{email} should be throttled");
        };
        assert_eq!(retry_after, Duration::from_secs(10));
    }
    world.clock.advance(Duration::from_secs(10));
    world.ada_logs_in().await;
}

#[tokio::test]
async fn concurrent_successful_log_ins_are_admitted() {
    let world = World::new().await;
    world.ada().await;
    for _ in 0..4 {
        let all = futures_util::future::join_all((0..3).map(|_| world.login("ada@example.com", PASSWORD))).await;
        assert_eq!(all.iter().filter(|login| login.is_ok()).count(), 3);
    }
}

#[tokio::test]
async fn a_hash_of_another_cost_is_renewed_at_the_next_log_in() {
    let mut world = World::new().await;
    let profile = world.ada().await;
    world.users.passwords = Passwords::new(5, 64);
    let hash = |account: Option<Account>| account.expect("an account").password_hash.as_stored().to_owned();
    assert!(hash(world.users.store.account(profile.user_id).await.expect("read")).starts_with("$2b$04$"));
    world.ada_logs_in().await;
    assert!(hash(world.users.store.account(profile.user_id).await.expect("read")).starts_with("$2b$05$"));
    world.ada_logs_in().await;
}

#[tokio::test]
async fn a_refresh_rotates_the_token_and_the_previous_one_works_for_thirty_seconds() {
    let world = World::new().await;
    world.ada().await;
    let first = world.ada_logs_in().await;
    let second = world.refresh(&first).await.expect("the newest token");
    assert_eq!(second.session.id, first.session.id);
    assert_eq!(second.session.expires, first.session.expires);
    world.clock.advance(Duration::from_secs(29));
    let third = world.refresh(&first).await.expect("the previous token");
    world.refresh(&second).await.expect("now the previous token");
    // Now the third is the previous token, and the first is older.
    assert!(matches!(world.refresh(&first).await, Err(Error::SessionEnded)));
    assert!(matches!(world.refresh(&third).await, Err(Error::SessionEnded)), "ended for every token");
}

#[tokio::test]
async fn the_previous_token_ends_the_session_after_thirty_seconds() {
    let world = World::new().await;
    world.ada().await;
    let first = world.ada_logs_in().await;
    let second = world.refresh(&first).await.expect("the newest token");
    world.clock.advance(Duration::from_secs(30));
    assert!(matches!(world.refresh(&first).await, Err(Error::SessionEnded)));
    assert!(matches!(world.refresh(&second).await, Err(Error::SessionEnded)));
}

#[tokio::test]
async fn a_session_ends_after_thirty_days_and_is_swept() {
    let world = World::new().await;
    world.ada().await;
    let tokens = world.ada_logs_in().await;
    world.clock.advance(Duration::from_secs(30 * 86_400 - 60));
    let tokens = world.refresh(&tokens).await.expect("not ended");
    assert!(tokens.access.expires <= tokens.session.expires, "no access token outlives its session");
    assert_eq!(world.users.store.delete_expired_sessions(world.clock.now(), 10).await.expect("swept"), 0);
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.users.store.delete_expired_sessions(world.clock.now(), 10).await.expect("swept"), 1);
    assert!(matches!(world.refresh(&tokens).await, Err(Error::SessionEnded)));
}

#[tokio::test]
async fn an_unknown_token_ends_no_session() {
    let world = World::new().await;
    world.ada().await;
    let tokens = world.ada_logs_in().await;
    let other_client = RefreshToken::random();
    assert!(matches!(world.users.refresh(other_client.clone()).await, Err(Error::SessionEnded)));
    world.users.logout(other_client, &audit()).await.expect("accepted");
    world.refresh(&tokens).await.expect("not ended");
}

#[tokio::test]
async fn a_log_out_ends_only_its_session_and_can_be_repeated() {
    let world = World::new().await;
    world.ada().await;
    let (one, other) = (world.ada_logs_in().await, world.ada_logs_in().await);
    for _ in 0..2 {
        world.users.logout(one.refresh.clone(), &audit()).await.expect("ended");
    }
    assert!(matches!(world.refresh(&one).await, Err(Error::SessionEnded)));
    world.refresh(&other).await.expect("not ended");
}

#[tokio::test]
async fn a_changed_password_ends_the_other_sessions_and_keeps_the_callers() {
    let world = World::new().await;
    world.ada().await;
    let (own, other, third) = (world.ada_logs_in().await, world.ada_logs_in().await, world.ada_logs_in().await);
    let bob = Registration { email: "bob@example.com".into(), ..ada() };
    world.register(bob).await.expect("registered");
    let bobs = world.login("bob@example.com", PASSWORD).await.expect("logged in").0;
    assert_eq!(world.change_password(&own, PASSWORD, "battery staple").await.expect("changed"), 2);
    for ended in [&other, &third] {
        assert!(matches!(world.refresh(ended).await, Err(Error::SessionEnded)));
    }
    world.refresh(&own).await.expect("the caller's own session");
    world.refresh(&bobs).await.expect("another user's session");
    assert!(matches!(world.login("ada@example.com", PASSWORD).await, Err(Error::InvalidCredentials)));
    world.login("ada@example.com", "battery staple").await.expect("the new password");
}

#[tokio::test]
async fn changing_a_password_needs_the_current_one_and_guesses_are_throttled() {
    let world = World::new().await;
    world.ada().await;
    let tokens = world.ada_logs_in().await;
    for _ in 0..3 {
        let rejected = world.change_password(&tokens, "wrong horse", "battery staple").await;
        assert!(matches!(rejected, Err(Error::InvalidCredentials)));
    }
    let rejected = world.change_password(&tokens, PASSWORD, "battery staple").await;
    assert!(matches!(rejected, Err(Error::TooManyLogins { .. })));
    world.clock.advance(Duration::from_secs(10));
    world.ada_logs_in().await;
}

#[tokio::test]
async fn a_log_in_verified_before_a_password_change_opens_no_session() {
    let world = World::new().await;
    let profile = world.ada().await;
    let tokens = world.ada_logs_in().await;
    let verified = world.users.store.account(profile.user_id).await.expect("read").expect("an account").password_hash;
    world.change_password(&tokens, PASSWORD, "battery staple").await.expect("changed");
    let id = SessionId::from_uuid(SystemIds.uuid());
    let (session, _) = Session::open(id, profile.user_id, world.clock.now(), Duration::from_secs(60));
    let access_until = session.expires;
    let opening = Opening { session, role: Role::Customer, verified, renewed: None, access_until };
    let opened = world.users.store.open_session(opening, &operation()).await.expect("a query");
    assert!(!opened);
}

#[tokio::test]
async fn the_bootstrap_operator_is_created_once_and_its_log_in_waits_for_it() {
    let mut world = World::new().await;
    let credentials = Credentials::checked("operator@ordermesh.local", PASSWORD).expect("valid");
    let (store, passwords) = (world.users.store.clone(), world.users.passwords.clone());
    let (bootstrap, work) = Bootstrap::new(store.clone(), passwords.clone(), credentials.clone(), Arc::new(NoSink));
    let (_, again) = Bootstrap::new(store, passwords, credentials, Arc::new(NoSink));
    world.users.bootstrap = Some(bootstrap);
    let login = world.login("operator@ordermesh.local", PASSWORD);
    let (login, (), ()) = tokio::join!(login, work, again);
    let (_, profile) = login.expect("it waited for the account");
    assert_eq!(profile.role, Role::Operator);
}

#[tokio::test]
async fn a_cancelled_bootstrap_blocks_no_log_in() {
    let mut world = World::new().await;
    let credentials = Credentials::checked("operator@ordermesh.local", PASSWORD).expect("valid");
    let (bootstrap, work) =
        Bootstrap::new(world.users.store.clone(), world.users.passwords.clone(), credentials, Arc::new(NoSink));
    world.users.bootstrap = Some(bootstrap);
    drop(work);
    let rejected = world.login("operator@ordermesh.local", PASSWORD).await;
    assert!(matches!(rejected, Err(Error::InvalidCredentials)));
}

#[tokio::test]
async fn an_unknown_profile_is_not_found() {
    let world = World::new().await;
    let unknown = UserId::from_uuid(SystemIds.uuid());
    assert!(matches!(world.users.profile(unknown).await, Err(Error::AccountNotFound)));
    let changed = world.users.change_profile(unknown, ProfileChange::default(), &audit()).await;
    assert!(matches!(changed, Err(Error::AccountNotFound)));
    assert!(world.clock.now() > Timestamp::default());
}

#[tokio::test]
async fn an_email_in_an_update_is_ignored_if_unchanged_and_rejected_otherwise() {
    let world = World::new().await;
    let user_id = world.ada().await.user_id;
    let change = |email: &str| ProfileChange {
        display_name: Some("Countess".into()),
        known_email: Some(email.into()),
        ..ProfileChange::default()
    };
    let rejected = world.users.change_profile(user_id, change("eve@example.com"), &audit()).await;
    assert!(
        matches!(&rejected, Err(Error::Invalid(invalid)) if invalid.0[0].reason == "IMMUTABLE_FIELD"),
        "{rejected:?}"
    );
    assert_eq!(world.users.profile(user_id).await.expect("an account").display_name, "Ada", "nothing was changed");
    let changed = world.users.change_profile(user_id, change("ada@example.com"), &audit()).await.expect("changed");
    assert_eq!(changed.display_name, "Countess");
}
