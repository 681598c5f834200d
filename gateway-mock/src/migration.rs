//! The ledger's schema. Migrations are additive only.

use storage::Migration;

pub(crate) const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "create the ledger",
    statements: &[
        "CREATE TABLE charge (
            charge_key TEXT PRIMARY KEY,
            charge_id UUID NOT NULL UNIQUE,
            status TEXT NOT NULL,
            decline_code TEXT,
            currency TEXT,
            minor_units BIGINT,
            refund_rule TEXT NOT NULL,
            create_time BIGINT NOT NULL,
            refund_time BIGINT
        )",
        "CREATE TABLE refund (
            charge_key TEXT NOT NULL REFERENCES charge (charge_key),
            refund_key TEXT NOT NULL,
            refusal TEXT,
            create_time BIGINT NOT NULL,
            PRIMARY KEY (charge_key, refund_key)
        )",
    ],
    postgres: &[],
}];
