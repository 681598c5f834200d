//! Queries. Entities stay in this module.

mod ended;
mod invariants;

use kernel::{RequestId, SessionId, Timestamp, UserId};
use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QuerySelect,
    Set, Statement,
};
use storage::{Database, Tx};
use telemetry::{Operation, Outcome};

use crate::account::{Account, Address, Origin, Profile, ProfileChange, Role};
use crate::entity::{account, session};
use crate::error::Error;
use crate::password::PasswordHash;
use crate::session::{Hashes, Previous, Session};

/// The User Service's tables. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Store {
    db: Database,
}

/// The outcome of creating an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inserted {
    Created,
    /// The e-mail or the request id is already used.
    Taken,
}

/// A refresh: the presented token and the next one.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    pub(crate) family_hash: String,
    pub(crate) presented_hash: String,
    pub(crate) next_hash: String,
    pub(crate) now: Timestamp,
    pub(crate) grace: std::time::Duration,
    /// When the access token of this refresh expires.
    pub(crate) access_until: Timestamp,
}

/// A session to open, if the account's password is still the verified one.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) session: Session,
    pub(crate) role: Role,
    pub(crate) verified: PasswordHash,
    /// The password's new hash, to be stored.
    pub(crate) renewed: Option<PasswordHash>,
    /// When its first access token expires.
    pub(crate) access_until: Timestamp,
}

/// A new password for an account whose hash is still `verified`.
#[derive(Clone, Debug)]
pub(crate) struct PasswordChange {
    pub(crate) user_id: UserId,
    pub(crate) verified: PasswordHash,
    pub(crate) new: PasswordHash,
    /// The caller's own session, which stays open.
    pub(crate) keep: Option<SessionId>,
    pub(crate) now: Timestamp,
}

impl Store {
    /// On a database whose schema is up to date.
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    pub(crate) async fn account(&self, user_id: UserId) -> Result<Option<Account>, storage::Error> {
        read(account::Entity::find_by_id(user_id.as_uuid()).one(self.db.read()).await?)
    }

    pub(crate) async fn account_by_email(&self, email: &str) -> Result<Option<Account>, storage::Error> {
        read(account::Entity::find().filter(account::Column::Email.eq(email)).one(self.db.read()).await?)
    }

    pub(crate) async fn account_by_request(&self, request_id: RequestId) -> Result<Option<Account>, storage::Error> {
        let of_it = account::Column::RequestId.eq(request_id.as_uuid());
        read(account::Entity::find().filter(of_it).one(self.db.read()).await?)
    }

    /// Creates an account, with its audit event.
    pub(crate) async fn insert_account(
        &self,
        account: &Account,
        operation: &Operation,
    ) -> Result<Inserted, storage::Error> {
        self.db
            .transact((row(account), operation.clone()), |tx, (row, operation)| {
                Box::pin(async move {
                    let user_id = row.user_id;
                    let inserted = account::Entity::insert(row.into_active_model())
                        .on_conflict(OnConflict::new().do_nothing().to_owned())
                        .exec_without_returning(tx.conn())
                        .await?;
                    if inserted == 0 {
                        return Ok::<_, storage::Error>(Inserted::Taken);
                    }
                    operation.set_user(user_id);
                    tx.emit(&operation, &Outcome::Success);
                    Ok(Inserted::Created)
                })
            })
            .await
    }

    /// `None`: there is no such account.
    pub(crate) async fn change_profile(
        &self,
        user_id: UserId,
        change: ProfileChange,
        now: Timestamp,
        operation: &Operation,
    ) -> Result<Option<Profile>, storage::Error> {
        self.db
            .transact((change, operation.clone()), move |tx, (change, operation)| {
                Box::pin(async move {
                    let found = account::Entity::find_by_id(user_id.as_uuid()).lock_exclusive().one(tx.conn()).await?;
                    let Some(found) = found else { return Ok(None) };
                    let mut row = found.into_active_model();
                    if let Some(display_name) = change.display_name {
                        row.display_name = Set(display_name);
                    }
                    if let Some(phone) = change.phone {
                        row.phone = Set(phone);
                    }
                    if let Some(address) = change.address {
                        row.address = Set(address.as_ref().map(json));
                    }
                    row.update_time = Set(now.as_micros());
                    let changed = row.update(tx.conn()).await?;
                    tx.emit(&operation, &Outcome::Success);
                    Ok::<_, storage::Error>(Some(Account::try_from(changed)?.profile))
                })
            })
            .await
    }

