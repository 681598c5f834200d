//! The tables as sea-orm entities. They are private to `store`.

pub(crate) mod orders {
    use sea_orm::entity::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, PartialEq, Eq, Serialize, Deserialize, DeriveEntityModel)]
    #[sea_orm(table_name = "orders")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) order_id: Uuid,
        pub(crate) user_id: Uuid,
        pub(crate) request_id: Uuid,
        pub(crate) fingerprint: String,
        pub(crate) state: String,
        pub(crate) version: i64,
        pub(crate) currency: String,
        pub(crate) total: i64,
        pub(crate) contact_email: String,
        pub(crate) address: String,
        pub(crate) payment_method: Option<String>,
        pub(crate) transit_days: i32,
        pub(crate) cutoff_hour: i32,
        pub(crate) refund_attempt: i32,
        pub(crate) payment_failure: Option<String>,
        pub(crate) attempt: i32,
        pub(crate) next_attempt_time: Option<i64>,
        pub(crate) last_error: Option<String>,
        pub(crate) lease_owner: Option<String>,
        pub(crate) lease_until: i64,
        pub(crate) traceparent: String,
        pub(crate) create_time: i64,
        pub(crate) update_time: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}

    /// Without the payment method's token, which is a secret, and personal data.
    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("orders::Model")
                .field("order_id", &self.order_id)
                .field("state", &self.state)
                .finish_non_exhaustive()
        }
    }
}

pub(crate) mod order_line {
    use sea_orm::entity::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DeriveEntityModel)]
    #[sea_orm(table_name = "order_line")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) order_id: Uuid,
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) line: i32,
        pub(crate) sku: String,
        pub(crate) name: String,
        pub(crate) quantity: i64,
        pub(crate) unit_price: i64,
        pub(crate) state: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod order_history {
    use sea_orm::entity::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DeriveEntityModel)]
    #[sea_orm(table_name = "order_history")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) order_id: Uuid,
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) version: i64,
        pub(crate) state: String,
        pub(crate) time: i64,
        pub(crate) reason: String,
        pub(crate) trace_id: String,
        pub(crate) span_id: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod fulfillment {
    use sea_orm::entity::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DeriveEntityModel)]
    #[sea_orm(table_name = "fulfillment")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) fulfillment_id: Uuid,
        pub(crate) order_id: Uuid,
        pub(crate) start_time: i64,
        pub(crate) delivery_date: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod order_archive {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "order_archive")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) order_id: Uuid,
        pub(crate) user_id: Uuid,
        pub(crate) state: String,
        pub(crate) version: i64,
        /// The rows of the order in the other tables, in JSON.
        pub(crate) record: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod stock {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "stock")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) sku: String,
        pub(crate) on_hand: i64,
        pub(crate) reserved: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) mod stock_adjustment {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "stock_adjustment")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) request_id: Uuid,
        pub(crate) fingerprint: String,
        pub(crate) sku: String,
        /// After the adjustment.
        pub(crate) on_hand: i64,
        /// After the adjustment.
        pub(crate) reserved: i64,
        pub(crate) lost_lines: i32,
        pub(crate) create_time: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
