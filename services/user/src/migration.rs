//! The schema's migrations. They are additive: see `storage::migrate`.

use storage::Migration;

/// The migrations, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "create account and session",
        statements: &[
            "CREATE TABLE account (user_id UUID PRIMARY KEY, email TEXT NOT NULL UNIQUE, password_hash TEXT NOT NULL, \
         display_name TEXT NOT NULL, phone TEXT, address TEXT, role TEXT NOT NULL, create_time BIGINT NOT NULL, \
         update_time BIGINT NOT NULL, request_id UUID UNIQUE, request_fingerprint TEXT)",
            "CREATE TABLE session (session_id UUID PRIMARY KEY, user_id UUID NOT NULL REFERENCES account (user_id), \
         family_hash TEXT NOT NULL UNIQUE, newest_hash TEXT NOT NULL, previous_hash TEXT, previous_until BIGINT, \
         create_time BIGINT NOT NULL, expire_time BIGINT NOT NULL)",
            "CREATE INDEX session_by_user ON session (user_id)",
            "CREATE INDEX session_by_expire_time ON session (expire_time)",
        ],
        postgres: &[],
    },
    // Empty at first: a session of an earlier release gets its row at its next refresh, within an access token's
    // lifetime.
    Migration {
        version: 2,
        name: "create issued_access",
        statements: &[
            "CREATE TABLE issued_access (session_id UUID PRIMARY KEY, user_id UUID NOT NULL, role TEXT NOT NULL, \
             expire_time BIGINT NOT NULL)",
            "CREATE INDEX issued_access_by_expire_time ON issued_access (expire_time)",
        ],
        postgres: &[],
    },
];
