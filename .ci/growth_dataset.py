"""The data set of growth.py: many orders in a system's stores."""

import hashlib
import json
import math
import sqlite3
import time

from system import check

DAY = 86_400_000_000
EVENT_DAYS, TEMPLATES, CHUNK = 6, 20, 50_000
# The load has the data set's share of declined payments (1 of 20), so that a page of failed events scans as many rows after the load as before.
MIX = ("--mix", "happy=95,declined=5")
PASSWORD = "correct horse battery"
SERVICES = ("user", "order", "payment", "data", "gateway")
# The cloned tables, parents first; the last two have a key that is derived from the order_id instead of the order_id.
TABLES = ("order.orders", "order.order_line", "order.order_history", "order.fulfillment", "payment.payment",
          "payment.payment_attempt", "data.trace_event", "gateway.charge", "gateway.refund")
# The columns with a new value in each clone (c is the new order, s the cloned row). Times are shifted; all others are copied.
CLONED = {
    "order_id": "c.order_id",
    "user_id": "c.user_id",
    "request_id": "uuid7(c.t / 1000, 'request' || c.n)",
    "trace_id": "md5(s.trace_id || c.n)",
    "traceparent": "'00-' || md5(substr(s.traceparent, 4, 32) || c.n) || substr(s.traceparent, 36)",
    "fulfillment_id": "uuid7(c.t / 1000, 'fulfillment' || c.n)",
    "event_id": "uuid7((s.start_time + s.duration_micros + c.t - s.origin) / 1000, uuid_text(s.event_id) || c.n)",
    "charge_id": "uuid7(c.t / 1000, 'charge' || c.n)",
    "charge_key": "'order-' || uuid_text(c.order_id) || '-charge'",
    "refund_key": "'order-' || uuid_text(c.order_id) || substr(s.refund_key, 43)",
}
# An order as CreateOrder leaves it, without a lease: the driver's next poll claims it.
DUE = {
    "order.orders": {"state": "'CREATED'", "version": "1", "payment_method": "'pm_card_visa'", "next_attempt_time": "c.t",
                     "create_time": "c.t", "update_time": "c.t"},
    "order.order_line": {"state": "'HELD'"},
    "order.order_history": {}, "data.trace_event": {},
}
ONLY_CREATED = {"order.order_history": "s.version = 1", "data.trace_event": "s.event_type = 'order_creation'"}
NOW = "CAST(EXTRACT(EPOCH FROM now()) * 1000000 AS BIGINT)"
POLL_QUERY = ("SELECT (SELECT 1 FROM \"order\".orders WHERE next_attempt_time <= {now} AND (lease_until <= {now} OR "
              "lease_until > {now} + 75000000) ORDER BY next_attempt_time LIMIT 1) IS NOT NULL, "
              "(SELECT MAX(next_attempt_time) FROM \"order\".orders WHERE next_attempt_time IS NOT NULL) > {now} + 120000000")


def percentile(values, p):
    return sorted(values)[max(0, math.ceil(p * len(values)) - 1)] if values else float("nan")


def uuid7(millis, key):
    digest = hashlib.md5(key.encode()).hexdigest()
    return bytes.fromhex(f"{millis:012x}7{digest[:3]}8{digest[3:18]}")


def uuid_text(value):
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# --- the stores


class PostgresStore:
    def __init__(self, server):
        self.server = server
        self.flags = ["--database-url", server.url("postgres")]
        self.sql("CREATE SCHEMA growth; CREATE FUNCTION public.uuid7(BIGINT, TEXT) RETURNS UUID LANGUAGE SQL IMMUTABLE PARALLEL SAFE AS "
                 "$$SELECT (lpad(to_hex($1), 12, '0') || '7' || substr(md5($2), 1, 3) || '8' || substr(md5($2), 4, 15))::uuid$$; "
                 "CREATE FUNCTION public.uuid_text(UUID) RETURNS TEXT LANGUAGE SQL IMMUTABLE AS $$SELECT $1::text$$")
        # Only while the data set is inserted: the load runs with PostgreSQL's defaults.
        self.set(synchronous_commit="off", max_wal_size="4GB", session_replication_role="replica")

    def set(self, **settings):
        for name, value in settings.items():
            name = name.replace("__", ".")
            self.sql(f"ALTER SYSTEM SET {name} = '{value}'" if value is not None else f"ALTER SYSTEM RESET {name}")
        self.sql("SELECT pg_reload_conf()")

    def sql(self, statement):
        found = self.server.sql(statement)
        return [] if found == "done" else [line.split("|") for line in found.splitlines()]

    def columns(self, table):
        schema, name = table.split(".")
        return [row[0] for row in self.sql(
            f"SELECT column_name FROM information_schema.columns WHERE table_schema = '{schema}' AND table_name = '{name}' "
            "AND column_name <> 'ingest' ORDER BY ordinal_position")]

    def finish_seeding(self):
        for settings in ("synchronous_commit", "max_wal_size", "session_replication_role"):
            self.set(**{settings: None})
        self.sql("VACUUM ANALYZE")
        self.sql("CHECKPOINT")

    def sizes(self):
        rows = self.sql(
            "SELECT n.nspname || '.' || c.relname, pg_relation_size(c.oid) + COALESCE(pg_relation_size(NULLIF(c.reltoastrelid, 0)), 0) "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            f"WHERE c.relkind IN ('r', 'i') AND n.nspname IN ({', '.join(repr(name) for name in SERVICES)})")
        return {name: int(size) for name, size in rows}

    def poll_query_cost(self):
        """The cost of the driver's poll query by index scan, dead index entries included: buffers, milliseconds."""
        plan = self.server.sql(f"SET enable_seqscan = off; EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {POLL_QUERY.format(now=NOW)}")
        plan = json.loads(plan)[0]
        return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"], plan["Execution Time"]

    def vacuum(self):
        """By table: the dead rows before VACUUM, and the seconds that it took."""
        dead = {f"{schema}.{name}": int(count) for schema, name, count in self.sql(
            "SELECT schemaname, relname, n_dead_tup FROM pg_stat_user_tables WHERE n_live_tup > 1000 ORDER BY n_live_tup DESC LIMIT 10")}
        found = {}
        for table, count in dead.items():
            began = time.monotonic()
            self.sql(f"VACUUM {quoted(table)}")
            found[table] = (count, time.monotonic() - began)
        return found


