//! The use cases of the User Service: registration, log-in, sessions and passwords.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chassis::{Fingerprint, Invalid};
use kernel::{Clock, IdSource, SessionId, UserId};
use mesh::Violation;
use telemetry::Operation;

use crate::account::{Account, Origin, Profile, ProfileChange, Registration, Role};
use crate::error::Error;
use crate::hashing_permits::Share;
use crate::keys::{KeyStore, SigningKey};
use crate::operator::Bootstrap;
use crate::password::{Check, Password, Passwords};
use crate::session::{RefreshToken, Session};
use crate::store::{Inserted, Opening, PasswordChange, Rotation, Store};
use crate::throttle::{Source, Throttle};
use crate::token::{AccessToken, Bearer};

/// Lifetimes of tokens and sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lifetimes {
    pub(crate) access_token: Duration,
    pub(crate) session: Duration,
    /// How long the previous refresh token is accepted.
    pub(crate) refresh_grace: Duration,
}

/// A session's tokens, as returned to its owner.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) session: Session,
    pub(crate) access: AccessToken,
    pub(crate) refresh: RefreshToken,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Person {
    pub(crate) user_id: UserId,
    /// The role in the access token.
    pub(crate) role: Role,
    /// The session of the access token.
    pub(crate) session_id: Option<SessionId>,
}

/// The account whose sessions are to end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AccountRef {
    Id(UserId),
    Email(String),
}

/// The domain logic of the service.
pub(crate) struct Users {
    pub(crate) store: Store,
    pub(crate) passwords: Passwords,
    pub(crate) throttle: Throttle,
    pub(crate) keys: Arc<KeyStore>,
    pub(crate) bootstrap: Option<Bootstrap>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) lifetimes: Lifetimes,
}

impl Users {
    /// Creates a customer's account, once per request id.
    pub(crate) async fn register(
        &self,
        registration: Registration,
        from: IpAddr,
        operation: &Operation,
    ) -> Result<Profile, Error> {
        let fingerprint = fingerprint(&registration);
        if let Some(known) = self.store.account_by_request(registration.request_id).await? {
            return self.replay(known, registration, &fingerprint, from, operation).await;
        }
        self.bootstrapped(&registration.email).await;
        if self.store.account_by_email(&registration.email).await?.is_some() {
            return self.email_taken(registration, &fingerprint, from, operation).await;
        }
        let busy = |retry_after| Error::TooManyRequests { retry_after };
        let hashed = self.passwords.hash(registration.password.clone(), Share::of_address(from)).await;
        let password_hash = hashed.map_err(|rejected| rejected.or_busy(busy))?;
        let now = self.clock.now();
        let profile = Profile {
            user_id: UserId::from_uuid(self.ids.uuid()),
            email: registration.email.clone(),
            display_name: registration.display_name.clone(),
            phone: None,
            address: None,
            role: Role::Customer,
            created: now,
            updated: now,
        };
        let origin = Some(Origin { request_id: registration.request_id, fingerprint: fingerprint.clone() });
        let account = Account { profile, password_hash, origin };
        match self.store.insert_account(&account, operation).await? {
            Inserted::Created => Ok(account.profile),
            Inserted::Taken => self.email_taken(registration, &fingerprint, from, operation).await,
        }
    }

    /// The e-mail is taken: perhaps by the same request.
    async fn email_taken(
        &self,
        registration: Registration,
        fingerprint: &str,
        from: IpAddr,
        operation: &Operation,
    ) -> Result<Profile, Error> {
        match self.store.account_by_request(registration.request_id).await? {
            Some(known) => self.replay(known, registration, fingerprint, from, operation).await,
            None => Err(Error::EmailTaken),
        }
    }

