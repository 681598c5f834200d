//! The schema's migrations. They are additive (tables, columns, indexes), so that an instance of the previous release
//! still runs. An index is dropped once another one serves its queries.

use storage::Migration;

/// The migrations, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "create product",
        statements: &["CREATE TABLE product (sku TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL, \
             currency_code TEXT NOT NULL, minor_units BIGINT NOT NULL, version BIGINT NOT NULL, \
             update_time BIGINT NOT NULL, search_text TEXT NOT NULL)"],
        postgres: &[],
    },
    Migration {
        version: 2,
        name: "create delivery_zone",
        statements: &[CREATE_DELIVERY_ZONE, FILL_DELIVERY_ZONE],
        postgres: &[],
    },
    Migration {
        version: 3,
        name: "create trace_event",
        statements: &[
            "CREATE TABLE trace_event (event_id UUID PRIMARY KEY, event_type TEXT NOT NULL, status TEXT NOT NULL, \
             service TEXT NOT NULL, instance TEXT NOT NULL, operation TEXT NOT NULL, trace_id TEXT NOT NULL, \
             span_id TEXT NOT NULL, start_time BIGINT NOT NULL, duration_micros BIGINT NOT NULL, order_id UUID, \
             user_id UUID, error_type TEXT, error_reason TEXT, error_message TEXT, attributes TEXT NOT NULL, \
             suppressed_count INTEGER NOT NULL)",
            "CREATE INDEX trace_event_by_time ON trace_event (start_time, event_id)",
            "CREATE INDEX trace_event_by_type ON trace_event (event_type, start_time)",
            // Many events have no order or user: partial indexes skip them.
            "CREATE INDEX trace_event_by_order ON trace_event (order_id, start_time) WHERE order_id IS NOT NULL",
            "CREATE INDEX trace_event_by_user ON trace_event (user_id, start_time) WHERE user_id IS NOT NULL",
            "CREATE INDEX trace_event_by_trace ON trace_event (trace_id)",
        ],
        postgres: &[],
    },
    Migration {
        version: 4,
        name: "list trace_event by id, follow it",
        statements: &[
            // Ids are UUIDv7, made with the event: the primary key serves time windows. The index may exist already,
            // from CREATE INDEX CONCURRENTLY: see the runbook. Else, on PostgreSQL, appends wait while it is built. From
            // the DROP INDEX to the commit reads wait too.
            "CREATE INDEX IF NOT EXISTS trace_event_by_type_id ON trace_event (event_type, event_id)",
            "DROP INDEX trace_event_by_time",
            "DROP INDEX trace_event_by_type",
        ],
        postgres: &[
            // The id of the transaction that inserted the row: WatchTraceEvents streams read events in its order. (On
            // SQLite they read them in the order of rowids.) The default is set in its own statement: as part of ADD
            // COLUMN it would give all old rows the id of this transaction. It also fills the column of rows that an
            // instance of the previous release inserts.
            "ALTER TABLE trace_event ADD COLUMN ingest xid8",
            "ALTER TABLE trace_event ALTER COLUMN ingest SET DEFAULT pg_current_xact_id()",
            "CREATE INDEX trace_event_by_ingest ON trace_event (ingest, event_id) WHERE ingest IS NOT NULL",
        ],
    },
    Migration {
        version: 6,
        name: "create event_sink",
        statements: &[
            // A row for each sink, at the position before all events.
            "CREATE TABLE event_sink (name TEXT PRIMARY KEY, position TEXT NOT NULL, lease_owner TEXT, lease_until BIGINT NOT NULL)",
            "INSERT INTO event_sink (name, position, lease_until) VALUES ('nats', '0 00000000-0000-0000-0000-000000000000', 0)",
            "CREATE TABLE event_sink_refused (event_id UUID PRIMARY KEY, refusal TEXT NOT NULL, create_time BIGINT NOT NULL)",
        ],
        postgres: &[],
    },
];

const CREATE_DELIVERY_ZONE: &str = "CREATE TABLE delivery_zone (country_code TEXT NOT NULL, postal_prefix TEXT NOT NULL, \
     zone TEXT NOT NULL, transit_business_days INTEGER NOT NULL, cutoff_hour_utc INTEGER NOT NULL, \
     PRIMARY KEY (country_code, postal_prefix))";

