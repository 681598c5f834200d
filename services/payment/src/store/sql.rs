//! The hot statements, written out: SQL that both SQLite and PostgreSQL accept, formatted once.
//!
//! `$now` is the process's clock: on PostgreSQL, NULL stands for the database's own clock (the transaction's start, so
//! that comparisons can use an index).

const POSTGRES_NOW: &str = "COALESCE($NOW, CAST(EXTRACT(EPOCH FROM now()) * 1000000 AS BIGINT))";

/// The statements for one database backend.
pub(crate) struct Sql {
    pub(crate) insert: String,
    pub(crate) insert_attempt: String,
    /// On PostgreSQL this also inserts the attempt, and the affected rows are the attempt's.
    pub(crate) write: String,
    pub(crate) writes_attempt: bool,
    pub(crate) claim: String,
    /// Whether anything is due, and whether anything is due later than the maximum backoff.
    pub(crate) look: String,
    pub(crate) pull_in: String,
    pub(crate) claim_due: String,
    pub(crate) free: String,
    pub(crate) in_doubt: String,
}

impl Sql {
    pub(crate) fn new(is_postgres: bool) -> Self {
        let now = |parameter: &str| {
            if is_postgres { POSTGRES_NOW.replace("$NOW", parameter) } else { parameter.to_owned() }
        };
        let skip_locked = if is_postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
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
            claim: format!(
                "UPDATE payment SET lease_owner = $1, lease_until = {now} + $2 \
                 WHERE order_id = $4 AND next_attempt_time <= {now} AND {free} RETURNING *",
                now = now("$3"),
                free = is_free(&now("$3"), "$5"),
            ),
            look: format!(
                "SELECT CASE WHEN EXISTS (SELECT 1 FROM payment WHERE next_attempt_time <= {now} AND {free}) THEN 1 ELSE 0 END \
                 AS due, CASE WHEN EXISTS (SELECT 1 FROM payment WHERE next_attempt_time > {now} + $3) THEN 1 ELSE 0 END AS beyond",
                now = now("$1"),
                free = is_free(&now("$1"), "$2"),
            ),
            pull_in: format!(
                "UPDATE payment SET next_attempt_time = {now} WHERE next_attempt_time > {now} + $2",
                now = now("$1"),
            ),
            claim_due: format!(
                "UPDATE payment SET lease_owner = $1, lease_until = {now} + $2 WHERE order_id IN \
                 (SELECT order_id FROM payment WHERE next_attempt_time <= {now} AND {free} \
                 ORDER BY next_attempt_time LIMIT $4 {skip_locked}) RETURNING *",
                now = now("$3"),
                free = is_free(&now("$3"), "$5"),
            ),
            free: "UPDATE payment SET lease_owner = NULL, lease_until = 0 \
                 WHERE lease_owner = $1 AND next_attempt_time IS NOT NULL"
                .to_owned(),
            in_doubt: "SELECT COUNT(*) AS count, MIN(doubt_since) AS oldest FROM payment \
                 WHERE next_attempt_time IS NOT NULL AND doubt_since IS NOT NULL"
                .to_owned(),
        }
    }
}

/// SQL condition: the lease is free. A lease that ends later than any lease taken now was written by a clock that was
/// set back since; if its owner is still alive, only work is duplicated.
fn is_free(now: &str, longest: &str) -> String {
    format!("(lease_until <= {now} OR lease_until > {now} + {longest})")
}

/// The compare-and-set.
fn write(now: &str) -> String {
    format!(
        "UPDATE payment SET state = $1, attempt = $2, tries = $3, next_attempt_time = {now} + $4, lease_owner = $5, \
         lease_until = COALESCE({now} + $6, 0), doubt_since = $7, cancel_asked = $8, refund_n = $9, decline_code = $10, \
         charge_id = $11, last_error = $12, traceparent = $13, payment_method = $14, update_time = $15, \
         version = version + 1 WHERE order_id = $17 AND version = $18"
    )
}