    /// The first response, if this is the same command. A repetition whose password is no longer the account's counts
    /// as another command: the first password is not stored.
    async fn replay(
        &self,
        known: Account,
        registration: Registration,
        fingerprint: &str,
        from: IpAddr,
        operation: &Operation,
    ) -> Result<Profile, Error> {
        if known.origin.as_ref().is_none_or(|origin| origin.fingerprint != fingerprint) {
            return Err(Error::RequestIdReused);
        }
        // A caller with the request id must not guess passwords faster here than at Login.
        let too_many = |retry_after| Error::TooManyRequests { retry_after };
        let source = Source::new(&registration.email, from);
        let attempt = self.throttle.admit(source).map_err(|throttled| too_many(throttled.retry_after))?;
        let share = Share::of_address(from);
        let check = self.passwords.check(registration.password, Some(known.password_hash), share).await;
        if check.map_err(|rejected| rejected.or_busy(too_many))? == Check::Mismatch {
            attempt.failed();
            return Err(Error::RequestIdReused);
        }
        drop(attempt);
        operation.replayed();
        operation.set_user(known.profile.user_id.as_uuid());
        let Profile { user_id, role, created, .. } = known.profile;
        let Registration { email, display_name, .. } = registration;
        Ok(Profile { user_id, email, display_name, phone: None, address: None, role, created, updated: created })
    }

    /// Opens a session, in one transaction with its event.
    pub(crate) async fn login(
        &self,
        email: &str,
        password: Password,
        from: IpAddr,
        operation: &Operation,
    ) -> Result<(Tokens, Profile), Error> {
        self.bootstrapped(email).await;
        let too_many = |retry_after| Error::TooManyLogins { retry_after };
        let attempt =
            self.throttle.admit(Source::new(email, from)).map_err(|throttled| too_many(throttled.retry_after))?;
        let account = self.store.account_by_email(email).await?;
        let stored = account.as_ref().map(|account| account.password_hash.clone());
        let check = self.passwords.check(password, stored, Share::of_account(from, email)).await;
        let check = check.map_err(|rejected| rejected.or_busy(too_many))?;
        if let Some(account) = &account {
            operation.set_user(account.profile.user_id.as_uuid());
        }
        let (account, renewed) = match (account, check) {
            (Some(account), Check::Match) => (account, None),
            (Some(account), Check::Renewed(hash)) => (account, Some(hash)),
            (_, _) => {
                attempt.failed();
                return Err(Error::InvalidCredentials);
            }
        };
        let Account { profile, password_hash, origin: _ } = account;
        let id = SessionId::from_uuid(self.ids.uuid());
        let (session, refresh) = Session::open(id, profile.user_id, self.clock.now(), self.lifetimes.session);
        let access = self.access_token(&session, profile.role)?;
        let opening = Opening {
            session: session.clone(),
            role: profile.role,
            verified: password_hash,
            renewed,
            access_until: access.expires,
        };
        if !self.store.open_session(opening, operation).await? {
            attempt.failed();
            return Err(Error::InvalidCredentials);
        }
        Ok((Tokens { session, access, refresh }, profile))
    }

    /// Exchanges a refresh token for a new pair of tokens.
    pub(crate) async fn refresh(&self, presented: RefreshToken) -> Result<Tokens, Error> {
        let (refresh, now) = (presented.next(), self.clock.now());
        let rotation = Rotation {
            family_hash: presented.family_hash(),
            presented_hash: presented.hash(),
            next_hash: refresh.hash(),
            now,
            grace: self.lifetimes.refresh_grace,
            access_until: now.plus(self.lifetimes.access_token),
        };
        let (session, role) = self.store.rotate_session(rotation).await?.ok_or(Error::SessionEnded)?;
        let access = self.access_token(&session, role)?;
        Ok(Tokens { session, access, refresh })
    }

    /// Ends the session of a refresh token, whichever of the session's tokens it is.
    pub(crate) async fn logout(&self, presented: RefreshToken, operation: &Operation) -> Result<(), Error> {
        Ok(self.store.end_session(presented.family_hash(), operation).await?)
    }

    /// Ends an account's sessions; returns how many.
    pub(crate) async fn end_sessions(&self, account: AccountRef, operation: &Operation) -> Result<u64, Error> {
        self.store.end_sessions(account, self.clock.now(), operation).await
    }

    /// A page of the ended sessions that may still have an unexpired access token.
    pub(crate) async fn ended_sessions(&self, after: Option<SessionId>, limit: u64) -> Result<Vec<SessionId>, Error> {
        Ok(self.store.ended_sessions(after, self.clock.now(), limit).await?)
    }

