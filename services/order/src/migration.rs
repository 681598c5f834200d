//! The schema of the Order Service. Times are microseconds since the epoch, amounts are minor units.

use storage::Migration;

/// The schema's versions, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "create orders, lines, history, fulfilments, stock",
        statements: &[
            "CREATE TABLE orders (
            order_id UUID PRIMARY KEY,
            user_id UUID NOT NULL,
            request_id UUID NOT NULL,
            fingerprint TEXT NOT NULL,
            state TEXT NOT NULL,
            version BIGINT NOT NULL,
            currency TEXT NOT NULL,
            total BIGINT NOT NULL,
            contact_email TEXT NOT NULL,
            address TEXT NOT NULL,
            payment_method TEXT,
            transit_days INTEGER NOT NULL,
            cutoff_hour INTEGER NOT NULL,
            refund_attempt INTEGER NOT NULL,
            payment_failure TEXT,
            attempt INTEGER NOT NULL,
            next_attempt_time BIGINT,
            last_error TEXT,
            lease_owner TEXT,
            lease_until BIGINT NOT NULL,
            traceparent TEXT NOT NULL,
            create_time BIGINT NOT NULL,
            update_time BIGINT NOT NULL,
            UNIQUE (user_id, request_id)
        )",
            // A partial index on orders with a pending effect: it stays small however many orders there are.
            "CREATE INDEX orders_due ON orders (next_attempt_time) WHERE next_attempt_time IS NOT NULL",
            "CREATE INDEX orders_by_user ON orders (user_id, order_id)",
            "CREATE TABLE order_line (
            order_id UUID NOT NULL REFERENCES orders (order_id),
            line INTEGER NOT NULL,
            sku TEXT NOT NULL,
            name TEXT NOT NULL,
            quantity BIGINT NOT NULL,
            unit_price BIGINT NOT NULL,
            state TEXT NOT NULL,
            PRIMARY KEY (order_id, line)
        )",
            "CREATE INDEX order_line_held ON order_line (sku, order_id) WHERE state = 'HELD'",
            "CREATE TABLE order_history (
            order_id UUID NOT NULL REFERENCES orders (order_id),
            version BIGINT NOT NULL,
            state TEXT NOT NULL,
            time BIGINT NOT NULL,
            reason TEXT NOT NULL,
            trace_id TEXT NOT NULL,
            span_id TEXT NOT NULL,
            PRIMARY KEY (order_id, version)
        )",
            "CREATE TABLE fulfillment (
            fulfillment_id UUID PRIMARY KEY,
            order_id UUID NOT NULL UNIQUE REFERENCES orders (order_id),
            start_time BIGINT NOT NULL,
            delivery_date TEXT NOT NULL
        )",
            "CREATE TABLE stock (
            sku TEXT PRIMARY KEY,
            on_hand BIGINT NOT NULL,
            reserved BIGINT NOT NULL,
            CHECK (0 <= reserved AND reserved <= on_hand)
        )",
            "CREATE TABLE stock_adjustment (
            request_id UUID PRIMARY KEY,
            fingerprint TEXT NOT NULL,
            sku TEXT NOT NULL,
            on_hand BIGINT NOT NULL,
            reserved BIGINT NOT NULL,
            lost_lines INTEGER NOT NULL,
            create_time BIGINT NOT NULL
        )",
        ],
        postgres: &[],
    },
    // Indexes of large tables: IF NOT EXISTS, as CREATE INDEX CONCURRENTLY may have made them (deploy/RUNBOOK.md).
    Migration {
        version: 2,
        name: "index unpaid orders by customer",
        // A partial index on unpaid orders: it stays small however many orders there are.
        statements: &["CREATE INDEX IF NOT EXISTS orders_unpaid ON orders (user_id) WHERE state = 'CREATED'"],
        postgres: &[],
    },
    Migration {
        version: 3,
        name: "index orders in rare states; vacuum large tables sooner",
        // No order on its way to fulfilment is in it. Queries repeat the condition (`store::in_state`).
        statements: &["CREATE INDEX IF NOT EXISTS orders_by_rare_state ON orders (state, order_id) \
             WHERE state NOT IN ('CREATED', 'FULFILLMENT_STARTED')"],
        // By default a fifth of the rows: of ten million, two million dead ones, which index scans would pass by.
        postgres: &[
            "ALTER TABLE orders SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
            "ALTER TABLE order_line SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
        ],
    },
    Migration {
        version: 4,
        name: "create the archive of final orders",
        statements: &[
            "CREATE TABLE order_archive (
            order_id UUID PRIMARY KEY,
            user_id UUID NOT NULL,
            state TEXT NOT NULL,
            version BIGINT NOT NULL,
            record TEXT NOT NULL
        )",
            "CREATE INDEX order_archive_by_user ON order_archive (user_id, order_id)",
            // Like orders_by_rare_state.
            "CREATE INDEX order_archive_by_rare_state ON order_archive (state, order_id) \
             WHERE state NOT IN ('CREATED', 'FULFILLMENT_STARTED')",
            // The units that archived orders have allocated: `stock.reserved` includes them.
            "CREATE TABLE stock_archive (sku TEXT PRIMARY KEY, allocated BIGINT NOT NULL)",
        ],
        // As in migration 3: rows are deleted from these tables now.
        postgres: &[
            "ALTER TABLE order_history SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
            "ALTER TABLE fulfillment SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
        ],
    },
];
