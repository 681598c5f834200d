//! The schema of the Payment Service. Times are microseconds since the epoch, amounts are minor units.

use storage::Migration;

/// The schema's versions, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "create payments and their attempts",
        statements: &[
            "CREATE TABLE payment (
            order_id UUID PRIMARY KEY,
            user_id UUID,
            state TEXT NOT NULL,
            amount BIGINT,
            currency TEXT,
            payment_method TEXT,
            contact_email TEXT,
            fingerprint TEXT,
            version BIGINT NOT NULL,
            attempt INTEGER NOT NULL,
            tries INTEGER NOT NULL,
            next_attempt_time BIGINT,
            lease_owner TEXT,
            lease_until BIGINT NOT NULL,
            doubt_since BIGINT,
            cancel_asked BOOLEAN NOT NULL,
            refund_n INTEGER NOT NULL,
            decline_code TEXT,
            charge_id TEXT,
            last_error TEXT,
            traceparent TEXT NOT NULL,
            create_time BIGINT NOT NULL,
            update_time BIGINT NOT NULL
        )",
            // A partial index on payments with a pending effect: it stays small however many payments there are.
            "CREATE INDEX payment_due ON payment (next_attempt_time) WHERE next_attempt_time IS NOT NULL",
            "CREATE TABLE payment_attempt (
            order_id UUID NOT NULL REFERENCES payment (order_id),
            attempt INTEGER NOT NULL,
            effect TEXT NOT NULL,
            outcome TEXT NOT NULL,
            state TEXT NOT NULL,
            time BIGINT NOT NULL,
            trace_id TEXT NOT NULL,
            span_id TEXT NOT NULL,
            PRIMARY KEY (order_id, attempt)
        )",
        ],
        postgres: &[],
    },
    Migration {
        version: 2,
        name: "create the archive of payments",
        statements: &["CREATE TABLE payment_archive (
            order_id UUID PRIMARY KEY,
            version BIGINT NOT NULL,
            archive_time BIGINT NOT NULL,
            record TEXT NOT NULL
        )"],
        // By default a fifth of the rows; rows are deleted from these tables now.
        postgres: &[
            "ALTER TABLE payment SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
            "ALTER TABLE payment_attempt SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
        ],
    },
];
