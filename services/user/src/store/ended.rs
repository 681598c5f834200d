//! Sessions that end before their access tokens expire. An access token is self-contained, so ending a session cannot
//! revoke it. Therefore issued tokens have a row until they expire, and a row is on the list that every instance
//! fetches if its session or its account no longer exists, or if its role is no longer the account's. So it does not
//! matter what ended the session.

use kernel::{SessionId, Timestamp, UserId};
use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, ExprTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QuerySelect,
    Statement,
};
use storage::Tx;
use telemetry::{Operation, Outcome};

use super::Store;
use crate::account::Role;
use crate::entity::{account, issued_access, session};
use crate::error::Error;
use crate::users::{AccountRef, Person};

/// Rows are kept a little longer than the tokens are valid: instances' clocks differ, and the mesh allows some seconds
/// of leeway.
const MARGIN: std::time::Duration = std::time::Duration::from_secs(60);

impl Store {
    /// Whether the person's session is open and the token's role is still the account's.
    pub(crate) async fn is_live(&self, person: Person, now: Timestamp) -> Result<bool, storage::Error> {
        let of_it =
            account::Column::UserId.eq(person.user_id.as_uuid()).and(account::Column::Role.eq(person.role.name()));
        if account::Entity::find().filter(of_it).count(self.db.read()).await? == 0 {
            return Ok(false);
        }
        let Some(session_id) = person.session_id else { return Ok(true) };
        let of_it = session::Column::SessionId
            .eq(session_id.as_uuid())
            .and(session::Column::UserId.eq(person.user_id.as_uuid()))
            .and(session::Column::ExpireTime.gt(now.as_micros()));
        Ok(session::Entity::find().filter(of_it).count(self.db.read()).await? > 0)
    }

    /// Ends all sessions of a person, with an audit event; returns how many were open.
    pub(crate) async fn end_sessions(
        &self,
        account: AccountRef,
        now: Timestamp,
        operation: &Operation,
    ) -> Result<u64, Error> {
        let ended = self
            .db
            .transact((account, operation.clone()), move |tx, (account, operation)| {
                Box::pin(async move {
                    let of_it = match account {
                        AccountRef::Id(user_id) => account::Column::UserId.eq(user_id.as_uuid()),
                        AccountRef::Email(email) => account::Column::Email.eq(email),
                    };
                    // Locked as by a log-in, so that none opens a session meanwhile.
                    let owner = account::Entity::find().filter(of_it).lock_exclusive().one(tx.conn()).await?;
                    let Some(account::Model { user_id, .. }) = owner else { return Ok(None) };
                    let of_them = || session::Column::UserId.eq(user_id);
                    let open = session::Column::ExpireTime.gt(now.as_micros());
                    let ended = session::Entity::find().filter(of_them()).filter(open).count(tx.conn()).await?;
                    session::Entity::delete_many().filter(of_them()).exec(tx.conn()).await?;
                    operation.set("account.id", user_id.to_string());
                    operation.set("ended_sessions", ended.to_string());
                    tx.emit(&operation, &Outcome::Success);
                    Ok::<_, storage::Error>(Some(ended))
                })
            })
            .await?;
        ended.ok_or(Error::AccountNotFound)
    }

    /// A page of the ended sessions that may still have an unexpired access token, by id: those after `after`.
    pub(crate) async fn ended_sessions(
        &self,
        after: Option<SessionId>,
        now: Timestamp,
        limit: u64,
    ) -> Result<Vec<SessionId>, storage::Error> {
        let read = self.db.read();
        let find = Statement::from_sql_and_values(
            read.get_database_backend(),
            "SELECT i.session_id FROM issued_access i LEFT JOIN session s ON s.session_id = i.session_id \
             LEFT JOIN account a ON a.user_id = i.user_id WHERE i.expire_time > $1 AND i.session_id > $2 \
             AND (s.session_id IS NULL OR a.user_id IS NULL OR a.role <> i.role) ORDER BY i.session_id LIMIT $3",
            [
                now.as_micros().into(),
                after.map_or(uuid::Uuid::nil(), SessionId::as_uuid).into(),
                i64::try_from(limit).unwrap_or(i64::MAX).into(),
            ],
        );
        let ids = read.query_all_raw(find).await?.into_iter();
        ids.map(|row| Ok(SessionId::from_uuid(row.try_get_by_index(0)?))).collect()
    }

    /// Deletes some of the expired records of issued tokens; returns how many.
    pub(super) async fn delete_expired_tokens(&self, now: Timestamp, limit: u32) -> Result<u64, storage::Error> {
        let delete = Statement::from_sql_and_values(
            self.db.read().get_database_backend(),
            "DELETE FROM issued_access WHERE session_id IN \
             (SELECT session_id FROM issued_access WHERE expire_time <= $1 ORDER BY expire_time LIMIT $2)",
            [now.as_micros().into(), i64::from(limit).into()],
        );
        self.db.execute(delete).await
    }
}

/// Records that an access token of this role was issued to a session. False if the session's earlier tokens had another
/// role: such a session must end.
pub(super) async fn issued(
    tx: &Tx,
    session_id: uuid::Uuid,
    user_id: UserId,
    role: Role,
    until: Timestamp,
) -> Result<bool, storage::Error> {
    let known = issued_access::Entity::find_by_id(session_id).one(tx.conn()).await?;
    if known.is_some_and(|known| known.role != role.name()) {
        return Ok(false);
    }
    let row = issued_access::Model {
        session_id,
        user_id: user_id.as_uuid(),
        role: role.name().to_owned(),
        expire_time: until.plus(MARGIN).as_micros(),
    };
    let later = OnConflict::column(issued_access::Column::SessionId)
        .update_column(issued_access::Column::ExpireTime)
        .to_owned();
    issued_access::Entity::insert(row.into_active_model()).on_conflict(later).exec_without_returning(tx.conn()).await?;
    Ok(true)
}