    /// Opens a session with its event; false if the password is no longer the verified one.
    pub(crate) async fn open_session(&self, opening: Opening, operation: &Operation) -> Result<bool, storage::Error> {
        // Identifies the log-in among those of the account.
        operation.set("session.id", opening.session.id.to_string());
        self.db
            .transact((opening, operation.clone()), |tx, (opening, operation)| {
                Box::pin(async move {
                    let Opening { session, role, verified, renewed, access_until } = opening;
                    let user_id = session.user_id;
                    if !has_password(tx, user_id.as_uuid(), &verified).await? {
                        return Ok(false);
                    }
                    if let Some(renewed) = renewed {
                        set_password(tx, user_id.as_uuid(), &renewed).await?;
                    }
                    let row = session_row(&session);
                    session::Entity::insert(row.into_active_model()).exec_without_returning(tx.conn()).await?;
                    ended::issued(tx, session.id.as_uuid(), user_id, role, access_until).await?;
                    tx.emit(&operation, &Outcome::Success);
                    Ok::<_, storage::Error>(true)
                })
            })
            .await
    }

    /// Rotates a session's token, or ends the session; `None`: it has ended.
    pub(crate) async fn rotate_session(&self, rotation: Rotation) -> Result<Option<(Session, Role)>, storage::Error> {
        self.db.transact(rotation, |tx, rotation| Box::pin(rotate_session(tx, rotation))).await
    }

    /// Ends a session, with its audit event, unless it has ended already.
    pub(crate) async fn end_session(&self, family_hash: String, operation: &Operation) -> Result<(), storage::Error> {
        self.db
            .transact((family_hash, operation.clone()), |tx, (family_hash, operation)| {
                Box::pin(async move {
                    let of_it = session::Column::FamilyHash.eq(family_hash);
                    let found = session::Entity::find().filter(of_it).lock_exclusive().one(tx.conn()).await?;
                    let Some(found) = found else { return Ok(()) };
                    session::Entity::delete_by_id(found.session_id).exec(tx.conn()).await?;
                    operation.set_user(found.user_id);
                    operation.set("session.id", found.session_id.to_string());
                    tx.emit(&operation, &Outcome::Success);
                    Ok::<_, storage::Error>(())
                })
            })
            .await
    }

    /// Changes a password and ends the other sessions; returns how many. `InvalidCredentials`: it was changed
    /// meanwhile.
    pub(crate) async fn change_password(&self, change: PasswordChange, operation: &Operation) -> Result<u64, Error> {
        self.db
            .transact((change, operation.clone()), |tx, (change, operation)| {
                Box::pin(async move {
                    let user_id = change.user_id.as_uuid();
                    if !has_password(tx, user_id, &change.verified).await? {
                        return Err(Error::InvalidCredentials);
                    }
                    set_password(tx, user_id, &change.new).await?;
                    let ended = end_other_sessions(tx, &change).await?;
                    operation.set("ended_sessions", ended.to_string());
                    tx.emit(&operation, &Outcome::Success);
                    Ok(ended)
                })
            })
            .await
    }

    /// Deletes some of the expired sessions and of the expired records of issued tokens; returns the larger number of
    /// the two.
    pub(crate) async fn delete_expired_sessions(&self, now: Timestamp, limit: u32) -> Result<u64, storage::Error> {
        let delete = Statement::from_sql_and_values(
            self.db.read().get_database_backend(),
            "DELETE FROM session WHERE session_id IN \
             (SELECT session_id FROM session WHERE expire_time <= $1 ORDER BY expire_time LIMIT $2)",
            [now.as_micros().into(), i64::from(limit).into()],
        );
        let deleted = self.db.execute(delete).await?;
        Ok(std::cmp::max(deleted, self.delete_expired_tokens(now, limit).await?))
    }
}

async fn rotate_session(tx: &Tx, rotation: Rotation) -> Result<Option<(Session, Role)>, storage::Error> {
    let Rotation { family_hash, presented_hash, next_hash, now, grace, access_until } = rotation;
    let of_it = session::Column::FamilyHash.eq(family_hash);
    let Some(found) = session::Entity::find().filter(of_it).lock_exclusive().one(tx.conn()).await? else {
        return Ok(None);
    };
    let session_id = found.session_id;
    let Some(rotated) = Session::from(found).rotated(&presented_hash, &next_hash, now, grace) else {
        session::Entity::delete_by_id(session_id).exec(tx.conn()).await?;
        return Ok(None);
    };
    let row = session_row(&rotated);
    let Some(owner) = account::Entity::find_by_id(row.user_id).one(tx.conn()).await? else { return Ok(None) };
    let role = role(owner.role)?;
    if !ended::issued(tx, session_id, rotated.user_id, role, access_until).await? {
        session::Entity::delete_by_id(session_id).exec(tx.conn()).await?;
        return Ok(None);
    }
    let update = session::ActiveModel {
        session_id: Set(session_id),
        newest_hash: Set(row.newest_hash),
        previous_hash: Set(row.previous_hash),
        previous_until: Set(row.previous_until),
        ..Default::default()
    };
    update.update(tx.conn()).await?;
    Ok(Some((rotated, role)))
}