    /// The person, if the session has not ended. The mesh has ended sessions only from the next fetch of its list.
    pub(crate) async fn live(&self, person: Person) -> Result<Person, Error> {
        let is_live = self.store.is_live(person, self.clock.now()).await?;
        if is_live { Ok(person) } else { Err(Error::SessionEnded) }
    }

    pub(crate) async fn profile(&self, user_id: UserId) -> Result<Profile, Error> {
        Ok(self.store.account(user_id).await?.ok_or(Error::AccountNotFound)?.profile)
    }

    /// Changes the caller's profile.
    pub(crate) async fn change_profile(
        &self,
        user_id: UserId,
        change: ProfileChange,
        operation: &Operation,
    ) -> Result<Profile, Error> {
        operation.set_user(user_id.as_uuid());
        if let Some(known) = &change.known_email
            && self.profile(user_id).await?.email != *known
        {
            return Err(immutable_email());
        }
        // Only the fields' names: personal data stay in the account.
        operation.set("fields", change.fields().join(","));
        let changed = self.store.change_profile(user_id, change, self.clock.now(), operation).await?;
        changed.ok_or(Error::AccountNotFound)
    }

    /// Changes the caller's password and ends the caller's other sessions; returns how many.
    pub(crate) async fn change_password(
        &self,
        person: Person,
        current: Password,
        new: Password,
        from: IpAddr,
        operation: &Operation,
    ) -> Result<u64, Error> {
        operation.set_user(person.user_id.as_uuid());
        let Account { profile, password_hash, .. } =
            self.store.account(person.user_id).await?.ok_or(Error::AccountNotFound)?;
        let too_many = |retry_after| Error::TooManyLogins { retry_after };
        let attempt = self
            .throttle
            .admit(Source::new(&profile.email, from))
            .map_err(|throttled| too_many(throttled.retry_after))?;
        let share = Share::of_account(from, person.user_id.to_string());
        let check = self.passwords.check(current, Some(password_hash.clone()), share.clone()).await;
        if check.map_err(|rejected| rejected.or_busy(too_many))? == Check::Mismatch {
            attempt.failed();
            return Err(Error::InvalidCredentials);
        }
        drop(attempt);
        let new = self.passwords.hash(new, share).await.map_err(|rejected| rejected.or_busy(too_many))?;
        let change = PasswordChange {
            user_id: person.user_id,
            verified: password_hash,
            new,
            keep: person.session_id,
            now: self.clock.now(),
        };
        self.store.change_password(change, operation).await
    }

    /// The public keys that verify access tokens.
    pub(crate) fn signing_keys(&self) -> Arc<Vec<Arc<SigningKey>>> {
        self.keys.all()
    }

    fn access_token(&self, session: &Session, role: Role) -> Result<AccessToken, Error> {
        let now = self.clock.now();
        let lifetime = self.lifetimes.access_token.min(session.expires.since(now));
        let bearer = Bearer { user_id: session.user_id, session_id: session.id, role };
        AccessToken::sign(bearer, &*self.keys.signer()?, now, lifetime)
    }

    /// If the operator's account is being created, waits for it: its e-mail is reserved, and its log-in must find it.
    async fn bootstrapped(&self, email: &str) {
        if let Some(bootstrap) = &self.bootstrap {
            bootstrap.done(email).await;
        }
    }
}

/// AIP-203: an immutable field in an update is ignored if it equals the stored value, and rejected if it does not.
fn immutable_email() -> Error {
    Error::Invalid(Invalid(vec![Violation {
        field: "profile.email".to_owned(),
        reason: "IMMUTABLE_FIELD",
        description: "cannot be changed; display_name, phone and address can".to_owned(),
    }]))
}

/// Of the command without its password.
fn fingerprint(registration: &Registration) -> String {
    let Registration { request_id: _, email, password: _, display_name } = registration;
    Fingerprint::of("Register/1").part("email", email).part("display_name", display_name).finish()
}

#[cfg(test)]
mod tests;