class SqliteStore:
    flags = []

    def __init__(self, folder):
        self.folder = folder
        self.db = None

    def open(self):
        self.db = sqlite3.connect(":memory:", isolation_level=None, timeout=30)
        self.db.create_function("uuid7", 2, uuid7, deterministic=True)
        self.db.create_function("uuid_text", 1, uuid_text, deterministic=True)
        self.db.create_function("md5", 1, lambda text: hashlib.md5(text.encode()).hexdigest(), deterministic=True)
        for service in SERVICES:
            self.db.execute(f"ATTACH '{self.folder / service}.db' AS \"{service}\"")
            self.db.execute(f'PRAGMA "{service}".synchronous = OFF')
            self.db.execute(f'PRAGMA "{service}".cache_size = -200000')
        self.db.execute(f"ATTACH '{self.folder.parent}/growth.db' AS growth")

    def sql(self, statement):
        if not self.db:
            self.open()
        found = []
        self.db.execute("BEGIN")
        for each in statement.split(";"):
            found = self.db.execute(each.replace("UNLOGGED", "")).fetchall()
        self.db.execute("COMMIT")
        return found

    def columns(self, table):
        schema, name = table.split(".")
        return [row[1] for row in self.db.execute(f'PRAGMA "{schema}".table_info({name})')]

    def finish_seeding(self):
        for service in SERVICES:
            self.db.execute(f'PRAGMA "{service}".wal_checkpoint(TRUNCATE)')
        self.db.close()
        self.db = None

    def sizes(self):
        found = {}
        for service in SERVICES:
            with sqlite3.connect(f"file:{self.folder / service}.db?mode=ro", uri=True) as db:
                found |= {f"{service}.{name}": size for name, size in db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name")}
        return found

    def poll_query_cost(self):
        """SQLite has no buffer counts, so 0; and the median time of 100 runs, in milliseconds."""
        self.sql("SELECT 1")
        took = []
        for _ in range(100):
            began = time.perf_counter()
            self.db.execute(POLL_QUERY.format(now=int(time.time() * 1e6))).fetchall()
            took.append(time.perf_counter() - began)
        return 0, 1e3 * percentile(took, 0.5)

    def vacuum(self):
        return {}


def quoted(table):
    return '"{}".{}'.format(*table.split("."))


# --- the data set


class Dataset:
    """Clones the orders of a store many times."""

    def __init__(self, store, orders, days):
        self.store, self.orders = store, orders
        self.users = max(20, orders // 20)
        self.end = int(time.time() * 1e6)
        self.start = self.end - days * DAY
        self.step = (self.end - self.start) // orders
        self.events_from = self.end - EVENT_DAYS * DAY

    def order_id(self, n):
        return uuid_text(uuid7((self.start + n * self.step) // 1000, f"order{n}"))

    def user_id(self, user):
        return uuid_text(uuid7(self.start // 1000, f"user{user}"))

    def email(self, user):
        return f"growth-{user}@example.com"

    def prepare(self):
        sql = self.store.sql
        wanted = "state = 'FULFILLMENT_STARTED' AND i <= 18 OR state IN ('CANCELLED', 'PAYMENT_FAILED') AND i = 1"
        sql("CREATE TABLE growth.template AS SELECT row_number() OVER (ORDER BY state, order_id) - 1 AS k, order_id, create_time AS origin FROM "
            f'(SELECT *, row_number() OVER (PARTITION BY state ORDER BY order_id) AS i FROM "order".orders) AS x WHERE {wanted}')
        check(int(sql("SELECT count(*) FROM growth.template")[0][0]) == TEMPLATES, "there are orders of each kind to clone")
        for table in TABLES:
            name = table.split(".")[1]
            key = "x.charge_key = 'order-' || uuid_text(t.order_id) || '-charge'" if name in ("charge", "refund") else "x.order_id = t.order_id"
            sql(f"CREATE TABLE growth.{name} AS SELECT t.k, t.origin, x.* FROM {quoted(table)} AS x JOIN growth.template AS t ON {key}")

    def chunk(self, first, last, time_of):
        """The new orders: one in a hundred is the first customer's, the others are spread over all."""
        numbers = (f"SELECT n FROM generate_series(CAST({first} AS BIGINT), {last}) AS n" if isinstance(self.store, PostgresStore) else
                   f"WITH RECURSIVE r(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM r WHERE n < {last}) SELECT n FROM r")
        user = f"CASE WHEN (n / {TEMPLATES}) % 100 = 7 THEN 0 ELSE 1 + n * 7919 % {self.users - 1} END"
        return ("DROP TABLE IF EXISTS growth.chunk; CREATE UNLOGGED TABLE growth.chunk AS SELECT n, n % {k} AS k, t, "
                "uuid7(t / 1000, 'order' || n) AS order_id, uuid7({start} / 1000, 'user' || ({user})) AS user_id "
                "FROM (SELECT n, {time} AS t FROM ({numbers}) AS a) AS b").format(
                    k=TEMPLATES, start=f"CAST({self.start} AS BIGINT)", user=user, time=time_of, numbers=numbers)

    def clone(self, table, where="", changed=None):
        def value(column):
            if column in (changed or {}):
                return changed[column]
            if (table, column) == ("payment.payment", "charge_id"):
                return f"CASE WHEN s.charge_id IS NOT NULL THEN uuid_text({CLONED[column]}) END"
            if column in CLONED:
                return CLONED[column]
            is_time = column == "time" or column.endswith("_time")
            return f"s.{column} + c.t - s.origin" if is_time else f"s.{column}"

        columns = self.store.columns(table)
        return (f"INSERT INTO {quoted(table)} ({', '.join(columns)}) SELECT {', '.join(map(value, columns))} "
                f"FROM growth.chunk AS c JOIN growth.{table.split('.')[1]} AS s ON s.k = c.k {f'WHERE {where}' if where else ''} ORDER BY c.n")

    def insert(self, email):
        self.prepare()
        recent = {"data.trace_event": f"c.t >= {self.events_from}"}
        statements = [self.clone(table, recent.get(table, "")) for table in TABLES]
        for first in range(0, self.orders, CHUNK):
            last = min(first + CHUNK, self.orders) - 1
            self.store.sql("; ".join([self.chunk(first, last, f"{self.start} + n * {self.step}"), *statements]))
        account = {"user_id": f"uuid7(CAST({self.start} AS BIGINT) / 1000, 'user' || c.n)", "email": "'growth-' || c.n || '@example.com'",
                   "request_id": "uuid7(c.t / 1000, 'account' || c.n)"}
        self.store.sql("CREATE TABLE growth.account AS SELECT 0 AS k, c.t AS origin, x.* FROM growth.chunk AS c, \"user\".account AS x "
                       f"WHERE x.email = '{email}' AND c.n = {self.orders - 1}")
        self.store.sql("; ".join([
            self.chunk(0, self.users - 1, f"{self.start} + n * 0"), "UPDATE growth.chunk SET k = 0", self.clone("user.account", changed=account)]))
        self.store.sql("CREATE TABLE growth.sums AS SELECT sku, CAST(sum(quantity) AS BIGINT) AS units FROM \"order\".order_line "
                       "WHERE state = 'ALLOCATED' GROUP BY sku")
        self.store.sql("UPDATE \"order\".stock SET on_hand = on_hand + 1000000000, reserved = (SELECT units FROM growth.sums WHERE sums.sku = stock.sku) "
                       "WHERE sku IN (SELECT sku FROM growth.sums)")

    def due(self, first, count):
        """Inserts orders that are due."""
        when = int(time.time() * 1e6)
        held = "(SELECT sum(s.quantity) FROM growth.order_line AS s JOIN growth.chunk AS c ON c.k = s.k WHERE s.sku = stock.sku)"
        self.store.sql("; ".join([
            self.chunk(first, first + count - 1, f"{when} + n * 0"), "UPDATE growth.chunk SET k = 5",
            *(self.clone(table, ONLY_CREATED.get(table, ""), changed) for table, changed in DUE.items()),
            f'UPDATE "order".stock SET reserved = reserved + COALESCE({held}, 0)']))