/// Locks the account, so that a log-in and a change of its password are serialized.
async fn has_password(tx: &Tx, user_id: uuid::Uuid, verified: &PasswordHash) -> Result<bool, storage::Error> {
    let found = account::Entity::find_by_id(user_id).lock_exclusive().one(tx.conn()).await?;
    Ok(found.is_some_and(|found| found.password_hash == verified.as_stored()))
}

async fn set_password(tx: &Tx, user_id: uuid::Uuid, hash: &PasswordHash) -> Result<(), storage::Error> {
    let row = account::ActiveModel {
        user_id: Set(user_id),
        password_hash: Set(hash.as_stored().to_owned()),
        ..Default::default()
    };
    row.update(tx.conn()).await?;
    Ok(())
}

async fn end_other_sessions(tx: &Tx, change: &PasswordChange) -> Result<u64, storage::Error> {
    let others = || {
        let of_the_user = session::Column::UserId.eq(change.user_id.as_uuid());
        match change.keep {
            Some(kept) => of_the_user.and(session::Column::SessionId.ne(kept.as_uuid())),
            None => of_the_user,
        }
    };
    let open = session::Column::ExpireTime.gt(change.now.as_micros());
    let ended = session::Entity::find().filter(others()).filter(open).count(tx.conn()).await?;
    session::Entity::delete_many().filter(others()).exec(tx.conn()).await?;
    Ok(ended)
}

fn read(row: Option<account::Model>) -> Result<Option<Account>, storage::Error> {
    row.map(Account::try_from).transpose()
}

fn role(name: String) -> Result<Role, storage::Error> {
    Role::named(&name).ok_or(storage::Error::Corrupt { what: "role", value: name })
}

fn json(address: &Address) -> String {
    // A struct of strings always has a JSON form.
    serde_json::to_string(address).unwrap_or_default()
}

impl TryFrom<account::Model> for Account {
    type Error = storage::Error;

    fn try_from(row: account::Model) -> Result<Self, storage::Error> {
        let address = row.address.map(|text| {
            serde_json::from_str(&text).map_err(|_| storage::Error::Corrupt { what: "address", value: text })
        });
        let profile = Profile {
            user_id: UserId::from_uuid(row.user_id),
            email: row.email,
            display_name: row.display_name,
            phone: row.phone,
            address: address.transpose()?,
            role: role(row.role)?,
            created: Timestamp::from_micros(row.create_time),
            updated: Timestamp::from_micros(row.update_time),
        };
        let origin = row
            .request_id
            .zip(row.request_fingerprint)
            .map(|(id, fingerprint)| Origin { request_id: RequestId::from_uuid(id), fingerprint });
        Ok(Self { profile, password_hash: PasswordHash::from_stored(row.password_hash), origin })
    }
}

fn row(account: &Account) -> account::Model {
    let Account { profile, password_hash, origin } = account.clone();
    let (request_id, request_fingerprint) =
        origin.map(|origin| (origin.request_id.as_uuid(), origin.fingerprint)).unzip();
    account::Model {
        user_id: profile.user_id.as_uuid(),
        email: profile.email,
        password_hash: password_hash.as_stored().to_owned(),
        display_name: profile.display_name,
        phone: profile.phone,
        address: profile.address.as_ref().map(json),
        role: profile.role.name().to_owned(),
        create_time: profile.created.as_micros(),
        update_time: profile.updated.as_micros(),
        request_id,
        request_fingerprint,
    }
}

impl From<session::Model> for Session {
    fn from(row: session::Model) -> Self {
        let previous = row
            .previous_hash
            .zip(row.previous_until)
            .map(|(hash, until)| (Hashes::from_stored(&hash), until))
            .map(|(hashes, until)| Previous { hashes, accepted_until: Timestamp::from_micros(until) });
        Self {
            id: SessionId::from_uuid(row.session_id),
            user_id: UserId::from_uuid(row.user_id),
            family_hash: row.family_hash,
            newest: Hashes::from_stored(&row.newest_hash),
            previous,
            created: Timestamp::from_micros(row.create_time),
            expires: Timestamp::from_micros(row.expire_time),
        }
    }
}

fn session_row(session: &Session) -> session::Model {
    let (previous_hash, previous_until) = session
        .previous
        .clone()
        .map(|previous| (previous.hashes.as_stored(), previous.accepted_until.as_micros()))
        .unzip();
    session::Model {
        session_id: session.id.as_uuid(),
        user_id: session.user_id.as_uuid(),
        family_hash: session.family_hash.clone(),
        newest_hash: session.newest.as_stored(),
        previous_hash,
        previous_until,
        create_time: session.created.as_micros(),
        expire_time: session.expires.as_micros(),
    }
}
