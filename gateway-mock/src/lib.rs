//! A mock of an external payment gateway with a durable ledger and fault injection.
//!
//! Reliable where the platform depends on it: one row per charge key (a charge or a tombstone, whichever commits
//! first), idempotent replay of stored responses, only definite ones stored. Independent of the platform: no orders,
//! no users, no access tokens; its merchants authenticate with an API key. Start reading at [`charge`].
//!
//! # Layout
//! - [`run`]: start-up; `settings`: flags and environment, in groups that it shares with the services
//! - [`charge`]: the effect of a token, and of a call on the ledger
//! - [`fault`]: fault injection, by token and by settings (with the table of tokens)
//! - `service`, `convert`: the calls (decode, domain, encode) and every check of a field
//! - `store`, `entity`, `migration`: the ledger
//! - [`error`]: why a call is rejected

#![expect(missing_docs, reason = "no other project depends on this crate: names say what there is to say")]

pub mod charge;
mod convert;
mod entity;
pub mod error;
pub mod fault;
mod migration;
mod service;
mod settings;
mod store;

use std::sync::Arc;
use std::time::Duration;

use contracts::gateway::v1::payment_gateway_service_server::{PaymentGatewayServiceServer, SERVICE_NAME};
use kernel::{SystemClock, SystemIds};
use mesh::tls::Identity;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::charge::Gateway;
pub use crate::error::Error;
use crate::error::SERVICE;
use crate::fault::Faults;
use crate::service::GatewayHandlers;
pub use crate::settings::Config;
use crate::store::Store;

/// How often the certificate is checked for renewal.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// Serves until shutdown is requested, then drains. Ready once the ledger's schema is up to date.
///
/// # Errors
/// No API key, a ledger that cannot be opened or migrated, a listener that fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), chassis::Error> {
    let api_key = config.api_key()?;
    let identity = config.identity()?;
    if let Some(identity) = identity.clone() {
        tokio::spawn(identity.follow(CERTIFICATE_INTERVAL, shutdown.clone()));
    }
    // Dropped on every return: the admin listener stops with the server, not before its drain is complete.
    let stop_admin = CancellationToken::new();
    let _stop_admin = stop_admin.clone().drop_guard();
    let (ready, readiness) = watch::channel(false);
    if let Some(admin) = admin {
        tokio::spawn(mesh::serve_admin(admin, readiness.clone(), watch::channel(true).1, stop_admin));
    }

    let opening = shutdown.run_until_cancelled(config.open_ledger()).await.ok_or(chassis::Error::Stopped)?;
    let ledger = opening.map_err(|source| chassis::Error::Database { service: SERVICE, source })?;
    let gateway =
        Gateway::new(Store::new(ledger), Faults::new(config.faults), Arc::new(SystemClock), Arc::new(SystemIds));
    let authorizer = mesh::Authorizer::new(contracts::POLICIES);
    let server = mesh::ServerConfig {
        tls: identity.as_ref().map(Identity::server),
        descriptors: &[contracts::DESCRIPTORS],
        services: vec![SERVICE_NAME],
        trust_client_trace_context: config.telemetry.trust_client_trace_context,
        ..config.server.configure(mesh::ServerConfig::new(SERVICE, contracts::POLICIES, authorizer))
    };
    let routes = Routes::new(PaymentGatewayServiceServer::new(GatewayHandlers::new(gateway, api_key)));
    ready.send_replace(true);
    mesh::server(server, routes).serve(listener, readiness, shutdown).await.map_err(chassis::Error::Serve)
}