/// The prefix '' is the country's default. Prefixes are written without blanks and dashes, in upper case.
#[rustfmt::skip]
const FILL_DELIVERY_ZONE: &str = "INSERT INTO delivery_zone \
    (country_code, postal_prefix, zone, transit_business_days, cutoff_hour_utc) VALUES \
    ('DE', '',      'DE',            1, 15), \
    ('DE', '18565', 'DE-ISLANDS',    3, 12), \
    ('DE', '25849', 'DE-ISLANDS',    3, 12), \
    ('DE', '25859', 'DE-ISLANDS',    3, 12), \
    ('DE', '25863', 'DE-ISLANDS',    3, 12), \
    ('DE', '25869', 'DE-ISLANDS',    3, 12), \
    ('DE', '25938', 'DE-ISLANDS',    3, 12), \
    ('DE', '25946', 'DE-ISLANDS',    3, 12), \
    ('DE', '25980', 'DE-ISLANDS',    3, 12), \
    ('DE', '25992', 'DE-ISLANDS',    3, 12), \
    ('DE', '25996', 'DE-ISLANDS',    3, 12), \
    ('DE', '25997', 'DE-ISLANDS',    3, 12), \
    ('DE', '25999', 'DE-ISLANDS',    3, 12), \
    ('DE', '26465', 'DE-ISLANDS',    3, 12), \
    ('DE', '26474', 'DE-ISLANDS',    3, 12), \
    ('DE', '26486', 'DE-ISLANDS',    3, 12), \
    ('DE', '26548', 'DE-ISLANDS',    3, 12), \
    ('DE', '26571', 'DE-ISLANDS',    3, 12), \
    ('DE', '26579', 'DE-ISLANDS',    3, 12), \
    ('DE', '26757', 'DE-ISLANDS',    3, 12), \
    ('DE', '27498', 'DE-ISLANDS',    3, 12), \
    ('AT', '',      'EU-NEAR',       2, 15), \
    ('BE', '',      'EU-NEAR',       2, 15), \
    ('CZ', '',      'EU-NEAR',       2, 15), \
    ('DK', '',      'EU-NEAR',       2, 15), \
    ('LU', '',      'EU-NEAR',       2, 15), \
    ('NL', '',      'EU-NEAR',       2, 15), \
    ('PL', '',      'EU-NEAR',       2, 15), \
    ('FR', '',      'EU-NEAR',       2, 15), \
    ('FR', '20',    'FR-CORSICA',    4, 12), \
    ('FR', '97',    'FR-OVERSEAS',   8, 12), \
    ('FR', '98',    'FR-OVERSEAS',   8, 12), \
    ('CH', '',      'EFTA',          3, 14), \
    ('LI', '',      'EFTA',          3, 14), \
    ('NO', '',      'EFTA',          4, 14), \
    ('NO', '917',   'NO-SVALBARD',   8, 12), \
    ('BG', '',      'EU-FAR',        5, 14), \
    ('EE', '',      'EU-FAR',        4, 14), \
    ('ES', '',      'EU-FAR',        4, 14), \
    ('ES', '07',    'ES-BALEARICS',  5, 12), \
    ('ES', '35',    'ES-CANARIES',   7, 12), \
    ('ES', '38',    'ES-CANARIES',   7, 12), \
    ('ES', '51',    'ES-AFRICA',     7, 12), \
    ('ES', '52',    'ES-AFRICA',     7, 12), \
    ('FI', '',      'EU-FAR',        4, 14), \
    ('FI', '22',    'FI-ALAND',      6, 12), \
    ('GR', '',      'EU-FAR',        5, 14), \
    ('HR', '',      'EU-FAR',        4, 14), \
    ('HU', '',      'EU-FAR',        3, 14), \
    ('IE', '',      'EU-FAR',        4, 14), \
    ('IT', '',      'EU-FAR',        3, 14), \
    ('IT', '07',    'IT-ISLANDS',    5, 12), \
    ('IT', '08',    'IT-ISLANDS',    5, 12), \
    ('IT', '09',    'IT-ISLANDS',    5, 12), \
    ('IT', '9',     'IT-ISLANDS',    5, 12), \
    ('LT', '',      'EU-FAR',        4, 14), \
    ('LV', '',      'EU-FAR',        4, 14), \
    ('PT', '',      'EU-FAR',        4, 14), \
    ('PT', '9',     'PT-ISLANDS',    7, 12), \
    ('RO', '',      'EU-FAR',        5, 14), \
    ('SE', '',      'EU-FAR',        3, 14), \
    ('SE', '98',    'SE-NORTH',      5, 12), \
    ('SI', '',      'EU-FAR',        3, 14), \
    ('SK', '',      'EU-FAR',        3, 14), \
    ('GB', '',      'GB',            4, 14), \
    ('GB', 'BT',    'GB-ISLANDS',    5, 12), \
    ('GB', 'GY',    'GB-ISLANDS',    6, 12), \
    ('GB', 'HS',    'GB-ISLANDS',    6, 12), \
    ('GB', 'IM',    'GB-ISLANDS',    6, 12), \
    ('GB', 'JE',    'GB-ISLANDS',    6, 12), \
    ('GB', 'KW15',  'GB-ISLANDS',    6, 12), \
    ('GB', 'KW16',  'GB-ISLANDS',    6, 12), \
    ('GB', 'KW17',  'GB-ISLANDS',    6, 12), \
    ('GB', 'ZE',    'GB-ISLANDS',    6, 12), \
    ('US', '',      'US',            6, 13), \
    ('US', '006',   'US-TERRITORIES', 9, 12), \
    ('US', '007',   'US-TERRITORIES', 9, 12), \
    ('US', '008',   'US-TERRITORIES', 9, 12), \
    ('US', '009',   'US-TERRITORIES', 9, 12), \
    ('US', '967',   'US-HAWAII',     8, 12), \
    ('US', '968',   'US-HAWAII',     8, 12), \
    ('US', '969',   'US-TERRITORIES', 11, 12), \
    ('US', '995',   'US-ALASKA',     8, 12), \
    ('US', '996',   'US-ALASKA',     8, 12), \
    ('US', '997',   'US-ALASKA',     8, 12), \
    ('US', '998',   'US-ALASKA',     8, 12), \
    ('US', '999',   'US-ALASKA',     8, 12), \
    ('CA', '',      'CA',            7, 13), \
    ('CA', 'X',     'CA-NORTH',     10, 12), \
    ('CA', 'Y',     'CA-NORTH',     10, 12), \
    ('JP', '',      'JP',            7, 13), \
    ('JP', '90',    'JP-OKINAWA',    9, 12), \
    ('AU', '',      'AU',            9, 12), \
    ('AU', '08',    'AU-FAR',       11, 12), \
    ('AU', '6',     'AU-FAR',       11, 12), \
    ('AU', '7',     'AU-FAR',       10, 12), \
    ('NZ', '',      'NZ',           10, 12), \
    ('KR', '',      'KR',            7, 13), \
    ('SG', '',      'SG',            6, 13)";
