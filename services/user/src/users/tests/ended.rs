//! Ending a session ends its access tokens too: immediately in this service, and in the others by the list.

use sea_orm::ConnectionTrait;

use super::*;

impl World {
    async fn is_live(&self, tokens: &Tokens) -> bool {
        match self.users.live(person(tokens)).await {
            Ok(_) => true,
            Err(Error::SessionEnded) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// The whole list, by pages of one.
    async fn ended(&self) -> Vec<SessionId> {
        let mut all = vec![];
        loop {
            let page = self.users.ended_sessions(all.last().copied(), 1).await.expect("a page");
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    }

    async fn sql(&self, statement: &str) {
        self.db.read().execute_unprepared(statement).await.expect(statement);
    }

    async fn has_ended(&self, tokens: &Tokens) {
        assert!(!self.is_live(tokens).await, "ended here immediately");
        assert_eq!(self.ended().await, [tokens.session.id], "on the list for the other services");
        assert!(matches!(self.refresh(tokens).await, Err(Error::SessionEnded)));
    }
}

/// On both stores.
async fn worlds() -> Vec<World> {
    let mut worlds = vec![World::new().await];
    if let Some(test_database) = testkit::postgres() {
        worlds.push(World::on(&test_database).await);
    }
    worlds
}

#[tokio::test]
async fn a_log_out_invalidates_only_its_sessions_access_tokens() {
    for world in worlds().await {
        world.ada().await;
        let (left, stays) = (world.ada_logs_in().await, world.ada_logs_in().await);
        assert!(world.is_live(&left).await);
        assert_eq!(world.ended().await, []);
        world.users.logout(left.refresh.clone(), &audit()).await.expect("ended");
        world.has_ended(&left).await;
        assert!(world.is_live(&stays).await);
    }
}

#[tokio::test]
async fn a_password_change_invalidates_the_other_sessions_access_tokens() {
    for world in worlds().await {
        world.ada().await;
        let (own, other) = (world.ada_logs_in().await, world.ada_logs_in().await);
        assert_eq!(world.change_password(&own, PASSWORD, "battery staple").await.expect("changed"), 1);
        world.has_ended(&other).await;
        assert!(world.is_live(&own).await);
    }
}

#[tokio::test]
async fn a_stolen_refresh_token_invalidates_its_sessions_access_tokens() {
    for world in worlds().await {
        world.ada().await;
        let first = world.ada_logs_in().await;
        let second = world.refresh(&first).await.expect("rotated");
        world.clock.advance(Duration::from_secs(60));
        assert!(world.is_live(&second).await);
        assert!(matches!(world.refresh(&first).await, Err(Error::SessionEnded)), "an old token was presented");
        world.has_ended(&second).await;
    }
}

#[tokio::test]
async fn an_operator_ends_a_persons_sessions_by_id_or_email() {
    for world in worlds().await {
        let ada = world.ada().await;
        for whose in [AccountRef::Id(ada.user_id), AccountRef::Email("ada@example.com".into())] {
            let tokens = [world.ada_logs_in().await, world.ada_logs_in().await];
            assert_eq!(world.users.end_sessions(whose.clone(), &audit()).await.expect("ended"), 2);
            for tokens in &tokens {
                assert!(!world.is_live(tokens).await);
            }
            assert_eq!(world.users.end_sessions(whose, &audit()).await.expect("accepted"), 0);
        }
        assert_eq!(world.ended().await.len(), 4);
        let again = world.ada_logs_in().await;
        assert!(world.is_live(&again).await, "the account is not locked");
        let unknown = world.users.end_sessions(AccountRef::Email("bob@example.com".into()), &audit()).await;
        assert!(matches!(unknown, Err(Error::AccountNotFound)));
        let events = world.events("audit").await;
        let ended = events.iter().filter_map(|event| event.attributes.get("ended_sessions")).collect::<Vec<_>>();
        assert_eq!(ended, ["2", "0", "2", "0"]);
    }
}

#[tokio::test]
async fn tokens_of_a_demoted_operator_and_of_a_deleted_account_are_rejected() {
    for world in worlds().await {
        let credentials = Credentials::checked("operator@example.com", PASSWORD).expect("valid");
        let Users { store, passwords, clock, ids, .. } = &world.users;
        crate::operator::create(store, passwords, credentials, &**clock, &**ids, &audit()).await.expect("made");
        let (tokens, _) = world.login("operator@example.com", PASSWORD).await.expect("logged in");
        let operator = Person { role: Role::Operator, ..person(&tokens) };
        assert!(world.users.live(operator).await.is_ok());
        world.sql("UPDATE account SET role = 'customer'").await;
        assert!(matches!(world.users.live(operator).await, Err(Error::SessionEnded)));
        assert_eq!(world.ended().await, [tokens.session.id]);
        // Refreshed, it would become a customer's session with an operator's token.
        assert!(matches!(world.refresh(&tokens).await, Err(Error::SessionEnded)));
        assert_eq!(world.ended().await, [tokens.session.id]);
        let (customer, _) = world.login("operator@example.com", PASSWORD).await.expect("logged in");
        assert!(world.is_live(&customer).await);
        world.sql("DELETE FROM session").await;
        world.sql("DELETE FROM account").await;
        assert!(!world.is_live(&customer).await);
        assert_eq!(world.ended().await.len(), 2);
    }
}

#[tokio::test]
async fn an_ended_session_is_listed_until_its_last_access_token_expires() {
    for world in worlds().await {
        world.ada().await;
        let first = world.ada_logs_in().await;
        world.clock.advance(Duration::from_secs(800));
        let second = world.refresh(&first).await.expect("rotated");
        world.users.logout(second.refresh.clone(), &audit()).await.expect("ended");
        world.clock.advance(Duration::from_secs(905));
        assert_eq!(world.ended().await, [second.session.id], "the mesh's leeway");
        world.clock.advance(Duration::from_secs(60));
        assert_eq!(world.ended().await, []);
        let deleted = world.users.store.delete_expired_sessions(world.clock.now(), 10).await.expect("swept");
        assert_eq!(deleted, 1, "the record of issued tokens is deleted");
    }
}

#[tokio::test]
async fn a_session_of_an_earlier_release_can_be_ended_after_a_refresh() {
    let world = World::new().await;
    world.ada().await;
    let tokens = world.ada_logs_in().await;
    world.sql("DELETE FROM issued_access").await;
    assert!(world.is_live(&tokens).await);
    let tokens = world.refresh(&tokens).await.expect("rotated");
    world.users.logout(tokens.refresh.clone(), &audit()).await.expect("ended");
    world.has_ended(&tokens).await;
}
