//! The settings of the Data Service.

use std::convert::Infallible;
use std::time::Duration;

use chassis::settings::{count, duration, quota};
use chassis::{Settings, UserPeer};
use kernel::Secret;
use mesh::Quota;

/// The Data Service's settings.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// The settings common to all services.
    #[command(flatten)]
    pub common: Settings,
    /// The User Service, whose keys verify access tokens.
    #[command(flatten)]
    pub user: UserPeer,
    /// How long trace events are kept, on PostgreSQL up to a day longer, because whole days are dropped: ms, s, m, h or d
    #[arg(long, env = "ORDERMESH_DATA_EVENT_RETENTION", default_value = "7d", value_parser = duration, value_name = "DURATION")]
    pub event_retention: Duration,
    /// NATS servers to whose stream every stored trace event is published: nats://HOST:PORT, with TLS tls://HOST:PORT, with a login nats://USER:PASSWORD@HOST:PORT; several are separated by commas; off when not set
    #[arg(long, env = "ORDERMESH_DATA_EVENT_SINK", hide_env_values = true, value_parser = secret, value_name = "URL")]
    pub event_sink: Option<Secret<String>>,
    /// Maximum WatchTraceEvents streams of this instance
    #[arg(long, env = "ORDERMESH_DATA_MAX_FOLLOWERS", default_value_t = 64, value_parser = count, value_name = "COUNT")]
    pub max_followers: usize,
    /// Rate limit per address and instance for listing and searching the catalogue, for example 20/s, 100/m [default: unlimited]
    #[arg(long, env = "ORDERMESH_DATA_SEARCH_QUOTA", value_parser = quota, value_name = "COUNT/UNIT")]
    pub search_quota: Option<Quota>,
    /// Products for an empty catalogue: the samples of the first local start.
    #[arg(skip)]
    pub seed_products: Vec<SeedProduct>,
}

/// Never fails: an error would quote the value. It is checked when the service starts.
#[expect(clippy::unnecessary_wraps, reason = "clap's signature")]
fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

/// A product for an empty catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeedProduct {
    /// 1 to 64 of A-Z, 0-9 and "-".
    pub sku: String,
    /// 1 to 200 characters.
    pub name: String,
    /// Up to 2000 characters.
    pub description: String,
    /// ISO 4217.
    pub currency: String,
    /// The price in the currency's minor unit.
    pub minor_units: i64,
}
