//! The ledger's tables as sea-orm entities. They are private to `store.rs`.

/// A charge or a tombstone: one row per charge key.
pub(crate) mod charge {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "charge")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) charge_key: String,
        pub(crate) charge_id: Uuid,
        pub(crate) status: String,
        pub(crate) decline_code: Option<String>,
        pub(crate) currency: Option<String>,
        pub(crate) minor_units: Option<i64>,
        pub(crate) refund_rule: String,
        /// Microseconds since the epoch.
        pub(crate) create_time: i64,
        /// Microseconds since the epoch.
        pub(crate) refund_time: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The decision on a refund: one row per refund key of a charge.
pub(crate) mod refund {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "refund")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) charge_key: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) refund_key: String,
        /// Why it was refused; absent if it was refunded.
        pub(crate) refusal: Option<String>,
        /// Microseconds since the epoch.
        pub(crate) create_time: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
