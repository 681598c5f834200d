//! The tables as sea-orm entities. They are private to `store`.

pub(crate) mod payment {
    use sea_orm::entity::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, PartialEq, Eq, Serialize, Deserialize, DeriveEntityModel)]
    #[sea_orm(table_name = "payment")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) order_id: Uuid,
        pub(crate) user_id: Option<Uuid>,
        pub(crate) state: String,
        pub(crate) amount: Option<i64>,
        pub(crate) currency: Option<String>,
        pub(crate) payment_method: Option<String>,
        pub(crate) contact_email: Option<String>,
        pub(crate) fingerprint: Option<String>,
        pub(crate) version: i64,
        pub(crate) attempt: i32,
        pub(crate) tries: i32,
        pub(crate) next_attempt_time: Option<i64>,
        pub(crate) lease_owner: Option<String>,
        pub(crate) lease_until: i64,
        pub(crate) doubt_since: Option<i64>,
        pub(crate) cancel_asked: bool,
        pub(crate) refund_n: i32,
        pub(crate) decline_code: Option<String>,
        pub(crate) charge_id: Option<String>,
        pub(crate) last_error: Option<String>,
        pub(crate) traceparent: String,
        pub(crate) create_time: i64,
        pub(crate) update_time: i64,
    }

    /// Omits the payment method's token, which is a secret.
    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Model")
                .field("order_id", &self.order_id)
                .field("state", &self.state)
                .finish_non_exhaustive()
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod payment_attempt {
    use sea_orm::entity::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DeriveEntityModel)]
    #[sea_orm(table_name = "payment_attempt")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) order_id: Uuid,
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) attempt: i32,
        pub(crate) effect: String,
        pub(crate) outcome: String,
        pub(crate) state: String,
        pub(crate) time: i64,
        pub(crate) trace_id: String,
        pub(crate) span_id: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod payment_archive {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "payment_archive")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) order_id: Uuid,
        /// The payment's version.
        pub(crate) version: i64,
        pub(crate) archive_time: i64,
        /// The rows of the payment in the other tables, in JSON.
        pub(crate) record: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
