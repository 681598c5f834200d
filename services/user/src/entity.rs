//! The tables, as sea-orm sees them. Entities never leave `store.rs`. Times are microseconds since the epoch.

pub(crate) mod account {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "account")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) user_id: Uuid,
        /// In lower case.
        pub(crate) email: String,
        pub(crate) password_hash: String,
        pub(crate) display_name: String,
        pub(crate) phone: Option<String>,
        /// JSON.
        pub(crate) address: Option<String>,
        pub(crate) role: String,
        pub(crate) create_time: i64,
        pub(crate) update_time: i64,
        /// Of the Register call; an operator's account has none.
        pub(crate) request_id: Option<Uuid>,
        pub(crate) request_fingerprint: Option<String>,
    }

    // The hash stays out of logs.
    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Model").field("user_id", &self.user_id).finish_non_exhaustive()
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod session {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "session")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) session_id: Uuid,
        pub(crate) user_id: Uuid,
        /// SHA-256 of the part that all refresh tokens of the session share.
        pub(crate) family_hash: String,
        /// SHA-256 of the newest refresh token; if one rotation issued several, of each of them, separated by spaces.
        pub(crate) newest_hash: String,
        /// SHA-256 of the previous ones, and until when they are accepted.
        pub(crate) previous_hash: Option<String>,
        pub(crate) previous_until: Option<i64>,
        pub(crate) create_time: i64,
        pub(crate) expire_time: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// When the access tokens issued to a session expire. Outlives the session.
pub(crate) mod issued_access {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "issued_access")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) session_id: Uuid,
        pub(crate) user_id: Uuid,
        /// The role in the tokens: the same for all tokens of a session.
        pub(crate) role: String,
        pub(crate) expire_time: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
