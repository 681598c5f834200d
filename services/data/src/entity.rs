//! The tables as sea-orm sees them. Only the stores use these.

pub(crate) mod product {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "product")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub sku: String,
        pub name: String,
        pub description: String,
        pub currency_code: String,
        pub minor_units: i64,
        /// The number of changes; the etag is made from it.
        pub version: i64,
        pub update_time: i64,
        /// SKU, name and description as search keys, one per line, for the text filter. Earlier releases wrote the text
        /// in lower case only.
        pub search_text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod delivery_zone {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "delivery_zone")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub country_code: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub postal_prefix: String,
        pub zone: String,
        pub transit_business_days: i32,
        pub cutoff_hour_utc: i32,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod trace_event {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "trace_event")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub event_id: Uuid,
        /// For example `order_creation`.
        pub event_type: String,
        /// `success` or `failed`.
        pub status: String,
        pub service: String,
        pub instance: String,
        pub operation: String,
        pub trace_id: String,
        pub span_id: String,
        pub start_time: i64,
        pub duration_micros: i64,
        pub order_id: Option<Uuid>,
        pub user_id: Option<Uuid>,
        pub error_type: Option<String>,
        pub error_reason: Option<String>,
        pub error_message: Option<String>,
        /// A JSON object of strings.
        pub attributes: String,
        pub suppressed_count: i32,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
