//! The hot statements, written out: SQL that both SQLite and PostgreSQL accept, formatted once.
//!
//! `$now` is the process's clock: on PostgreSQL, NULL stands for the database's own clock (the transaction's start, so
//! that comparisons can use an index).

use storage::Backend;
use storage::leases::now_sql;

/// The statements for one database backend.
pub(crate) struct Sql {
    pub(crate) insert: String,
    pub(crate) insert_attempt: String,
    /// On PostgreSQL this also inserts the attempt, and the affected rows are the attempt's.
    pub(crate) write: String,
    pub(crate) writes_attempt: bool,
    pub(crate) in_doubt: String,
}

impl Sql {
    pub(crate) fn new(backend: Backend) -> Self {
        let is_postgres = backend == Backend::Postgres;
        let now = |parameter: &str| now_sql(backend, parameter);
        Self {
            insert: format!(
                "INSERT INTO payment (order_id, user_id, state, amount, currency, payment_method, contact_email, fingerprint, \
                 version, attempt, tries, next_attempt_time, lease_owner, lease_until, cancel_asked, refund_n, decline_code, \
                 traceparent, create_time, update_time) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 1, $9, 0, {now} + $10, $11, COALESCE({now} + $12, 0), $13, $14, $15, \
                 $16, $17, $17) ON CONFLICT (order_id) DO NOTHING",
                now = now("$18"),
            ),
            insert_attempt:
                "INSERT INTO payment_attempt (order_id, attempt, effect, outcome, state, time, trace_id, span_id) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
                    .to_owned(),
            write: if is_postgres {
                // One round trip: the attempt is inserted only with the change.
                format!(
                    "WITH changed AS ({} RETURNING order_id) INSERT INTO payment_attempt \
                     (order_id, attempt, effect, outcome, state, time, trace_id, span_id) \
                     SELECT order_id, $19, $20, $21, $22, $23, $24, $25 FROM changed",
                    write(&now("$16")),
                )
            } else {
                write(&now("$16"))
            },
            writes_attempt: is_postgres,
            in_doubt: "SELECT COUNT(*) AS count, MIN(doubt_since) AS oldest FROM payment \
                 WHERE next_attempt_time IS NOT NULL AND doubt_since IS NOT NULL"
                .to_owned(),
        }
    }
}

fn write(now: &str) -> String {
    format!(
        "UPDATE payment SET state = $1, attempt = $2, tries = $3, next_attempt_time = {now} + $4, lease_owner = $5, \
         lease_until = COALESCE({now} + $6, 0), doubt_since = $7, cancel_asked = $8, refund_n = $9, decline_code = $10, \
         charge_id = $11, last_error = $12, traceparent = $13, payment_method = $14, update_time = $15, \
         version = version + 1 WHERE order_id = $17 AND version = $18"
    )
}
